"""A packet as TCP sees it, and the reasons for which its bytes may have no place in the stream."""

from typing import NamedTuple

from appliance.session.packets import network, options
from appliance.wire.abi import Record

FIN, SYN, RST, ACK, URG = 1, 2, 4, 16, 32
UNUSUAL = FIN | SYN | RST | ACK | URG  # a segment of an established connection has only the last of these
STRAYS = {
    "out-of-window": "bytes beyond the receiver's window",
    "beyond-fin": "bytes behind the end of the stream",
    "before-start": "bytes before the first byte of the recorded stream",
    "after-reset": "bytes behind a reset",
}
REJECTS = {
    "bad-checksum": "its checksum is wrong",
    "no-acknowledgement": "it has no ACK flag",
    "old-timestamp": "its time stamp is older than what came before",
    "unsent-acknowledged": "it acknowledges bytes that were never sent",
    "old-acknowledgement": "its acknowledgement is too old",
    "malformed-options": "its options are malformed",
    "signature": "it has a signature that was not agreed on",
    "syn-data": "it is a SYN, and the receiver did not take data with it",
    "reset": "it is a reset",
}


class Segment(NamedTuple):
    """A packet as TCP sees it. `scale`: of a SYN's option, else None. `payload`: its length on the wire.

    `fault`: one of `REJECTS`, "" for none. `stamp`: of the time stamp option. `urgent`: the pointer, with its flag.
    `selective`, `signed`: options SACK permitted (of a SYN) and TCP-MD5 or TCP-AO.
    """

    seq: int
    ack: int
    flags: int
    window: int
    payload: int
    data: bytes
    scale: int | None
    fault: str = ""
    stamp: int | None = None
    urgent: int | None = None
    selective: bool = False
    signed: bool = False


def annotated(segment: Segment, record: Record, data: memoryview) -> Segment:
    """With what stands in the options and behind the flag for urgent data."""
    if record.length != len(data):  # put together from fragments: there is no IP header
        return segment
    found = options(data)
    urgent = None
    where = network(data)
    if segment.flags & URG and where is not None and where.start + 20 <= len(data):
        urgent = int.from_bytes(data[where.start + 18 : where.start + 20], "big")
    long = 18 if segment.flags & RST else 5  # bytes of a list that Linux looks through for MD5 and for AO
    return segment._replace(
        fault="malformed-options" if found.broken >= long else "",
        scale=found.scale if segment.flags & SYN else None,
        stamp=found.stamp,
        urgent=urgent,
        selective=found.selective,
        signed=found.signed,
    )
