"""Cases for dissectors: who says what, in one input; and what must hold for every dissector.

    4 bytes              where the turns are cut and the dissector is pickled
    MARK op bytes ...    one turn each; op: 0 client's bytes, 1 server's bytes, 2 and 3 a gap of one byte more
                         than the next two bytes say, 4 and 5 the end of a direction

Marks in place of lengths: what a mutation adds to a turn or takes from it leaves the others as they are.
"""

import json
import pickle
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from appliance.dissect import Output
from appliance.model import Direction, Message
from tests.dissect.harness import START_NS, TURN_NS, C, Factory, Gap, Played, S, feed, outcome

MARK: Final = b"\xc0\xc1"  # in no UTF-8 text
HEAD: Final = 4
MAX_CUTS: Final = 32
MAX_TURNS: Final = 256
REPEATED: Final = 1 << 17  # characters that one message may say although its own bytes do not hold them
INT64: Final = range(-(1 << 63), 1 << 64)

Turn = tuple[Direction, bytes | Gap | None]  # None: the end


def encode(turns: Sequence[Turn], head: bytes = bytes(HEAD)) -> bytes:
    parts = [head[:HEAD].ljust(HEAD, b"\0")]
    for direction, what in turns:
        whose = int(direction is S)
        if what is None:
            parts.append(MARK + bytes([4 + whose]))
        elif isinstance(what, Gap):
            parts.append(MARK + bytes([2 + whose]) + (what.length - 1 & 0xFFFF).to_bytes(2, "little"))
        else:
            parts.append(MARK + bytes([whose]) + what)
    return b"".join(parts)


def decode(data: bytes) -> tuple[int, list[Turn]]:
    """The seed of the cuts, and the turns. A direction says nothing after its end."""
    ended: set[Direction] = set()
    turns: list[Turn] = []
    for part in data[HEAD:].split(MARK)[:MAX_TURNS]:
        if not part:
            continue
        op = part[0] % 6
        direction = (C, S)[op & 1]
        if direction in ended:
            continue
        if op < 2:
            if len(part) > 1:
                turns.append((direction, part[1:]))
        elif op < 4:
            turns.append((direction, Gap(1 + int.from_bytes(part[1:3], "little"))))
        else:
            ended.add(direction)
            turns.append((direction, None))
    return int.from_bytes(data[:HEAD], "little"), turns


def play(factory: Factory, turns: Sequence[Turn], cuts: random.Random | None = None, short: int = -1) -> Played:
    """Feed the turns, each cut at a few places and the dissector pickled at one of them; then end both directions.

    `short`: the turn before which memory is short.
    """
    played = Played(factory())
    ts_ns = START_NS
    ended = set()
    pickled = cuts.randrange(len(turns) + 1) if cuts is not None else -1
    for number, (direction, what) in enumerate(turns):
        ts_ns += TURN_NS
        if number == short:
            played.output += getattr(played.dissector, "shed", list)()
            assert getattr(played.dissector, "held", 0) >= 0, "less than nothing is held"
        pieces = [what]
        if cuts is not None and isinstance(what, bytes) and len(what) > 1:
            marks = cuts.sample(range(1, len(what)), min(cuts.randrange(MAX_CUTS), len(what) - 1))
            pieces = [what[start:end] for start, end in pairwise([0, *sorted(marks), len(what)])]
        if what is None:
            ended.add(direction)
        for place, piece in enumerate(pieces):
            if number == pickled and place == len(pieces) // 2:
                played.dissector = pickle.loads(pickle.dumps(played.dissector))
            feed(played, direction, piece, ts_ns)
    for direction in (C, S):
        ts_ns += TURN_NS
        if direction not in ended:
            feed(played, direction, None, ts_ns)
    return played


def check(factory: Factory, data: bytes, *, datagrams: bool = False, hints: bool = False) -> None:
    """Everything that holds for any dissector.

    `datagrams`: where they are cut is part of what they say. `hints`: where segments end helps it on behind a gap, so
    there the outcome may depend on the cuts.
    """
    seed, turns = decode(data)
    whole = play(factory, turns)
    storable(whole.output)
    bounded(whole)
    if datagrams:
        pickle.loads(pickle.dumps(whole.dissector))
        return
    cut = play(factory, turns, random.Random(seed))
    if hasattr(whole.dissector, "shed"):
        shed = play(factory, turns, short=seed % (len(turns) + 1))
        storable(shed.output)
        assert outcome(shed)[1] == outcome(whole)[1], "other redactions when memory was short"
    if not hints or not any(isinstance(what, Gap) for _, what in turns):
        same(_joined(outcome(cut)), _joined(outcome(whole)))


def _joined(found: tuple[list[Any], list[Any], dict[str, Any]]) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Server-sent events become one message when they arrive together: of those in a row only what they say counts."""
    messages: list[Any] = []
    for direction, kind, *fields in found[0]:
        if kind != "event":
            messages.append([direction, kind, *fields])
            continue
        text, reply_to, flags = fields[3], fields[5], set(fields[6])
        if messages and messages[-1][:3] == [direction, kind, reply_to]:
            messages[-1][3] += text.split()
            messages[-1][4] |= flags
        else:
            messages.append([direction, kind, reply_to, text.split(), flags])
    return messages, found[1], found[2]


def same(cut: tuple[object, ...], whole: tuple[object, ...]) -> None:
    """Messages, redactions and attributes do not depend on how the bytes were cut."""
    for one, other in zip(cut, whole, strict=True):
        if isinstance(one, list) and isinstance(other, list):
            for number, (left, right) in enumerate(zip(one, other, strict=False)):
                assert left == right, f"{number}: cut {left!r}, whole {right!r}"
        assert one == other, f"cut {one!r}, whole {other!r}"


def storable(output: Output) -> None:
    """What the store takes: text that has an encoding, attributes that are JSON, numbers of 64 bits."""
    for item in output:
        if isinstance(item, Message):
            item.text.encode()
            json.dumps(item.attrs, allow_nan=False).encode()
            _numbers(item.attrs)
            assert len(set(item.flags)) == len(item.flags), f"a flag twice: {item.flags}"
            assert "exception" not in item.attrs, f"a bug ended the dissection: {item.attrs}"


def _numbers(value: object) -> None:
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value), "a name that is not text"
        for inner in value.values():
            _numbers(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _numbers(inner)
    elif isinstance(value, int):
        assert value in INT64, f"a number that no column holds: {value}"


def said(message: Message) -> int:
    """Characters that the store has to keep of one message."""
    return len(message.text) + len(json.dumps(message.attrs))


def bounded(played: Played) -> None:
    """A message says at most a multiple of its bytes, beside what it may repeat of others."""
    for message in played.messages:
        own = message.end - message.start
        size = said(message)
        assert size <= REPEATED + 1024 * own, f"{own} bytes became {size} characters: {message.kind}"
        assert size <= 16 << 20, f"a message of {size} characters: {message.kind}"
