"""Time and memory in proportion to what was sent: a piece of a conversation that goes on and on.

    which dissector, how large its pieces are; then turns as in `dialogue`, of which the last one is repeated

What holds: four times the bytes take no more than some times the work; the state that is kept, and what messages say,
stay in proportion. Bounded buffers may cost what they hold once per piece; what grows with the square of what came
shows as sixteen times the work.
"""

import pickle
import time
from typing import Final, NamedTuple

from appliance.dissect import Output
from appliance.dissect.conversation import Conversation
from appliance.dissect.dns_tcp import DnsTcp
from appliance.dissect.http1 import Http1
from appliance.dissect.http2 import Http2
from appliance.dissect.mysql import Mysql
from appliance.dissect.postgres import Postgres
from appliance.dissect.raw import Raw
from appliance.dissect.tls import Tls
from appliance.dissect.websocket import WebSocket
from appliance.model import Direction, Message
from tests.dissect.harness import START_NS, Factory, Gap
from tests.fuzz import dialogue
from tests.fuzz.targets import Target
from tests.fuzz.targets import dissectors as others

FACTORIES: Final[tuple[Factory, ...]] = (Conversation, Tls, Http1, Postgres, DnsTcp, Raw, Http2, WebSocket, Mysql)
SIZES: Final = (1, 5, 64, 1448)  # bytes of a piece
PIECES: Final = 1536
MAX_BYTES: Final = 1 << 18
FACTOR: Final = 4
MAX_GROWTH: Final = 9.0  # 4: linear, 16: quadratic
NOTICEABLE: Final = 0.12  # seconds of CPU below which chance decides
MAX_STATE: Final = 6 << 20  # bytes, beside a multiple of what came
MAX_SAID: Final = 16 << 20  # characters of messages, likewise
AGAIN: Final = 3


class Work(NamedTuple):
    """Seconds of CPU for the last turn said over and over; bytes that came; bytes of state kept; characters said."""

    spent: float
    came: int
    state: int
    said: int


def work(factory: Factory, turns: list[dialogue.Turn], size: int, pieces: int) -> Work:
    dissector = factory()
    for direction, what in turns[:-1]:
        _say(dissector, direction, what)
    direction, unit = turns[-1]
    assert isinstance(unit, bytes)
    total = min(size * pieces, MAX_BYTES)
    stream = (unit * (total // len(unit) + 1))[:total]
    out: Output = []
    begun = time.thread_time()
    for at in range(0, total, size):
        out += dissector.receive(direction, stream[at : at + size], START_NS)
    spent = time.thread_time() - begun
    said = sum(dialogue.said(message) for message in out if isinstance(message, Message))
    return Work(spent, total, len(pickle.dumps(dissector)), said)


def _say(dissector: object, direction: Direction, what: bytes | Gap | None) -> None:
    if what is None:
        dissector.close(direction, START_NS)  # type: ignore[attr-defined]
    elif isinstance(what, Gap):
        dissector.gap(direction, what.length, START_NS)  # type: ignore[attr-defined]
    else:
        dissector.receive(direction, what, START_NS)  # type: ignore[attr-defined]


def check(data: bytes) -> None:
    factory, size = FACTORIES[data[0] % len(FACTORIES)] if data else Raw, SIZES[data[1] % len(SIZES)] if data[1:] else 1
    _, turns = dialogue.decode(data)
    if not turns or not isinstance(turns[-1][1], bytes):
        return
    found = work(factory, turns, size, PIECES)
    assert found.state <= MAX_STATE + 64 * found.came, f"{found.state} bytes of state for {found.came}"
    assert found.said <= MAX_SAID + 256 * found.came, f"{found.came} bytes became {found.said} characters"
    more = found.spent
    if more < NOTICEABLE:
        return
    for _ in range(AGAIN):  # the least of several: other processes only ever add
        less = work(factory, turns, size, PIECES // FACTOR).spent
        if more <= MAX_GROWTH * less:
            return
        more = min(more, work(factory, turns, size, PIECES).spent)
    raise AssertionError(f"{FACTOR} times the bytes took {more / less:.1f} times as long ({more:.2f} s of CPU)")


def seeds() -> list[bytes]:
    """Each factory with the other targets' conversations, and with units that look like a beginning without end."""
    found = []
    names = ("conversation", "tls", "http1", "postgres", "dns_tcp", "raw", "http2", "websocket", "mysql")
    for number, name in enumerate(names):
        for place, seed in enumerate(others.TARGETS[name].seeds()):
            found.append(bytes([number, place % len(SIZES)]) + seed[2:1024])
    units = (
        b"A",
        b"\r\n",
        b" ",
        b"a: b\r\n",
        b"0\r\n",
        b'"',
        b"&x=",
        b"data: x\n",
        b"\0",
        b"Q\0\0\0\4",
        b"D\0\0\0\6\0\0",
    )
    for unit in units:
        for number in range(len(FACTORIES)):
            found.append(bytes([number, number % 2, 0, 0]) + dialogue.MARK + b"\0" + unit)
    return found


TARGETS: Final = {
    "growth": Target(
        check, seeds, others.HTTP_WORDS + others.HTTP2_WORDS + others.POSTGRES_WORDS + others.TLS_WORDS, 2048
    )
}
