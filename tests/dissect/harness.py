"""Plays byte streams to a dissector, in every way that a network can cut them.

    played = play(Http1, [(C, b"GET / HTTP/1.1\r\n\r\n"), (S, b"HTTP/1.1 204 No Content\r\n\r\n")])
    played.messages, played.redactions, played.dissector, played.streams

A turn is `(direction, bytes)` or `(direction, Gap(length))`. Each has its own time, 1 ms after the one before:
pieces of one turn share it, so the outcome of a split can be compared with the whole. `play` itself checks what holds
for every dissector on any input: ranges lie within the streams, settled bytes are never redacted, settled never falls.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from appliance.dissect import Output
from appliance.model import Direction, Message, Redaction

C, S = Direction.CLIENT, Direction.SERVER
START_NS = 1_700_000_000_000_000_000
TURN_NS = 1_000_000


class Plays(Protocol):
    """What can be played to: any dissector, and the conversation."""

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output: ...
    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output: ...
    def close(self, direction: Direction, ts_ns: int) -> Output: ...
    def settled(self, direction: Direction) -> int: ...


@dataclass(frozen=True)
class Gap:
    length: int


Turn = tuple[Direction, bytes | Gap]
Factory = Callable[[], Plays]


@dataclass
class Played:
    dissector: Any
    output: Output = field(default_factory=list)
    streams: dict[Direction, bytearray] = field(
        default_factory=lambda: {C: bytearray(), S: bytearray()}
    )  # gaps as NULs

    @property
    def messages(self) -> list[Message]:
        return [item for item in self.output if isinstance(item, Message)]

    @property
    def redactions(self) -> list[Redaction]:
        return [item for item in self.output if isinstance(item, Redaction)]

    def kinds(self) -> list[str]:
        return [message.kind for message in self.messages]

    def bytes_of(self, item: Message | Redaction) -> bytes:
        """The stream's bytes that a message or redaction points to."""
        return bytes(self.streams[item.direction][item.start : item.end])

    def secrets(self) -> list[bytes]:
        return [self.bytes_of(redaction) for redaction in self.redactions]

    def stored(self, direction: Direction) -> bytes:
        """The stream as it is kept: asterisks for what is redacted."""
        kept = bytearray(self.streams[direction])
        for redaction in self.redactions:
            if redaction.direction is direction:
                kept[redaction.start : redaction.end] = b"*" * (redaction.end - redaction.start)
        return bytes(kept)


def of(played: Played, *kinds: str) -> list[Message]:
    return [one for one in played.messages if one.kind in kinds]


def only(played: Played, kind: str) -> Message:
    (found,) = of(played, kind)
    return found


def play(
    factory: Factory,
    turns: Sequence[Turn],
    *,
    split: int | None = None,
    cut: int | None = None,
    pickled: int | None = None,
    close: bool = True,
) -> Played:
    """Feed `turns`, then close both directions (`close=False`: don't).

    split: pieces of this many bytes. cut: each turn is cut once, this many bytes (over all turns) in.
    pickled: the dissector is pickled and loaded again when this many bytes (over all turns) were fed.
    """
    played = Played(factory())
    fed, ts_ns = 0, START_NS
    for direction, what in turns:
        ts_ns += TURN_NS
        pieces: Iterator[bytes | Gap] = iter([what])
        if isinstance(what, bytes):
            marks = {len(what)}
            marks.update(range(split, len(what), split) if split else ())
            marks.update(mark - fed for mark in (cut, pickled) if mark is not None and 0 < mark - fed < len(what))
            pieces = _pieces(what, sorted(marks))
        for piece in pieces:
            if pickled is not None and fed >= pickled:
                played.dissector = pickle.loads(pickle.dumps(played.dissector))
                pickled = None
            feed(played, direction, piece, ts_ns)
            fed += len(piece) if isinstance(piece, bytes) else 0
    if close:
        for direction in (C, S):
            ts_ns += TURN_NS
            feed(played, direction, None, ts_ns)
    return played


def _pieces(data: bytes, marks: list[int]) -> Iterator[bytes]:
    start = 0
    for mark in marks:
        yield data[start:mark]
        start = mark


