"""The last bytes of a flow: behind a closing alert, without one, before a reset, and to those who never take them."""

import hashlib
import os
import socket
import ssl
import struct
import threading
from pathlib import Path

import pytest
import uvloop

from appliance.config import RelayRule
from appliance.model import Direction
from appliance.relay import protocols
from appliance.relay.failure import Failure
from appliance.relay.leg import _OUTGOING, Leg
from appliance.relay.mediator import ANY, Commands, Context, Dial, Fail, Pass, Splice
from appliance.relay.tls import ServerTls
from tests.lab.pki import Pki
from tests.lab.wait import until
from tests.relay.running import Running
from tests.relay.servers import Server, client_context, echo, end, read_all, server_context
from tests.relay.test_engine import mediated
from tests.relay.test_splice import RULES, _still
from tests.relay.test_tls import NAME, rules

RST = struct.pack("ii", 1, 0)


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def read_on(sock: socket.socket, into: bytearray) -> None:
    while data := sock.recv(65536):
        into += data


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
def test_an_agent_is_heard_to_its_end_though_its_server_said_all(
    tmp_path: Path, pki: Pki, version: ssl.TLSVersion
) -> None:
    """The server's closing alert is passed on while the agent's bytes are half decrypted."""
    sent = os.urandom(8 * 2**20)
    said, shut, heard = threading.Event(), threading.Event(), []

    def answer_first(sock: socket.socket) -> None:
        begun = sock.recv(1000)
        sock.sendall(b"enough")
        said.set()
        assert shut.wait(10)
        heard.append(begun + read_all(sock))
        end(sock)

    tls = server_context(pki, NAME)
    tls.maximum_version = version
    with Server(answer_first, tls) as server, Running(tmp_path / "data", rules(pki), server.address) as relay:
        context = client_context(relay.ca)
        with context.wrap_socket(socket.create_connection(relay.address), server_hostname=NAME) as client:
            client.sendall(sent[:100])
            assert said.wait(10)
            sending = threading.Thread(target=client.sendall, args=(sent[100:],))
            sending.start()
            ((agent, upstream),) = ((each.agent, each.upstream) for each in list(relay.worker._flows))
            assert upstream is not None

            until(lambda: upstream.waiting, "the agent to be held back")
            relay.loop.call_soon_threadsafe(agent.shut)
            relay.loop.call_soon_threadsafe(shut.set)
            sending.join(20)
            assert client.recv(6) == b"enough"
            client.unwrap()
        relay.idle()
        relay.stop()
        flow = relay.flow()
    assert "ended" not in flow.notes_of("tls")[-1]["attrs"]
    assert len(heard[0]) == len(sent), flow.closed
    assert hashlib.sha256(heard[0]).digest() == hashlib.sha256(sent).digest()
    assert bytes(flow.data[0]) == sent


@pytest.mark.parametrize("rest", [b"", b"\x17\x03\x03\x00\x20cut"], ids=["between records", "within a record"])
def test_a_server_that_says_no_closing_alert_is_heard_to_its_end(tmp_path: Path, pki: Pki, rest: bytes) -> None:
    """Many don't: what they said arrives, the agent learns that nothing confirms its end, and the record says so. A
    finding is where bytes are lost."""
    sent = os.urandom(4 * 2**20)

    def cut(sock: socket.socket) -> None:
        sock.recv(10)
        sock.sendall(sent)
        with socket.socket(fileno=os.dup(sock.fileno())) as below:
            below.sendall(rest)
        sock.shutdown(socket.SHUT_WR)

    tls = server_context(pki, NAME)
    with Server(cut, tls) as server, Running(tmp_path / "data", rules(pki), server.address) as relay:
        context = client_context(relay.ca)
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        sock.connect(relay.address)
        wrapped = context.wrap_socket(sock, server_hostname=NAME, suppress_ragged_eofs=False)
        with wrapped as client:
            client.sendall(b"go")
            until(lambda: _still(lambda: relay.worker.around.recording.bytes), "the relay to wait for its agent")
            with pytest.raises(ssl.SSLError, match=r"(?i)eof"):
                read_on(client, got := bytearray())
        relay.idle()
        relay.stop()
        flow = relay.flow()
    assert bytes(got) == sent
    assert bytes(flow.data[1]) == sent
    assert len(flow.notes_of("tls-truncated")) == bool(rest)
    assert flow.notes_of("upstream")[-1]["attrs"]["tls"]["ended"] == "without close_notify"
    assert flow.ended[1]


