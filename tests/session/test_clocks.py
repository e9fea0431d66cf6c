"""Reboots and wall clocks that are set: what is on record of them, and the times of sessions that were open."""

import json
from collections.abc import Sequence

import pytest

from appliance.journal import Frame, FrameKind
from appliance.model import Coverage, Ending, EventRow
from tests.session.test_assembler import DAY, clock, hello, numbered, opened
from tests.session.traffic import MS, PSH, SECOND, T0, Peer, Recorded, feed, frame, span

HOUR = 3600 * SECOND


def talk(peer: Peer, *steps: int) -> list[Frame]:
    """One byte a second by the client, from 1 s on; the wall clock of second n is `steps[n - 1]` off."""
    frames: list[Frame] = []
    for number, off in enumerate(steps, 1):
        at = number * SECOND
        frames.append(clock(T0 + at, T0 + at + off))
        frames.append(span(0, peer.packet(0, PSH, 4 + number, b"x", acked=6, time=at + MS)))
    return frames


def events(rows: Recorded, kind: str) -> list[EventRow]:
    return [row for row in rows.events if row.kind == kind]


@pytest.mark.parametrize("step", [HOUR, -HOUR, 50 * MS, -50 * MS])
def test_a_clock_that_was_set_is_on_record_with_the_size(step: int) -> None:
    found = Recorded(feed(numbered(opened(), clock(T0, T0), span(0, *hello(Peer())), *talk(Peer(), 0, step, step))))
    (event,) = events(found, "clock-stepped")
    assert event.attrs == {
        "step_ns": step, "from_ns": T0 + 2 * SECOND, "to_ns": T0 + 2 * SECOND + step,
    }  # fmt: skip
    assert ("back" in event.text) is (step < 0)
    positions = [row.position for row in found.events]
    assert positions == sorted(set(positions))


@pytest.mark.parametrize("drift", [900_000, -900_000])
def test_what_two_readings_of_the_clocks_differ_by_is_no_step(drift: int) -> None:
    found = Recorded(feed(numbered(opened(), clock(T0, T0), span(0, *hello(Peer())), *talk(Peer(), drift, 0, drift))))
    assert not events(found, "clock-stepped")


@pytest.mark.parametrize("steps", [(0, -HOUR, -HOUR, -HOUR), (0, HOUR, 0, 0), (-DAY, DAY, -HOUR, HOUR)])
def test_times_of_a_session_never_run_backwards(steps: Sequence[int]) -> None:
    ended = clock(T0 + 2 * HOUR, T0 + 2 * HOUR + steps[-1])
    found = Recorded(feed(numbered(opened(), clock(T0, T0), span(0, *hello(Peer())), *talk(Peer(), *steps), ended)))
    chunks = [chunk for chunk in found.chunks() if chunk.direction == "client"]
    times = [chunk.ts_ns for chunk in chunks]
    assert times == sorted(times)
    assert b"".join(chunk.data for chunk in chunks) == b"hello" + b"x" * len(steps)
    assert found.session.started_ns <= times[0]
    assert found.session.ended_ns == times[-1]
    assert found.session.ending is Ending.IDLE


def test_back_and_the_seconds_between_stay_what_they_were() -> None:
    """A session that saw the clock set back counts on; one that begins afterwards has the new time."""
    later = Peer(client_port=7)
    found = Recorded(
        feed(
            numbered(
                opened(), clock(T0, T0), span(0, *hello(Peer())), *talk(Peer(), 0, -HOUR, -HOUR),
                span(0, *hello(later, 3 * SECOND + 2 * MS)), clock(T0 + 30 * SECOND, T0 + 30 * SECOND - HOUR),
            )
        )
    )  # fmt: skip
    first, second = found.sessions
    times = [chunk.ts_ns for chunk in found.chunks(first) if chunk.direction == "client"]
    assert times == [T0 + 3 * MS, *(T0 + n * SECOND + MS for n in (1, 2, 3))]
    assert second.started_ns == T0 + 3 * SECOND + 2 * MS - HOUR


def test_forward_is_followed() -> None:
    found = Recorded(
        feed(
            numbered(
                opened(), clock(T0, T0), span(0, *hello(Peer())), *talk(Peer(), 0, HOUR),
                clock(T0 + 30 * SECOND, T0 + 30 * SECOND + HOUR),
            )
        )
    )  # fmt: skip
    assert found.session.ended_ns == T0 + 2 * SECOND + MS + HOUR


def test_a_reboot_is_on_record_with_its_bounds_and_interrupts_what_was_open() -> None:
    said = {"node": "gw", "source": "wire", "ring": "r2", "boot": "b2", "position": 0}
    anew = Frame(0, FrameKind.OPEN, T0 + DAY, json.dumps(said).encode())
    machine_frames = numbered(
        opened(position=0), clock(T0, T0), span(0, *hello(Peer(flow=T0))), clock(T0 + SECOND, T0 + SECOND), anew,
        clock(5 * SECOND, T0 + DAY + MS),
        span(0, Peer(flow=9 * SECOND).packet(0, PSH, 5, b"more", acked=6, time=6 * SECOND - T0)),
        clock(60 * SECOND, T0 + DAY + 55 * SECOND), frame(0, FrameKind.EVENT),
    )  # fmt: skip
    found = Recorded(feed(machine_frames))
    (event,) = events(found, "rebooted")
    assert event.attrs == {
        "boot": "b2", "former_boot": "b1", "last_ns": T0 + SECOND, "first_ns": T0 + DAY, "ring": "r2", "position": 0,
        "former_ring": "r1", "former_position": 0,
    }  # fmt: skip
    assert event.ts_ns == T0 + DAY
    assert [row.kind for row in found.events].count("clock-stepped") == 0
    first, second = found.sessions
    assert (first.ending, first.coverage) == (Ending.INTERRUPTED, Coverage.PARTIAL)
    assert first.findings == ("ring-lost",)
    assert second.findings == ("midstream",)
    assert second.started_ns == T0 + DAY + SECOND + MS
    positions = [row.position for row in found.events]
    assert positions == sorted(set(positions))


def test_a_restart_of_the_process_alone_interrupts_nothing() -> None:
    found = Recorded(
        feed(numbered(opened(position=0), clock(T0, T0), span(0, *hello(Peer())), opened(position=0), *talk(Peer(), 0)))
    )
    assert found.session.ending is Ending.OPEN
    assert not events(found, "rebooted")
