"""The engine of relays: the first bytes of a flow, and a flow that a mediator of any kind drives.

`opening`: pieces (1 byte of length each) of an agent's first bytes. Read in pieces or at once they mean the same, and
no name is made of them that cannot be compared with a rule's.

`mediation`: an agent, a server and a mediator that say anything: one byte chooses what happens next. What holds:
nothing is raised; the record begins with OPEN and ends with CLOSE, has no gap, and nothing behind a direction's end;
and what is sent was in the journal before.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

from appliance import config
from appliance.dissect.tls_hello import ClientHello, Malformed
from appliance.journal.relayed import RelayedKind, scan
from appliance.model import Direction, Identity
from appliance.relay.flow import Flow
from appliance.relay.leg import AGAIN
from appliance.relay.mediation import Mediation
from appliance.relay.mediator import (
    Commands,
    Dial,
    Fail,
    HangUp,
    Identify,
    Note,
    Pass,
    Say,
    Shut,
    Splice,
    Take,
)
from appliance.relay.names import authority, names_host
from appliance.relay.recording import Recording
from appliance.relay.route import Routes
from appliance.relay.splice import Splice as Splicing
from appliance.relay.surroundings import Surroundings
from appliance.relay.tls import HelloReader, begins_tls, usable
from tests.fuzz.script import Script
from tests.fuzz.targets import Target
from tests.relay.test_tls import client_hello

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
RULES: Final = Routes(
    config.Settings(
        rules=[
            {"to": "10.0.0.0/8", "lane": "relay"},
            {"host": "*.example.com", "lane": "refuse"},
            {"host": "api.example.com", "to": "10.1.0.0/16", "lane": "relay"},
        ]
    ).rules
)


def opening(data: bytes) -> None:
    script, pieces = Script(data), []
    while script.more:
        pieces.append(script.piece())
    whole = b"".join(pieces)
    begins_tls(whole)
    at_once = _hello([whole])
    assert _hello(pieces) == at_once
    names = [authority(whole)]
    names_host(whole)
    if isinstance(at_once, ClientHello):
        names.append(at_once.sni)
        assert all(name.isascii() for name in usable(at_once.alpn))
    for name in names:
        match = RULES.choose("10.1.2.3", 443, name)
        assert match is not None
        plain = name.lower().removesuffix(".")
        below = plain.endswith(".example.com") and plain != ".example.com"
        assert (match.number == 1) == (not below)


def _hello(pieces: Iterable[bytes]) -> ClientHello | str | None:
    reader = HelloReader()
    try:
        for piece in pieces:
            found = reader.feed(piece)
            if found is not None:
                return found
    except Malformed:
        return "malformed"
    return None


class Journal:
    """Keeps the frames."""

    max_payload = 65536

    def __init__(self) -> None:
        self.payload = bytearray()

    def append(self, kind: Any, payload: Any, **more: Any) -> int:
        if "layout" in more:
            self.payload += payload
        return 0

    def sync(self) -> None:
        return None


class Peer:
    """A leg without a socket. `said`: what waits to be read; `heard`: what it was sent."""

    def __init__(self, loop: asyncio.AbstractEventLoop, journal: Journal) -> None:
        self._loop, self._journal = loop, journal
        self.said, self.heard = bytearray(), bytearray()
        self.hears_end = self.ended = self.closed = self.watched = self.shut_down = self.held = False
        self.waiting = self.owing = 0
        self.unconfirmed = False
        self.tls = None
        self.readable: Callable[[], None] = _nothing
        self.drained = self.broken = self.crashed = _nothing
        self.sock = self

    def getsockname(self) -> tuple[str, int]:
        return "10.0.0.1", 1

    def watch(self, wanted: bool) -> None:
        self.watched = wanted and not self.closed

    def wake(self) -> None:
        if self.watched:
            self.readable()

    def read_into(self, view: memoryview) -> int:
        size = min(len(view), len(self.said))
        if size:
            view[:size] = self.said[:size]
            del self.said[:size]
            return size
        if self.hears_end:
            self.ended = True
            return 0
        return AGAIN

    def send(self, data: bytes | memoryview) -> None:
        assert bytes(data) in self._journal.payload, "it is on record"
        if not self.closed and not self.shut_down:
            self.heard += data

    def shut(self, *, whole: bool = True) -> None:
        self.shut_down = True

    def counts(self) -> None:
        return None

    def close(self, *, reset: bool = False) -> None:
        self.watch(False)
        self.closed = True


class Whims:
    """A mediator that does whatever the script says, and keeps to what it may do: it deals with each byte once."""

    ready = True

    def __init__(self, script: Script) -> None:
        self._script = script
        self._held = {CLIENT: bytearray(), SERVER: bytearray()}
        self._shut = False

    def limit(self, direction: Direction) -> int:
        return 1 + self._script.byte()

    def _say(self) -> Commands:
        out: Commands = []
        for _ in range(self._script.below(4)):
            choice, direction = self._script.below(14), (CLIENT, SERVER)[self._script.flag()]
            held = self._held[direction]
            size = min(len(held), self._script.byte())
            if choice < 5 and held and size:
                part = bytes(held[:size])
                if direction is SERVER and self._shut:
                    continue
                del held[:size]
                secrets = ((0, size // 2, "password"),) if choice == 4 and direction is CLIENT else ()
                out.append(Take(direction, part, secrets) if choice > 2 else Pass(direction, part))
            elif choice == 5 and not self._shut:
                out.append(Say(CLIENT, b"said by us"))
            elif choice == 6:
                out.append(Note("odd", "a note", {}, direction, -1, 0))
            elif choice == 7:
                out.append(Dial())
            elif choice == 8:
                out.append(HangUp())
            elif choice == 9:
                out.append(Identify("token", "any"))
            elif choice == 10:
                self._shut |= direction is CLIENT
                out.append(Shut(direction))
            elif choice == 11 and not self._held[CLIENT] and not self._held[SERVER] and not self._shut:
                out.append(Splice())
            elif choice == 12:
                out.append(Fail("over", "it is enough"))
        return out

    def start(self) -> Commands:
        return [Dial()]

    def receive(self, direction: Direction, data: bytes) -> Commands:
        self._held[direction] += data
        return self._say()

    def ended(self, direction: Direction) -> Commands:
        return self._say()

    def dialled(self) -> Commands:
        return self._say()

    def dial_failed(self, reason: str, text: str) -> Commands:
        return self._say()

    def refused(self, reason: str, text: str) -> Commands:
        return self._say()

    def secured(self, peer: Direction) -> Commands:
        return self._say()

    def identified(self, identity: Identity) -> Commands:
        return self._say()

    def unidentified(self, text: str) -> Commands:
        return self._say()

    def stop(self, reason: str, text: str) -> Commands:
        return [*self._say(), Fail(reason, text)]


def mediation(data: bytes) -> None:
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(_mediate(Script(data), loop))
    finally:
        loop.close()


async def _mediate(script: Script, loop: asyncio.AbstractEventLoop) -> None:
    journal = Journal()
    gone: list[Flow] = []
    faults: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: faults.append(context))
    recording = Recording(journal, "relay-0", "node", "boot", loop, lambda: 1)  # type: ignore[arg-type]
    around: Any = Surroundings(
        settings=config.Settings(),
        loop=loop,
        recording=recording,
        routes=RULES,
        kernel=None,
        agent_tls=None,  # type: ignore[arg-type]
        server_tls=None,  # type: ignore[arg-type]
        identity=None,  # type: ignore[arg-type]
        verify=_verify,
        secret=None,  # type: ignore[arg-type]
        names=None,  # type: ignore[arg-type]
    )
    agent, servers = Peer(loop, journal), list[Peer]()
    flow = Flow(around, agent, ("10.0.0.9", 1), ("10.0.0.2", 2), gone.append)  # type: ignore[arg-type]

    async def dial(command: Dial) -> Any:
        if flow.upstream is not None:
            flow.hang_up()
        server = Peer(loop, journal)
        servers.append(server)
        flow.upstream = server  # type: ignore[assignment]
        return server

    def splice() -> None:
        if flow.upstream is None:
            flow.fail("server-gone", "no server")
        if not flow.over:
            Splicing(flow)

    def crashed() -> None:
        raise AssertionError("a fault of the engine")

    flow.crashed = crashed  # type: ignore[method-assign]
    flow.begin(1, "", 0)
    driven = Mediation(flow, Whims(script), dial, lambda: None, splice, lambda command: None)
    driven.start()
    for _ in range(64):
        if not script.more:
            break
        await asyncio.sleep(0)
        choice = script.below(8)
        peer = agent if choice < 4 or not servers else servers[-1]
        if choice % 4 < 2:
            peer.said += script.piece(40)
        elif choice % 4 == 2:
            peer.hears_end = True
        else:
            peer.drained()
        peer.wake()
    for _ in range(8):
        await asyncio.sleep(0)
    if not flow.over:
        flow.stop("shutdown", "the relay ends")
    for _ in range(8):
        await asyncio.sleep(0)
    recording.commit()
    assert gone == [flow]
    assert not faults, faults
    assert agent.closed
    assert all(server.closed for server in servers)
    _judge(bytes(journal.payload))


def _judge(payload: bytes) -> None:
    records = list(scan(payload))
    assert records[0].kind is RelayedKind.OPEN
    assert records[-1].kind is RelayedKind.CLOSE
    offsets, ended = [0, 0], [False, False]
    for record in records[1:-1]:
        assert record.kind not in (RelayedKind.OPEN, RelayedKind.CLOSE)
        if record.kind is RelayedKind.DATA:
            assert not ended[record.direction], "nothing comes behind the end"
            assert record.offset == offsets[record.direction]
            offsets[record.direction] += len(record.body)
        elif record.kind is RelayedKind.EOF:
            assert record.offset == offsets[record.direction]
            ended[record.direction] = True


async def _verify(token: str) -> Identity:
    return Identity(issuer="https://idp.example.com", subject="agent")


def _nothing() -> None:
    return None


def _cut(data: bytes, size: int) -> bytes:
    return b"".join(bytes((len(data[at : at + size]),)) + data[at : at + size] for at in range(0, len(data), size))


def _openings() -> Iterable[bytes]:
    for said in (client_hello(), b"GET / HTTP/1.1\r\nHost: x.example.com\r\n\r\n", b"\x16\x03\x01\x00\x00" * 3):
        yield _cut(said, 200)
        yield _cut(said, 7)


def _mediations() -> Iterable[bytes]:
    yield bytes(range(256))
    yield bytes(reversed(range(256)))
    yield bytes((0, 5, *b"hello", 1, 0, 0, 5, 2, 2, 6)) * 12
    yield bytes(each * 37 % 251 for each in range(700))


TARGETS: Final = {
    "opening": Target(opening, _openings, (b"Host: ", b".example.com", b"\x16\x03\x01"), 2048),
    "mediation": Target(mediation, _mediations, (), 1024),
}