def test_what_a_server_said_before_its_reset_still_arrives(tmp_path: Path) -> None:
    go = threading.Event()

    def burst(sock: socket.socket) -> None:
        for _ in range(1024):
            sock.settimeout(1)
            try:
                sock.sendall(bytes(4096))
            except TimeoutError:
                break
        go.wait(10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        sock.close()

    with Server(burst) as server, Running(tmp_path, RULES, server.address) as relay:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            client.connect(relay.address)
            recorded = relay.worker.around.recording
            until(lambda: _still(lambda: recorded.bytes), "the relay to wait for its agent")
            go.set()
            with pytest.raises(ConnectionResetError):
                read_on(client, got := bytearray())
        relay.idle()
        relay.stop()
        flow = relay.flow()
    assert flow.closed["reason"] == "server-reset"
    assert len(got) == len(flow.data[1]) > 2**19


def test_tls_does_not_answer_without_end() -> None:
    """A peer may have TLS answer (alerts, key updates) and not take the answers: that ends, and takes little memory."""
    loop = uvloop.new_event_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        sock, _ = listener.accept()
        leg = Leg(loop, sock)

        def ask() -> None:
            for _ in range(2**18):
                _OUTGOING.write(bytes(1000))
                leg._answer()

        with pytest.raises(Failure, match="again and again"):
            ask()
        assert leg.waiting < 2**17
        leg.close()
    loop.close()


class HandsOver:
    """Passes what the agent says and its end, and then has the bytes spliced."""

    ready = False

    def __init__(self, context: Context) -> None:
        self._early: list[bytes] = []

    def limit(self, direction: Direction) -> int:
        return ANY

    def start(self) -> Commands:
        return []

    def receive(self, direction: Direction, data: bytes) -> Commands:
        self._early.append(data)
        return []

    def ended(self, direction: Direction) -> Commands:
        return [Dial()]

    def dialled(self) -> Commands:
        return [*(Pass(Direction.CLIENT, data) for data in self._early), Splice()]

    def stop(self, reason: str, text: str) -> Commands:
        return [Fail(reason, text)]


def test_an_end_that_came_before_splicing_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And stands on record behind the bytes that came before it."""
    monkeypatch.setitem(protocols.MEDIATORS, "redis", HandsOver)
    with Server(echo) as server, Running(tmp_path, mediated(), server.address) as relay:
        with socket.create_connection(relay.address) as client:
            client.settimeout(10)
            client.sendall(b"all of it")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"all of it"
        relay.idle()
        relay.stop()
        flow = relay.flow()
    assert flow.data == [b"all of it"] * 2
    assert flow.ended == [True, True]
    assert flow.closed["ending"] == "fin"


def test_last_words_that_nobody_takes_are_waited_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.relay.flow.LINGER", 0.5)
    with (
        Server(lambda sock: sock.sendall(bytes(2**26))) as server,
        Running(tmp_path, RULES, server.address, relay={"idle_timeout": 1.5}) as relay,
    ):
        with socket.create_connection(relay.address):
            until(lambda: relay.worker.values()["flows"], "the flow to begin")
            relay.idle()
        relay.stop()
        assert relay.flow().refused == ["idle"]


def test_agents_cannot_have_contexts_made_by_their_offers(pki: Pki) -> None:
    """Each holds the system's authorities. An offer is that of its connection and of no other."""
    tls = ServerTls()
    rule = RelayRule(ca=pki.certificate)
    server = server_context(pki, NAME, alpn=("b", "a"))
    for offer, chosen in ((("a",), "a"), (("x", "b"), "b"), ((), None), (("x",), None), (("a", "b"), "b")):
        context = tls.context(rule, offer, None)
        one, other = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(one, other, server_hostname=NAME)
        tls.context(rule, ("later",), None)
        peer = server.wrap_bio(other, one, server_side=True)
        for _ in range(4):
            for side in (client, peer):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        assert client.selected_alpn_protocol() == chosen
    assert len(tls._contexts._held) == 1
