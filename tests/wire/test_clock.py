"""Two clocks, one moment."""

import time

import pytest

from appliance.wire import clock


def test_both_clocks_are_read_as_one_moment() -> None:
    before = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    now = clock.now("boot")
    after = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert before <= (now.unix, now.boottime) <= after
    assert before[1] <= now.boottime <= after[1]
    assert now.boot == "boot"


def test_a_reading_that_was_interrupted_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    boottimes = iter([0, 5_000_000, 6_000_000, 6_000_100])  # preempted for 5 ms, then not
    monkeypatch.setattr(time, "clock_gettime_ns", lambda clock: next(boottimes))
    monkeypatch.setattr(time, "time_ns", iter([1_000_000, 7_000_000]).__next__)
    now = clock.now("boot")
    assert (now.unix, now.boottime) == (7_000_000, 6_000_050)


def test_a_boot_has_a_name() -> None:
    assert clock.boot_id() == clock.boot_id()
    assert len(clock.boot_id()) == 36
