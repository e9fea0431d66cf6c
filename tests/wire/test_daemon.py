"""The wire process on a real gateway: real packets, real nftables, the real program."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from appliance.errors import Refused, Unavailable
from appliance.identity.leases import LeaseHeld
from appliance.journal import Cursor, Damage, FrameKind, JournalKey, Reader, release, spool
from appliance.model import Identity
from appliance.wire import bpf
from appliance.wire.abi import Flow, FlowEnd, Kind, Reason, Side, unpack_address
from tests.lab.wait import until
from tests.wire.net import AGENT, AGENT6, UPSTREAM, UPSTREAM6, Net, Wire, inside, sh

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces, BPF and nftables")
ANN = Identity(issuer="https://idp.example", subject="ann", client="agent")
GATEWAY = "10.91.1.1"  # the gateway's, on the agents' side


@pytest.fixture(scope="module")
def running(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    wire = Wire(net, tmp_path_factory.mktemp("wire"))
    try:
        yield wire.start()
    finally:
        wire.teardown()


@pytest.fixture
def wire(running: Wire) -> Iterator[Wire]:
    """The running process, without leases before and after."""
    if running.process is None or running.process.poll() is not None:
        running.start()
    yield running
    if running.process is None or running.process.poll() is not None:
        running.start()
    for lease in running.client.list():
        running.client.revoke(lease.id)


@contextmanager
def connection(net: Net, address: str = UPSTREAM) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """An agent's connection through the gateway: its end, the upstream's end, the upstream's port."""
    with net.listen(address) as listener:
        port = listener.getsockname()[1]
        with net.connect(port, address) as agent, closing(listener.accept()[0]) as upstream:
            upstream.settimeout(5)
            yield agent, upstream, port


def lease(wire: Wire, seconds: float = 60, address: str = AGENT) -> str:
    return wire.client.grant(address, ANN, time.time_ns() + int(seconds * 1e9)).id


def exchange(sender: socket.socket, receiver: socket.socket, text: bytes = b"hello") -> bool:
    """Send, and wait for exactly that."""
    got = bytearray()
    view = memoryview(text)
    while len(got) < len(text):
        view = view[sender.send(view[:65536]) if view else 0 :]
        got += receiver.recv(len(text) - len(got))
    return got == text


