"""A process that stood still says so: by the clock alone, and when it really was stopped."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from appliance.identity.leases import Now
from appliance.journal import FrameKind
from appliance.wire.standstill import Standstill
from tests.lab.wait import until
from tests.wire.net import Net, Wire
from tests.wire.test_daemon import connection, exchange, lease

S = 1_000_000_000


def test_only_a_long_pause_is_told_with_its_bounds() -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    def event(kind: str, text: str, now: Now, **attrs: Any) -> None:
        told.append((kind, attrs))

    made = Standstill(event, lambda: 77, 4096, Now(1000 * S, 10 * S, "boot"))
    made.turn(Now(1002 * S, 12 * S, "boot"))
    made.turn(Now(9000 * S, 12 * S + 1, "boot"))  # the wall clock was set: no time passed
    assert told == []
    made.turn(Now(9003 * S, 15 * S, "boot"), 3)  # drained when it went on, in the turn in which it had been stopped
    made.turn(Now(9003 * S, 15 * S, "boot"))
    bounds = {"from_ns": 9000 * S, "to_ns": 9003 * S, "nanoseconds": 3 * S - 1}
    assert told == [("wire-stood-still", bounds | {"ring_fill": 80, "ring_bytes": 4096})]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces, BPF and nftables")
def test_a_process_that_was_stopped_tells_since_when_and_what_the_ring_held(net: Net, tmp_path: Path) -> None:
    wire = Wire(net, tmp_path / "data")
    try:
        lease(wire.start())
        with connection(net) as (agent, upstream, _):
            assert exchange(agent, upstream)
            until(lambda: wire.client.status()["ring"]["fill"] == 0, "the ring is drained")
            assert wire.process is not None
            before = time.time_ns()
            wire.process.send_signal(signal.SIGSTOP)
            try:
                assert exchange(agent, upstream, b"unheard for a while")
                until(lambda: time.time_ns() - before > 2.5 * S, "it is long")
            finally:
                woken = time.time_ns()
                wire.process.send_signal(signal.SIGCONT)
            until(lambda: "wire-stood-still" in wire.events(), "it is told")
        said = [json.loads(frame.payload) for frame in wire.frames() if frame.kind is FrameKind.EVENT]
        (event,) = [event for event in said if event["kind"] == "wire-stood-still"]
        assert before - S < event["from_ns"] < before + S
        assert woken <= event["to_ns"] < woken + S
        assert event["ring_fill"] > 0
        assert event["nanoseconds"] > 2 * S
    finally:
        wire.teardown()
