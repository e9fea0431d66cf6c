"""The engine under pressure: faults of its own, a wire process that hangs, no descriptors, a full journal."""

import asyncio
import resource
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from appliance import status
from appliance.config import Settings
from appliance.errors import Unavailable
from appliance.journal import JournalFull
from appliance.model import Direction
from appliance.relay import accepting, dial, protocols, recording, streams
from appliance.relay.failure import Failure
from appliance.relay.mediator import ANY, Commands, Context, Dial
from appliance.relay.resolve import EACH, Resolver, plain
from appliance.relay.surroundings import AgentLeg, Counts
from appliance.relay.worker import Worker
from appliance.wire.control import SOCKET
from tests.lab.wait import until
from tests.relay.running import Running
from tests.relay.servers import Server, echo
from tests.relay.test_splice import RULES

LEASE = "00000000000000a7"


class Books:
    """A kernel that knows every connection as one of a lease, or none."""

    def __init__(self, lease: str | None = None, *, gone: bool = False) -> None:
        self.held = lease
        self.gone = gone
        self.legs: set[tuple[str, int, str, int]] = set()

    def agent_leg(self, client: str, client_port: int, server: str, server_port: int) -> AgentLeg | None:
        return None if self.held is None else AgentLeg(1, self.held, {"sent": 0, "packets": 0})

    def put_leg(
        self, client: str, client_port: int, server: str, server_port: int, *, transparent: bool, unbound: bool
    ) -> None:
        self.legs.add((client, client_port, server, server_port))

    def take_leg(self, client: str, client_port: int, server: str, server_port: int) -> Counts | None:
        if self.gone:
            raise Unavailable("the maps are gone")
        self.legs.discard((client, client_port, server, server_port))
        return None

    def lease(self, address: str) -> str | None:
        return self.held

    def tend(self) -> None:
        if self.gone:
            raise Unavailable("the maps are gone")

    def unregister(self) -> None:
        self.tend()

    def close(self) -> None:
        self.tend()


def knowing(books: Books) -> Callable[[Worker], None]:
    def prepare(worker: Worker) -> None:
        worker._steered = True
        worker._kernel = worker.around.kernel = books

    return prepare


class Broken:
    """A mediator with a fault in it."""

    ready = True

    def __init__(self, context: Context) -> None:
        del context

    def limit(self, direction: Direction) -> int:
        return ANY

    def start(self) -> Commands:
        return [Dial()]

    def dialled(self) -> Commands:
        return []

    def receive(self, direction: Direction, data: bytes) -> Commands:
        raise ValueError("a fault of ours")

    def stop(self, reason: str, text: str) -> Commands:
        raise ValueError("another one")


def mediated(**more: Any) -> list[dict[str, Any]]:
    relay = {"application": "redis", "mode": "mediate"} | more
    return [{"to": "127.0.0.0/8", "lane": "relay", "protocol": "tcp", "relay": relay}]


def test_a_fault_of_ours_ends_its_flow_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(protocols.MEDIATORS, "redis", Broken)
    with Server(echo) as server, Running(tmp_path, mediated(), server.address) as relay:
        for said in (b"PING\r\n", b""):
            with socket.create_connection(relay.address) as client:
                if said:
                    client.sendall(said)
                else:
                    client.shutdown(socket.SHUT_WR)
                client.settimeout(10)
                with suppress(ConnectionResetError):
                    assert client.recv(100) == b""
        relay.idle()
        began = time.process_time()
        time.sleep(0.3)
        assert time.process_time() - began < 0.2, "nothing is called again and again"
        relay.stop()
        assert [flow.refused for flow in relay.flows()] == [["internal-error"]] * 2
    assert relay.exit_code == 0


def test_a_failed_connection_leaves_nothing_in_the_kernels_table() -> None:
    books = Books()
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        address, port = closed.getsockname()

    async def connect() -> None:
        with pytest.raises(Failure, match="refused"):
            await dial.connect(asyncio.get_running_loop(), address, port, "", books, 5)

    asyncio.run(connect())
    assert not books.legs