def datagrams(host: str, address: str) -> socket.socket:
    """A UDP socket of `host`, for either family, bound to `address` if there is one."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        mapped = address if ":" in address else f"::ffff:{address}"
        if address:
            sock.bind((mapped, 0))
        sock.settimeout(0.3)
        return sock

    return inside(host, make)


def drain(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


def passes(agent: socket.socket, upstream: socket.socket, seconds: float) -> bool:
    """Whether what the agent sends arrives within the time."""
    upstream.settimeout(seconds)
    try:
        return exchange(agent, upstream)
    except TimeoutError:
        return False
    finally:
        upstream.settimeout(5)


def test_nothing_passes_without_a_lease_and_the_agent_is_told_at_once(net: Net, wire: Wire) -> None:
    with net.listen() as listener:
        began = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            net.connect(listener.getsockname()[1])
        assert time.monotonic() - began < 1
    refused = until(lambda: [r for r, _ in wire.records() if r.kind == Kind.REFUSAL], "the refusal is journaled")
    assert (refused[0].reason, unpack_address(refused[0].source)) == (Reason.NO_LEASE, AGENT)
    assert wire.client.status()["refusals"]["no-lease"] >= 1


@pytest.mark.parametrize(("source", "destination"), [(AGENT, UPSTREAM), (AGENT6, UPSTREAM6)])
def test_with_a_lease_it_passes_and_is_journaled(net: Net, wire: Wire, source: str, destination: str) -> None:
    id = lease(wire, address=source)
    with connection(net, destination) as (agent, upstream, port):
        assert exchange(agent, upstream, b"question")
        assert exchange(upstream, agent, b"answer")
    until(lambda: wire.stream(port, Side.SERVER) == b"answer", "journaled")
    assert wire.stream(port, Side.CLIENT) == b"question"
    ours = [r for r, _ in wire.records() if port in (r.source_port, r.destination_port) and r.kind == Kind.PACKET]
    assert {record.lease for record in ours} == {int(id, 16)}


class Download(BaseHTTPRequestHandler):
    body = os.urandom(3_000_000)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        """Tests are quiet."""


def test_what_curl_downloads_is_the_journals_stream(net: Net, wire: Wire, tmp_path: Path) -> None:
    lease(wire)
    server = HTTPServer((UPSTREAM, 0), Download, bind_and_activate=False)
    server.socket.close()
    server.socket = net.listen()
    port = server.socket.getsockname()[1]
    thread = Thread(target=server.handle_request)
    thread.start()
    got = tmp_path / "got"
    try:
        sh("curl", "-sf", "-o", str(got), f"http://{UPSTREAM}:{port}/file", netns=net.agent)
    finally:
        thread.join()
        server.server_close()
    assert got.read_bytes() == Download.body
    until(lambda: wire.stream(port, Side.SERVER).endswith(Download.body[-1000:]), "journaled")
    recorded = wire.stream(port, Side.SERVER).partition(b"\r\n\r\n")[2]
    assert sha256(recorded).digest() == sha256(Download.body).digest()


def test_udp_is_answered_with_icmp_when_refused(net: Net, wire: Wire) -> None:
    lease(wire)  # the rules open TCP only
    quic = inside(net.agent, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with quic:
        quic.settimeout(5)
        quic.connect((UPSTREAM, 443))
        quic.send(b"\xc0" + bytes(1199))
        with pytest.raises(OSError, match=r"No route to host|Permission denied|Connection refused"):
            quic.recv(1)


def test_a_revoked_lease_cuts_a_live_connection(net: Net, wire: Wire) -> None:
    id = lease(wire)
    with connection(net) as (agent, upstream, port):
        assert exchange(agent, upstream)
        assert wire.client.revoke(id).id == id
        with pytest.raises(ConnectionResetError):
            exchange(agent, agent)
        assert wire.stream(port, Side.CLIENT) in (b"hello", b"")
    until(lambda: "revoked" in leases_said(wire, id), "the cut is on record")
    assert leases_said(wire, id) == ["granted", "revoked"]


@pytest.mark.parametrize("address", [UPSTREAM, UPSTREAM6])
def test_both_ends_of_a_silent_connection_learn_that_it_was_cut(net: Net, wire: Wire, address: str) -> None:
    id = lease(wire, address=AGENT6 if ":" in address else AGENT)
    with connection(net, address) as (agent, upstream, _):
        assert exchange(agent, upstream)
        assert exchange(upstream, agent)
        wire.client.revoke(id)
        for end in (agent, upstream):  # nobody sends anything
            with pytest.raises(ConnectionResetError):
                end.recv(1)


def test_who_has_not_taken_all_that_was_sent_learns_of_the_cut_too(net: Net, wire: Wire) -> None:
    id = lease(wire)
    with connection(net) as (agent, upstream, _):
        upstream.setblocking(False)
        with suppress(BlockingIOError):
            while True:  # the agent's window closes
                upstream.send(bytes(65536))
        wire.client.revoke(id)
        upstream.settimeout(5)
        with pytest.raises(ConnectionResetError):
            upstream.recv(1)
        with pytest.raises(ConnectionResetError):
            drain(agent)


def test_an_expired_lease_cuts_a_live_connection(net: Net, wire: Wire) -> None:
    id = lease(wire, seconds=1.5)
    with connection(net) as (agent, upstream, _):
        assert exchange(agent, upstream)
        until(lambda: not wire.client.list(), "the lease expires")
        with pytest.raises(ConnectionResetError):
            exchange(agent, agent)
    until(lambda: leases_said(wire, id) == ["granted", "expired"], "the end is on record")


def leases_said(wire: Wire, id: str) -> list[str]:
    said = [json.loads(frame.payload) for frame in wire.frames() if frame.kind is FrameKind.LEASE]
    return [one["event"] for one in said if one["id"] == id]


def test_an_address_has_one_holder_and_must_be_behind_an_agents_interface(wire: Wire) -> None:
    lease(wire)
    expires = time.time_ns() + 10**10
    with pytest.raises(LeaseHeld):
        wire.client.grant(AGENT, Identity(issuer="https://idp.example", subject="bob"), expires)
    for elsewhere in (UPSTREAM, "203.0.113.9"):
        with pytest.raises(Refused, match="not behind"):
            wire.client.grant(elsewhere, ANN, expires)


def test_a_deleted_filter_lets_nothing_pass_until_it_is_restored(net: Net, wire: Wire) -> None:
    lease(wire)
    with connection(net) as (agent, upstream, port):
        assert exchange(agent, upstream)
        assert wire.process is not None
        wire.process.send_signal(signal.SIGSTOP)
        try:
            sh("tc", "qdisc", "del", "dev", "agents0", "clsact", netns=net.gateway)
            assert not passes(agent, upstream, 0.7)
        finally:
            wire.process.send_signal(signal.SIGCONT)
        assert upstream.recv(100) == b"hello"  # TCP sends it again, and now it is recorded
    until(lambda: "filter-restored" in wire.events(), "the restoration is on record")
    until(lambda: wire.stream(port, Side.CLIENT) == b"hellohello", "journaled")


def test_a_deleted_table_is_put_back_and_nothing_unrecorded_passes_meanwhile(net: Net, wire: Wire) -> None:
    lease(wire)
    with connection(net) as (agent, upstream, port):
        assert wire.process is not None
        wire.process.send_signal(signal.SIGSTOP)
        try:
            sh("nft", "delete", "table", "inet", "verbatim", netns=net.gateway)
            assert passes(agent, upstream, 5)  # through the program, into the ring
            for address in (UPSTREAM, UPSTREAM6):  # what is refused does not even arrive
                arrived, sender = datagrams(net.upstream, address), datagrams(net.agent, "")
                with arrived, sender:
                    sender.sendto(b"unrecorded", arrived.getsockname())
                    with pytest.raises(TimeoutError):
                        arrived.recv(100)
        finally:
            wire.process.send_signal(signal.SIGCONT)
        until(lambda: "verbatim" in sh("nft", "list", "tables", netns=net.gateway), "the table is back")
        assert exchange(agent, upstream)
    until(lambda: wire.stream(port, Side.CLIENT) == b"hellohello", "journaled")
    until(lambda: "interlock-restored" in wire.events(), "the restoration is on record")


def test_a_changed_table_is_put_back(net: Net, wire: Wire) -> None:
    before = len(wire.events())
    sh("nft", "insert rule inet verbatim forward accept", netns=net.gateway)
    until(lambda: "interlock-restored" in wire.events()[before:], "the restoration is on record")
    assert "\t\taccept\n" not in sh("nft", "list", "chain", "inet", "verbatim", "forward", netns=net.gateway)


def test_the_gateway_is_closed_to_agents_but_for_what_it_offers(net: Net, wire: Wire) -> None:
    closed = inside(net.gateway, lambda: socket.create_server(("", 0)))
    offered = inside(net.gateway, lambda: socket.create_server(("", 8443)))
    with closed, offered:
        net.connect(8443, GATEWAY).close()
        with pytest.raises(TimeoutError):
            net.connect(closed.getsockname()[1], GATEWAY, timeout=0.5)
        with inside(net.agent, lambda: socket.create_server(("", 0))) as home:  # what the gateway begins is answered
            address = (AGENT, home.getsockname()[1])
            inside(net.gateway, lambda: socket.create_connection(address, 5)).close()
    with inside(net.agent, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)) as ping:
        ping.settimeout(5)
        ping.sendto(bytes.fromhex("0800f7fd00010001"), (GATEWAY, 0))  # echo request
        assert ping.recv(100)[20] == 0  # echo reply


def test_after_a_kill_the_next_process_goes_on_where_the_last_one_stopped(net: Net, wire: Wire) -> None:
    lease(wire)
    before, middle, after = (os.urandom(200_000) for _ in range(3))
    with connection(net) as (agent, upstream, port):
        assert exchange(agent, upstream, before)
        wire.stop(signal.SIGKILL)
        assert exchange(agent, upstream, middle)  # into the ring, which nobody drains
        wire.start()
        assert exchange(agent, upstream, after)
    whole = sha256(before + middle + after).digest()
    until(lambda: sha256(wire.stream(port, Side.CLIENT)).digest() == whole, "journaled")
    assert [frame.kind for frame in wire.frames()].count(FrameKind.OPEN) >= 2


def pump(sender: socket.socket, receiver: socket.socket, data: bytes, sent: int, got: bytearray, quiet: float) -> int:
    """Send `data` from offset `sent` and append what arrives to `got`, until nothing has moved for `quiet` seconds."""
    sender.setblocking(False)
    receiver.settimeout(0.01)
    moved = time.monotonic()
    while time.monotonic() - moved < quiet and len(got) < len(data):
        with suppress(BlockingIOError):
            if count := sender.send(data[sent : sent + 65536]):
                sent, moved = sent + count, time.monotonic()
        with suppress(TimeoutError):
            got += receiver.recv(1 << 20)
            moved = time.monotonic()
    return sent


def test_with_nobody_to_drain_it_the_full_ring_stalls_and_the_rest_follows_later(net: Net, wire: Wire) -> None:
    lease(wire)
    data, got = os.urandom(4_000_000), bytearray()  # four times the ring
    with connection(net) as (agent, upstream, port):
        wire.stop(signal.SIGKILL)
        sent = pump(agent, upstream, data, 0, got, 0.7)
        assert 0 < len(got) < 1_100_000
        wire.start()
        pump(agent, upstream, data, sent, got, 20)
        assert got == data
    until(lambda: sha256(wire.stream(port, Side.CLIENT)).digest() == sha256(data).digest(), "journaled")


def test_leases_outlast_the_process(net: Net, wire: Wire) -> None:
    id = lease(wire)
    assert wire.stop() == 0
    wire.start()
    assert [held.id for held in wire.client.list()] == [id]
    with connection(net) as (agent, upstream, _):
        assert exchange(agent, upstream)


def test_stopping_leaves_everything_closed_and_withdraws_the_status(net: Net, wire: Wire) -> None:
    id = lease(wire)
    status = wire.data / "run" / "wire.status.json"
    until(status.exists, "the status is there")
    assert wire.stop() == 0
    assert not status.exists()
    assert "verbatim" in sh("nft", "list", "tables", netns=net.gateway)
    with pytest.raises(Unavailable):
        wire.client.list()
    wire.start()
    assert "wire-stopped" in wire.events()
    wire.client.revoke(id)


def test_only_one_process_at_a_time(wire: Wire) -> None:
    second = subprocess.run(wire.command("run"), capture_output=True, text=True, timeout=60)
    assert second.returncode != 0
    assert "another process has this machine's interfaces" in second.stderr


def test_a_second_process_with_another_folder_takes_nothing_from_the_first(wire: Wire, tmp_path: Path) -> None:
    second = subprocess.run(Wire(wire.net, tmp_path).command("run"), capture_output=True, text=True, timeout=60)
    assert second.returncode != 0
    assert "another process has this machine's interfaces" in second.stderr
    assert wire.answers()


def test_a_running_process_is_not_torn_down(wire: Wire) -> None:
    torn = subprocess.run(wire.command("teardown"), capture_output=True, text=True, timeout=60)
    assert torn.returncode != 0
    assert "stop verbatim wire first" in torn.stderr
    assert wire.client.status()["interlock"]


def test_a_teardown_opens_the_gateway_again(net: Net, wire: Wire) -> None:
    wire.teardown()
    assert not wire.bpffs.exists()
    with connection(net) as (agent, upstream, _):
        assert exchange(agent, upstream)
    wire.start()
    with net.listen() as listener, pytest.raises(ConnectionRefusedError):
        net.connect(listener.getsockname()[1])


def test_an_interface_made_anew_is_recorded_again(net: Net, wire: Wire) -> None:
    sh("ip", "link", "del", "upstream0", netns=net.gateway)
    until(lambda: "interface-missing" in wire.events(), "the loss is on record")
    net.wire_up(net.upstream, "upstream0", 2)
    until(lambda: "interface-found" in wire.events(), "the return is on record")
    lease(wire)
    with connection(net) as (agent, upstream, port):
        assert exchange(upstream, agent)
    until(lambda: wire.stream(port, Side.SERVER) == b"hello", "journaled")


def test_a_new_address_of_the_gateway_is_its_own(net: Net, wire: Wire) -> None:
    sh("ip", "addr", "add", "10.91.1.99/24", "dev", "agents0", netns=net.gateway)
    locals_ = bpf.Map(bpf.get(wire.bpffs / "locals") or -1)
    until(lambda: "10.91.1.99" in {unpack_address(key) for key, _ in locals_.items()}, "it is known")
    os.close(locals_.fd)


def test_what_other_processes_left_for_the_journal_is_there_once(wire: Wire) -> None:
    """Also what came while no wire process ran."""
    wire.stop()
    spool.leave(wire.data, "secret-set", "secret orders was set", time.time_ns(), name="orders", generation=1, uid=0)
    wire.start()
    until(lambda: wire.events().count("secret-set") == 1, "the first is journaled")
    spool.leave(wire.data, "ca-rotated", "the CA has a new key", time.time_ns(), uid=0)
    until(lambda: wire.events().count("ca-rotated") == 1, "the second is journaled")
    until(lambda: not spool.left(wire.data, 1), "both are removed")
    assert wire.events().count("secret-set") == 1
    said = [json.loads(frame.payload) for frame in wire.frames() if frame.kind is FrameKind.EVENT]
    (note,) = [each for each in said if each["kind"] == "secret-set"]
    assert (note["text"], note["name"], note["generation"]) == ("secret orders was set", "orders", 1)


def test_clock_frames_stand_before_the_spans_they_explain(wire: Wire) -> None:
    kinds = [frame.kind for frame in wire.frames()]
    assert kinds.index(FrameKind.OPEN) < kinds.index(FrameKind.CLOCK) < kinds.index(FrameKind.SPAN)


def test_a_silent_flow_ends_with_a_record(net: Net, wire: Wire) -> None:
    lease(wire)
    wire.stop()
    wire.wire = "flow_idle = 1\n"
    wire.start()
    try:
        with connection(net) as (agent, upstream, port):
            assert exchange(agent, upstream)
            ends = until(lambda: flow_ends(wire, port), "the end is on record")
        assert [(flow.end, flow.client.bytes, flow.server.bytes) for flow in ends] == [(FlowEnd.IDLE, 5, 0)]
    finally:
        wire.wire = ""
        wire.stop()


def test_a_flow_that_lost_its_lease_ends_with_a_record(net: Net, wire: Wire) -> None:
    id = lease(wire)
    with connection(net) as (agent, upstream, port):
        assert exchange(agent, upstream)
        wire.client.revoke(id)
        ends = until(lambda: flow_ends(wire, port), "the end is on record", 30)
    assert [flow.end for flow in ends] == [FlowEnd.CUT]


def flow_ends(wire: Wire, port: int) -> list[Flow]:
    ends = [(r, data) for r, data in wire.records() if r.kind == Kind.FLOW_END and r.destination_port == port]
    return [Flow.unpack(data) for _, data in ends]


def test_a_full_journal_stalls_and_goes_on_when_there_is_room(net: Net, wire: Wire, tmp_path: Path) -> None:
    assert wire.stop() == 0
    small = Wire(net, tmp_path, journal="segment_bytes = 2097152\nmax_bytes = 12582912\n")
    folder = tmp_path / "journal" / "wire"
    data, got = os.urandom(16_000_000), bytearray()
    try:
        lease(small.start())
        with connection(net) as (agent, upstream, port):
            sent = pump(agent, upstream, data, 0, got, 0.7)
            assert small.client.status()["journal"]["stalled"]
            assert 0 < len(got) < len(data)
            whole = small.stream(port, Side.CLIENT)
            assert whole.startswith(got)  # all that passed is in the journal, though that is full
            assert small.events()[-1] == "journal-stalled"
            newest = int(max(folder.glob("*.seg")).stem, 16)
            release(folder, Cursor(newest, 0, small.frames()[-1].number))
            until(lambda: not small.client.status()["journal"]["stalled"], "it goes on")
            now = len(got)
            pump(agent, upstream, data, sent, got, 2)
            assert len(got) > now
            assert data.startswith(got)
            assert "journal-resumed" in events_since(small, newest)
    finally:
        small.stop(signal.SIGKILL)


def events_since(wire: Wire, segment: int) -> list[str]:
    found = []
    with Reader(wire.data / "journal" / "wire", JournalKey.load(wire.data), Cursor(segment, 0, 0)) as reader:
        while (item := reader.read()) is not None:
            if not isinstance(item, Damage) and item.kind is FrameKind.EVENT:
                found.append(json.loads(item.payload)["kind"])
    return found
