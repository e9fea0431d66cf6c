"""What happened outside of sessions, as event rows."""

from typing import Any

import msgspec

from appliance.journal import Damage, Frame, FrameKind
from appliance.model import EventRow
from appliance.session.identifiers import CLOCK_STEPPED, FRAGMENTS_LOST, REBOOTED, RING_LOST, frame_position
from appliance.session.memory import Relief
from appliance.wire.abi import Flow, Reason, Record, Side, unpack_address

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
NOWHERE = bytes(16)
REASONS = frozenset(Reason)


def transport_name(protocol: int) -> str:
    """As in `SessionRow.transport`."""
    return PROTOCOLS.get(protocol, str(protocol))


def reason_name(reason: int) -> str:
    """`no-lease`, `ring-full`, ...; a number for a reason that this version doesn't know."""
    return Reason(reason).name.lower().replace("_", "-") if reason in REASONS else str(reason)


def decode(frame: Frame) -> dict[str, Any]:
    """The JSON object of a LEASE, EVENT, OPEN or CLOSE frame; {} where it is none."""
    try:
        said = msgspec.json.decode(bytes(frame.payload) or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return said if isinstance(said, dict) else {}


def text_of(said: dict[str, Any], name: str) -> str:
    """A field that should be text."""
    value = said.get(name)
    return value if isinstance(value, str) else ""


def of_frame(stream: str, frame: Frame, said: dict[str, Any]) -> EventRow:
    """LEASE, EVENT, OPEN and CLOSE frames: each is one event, with everything it said as attributes."""
    kind = frame.kind.name.lower()
    text = text_of(said, "text")
    if frame.kind is FrameKind.EVENT:
        kind = text_of(said, "kind") or "event"
    elif frame.kind is FrameKind.LEASE:
        kind = f"lease-{text_of(said, 'event') or 'changed'}"
        identity = said.get("identity")
        subject = text_of(identity, "subject") if isinstance(identity, dict) else ""
        text = f"lease {text_of(said, 'id')} of {text_of(said, 'address')} for {subject}: {text_of(said, 'event')}"
    elif frame.kind is FrameKind.OPEN:
        text = f"recording began or went on: {text_of(said, 'source')} on {text_of(said, 'node')}"
    elif frame.kind is FrameKind.CLOSE:
        text = "recording ended on purpose"
    attrs = {name: value for name, value in said.items() if name not in ("kind", "text", "address")}
    return EventRow(stream, frame_position(frame.number), frame.time_ns, kind, text_of(said, "address"), text, attrs)


def ring_lost(stream: str, frame: Frame, attrs: dict[str, Any]) -> EventRow:
    """Records of the ring never reached the journal: a jump of its positions, or a new ring in place of one that may
    still have held some."""
    text = "packets that the kernel had recorded were lost before they reached the journal"
    if "new_ring" in attrs:
        text = "a new ring: what the former one may still have held never reached the journal"
    position = frame_position(frame.number) + RING_LOST
    return EventRow(stream, position, frame.time_ns, "ring-lost", "", text, attrs)


def rebooted(stream: str, frame: Frame, attrs: dict[str, Any]) -> EventRow:
    """The machine started anew: between `last_ns` and `first_ns` (wall time) nothing is on record."""
    text = "the machine started anew: what its ring held is lost, and sessions that were open are interrupted"
    position = frame_position(frame.number) + REBOOTED
    return EventRow(stream, position, frame.time_ns, "rebooted", "", text, attrs)


def clock_stepped(stream: str, frame: Frame, step_ns: int, unix_ns: int) -> EventRow:
    """The wall clock was set, by `step_ns` (negative: back)."""
    text = f"the wall clock was set {'forward' if step_ns > 0 else 'back'} by {abs(step_ns) / 1e9:.3f} s"
    attrs = {"step_ns": step_ns, "from_ns": unix_ns - step_ns, "to_ns": unix_ns}
    position = frame_position(frame.number) + CLOCK_STEPPED
    return EventRow(stream, position, frame.time_ns, "clock-stepped", "", text, attrs)


def memory_short(stream: str, position: int, ts_ns: int, relief: Relief, limit: int) -> EventRow:
    """The sessions' state had grown past its bound."""
    text = f"the state of open sessions was {relief.before} bytes, more than {limit}; some of it was given up"
    return EventRow(stream, position, ts_ns, "memory-short", "", text, relief.attrs(limit))


def journal_gap(stream: str, damage: Damage, ts_ns: int, position: int | None = None) -> EventRow:
    """Frames of the journal that can't be read. Without another position it lies just before them."""
    count = "an unknown number of" if damage.frames is None else str(damage.frames)
    text = f"{count} frames of the journal from {damage.first_frame} on can't be read: {damage.reason}"
    attrs: dict[str, Any] = {"first_frame": damage.first_frame, "frames": damage.frames, "reason": damage.reason}
    if damage.segment:
        attrs |= {"segment": damage.segment, "start": damage.start, "end": damage.end}
    if position is None:
        position = max(0, frame_position(damage.first_frame) - 1)
    return EventRow(stream, position, ts_ns, "journal-gap", "", text, attrs)


def refusal(stream: str, position: int, ts_ns: int, record: Record) -> EventRow:
    """Packets of one source that were not forwarded, and why."""
    reason = reason_name(record.reason)
    source, destination = unpack_address(record.source), unpack_address(record.destination)
    known = record.destination != NOWHERE
    attrs: dict[str, Any] = {"reason": reason, "packets": record.count, "source": source}
    if known:
        attrs |= {
            "source_port": record.source_port,
            "destination": destination,
            "destination_port": record.destination_port,
            "transport": transport_name(record.protocol),
        }
    if record.lease:
        attrs["lease_id"] = f"{record.lease:016x}"
    inbound = record.side == Side.SERVER or record.reason in (Reason.INBOUND, Reason.NO_FLOW)
    where = f" to {destination} port {record.destination_port}" if known else ""
    text = f"{record.count} packets from {source}{where} refused: {reason}"
    address = destination if inbound and known else source
    return EventRow(stream, position, ts_ns, "refusal", address, text, attrs)


def unknown_flow(stream: str, position: int, ts_ns: int, record: Record, flow: Flow) -> EventRow:
    """The kernel forwarded a flow of which no packet reached the sessions."""
    source, destination = unpack_address(record.source), unpack_address(record.destination)
    text = f"a flow from {source} to {destination} port {record.destination_port} ended, but no session is open for it"
    return EventRow(stream, position, ts_ns, "flow-unknown", source, text, _counted(record, flow))


def relayed_flow(stream: str, position: int, ts_ns: int, record: Record, flow: Flow) -> EventRow:
    """The kernel gave a flow to a relay, whose own journal has its session; `kernel_flow` is in that session's
    attributes.
    """
    source, destination = unpack_address(record.source), unpack_address(record.destination)
    attrs = _counted(record, flow) | {"kernel_flow": record.flow}
    if record.lease:
        attrs["lease_id"] = f"{record.lease:016x}"
    text = f"a flow from {source} to {destination} port {record.destination_port} ended that was given to a relay"
    return EventRow(stream, position, ts_ns, "flow-relayed", source, text, attrs)


def _counted(record: Record, flow: Flow) -> dict[str, Any]:
    """Between whom a flow was, and the kernel's counts of it."""
    return {
        "source": unpack_address(record.source),
        "source_port": record.source_port,
        "destination": unpack_address(record.destination),
        "destination_port": record.destination_port,
        "transport": transport_name(record.protocol),
        "packets": {"client": flow.client.packets, "server": flow.server.packets},
        "bytes": {"client": flow.client.bytes, "server": flow.server.bytes},
    }


def fragments_lost(stream: str, position: int, ts_ns: int, count: int) -> EventRow:
    """IP fragments that never became a whole datagram."""
    text = f"{count} IP fragments never became whole datagrams"
    return EventRow(stream, position + FRAGMENTS_LOST, ts_ns, "fragments-lost", "", text, {"fragments": count})