def test_where_the_kernels_maps_are_gone_flows_still_end(tmp_path: Path) -> None:
    """And what is due each second is done all the same: a flow that says nothing ends."""
    books = Books("", gone=True)
    sections = {"relay": {"idle_timeout": 1.5}}
    rules = [RULES[0] | {"unbound": True}]
    with Server(echo) as server, Running(tmp_path, rules, server.address, knowing(books), **sections) as relay:
        with socket.create_connection(relay.address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            client.settimeout(10)
            assert client.recv(1) == b"", "it is idle"
        relay.idle()
        relay.stop()
        assert relay.flow().refused == ["idle"]
        assert relay.flow().closed
    assert relay.exit_code == 0


class Overtaken(Books):
    """A kernel that counts more as soon as it was asked at the end."""

    def __init__(self, agent: Callable[[], int]) -> None:
        super().__init__("")
        self._agent = agent

    def agent_leg(self, client: str, client_port: int, server: str, server_port: int) -> AgentLeg | None:
        return AgentLeg(1, "", {"sent": self._agent(), "packets": 1})

    def take_leg(self, client: str, client_port: int, server: str, server_port: int) -> Counts | None:
        return {"sent": 1, "packets": 1}


def test_what_comes_while_a_leg_is_counted_is_not_missing(tmp_path: Path) -> None:
    """As an agent's goodbye to a flow that the gateway ends: the kernel never counts a byte that the socket missed."""
    client = socket.socket()

    def goodbye() -> int:
        """One byte was counted, and another one comes."""
        if said:
            client.sendall(b"y")
        return 1

    said: list[bytes] = []
    rules = [RULES[0] | {"unbound": True}]
    knows = knowing(Overtaken(goodbye))
    with client, Server(echo) as server, Running(tmp_path, rules, server.address, knows) as relay:
        client.connect(relay.address)
        client.sendall(b"x")
        said.append(client.recv(1))
        relay.stop()
        legs = relay.flow().closed["legs"]
    assert legs["agent"]["kernel"]["sent"] == 1
    assert legs["agent"]["socket"]["received"] == 2
    assert legs["upstream"]["kernel"] == {"sent": 1, "packets": 1}
    assert legs["upstream"]["socket"]["received"] == 1


def test_who_connects_past_the_program_is_refused(tmp_path: Path) -> None:
    """As to the worker's own port at an address of the gateway: it would be relayed to itself, again and again."""
    with Server(echo) as server, Running(tmp_path, RULES, server.address, knowing(Books())) as relay:
        with socket.create_connection(relay.address) as client:
            assert client.recv(1) == b""
        relay.idle()
        relay.stop()
        assert relay.flow().refused == ["not-steered"]
        assert not server.accepted


@pytest.fixture
def mute(tmp_path: Path) -> Any:
    """A wire process that accepts and never answers; how often it was asked."""
    folder = status.run_folder(tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / SOCKET))
        listener.listen(64)
        yield listener


def test_a_wire_process_that_hangs_is_asked_once_and_not_waited_for(tmp_path: Path, mute: socket.socket) -> None:
    sections = {"relay": {"handshake_timeout": 0.5}}
    with Server(echo) as server, Running(tmp_path, RULES, server.address, knowing(Books(LEASE)), **sections) as relay:
        relay.worker._who._wire._timeout = 3.0
        clients = [socket.create_connection(relay.address) for _ in range(12)]
        for client in clients:
            client.settimeout(2)
            assert client.recv(1) == b""
            client.close()
        relay.idle()
        relay.stop()
        assert [flow.refused for flow in relay.flows()] == [["lease-unknown"]] * 12
        assert all(flow.opened["lease_id"] == LEASE for flow in relay.flows())
    mute.setblocking(False)
    mute.accept()[0].close()
    with pytest.raises(BlockingIOError):
        mute.accept()


def test_the_limit_of_a_lease_holds_before_anything_is_done(tmp_path: Path, mute: socket.socket) -> None:
    sections = {"relay": {"max_connections_per_lease": 2, "handshake_timeout": 30}}
    with Server(echo) as server, Running(tmp_path, RULES, server.address, knowing(Books(LEASE)), **sections) as relay:
        relay.worker._who._wire._timeout = 0.5
        first = [socket.create_connection(relay.address) for _ in range(2)]
        until(lambda: relay.worker.values()["flows"] == 2, "both to be asked for")
        with socket.create_connection(relay.address) as third:
            third.settimeout(0.4)
            assert third.recv(1) == b"", "though nobody knows yet whose lease it is"
        for client in first:
            client.close()
        relay.idle()
        relay.stop()
        assert [flow.refused for flow in relay.flows() if flow.refused == ["too-many-connections"]]


def test_without_descriptors_listeners_rest() -> None:
    """And go on as soon as there are some: nothing spins meanwhile."""
    loop = uvloop.new_event_loop()
    taken: list[socket.socket] = []
    doors = accepting.Accepting(loop, lambda sock, peer, proxied: taken.append(sock), lambda: True)
    listener = accepting.listener(socket.AF_INET, "127.0.0.1", 0)
    doors.add(listener, proxied=False)
    loop.run_until_complete(asyncio.sleep(0))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_connection(listener.getsockname()):

        async def live() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
            try:
                began = time.process_time()
                await asyncio.sleep(0.5)
                assert time.process_time() - began < 0.2
                assert doors.exhausted
                assert not taken
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            async with asyncio.timeout(20):
                while not taken:
                    await asyncio.sleep(0.01)

        loop.run_until_complete(live())
    assert len(taken) == 1
    assert not doors.exhausted
    taken[0].close()
    doors.close()
    loop.close()


