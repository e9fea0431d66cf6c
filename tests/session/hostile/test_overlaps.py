"""The overlap matrix of Shankar and Paxson, and Novak: a second segment in every position to a first one, both orders.

Each pair is sent twice: behind a hole that is filled last, and with the first of them in order.
"""

from typing import Any

import pytest

from appliance.model import Ending
from tests.session.hostile.cases import Linux, run
from tests.session.hostile.judge import Verdict, judge
from tests.session.hostile.rig import Rig
from tests.session.traffic import Recorded

OLD = (8, 16)
NEW = {
    "before": (2, 6),
    "touching the left": (2, 8),
    "over the left": (2, 12),
    "the left part": (8, 12),
    "inside": (10, 14),
    "the same": (8, 16),
    "the same and more": (8, 22),
    "the right part": (12, 16),
    "over the right": (12, 22),
    "touching the right": (16, 22),
    "behind": (18, 22),
    "covering": (2, 22),
    "covering from the left": (2, 16),
}


def segment(place: tuple[int, int], letter: str, shift: int) -> dict[str, Any]:
    return {"seq": place[0] - shift, "data": [letter, place[1] - place[0]]}


def cases() -> dict[str, dict[str, Any]]:
    made = {}
    for name, new in NEW.items():
        for order in ("first", "second"):
            pair = [(OLD, "o"), (new, "n")] if order == "first" else [(new, "n"), (OLD, "o")]
            for shift, where in ((0, "waiting"), (pair[0][0][0], "in order")):
                steps = [segment(place, letter, shift) for place, letter in pair]
                steps += [{"seq": at, "data": ["=", 3]} for at in range(0, 30, 3)]
                made[f"{name}, {order}, {where}"] = {"steps": steps}
    return made


CASES = cases()


@pytest.fixture(scope="module")
def verdicts(rig: Rig, linux: Linux) -> dict[str, Verdict]:
    rig.begin()
    flows = run(rig, linux, CASES)
    recorded = Recorded(rig.rows)
    return {flow.name: judge(flow, recorded) for flow in flows}


@pytest.mark.parametrize("name", CASES)
def test_of_two_copies_the_stream_has_the_receivers(name: str, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[name]
    assert len(verdict.flow.received) >= 30 - 8
    assert verdict.stream == verdict.flow.received
    assert verdict.session.ending is Ending.IDLE
    for step in CASES[name]["steps"][:2]:
        assert not verdict.unrecorded([step])


def test_every_conflict_is_a_finding(verdicts: dict[str, Verdict]) -> None:
    for name, verdict in verdicts.items():
        assert "overlap" in verdict.findings, name
