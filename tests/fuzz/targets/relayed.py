"""From a relay's records to rows: a few flows whose plaintext is anything, and whose records come in any order.

    settings (1 byte), how the records are cut into frames (4 bytes); then operations: records, frames of other kinds,
    damage

What holds: nothing is raised; rows have gapless numbers and can be stored; messages and findings lie within their
stream, no byte of which comes twice; redacted bytes are asterisks; every byte that a relay told of is stored; and the
rows are the same when the assembler is saved and loaded in between.
"""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from appliance import config
from appliance.errors import DamagedEvidence
from appliance.journal import RELAY, Damage, Frame, FrameKind
from appliance.journal.relayed import Relayed, RelayedKind, encode, scan
from appliance.model import ChunkRow, Row
from appliance.session.relayed import RelayAssembler
from appliance.store import rows as store
from tests.fuzz.script import Script
from tests.fuzz.targets import Target
from tests.fuzz.targets.sessions import MAX_HELD, content, ranges
from tests.session.relaying import ALICE, leg
from tests.session.test_state import decoded, encoded
from tests.session.traffic import MS, STREAM, T0, Recorded

MAX_OPERATIONS: Final = 200
KINDS: Final = ("identified", "redacted", "upstream", "tls", "protocol", "refused", "certificate", "generated")
PROTOCOLS: Final = ("http1", "postgres", "tls", "dns", "raw", "gopher")

Item = bytes | tuple[FrameKind, bytes] | Damage