def feed(played: Played, direction: Direction, piece: bytes | Gap | None, ts_ns: int) -> None:
    """One piece, gap or (None) end; checks what holds for every dissector."""
    dissector = played.dissector
    before = {d: dissector.settled(d) for d in (C, S)}
    if piece is None:
        out = dissector.close(direction, ts_ns)
    elif isinstance(piece, Gap):
        played.streams[direction] += bytes(piece.length)
        out = dissector.gap(direction, piece.length, ts_ns)
    else:
        played.streams[direction] += piece
        out = dissector.receive(direction, piece, ts_ns)
    for item in out:
        assert 0 <= item.start <= item.end <= len(played.streams[item.direction]), (
            f"range outside of the stream: {item}"
        )
        if isinstance(item, Redaction):
            assert item.start < item.end, f"empty redaction: {item}"
            assert item.start >= before[item.direction], f"settled bytes were redacted: {item}, {before}"
        else:
            assert (item.end_ns or item.ts_ns) >= item.ts_ns >= START_NS, f"time runs backwards: {item}"
            assert len(item.text) <= 4 << 20, "text without a limit"
    for whose in (C, S):
        settled = dissector.settled(whose)
        assert before[whose] <= settled <= len(played.streams[whose]), f"settled {before[whose]} -> {settled}"
    played.output += out


def assert_any_cut(factory: Factory, turns: Sequence[Turn], *, step: int = 1) -> Played:
    """Whole, byte by byte, cut once at every place, pickled at every place: the outcome is the same. Returns the whole.

    `step` thins the places out for long inputs (a prime number is a good one).
    """
    whole = play(factory, turns)
    total = sum(len(what) for _, what in turns if isinstance(what, bytes))
    assert outcome(play(factory, turns, split=1)) == outcome(whole), "byte by byte"
    for place in range(1, total, step):
        assert outcome(play(factory, turns, cut=place)) == outcome(whole), f"cut at {place}"
        assert outcome(play(factory, turns, pickled=place)) == outcome(whole), f"pickled at {place}"
    return whole


def assert_truncated(factory: Factory, turns: Sequence[Turn], *, secrets: Sequence[bytes] = (), step: int = 1) -> None:
    """Ended after every byte: nothing is raised, and no secret is kept, nor 4 first bytes of one at the end."""
    total = sum(len(what) for _, what in turns if isinstance(what, bytes))
    for length in range(0, total, step):
        short: list[Turn] = []
        left = length
        for direction, what in turns:
            if isinstance(what, bytes):
                what = what[:left]
                left -= len(what)
            short.append((direction, what))
            if left <= 0:
                break
        played = play(factory, short)
        kept = played.stored(C) + b"\n" + played.stored(S)
        said = "\n".join(f"{message.text} {message.attrs}" for message in played.messages)
        for secret in secrets:
            assert secret not in kept, f"secret kept when ended at {length}"
            assert secret.decode("latin-1") not in said, f"secret said when ended at {length}"
            for part in range(4, len(secret)):
                assert not kept.endswith(secret[:part]), f"part of a secret kept when ended at {length}"


def assert_survives(factory: Factory, turns: Sequence[Turn], *, split: int | None = None) -> Played:
    """Any input: `play`'s checks hold, and the dissector can still be pickled."""
    played = play(factory, turns, split=split)
    pickle.loads(pickle.dumps(played.dissector))
    return played


def outcome(played: Played) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Messages, redactions, attributes: what must not depend on the cut. Order between messages and redactions may."""
    messages = [
        (m.direction, m.kind, m.ts_ns, m.start, m.end, m.text, m.attrs, m.reply_to, m.flags, m.end_ns or m.ts_ns)
        for m in played.messages
    ]
    redactions: list[list[Any]] = []  # those that touch count as one
    for r in sorted(played.redactions, key=lambda r: (r.direction, r.start)):
        if redactions and redactions[-1][0] is r.direction and redactions[-1][2] == r.start:
            redactions[-1][2] = r.end
        else:
            redactions.append([r.direction, r.start, r.end])
    return messages, redactions, dict(played.dissector.attrs)
