"""Segments in any order, of any kind, over many connections at a time: the recording is what Linux read.

HYPOTHESIS_PROFILE=search looks for new ones as long as you like.
"""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.model import Ending
from tests.session.hostile.cases import Linux, run
from tests.session.hostile.judge import judge
from tests.session.hostile.rig import Rig
from tests.session.traffic import Recorded

FLOWS = 40
EXAMPLES = 10 if settings().derandomize else 500  # of FLOWS connections each
LETTERS = "abcdefghijklmnopqrstuvwxyz"
KINDS: list[dict[str, Any]] = [
    {},
    {"flags": "FA"},
    {"flags": "P"},
    {"flags": "R"},
    {"flags": "SA"},
    {"ack": 5000},
    {"ack": -7},
    {"tcp": {"checksum": 1}},
    {"stamp": -9},
    {"stamp": 9},
    {"do": "sync"},
]
WEIGHTS = [0] * 14 + [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10]  # mostly plain data
ENDINGS = {"open": Ending.IDLE, "eof": Ending.FIN, "reset": Ending.RST}


@st.composite
def steps(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Each segment has a letter of its own, so that one sees whose bytes are in the stream.

    None ends where another begins: whether Linux then joins the two, and so which copies it keeps later, depends on the
    memory that they lie in.
    """
    made = []
    for letter in LETTERS[: draw(st.integers(1, 10))]:
        kind = KINDS[draw(st.sampled_from(WEIGHTS))]
        fin = "F" in kind.get("flags", "")
        step = {"seq": 2 * draw(st.integers(0, 10)), "data": [letter, 2 * draw(st.integers(0, 6)) + (not fin)]}
        made.append(kind if "do" in kind else step | kind)
    return made


CASES = st.lists(
    st.fixed_dictionaries({"steps": steps()}, optional={"stamped": st.just(0x7000_0000)}),
    min_size=FLOWS,
    max_size=FLOWS,
)


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), deadline=None)
@given(CASES)
def test_the_recording_is_what_linux_read(rig: Rig, linux: Linux, cases: list[dict[str, Any]]) -> None:
    rig.begin()
    stamps = {"syn": "0101080a7000000000000000"}
    flows = run(rig, linux, {str(n): case | (stamps if "stamped" in case else {}) for n, case in enumerate(cases)})
    recorded = Recorded(rig.rows)
    for flow in flows:
        verdict = judge(flow, recorded)
        told = flow.case["steps"], flow.received, verdict.findings
        assert verdict.stream == flow.received, told
        assert verdict.session.ending is ENDINGS[flow.ending], told