class Relay:
    """Turns operations into records."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._time = 0
        self._at = [[0, 0] for _ in range(4)]
        self._hidden: dict[tuple[int, int], list[tuple[int, int]]] = {}  # by flow and side: ranges of credentials

    def __iter__(self) -> Iterator[Item]:
        for _ in range(MAX_OPERATIONS):
            if not self._script.more:
                return
            yield self._operation(self._script.byte() % 16)

    def _operation(self, op: int) -> Item:
        script = self._script
        which, side = script.below(4), script.below(2)
        at = self._at[which]
        self._time += script.byte() * MS
        if op < 7:
            said = content(script)
            offset = at[side] if op else max(0, at[side] + script.byte() - 128)
            at[side] = max(at[side], offset + len(said))
            return self._record(RelayedKind.DATA, side, which, said, offset)
        if op == 7:
            self._at[which] = [0, 0]
            return self._record(RelayedKind.OPEN, 0, which, self._opening())
        if op < 11:
            return self._record(RelayedKind.NOTE, side, which, self._note(which, side))
        if op == 11:
            return self._record(RelayedKind.EOF, side, which, b"", at[side] + (script.byte() if script.flag() else 0))
        if op == 12:
            legs: dict[str, Any] = {"agent": leg(at[0], script.byte()), "upstream": None if script.flag() else leg(9)}
            closing = {"ending": ("fin", "rst", "open", "x")[script.below(4)], "reason": "r", "legs": legs}
            return self._record(RelayedKind.CLOSE, 0, which, json.dumps(closing).encode())
        if op == 13:
            return self._frame()
        kind = RelayedKind(1 + script.below(5))
        return self._record(kind, side, which, script.piece(60), script.number(4))

    def _record(self, kind: RelayedKind, side: int, flow: int, body: bytes, offset: int = 0) -> bytes:
        if kind is RelayedKind.DATA:
            masked = bytearray(body)
            for start, end in self._hidden.get((flow, side), ()):
                low, high = max(0, start - offset), min(len(body), end - offset)
                masked[low:high] = b"*" * max(0, high - low)
            body = bytes(masked[: len(body)])
        self._time += kind is RelayedKind.OPEN  # no two flows of a number begin at the same moment
        return encode(kind, side, flow, T0 + self._time, offset, body)

    def _opening(self) -> bytes:
        said = {"node": "gw", "client_address": "10.0.0.2", "client_port": self._script.byte(), "identity": ALICE}
        return json.dumps(said).encode()

    def _note(self, which: int, side: int) -> bytes:
        """A credential is noted before its bytes, which are asterisks then."""
        script, at = self._script, self._at[which][side]
        kind = KINDS[script.below(len(KINDS))]
        attrs = {
            "identity": ALICE,
            "what": "token",
            "version": "1",
            "protocol": PROTOCOLS[script.below(len(PROTOCOLS))],
        }
        start = at + script.byte() if kind == "redacted" else max(0, at + script.byte() - 64)
        places = {"start": start, "end": start + script.byte() - 8} if script.flag() else {}
        if kind == "redacted" and places:
            self._hidden.setdefault((which, side), []).append((start, places["end"]))
        return json.dumps({"kind": kind, "text": "t", "attrs": attrs, **places}).encode()

    def _frame(self) -> Item:
        script = self._script
        match script.below(5):
            case 0:
                return FrameKind.CLOCK, script.piece(16)
            case 1:
                return FrameKind.OPEN, b'{"node": "gw"}'
            case 2:
                return FrameKind.EVENT, script.piece(32)
            case 3:
                return Damage(5, None if script.flag() else 1, "damaged on purpose")
        return FrameKind.CLOSE, script.piece(8)


def framed(items: Sequence[Item], cuts: random.Random) -> Iterator[Frame | Damage]:
    """The items as a journal holds them, some records of a row in one frame; some frames end in the middle of one."""
    yield Frame(1, FrameKind.OPEN, T0, b'{"node": "gw", "source": "relay-0"}')
    number, span = 2, b""
    for item in [*items, None]:
        if isinstance(item, bytes):
            span += item
            if cuts.randrange(3):
                continue
        if span:
            if not cuts.randrange(32):
                span = span[: -cuts.randrange(1, len(span))]
            yield Frame(number, FrameKind.SPAN, T0 + number * 40 * MS, span, layout=RELAY)
            span = b""
            number += 1
        if isinstance(item, tuple):
            yield Frame(number, item[0], T0 + number * 40 * MS, item[1])
            number += 1
        elif isinstance(item, Damage):
            yield item
    yield Frame(number, FrameKind.CLOSE, T0 + number * 40 * MS, b"{}")


def run(frames: Sequence[Frame | Damage], settings: config.Record, saved: random.Random | None) -> list[Row]:
    assembler = RelayAssembler(STREAM, settings, "gw", "relay-0")
    found: list[Row] = []
    for frame in frames:
        if saved is not None and not saved.randrange(8):
            assembler = decoded(encoded(assembler))
        found += assembler.feed(frame)
    assert assembler.sessions_open == 0, "sessions outlive their relay"
    assert assembler.held_bytes <= MAX_HELD
    return found


def check(data: bytes) -> None:
    script = Script(data)
    small, seed = script.byte(), script.number(4)
    settings = config.Record(
        max_sessions=2 if small & 1 else 64,
        max_memory=32768 if small & 2 else 1 << 28,
        max_body=16 if small & 4 else 65536,
    )
    frames = list(framed(list(Relay(script)), random.Random(seed)))
    once, again = run(frames, settings, None), run(frames, settings, random.Random(seed))
    assert once == again, "other rows after the state was saved and loaded"
    Recorded(once)
    for table, part in store.by_table(once).items():
        store.encode(table, part)
    ranges(once)
    told = sum(len(record.body) for frame in frames for record in records(frame) if record.kind is RelayedKind.DATA)
    kept = sum(len(row.data) for row in once if isinstance(row, ChunkRow))
    assert kept == told, f"{told} bytes were told, {kept} are kept"


def records(frame: Frame | Damage) -> Iterator[Relayed]:
    """Those of a span, up to the first that can't be read."""
    if isinstance(frame, Frame) and frame.kind is FrameKind.SPAN:
        with suppress(DamagedEvidence):
            yield from scan(frame.payload)


def seeds() -> list[bytes]:
    head = b"\0\1\2\3\4"

    def op(number: int, which: int, side: int, *more: int) -> bytes:
        return bytes([number, which, side, 10, *more])

    web = op(7, 1, 0, 1) + op(1, 1, 0, 0) + op(1, 1, 1, 1) + op(12, 1, 0, 9, 0, 0)
    turns = ((0, 3), (1, 5), (0, 4), (0, 6), (1, 7))
    database = op(7, 2, 0, 1) + b"".join(op(1, 2, side, what) for side, what in turns)
    notes = op(7, 3, 0, 1) + b"".join(op(8, 3, 0, kind, 4, 70, 20, 1) + op(1, 3, 0, 10) for kind in range(8))
    odd = op(1, 1, 0, 10) + op(0, 1, 0, 10, 120) + op(0, 1, 0, 10, 140) + op(11, 1, 0, 1, 5)
    odd += op(14, 1, 1, 1, 8, *range(8))
    frames = b"".join(op(13, 0, 0, kind, 4, 1, 2, 3, 4) + op(1, 1, 0, 10) for kind in range(5))
    mixed = b"\7" + head[1:] + web + notes + odd + database
    return [*(head + part for part in (web, database, notes, odd, frames)), mixed]


TARGETS: Final = {"relayed": Target(check, seeds, size=1024)}
