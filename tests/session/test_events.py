import json

import pytest

from appliance.journal import Damage, FrameKind
from appliance.session import events
from appliance.wire.abi import Reason
from tests.session.traffic import T0, frame, record


def test_names() -> None:
    assert events.reason_name(Reason.RING_FULL) == "ring-full"
    assert events.reason_name(99) == "99"
    assert [events.transport_name(number) for number in (1, 6, 17, 58, 132)] == ["icmp", "tcp", "udp", "icmp", "132"]


def test_an_event_frame_is_told_as_it_is() -> None:
    said = {"kind": "journal-stalled", "text": "nothing is forwarded", "address": "10.0.0.1", "room": 5}
    row = events.of_frame("s", frame(3, FrameKind.EVENT, json.dumps(said).encode()), said)
    assert (row.kind, row.text, row.address) == ("journal-stalled", "nothing is forwarded", "10.0.0.1")
    assert row.attrs == {"room": 5}
    assert (row.position, row.ts_ns) == (3 << 24, T0)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (FrameKind.OPEN, "open"),
        (FrameKind.CLOSE, "close"),
        (FrameKind.EVENT, "event"),
        (FrameKind.LEASE, "lease-changed"),
    ],
)
def test_frames_that_say_nothing(kind: FrameKind, name: str) -> None:
    assert events.of_frame("s", frame(1, kind), {}).kind == name


@pytest.mark.parametrize("payload", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_payloads_that_are_no_objects(payload: bytes) -> None:
    assert events.decode(frame(1, FrameKind.EVENT, payload)) == {}


def test_positions_of_what_has_no_record_lie_beside_those_that_have() -> None:
    gap = events.journal_gap("s", Damage(5, None, "r"), T0)
    lost = events.ring_lost("s", frame(5, FrameKind.OPEN), {})
    fragments = events.fragments_lost("s", 5 << 24, T0, 1)
    assert len({gap.position, lost.position, fragments.position, 5 << 24}) == 4
    assert gap.position < 5 << 24 < lost.position
    assert gap.attrs["frames"] is None


def test_the_agent_is_the_destination_of_what_comes_in() -> None:
    row = events.refusal("s", 8, T0, record(reason=Reason.NO_FLOW, count=1, destination=bytes(15) + b"\1", lease=5))
    assert (row.address, row.attrs["lease_id"]) == ("::1", "0000000000000005")
