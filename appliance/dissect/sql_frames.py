"""What the protocols of databases have in common: a `Frame`, and the messages that are made of one."""

from typing import Any

import msgspec

from appliance.model import Direction, Message

FRAGMENT = -2  # kind: the stream ended, or lost bytes, within a header
LOST = -4  # kind: bytes behind a gap that were passed over


class Frame(msgspec.Struct, frozen=True, gc=False):
    """A message of the protocol, or a packet of it. `kind` is what its header says, or one of the negative numbers."""

    kind: int
    body: bytes  # behind the header; only a part of it if `cut`
    start: int
    end: int
    ts_ns: int
    end_ns: int
    cut: bool = False


def of_client(
    kind: str,
    frame: Frame,
    text: str,
    attrs: dict[str, Any],
    flags: tuple[str, ...] = (),
    reply_to: int | None = None,
) -> Message:
    """What the client says in this frame."""
    return _message(Direction.CLIENT, kind, frame, text, attrs, reply_to, flags)


def of_server(
    kind: str,
    frame: Frame,
    text: str,
    attrs: dict[str, Any],
    reply_to: int | None = None,
    flags: tuple[str, ...] = (),
) -> Message:
    """What the server says in this frame."""
    return _message(Direction.SERVER, kind, frame, text, attrs, reply_to, flags)


def _message(
    direction: Direction,
    kind: str,
    frame: Frame,
    text: str,
    attrs: dict[str, Any],
    reply_to: int | None,
    flags: tuple[str, ...],
) -> Message:
    if frame.cut and "truncated" not in flags:
        flags = (*flags, "truncated")
    return Message(direction, kind, frame.ts_ns, frame.start, frame.end, text, attrs, reply_to, flags, frame.end_ns)
