"""Recorded time never goes back, wall time is what the clock frames say."""

from appliance.session.timeline import STEP_NS, TICK_NS, Timeline

UNIX = 1_700_000_000_000_000_000


def test_recorded_time_moves_forward_only_and_ticks() -> None:
    timeline = Timeline()
    assert timeline.advance(5)
    assert not timeline.advance(3)
    assert timeline.now == 5
    assert not timeline.advance(4 + TICK_NS)
    assert timeline.advance(5 + TICK_NS)


def test_the_wall_clock_may_be_set() -> None:
    timeline = Timeline()
    assert timeline.set_clock(1000, UNIX) == 0
    assert timeline.known
    timeline.advance(1000)
    assert timeline.wall_ns == UNIX
    assert timeline.set_clock(2000, UNIX + 1000 + STEP_NS - 1) is None
    assert timeline.set_clock(2000, UNIX + 1000 + STEP_NS) == STEP_NS
    assert timeline.wall_ns == UNIX + STEP_NS


def test_over_a_boot_recorded_time_goes_on_by_what_passed_on_the_wall() -> None:
    timeline = Timeline()
    timeline.set_clock(1000, UNIX)
    timeline.advance(1000)
    timeline.end_boot()
    assert not timeline.known
    timeline.set_clock(7, UNIX + 500)
    assert (timeline.base or 0) + 7 == 1500
    timeline.advance((timeline.base or 0) + 7)
    assert timeline.wall_ns == UNIX + 500