def stall(full: threading.Event) -> Callable[[Worker], None]:
    def prepare(worker: Worker) -> None:
        append = worker._writer.append

        def refuse(*args: Any, **named: Any) -> int:
            if full.is_set():
                raise JournalFull("journal: full, for this test; wait")
            return append(*args, **named)

        worker._writer.append = refuse  # type: ignore[method-assign]

    return prepare


def test_while_the_journal_takes_nothing_nobody_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flow would add records to those that wait in memory."""
    full, rests = threading.Event(), [0]
    go_on = accepting.Accepting._go_on

    def counted(doors: accepting.Accepting) -> None:
        rests[0] += 1
        go_on(doors)

    monkeypatch.setattr(accepting.Accepting, "_go_on", counted)
    with Server(echo) as server, Running(tmp_path, RULES, server.address, stall(full)) as relay:
        full.set()
        clients = [socket.create_connection(relay.address)]
        until(lambda: relay.worker.around.recording._full, "its record to wait")
        clients += [socket.create_connection(relay.address) for _ in range(100)]
        until(lambda: rests[0] >= 3, "the listeners to look again")
        assert relay.worker.values()["accepted"] == 1
        full.clear()
        for client in clients:
            client.sendall(b"x")
        for client in clients:
            client.settimeout(10)
            assert client.recv(1) == b"x"
            client.close()
        relay.idle()


def test_what_is_ready_in_one_turn_is_not_all_read_in_it(tmp_path: Path) -> None:
    """Memory does not grow with the number of flows that have something to say at once."""
    loop = asyncio.new_event_loop()
    with streams.take(Settings(data=tmp_path))[0] as writer:
        said = recording.Recording(writer, "relay-0", "node", "boot", loop, time.time_ns)
        trace, taken = said.trace(), 0
        while (view := said.slot(2**18)) and taken < 2**26:
            said.fill(trace, 0, len(view), None)
            taken += len(view)
        assert 2**22 < taken < 2**24
        said.commit()
        assert said.slot(2**18), "the next turn goes on"
    loop.close()


def test_what_a_peer_says_at_length_is_cut_on_record(tmp_path: Path) -> None:
    with Server(echo) as server, Running(tmp_path, RULES, server.address) as relay:
        with socket.create_connection(relay.address) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            (flow,) = relay.worker._flows
            relay.loop.call_soon_threadsafe(flow.note, "long", "y" * 2**21, {"names": ["z" * 2**20]})
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        relay.idle()
        relay.stop()
        (note,) = relay.flow().notes_of("long")
        assert set(note["text"]) == {"y"}
        assert relay.flow().closed["ending"] == "fin"


def test_names_that_are_never_answered_keep_only_their_asker_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    release, asking = threading.Event(), [0]

    def ask(host: str, *args: Any, **named: Any) -> list[Any]:
        if host == "good.example.com":
            return [(0, 0, 0, "", ("::ffff:192.0.2.7", 0)), (0, 0, 0, "", ("192.0.2.8", 0))]
        asking[0] += 1
        release.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", ask)

    async def main() -> None:
        resolver = Resolver(asyncio.get_running_loop())
        slow = [asyncio.create_task(resolver.addresses("a", f"{n}.example.com", 80, 0.4)) for n in range(200)]
        async with asyncio.timeout(20):
            while asking[0] < EACH:
                await asyncio.sleep(0.01)
        found = await resolver.addresses("b", "good.example.com", 80, 5)
        assert found == ["192.0.2.7", "192.0.2.8"], "and a mapped address is what it stands for"
        ends = await asyncio.gather(*slow, return_exceptions=True)
        assert all(isinstance(end, Failure) and end.reason == "time-out" for end in ends)
        assert asking[0] == EACH, "a thread that nobody waits for any more is still busy"
        release.set()
        resolver.close()

    asyncio.run(main())


def test_an_address_in_the_one_way_of_writing_it() -> None:
    assert plain("::FFFF:10.0.0.1") == "10.0.0.1"
    assert plain("2001:DB8::0:1") == "2001:db8::1"
    with pytest.raises(ValueError, match="does not appear"):
        plain("10.0.0.1.example.com")
