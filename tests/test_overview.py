"""Rates, backlog and lag from two looks at what processes published."""

import os
from pathlib import Path
from typing import Any

import pytest

from appliance.config import Settings
from appliance.overview import Look, backlog_seconds, lag_seconds, look, overview, rate
from appliance.status import Status

NOW = 1_790_000_000.0
DEAD = 2**22 + 1


def said(name: str, values: dict[str, Any], *, at: float = NOW, now: float = NOW, pid: int = 0) -> dict[str, Status]:
    return {name: Status(name, pid or os.getpid(), now - at, values, at)}


def ns(seconds: float) -> int:
    return int(seconds * 1e9)


def test_rates_are_of_the_processes_own_times() -> None:
    before = Look(NOW - 9, said("wire", {"recorded": {"packets": 100, "bytes": 1000}}, at=NOW - 10))
    after = Look(NOW, said("wire", {"recorded": {"packets": 300, "bytes": 51000}}, at=NOW - 2, now=NOW))
    assert rate(before, after, "wire", "recorded", "packets") == 25
    found = overview(before, after, embedded=True)["recorded"]
    assert found == {"packets": 300, "bytes": 51000, "packets_per_second": 25.0, "bytes_per_second": 6250.0}


@pytest.mark.parametrize(
    "before",
    [
        None,
        Look(NOW, said("wire", {"recorded": {"packets": 7}})),
        Look(NOW, {}),
        Look(NOW - 1, said("wire", {"recorded": {"packets": 8}}, at=NOW - 1)),
    ],
    ids=["no look before", "the same word", "silent before", "counted from anew"],
)
def test_rates_that_nobody_knows(before: Look | None) -> None:
    assert rate(before, Look(NOW, said("wire", {"recorded": {"packets": 7}})), "wire", "recorded", "packets") is None


def test_no_refusals_are_known_of_a_wire_process_that_says_nothing() -> None:
    silent = overview(None, Look(NOW, said("record", {}), ring=(1 << 24, 0)), embedded=True)
    assert (silent["refusals"], silent["others"], silent["ring"]["fill"]) == (None, None, 0.0)
    none = overview(None, Look(NOW, said("wire", {"refusals": {}})), embedded=True)
    assert (none["refusals"], none["others"]) == ({}, None)


def test_refusals_have_rates_too() -> None:
    before = Look(NOW - 2, said("wire", {"refusals": {"no-lease": 4}}, at=NOW - 2))
    after = Look(NOW, said("wire", {"refusals": {"no-lease": 4, "quic": 6}}))
    assert overview(before, after, embedded=True)["refusals"] == {
        "no-lease": {"count": 4, "per_second": 0.0},
        "quic": {"count": 6, "per_second": 3.0},
    }


def test_the_backlog_in_time_is_from_the_last_frame_read_to_the_newest() -> None:
    wire = said("wire", {}, at=NOW - 1)
    read = said("record", {"read_ns": ns(NOW - 31), "backlog_bytes": 5000, "lag_seconds": 31.5})
    assert backlog_seconds(wire | read, NOW) == pytest.approx(30)
    assert lag_seconds(wire | read, NOW) == 31.5
    done = said("record", {"read_ns": ns(NOW - 31), "backlog_bytes": 0, "lag_seconds": 0.0})
    assert backlog_seconds(wire | done, NOW) == 0
    assert backlog_seconds({}, NOW) is None
    assert lag_seconds({}, NOW) is None


def test_backlog_and_lag_grow_while_the_recorder_is_dead() -> None:
    wire = said("wire", {})
    values = {"read_ns": ns(NOW - 40), "unstored_ns": ns(NOW - 41), "backlog_bytes": 0, "lag_seconds": 1.0}
    dead = said("record", values, at=NOW - 40, pid=DEAD)
    assert backlog_seconds(wire | dead, NOW) == pytest.approx(40)
    assert lag_seconds(wire | dead, NOW) == pytest.approx(41)


def test_the_backlog_does_not_grow_when_nothing_is_written() -> None:
    wire = said("wire", {}, at=NOW - 100, pid=DEAD)
    behind = said("record", {"read_ns": ns(NOW - 103), "backlog_bytes": 9})
    assert backlog_seconds(wire | behind, NOW) == pytest.approx(3)


def test_healthy_only_when_every_process_is() -> None:
    everything = said("wire", {}) | said("record", {}) | said("store", {}) | said("api", {})
    assert overview(None, Look(NOW, everything), embedded=True)["healthy"]
    found = overview(None, Look(NOW, everything | said("api", {}, pid=DEAD)), embedded=True)
    assert not found["healthy"]
    assert found["processes"]["api"]["state"] == "silent"
    del everything["store"]
    assert overview(None, Look(NOW, everything), embedded=False)["healthy"]
    assert not overview(None, Look(NOW, everything), embedded=True)["healthy"]


def test_damaged_parts_of_the_journal_are_counted(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path / "data")
    kept = settings.data / "journal" / "wire" / "damaged"
    assert overview(None, look(settings), embedded=True)["journal"]["damaged_parts"] == 0
    kept.mkdir(parents=True)
    (kept / "1-60-100").write_bytes(bytes(200))
    found = overview(None, look(settings), embedded=True)["journal"]
    assert (found["damaged_parts"], found["damaged_bytes"]) == (1, 200)
    assert overview(None, Look(NOW, {}), embedded=True)["journal"]["damaged_parts"] is None


def test_nothing_known_is_null_and_not_zero() -> None:
    found = overview(None, Look(NOW, {}), embedded=True)
    assert found["ring"] == {"bytes": None, "fill_bytes": None, "fill": None}
    assert (found["leases"], found["journal"]["backlog_seconds"], found["refusals"]) == (None, None, None)
