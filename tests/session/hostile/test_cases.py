"""Every case of tests/vectors/tcp: the recording is what a real Linux receiver read of the same packets.

All cases run at the same time, once; each is then a test of its own.
"""

import pytest

from appliance.model import Coverage, Ending
from tests.session.hostile.cases import Linux, load, run, text
from tests.session.hostile.judge import Verdict, judge
from tests.session.hostile.rig import Rig
from tests.session.traffic import Recorded

CASES = load()
ENDINGS = {"open": Ending.IDLE, "eof": Ending.FIN, "reset": Ending.RST}


@pytest.fixture(scope="module")
def verdicts(rig: Rig, linux: Linux) -> dict[str, Verdict]:
    rig.begin()
    flows = run(rig, linux, CASES)
    recorded = Recorded(rig.rows)
    return {flow.name: judge(flow, recorded) for flow in flows}


@pytest.mark.parametrize("name", CASES)
def test_recorded_as_read(name: str, verdicts: dict[str, Verdict]) -> None:
    """The bytes, the end, and that nothing of what was sent is lost."""
    case, verdict = CASES[name], verdicts[name]
    flow = verdict.flow
    wanted = case["received"]
    wanted = text(wanted) if isinstance(wanted, str) else b"".join(text(part) for part in wanted)
    assert flow.received == wanted, "this kernel reads the case in another way: judge the recording anew"
    assert verdict.stream == flow.received
    assert list(verdict.findings) == case["findings"]
    if flow.end is not None:
        assert flow.ending == case["ending"]
        assert verdict.session.ending is ENDINGS[flow.ending]
    uncompared = [text(octet) for octet in case.get("uncompared", [])]
    assert verdict.unrecorded(case["steps"]) == uncompared


def test_nothing_of_the_cases_is_hidden_as_incomplete(verdicts: dict[str, Verdict]) -> None:
    """What the receiver acknowledged was recorded; a hole that it never acknowledged shows as partial."""
    for name, verdict in verdicts.items():
        partial = verdict.session.coverage is not Coverage.COMPLETE
        assert partial == ("gap" in verdict.findings or not verdict.flow.replies), name
