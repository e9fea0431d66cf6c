from appliance.model import Coverage
from appliance.session.coverage import Kernel, Side, judge, missing, statement

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
