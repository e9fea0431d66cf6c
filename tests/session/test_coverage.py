from typing import Any

import pytest

from appliance.model import Coverage
from appliance.session.coverage import Kernel, Leg, Side, judge, judge_relayed, missing, statement, statement_relayed

WHOLE = Side(packets=5, carried=120, recorded=100, acknowledged=100, missing=0, begun=True)
K = Kernel(5, 120, 0, 0)


def test_complete() -> None:
    assert judge((WHOLE, WHOLE), None, False, False) is Coverage.COMPLETE
    assert judge((WHOLE, WHOLE), (K, K), False, False) is Coverage.COMPLETE


def test_precedence() -> None:
    silent = WHOLE._replace(packets=0, begun=False)
    gap = WHOLE._replace(missing=3)
    assert judge((WHOLE, silent), None, True, False) is Coverage.ONE_SIDED
    assert judge((silent, gap), None, True, False) is Coverage.ONE_SIDED
    assert judge((WHOLE, gap), None, True, False) is Coverage.PARTIAL
    assert judge((WHOLE, WHOLE), None, True, False) is Coverage.OPAQUE


def test_acknowledged_but_not_recorded_is_partial() -> None:
    assert judge((WHOLE._replace(acknowledged=101), WHOLE), None, False, False) is Coverage.PARTIAL
    assert missing(WHOLE._replace(acknowledged=130)) == 30
    assert missing(WHOLE._replace(acknowledged=None, missing=2)) == 2


def test_the_kernel_proves_what_was_not_seen_from_the_start() -> None:
    midstream = WHOLE._replace(begun=False)
    assert judge((midstream, WHOLE), None, False, False) is Coverage.PARTIAL
    assert judge((midstream, WHOLE), (K, K), False, False) is Coverage.COMPLETE
    assert judge((WHOLE, WHOLE), None, False, True) is Coverage.PARTIAL
    assert judge((WHOLE, WHOLE), (K, K), False, True) is Coverage.COMPLETE


def test_the_kernel_forwarded_more_than_was_recorded() -> None:
    assert judge((WHOLE, WHOLE), (K, K._replace(packets=6)), False, False) is Coverage.PARTIAL
    assert judge((WHOLE, WHOLE), (K._replace(bytes=121), K), False, False) is Coverage.PARTIAL


def test_statement() -> None:
    said = statement((WHOLE, WHOLE._replace(acknowledged=107, recorded=104)), (K, K._replace(refused=2)))
    assert said["recorded"] == {"client": 100, "server": 104}
    assert said["acknowledged"] == {"client": 100, "server": 107}
    assert said["missing"] == {"client": 0, "server": 3}
    assert said["forwarded"] == {"client": 120, "server": 120}
    assert said["refused"] == {"client": 0, "server": 2}
    assert "forwarded" not in statement((WHOLE, WHOLE), None)


def test_the_kernel_proves_nothing_of_what_passed_it_by() -> None:
    assert judge((WHOLE, WHOLE), (K, K), False, False, True) is Coverage.PARTIAL
    assert judge((WHOLE, WHOLE._replace(packets=0)), (K, K), False, False, True) is Coverage.ONE_SIDED


# -- relayed ---------------------------------------------------------------------------------------------------------

LEG = Leg(sent=100, acked=50, packets=5, received=100, delivered=50)
PLAIN = Side(packets=5, carried=100, recorded=100, acknowledged=None, missing=0, begun=True)


def test_a_relayed_session_is_complete_if_the_relay_took_all_that_came_in() -> None:
    both = (PLAIN, PLAIN)
    assert judge_relayed(both, (LEG, LEG), False, False) is Coverage.COMPLETE
    assert judge_relayed(both, (LEG, LEG), True, False) is Coverage.OPAQUE
    assert judge_relayed(both, (LEG, None), False, False) is Coverage.COMPLETE
    assert judge_relayed(both, (LEG, LEG._replace(received=99)), False, False) is Coverage.PARTIAL
    assert judge_relayed(both, (LEG._replace(sent=101), LEG), True, False) is Coverage.PARTIAL
    assert judge_relayed(both, (LEG._replace(received=None), LEG), False, False) is Coverage.PARTIAL
    assert judge_relayed(both, (LEG._replace(received=101), LEG), False, False) is Coverage.COMPLETE
    assert judge_relayed(both, (LEG._replace(sent=None), LEG), False, False) is Coverage.COMPLETE


def test_a_relayed_session_without_an_end_or_with_a_hole_is_partial() -> None:
    legs = (LEG, LEG)
    assert judge_relayed((PLAIN, PLAIN), None, False, False) is Coverage.PARTIAL
    assert judge_relayed((PLAIN, PLAIN), legs, False, True) is Coverage.PARTIAL
    assert judge_relayed((PLAIN, PLAIN._replace(missing=1)), legs, False, False) is Coverage.PARTIAL
    assert judge_relayed((PLAIN._replace(begun=False), PLAIN), legs, False, False) is Coverage.PARTIAL


def test_a_direction_in_which_nobody_spoke_costs_a_relayed_session_nothing() -> None:
    silent = PLAIN._replace(packets=0, carried=0, recorded=0)
    assert judge_relayed((PLAIN, silent), (LEG, None), False, False) is Coverage.COMPLETE


def test_the_statement_joins_the_legs_and_the_plaintext() -> None:
    found = statement_relayed((PLAIN, PLAIN._replace(recorded=7, missing=2)), (LEG, None))
    assert found == {
        "recorded": {"client": 100, "server": 7},
        "missing": {"client": 0, "server": 2},
        "agent": {
            "kernel": {"sent": 100, "acked": 50, "packets": 5},
            "socket": {"received": 100, "acked": 50},
        },
        "upstream": None,
    }
    assert set(statement_relayed((PLAIN, PLAIN), None)) == {"recorded", "missing"}


@pytest.mark.parametrize(
    ("said", "leg"),
    [
        (None, None),
        ("x", None),
        ({}, Leg(None, None, None, None, None)),
        ({"kernel": {"sent": 5}, "socket": None}, Leg(5, None, None, None, None)),
        ({"kernel": {"sent": "5"}, "socket": {"received": 7, "acked": 8}}, Leg(None, None, None, 7, 8)),
    ],
)
def test_what_is_said_of_a_leg(said: Any, leg: Leg | None) -> None:
    assert Leg.parse(said) == leg
