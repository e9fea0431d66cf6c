"""Bad input in every state of a flow: it ends with a reason on record, and another flow never notices."""

import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from appliance.dissect.tls_hello import Malformed
from appliance.relay.tls import MAX_HELLO, HelloReader, usable
from tests.lab.pki import Pki
from tests.relay.running import Running
from tests.relay.servers import Server, client_context, echo, server_context
from tests.relay.test_engine_ends import RST
from tests.relay.test_splice import RULES
from tests.relay.test_tls import NAME, client_hello, rules

SLOWEST: float = 1.0  # seconds for an answer beside hostile flows, on a machine that does other things too


@contextmanager
def steady(relay: Running, context: ssl.SSLContext) -> Iterator[list[float]]:
    """Asks again and again beside what the block does: each answer must be right. Gives the seconds that they took."""
    took: list[float] = []
    over, failures = threading.Event(), []

    def ask(client: ssl.SSLSocket) -> None:
        try:
            number = 0
            while not over.wait(0.005):
                number += 1
                question = number.to_bytes(8) * 16
                began = time.monotonic()
                client.sendall(question)
                answer = b""
                while len(answer) < len(question):
                    answer += client.recv(1024)
                assert answer == question
                took.append(time.monotonic() - began)
        except BaseException as error:
            failures.append(error)

    with context.wrap_socket(socket.create_connection(relay.address), server_hostname=NAME) as client:
        client.settimeout(10)
        thread = threading.Thread(target=ask, args=(client,))
        thread.start()
        try:
            yield took
        finally:
            over.set()
            thread.join(20)
            assert not failures, failures
            client.unwrap().close()


def attack(relay: Running, said: bytes, after: bytes | None = None, *, reset: bool = False, wait: float = 0.0) -> None:
    """Say `said`, and `after` once something came back; then hang up."""
    with socket.create_connection(relay.address) as sock, suppress(OSError):
        sock.settimeout(5)
        sock.sendall(said)
        if after is not None:
            sock.recv(100_000)
            sock.sendall(after)
        if wait:
            sock.settimeout(wait)
            while sock.recv(65536):
                pass
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)


def shaken(relay: Running, context: ssl.SSLContext, then: Callable[[bytes], bytes]) -> None:
    """Shake hands, and then say what `then` makes of a good record."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
    with socket.create_connection(relay.address) as sock, suppress(OSError):
        sock.settimeout(5)
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        sock.sendall(outgoing.read())
        client.write(b"a good question")
        sock.sendall(then(outgoing.read()))
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


def spoilt(data: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(5)
    at = chance.randrange(len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + chance.randbytes(chance.randrange(1, 40)) + data[at:]
    if kind == 3:
        return data[:3] + b"\xff\xff" + data[5:]
    return data * 3


def test_agents_that_say_anything(tmp_path: Path, pki: Pki) -> None:
    chance = random.Random(4)
    hello = client_hello()
    with (
        Server(echo, server_context(pki, NAME)) as server,
        Running(tmp_path / "data", rules(pki), server.address, relay={"handshake_timeout": 1}) as relay,
    ):
        context = client_context(relay.ca)
        with steady(relay, context) as took:
            for number in range(60):
                attack(relay, spoilt(hello, chance), reset=number % 3 == 0)
            for number in range(30):
                attack(relay, hello, chance.randbytes(chance.randrange(1, 3000)), reset=number % 3 == 0)
            attack(relay, hello, hello, wait=3)
            attack(relay, b"\x16\x03\x01\xff\xff\x01\x00\xff\xff" + bytes(70_000))
            attack(relay, b"\x16\x03\x01\x00\x00" * 20_000)
            attack(relay, b"\x17\x03\x03\x00\x05hello")
            attack(relay, b"\x15\x03\x03\x00\x02\x02\x28")
            for number in range(40):
                shaken(relay, context, lambda record, number=number: spoilt(record, chance))  # type: ignore[misc]
            shaken(relay, context, lambda record: record + hello)
            shaken(relay, context, lambda record: record[:7])
            assert relay.worker.values()["flows"] >= 1
        assert max(took) < SLOWEST
        assert len(took) > 50
        relay.idle()
        relay.stop()
        flows = relay.flows()
    assert relay.exit_code == 0
    assert all(flow.closed for flow in flows)
    reasons = {str(flow.closed["reason"]) for flow in flows}
    assert "internal-error" not in reasons
    assert {"tls", "agent-reset", ""} <= reasons
    for flow in flows:
        assert flow.closed["reason"] or flow.closed["ending"] == "fin"


def test_servers_that_say_anything(tmp_path: Path, pki: Pki) -> None:
    chance = random.Random(5)
    turn = iter(range(10_000))
    hello = client_hello()

    def hostile(sock: socket.socket) -> None:
        number = next(turn) % 8
        with suppress(OSError):
            sock.settimeout(5)
            sock.recv(4096)
            if number == 0:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            elif number == 1:
                sock.sendall(hello)  # what only clients say
            elif number == 2:
                sock.sendall(b"\x16\x03\x03\xff\xff" + bytes(70_000))
            elif number == 3:
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            elif number == 4:
                sock.sendall(b"\x15\x03\x03\x00\x02\x02\x28")
            elif number == 5:
                sock.recv(1)  # and nothing is said
            elif number == 6:
                sock.sendall(chance.randbytes(5000))

    with (
        Server(echo, server_context(pki, NAME)) as server,
        Server(hostile) as bad,
        Running(tmp_path / "data", rules(pki), server.address, relay={"handshake_timeout": 1}) as relay,
    ):
        with steady(relay, client_context(relay.ca)) as took:
            relay.server = bad.address
            for _ in range(40):
                attack(relay, hello, wait=3)
        assert max(took) < SLOWEST
        relay.idle()
        relay.stop()
        flows = relay.flows()[1:]
    assert relay.exit_code == 0
    assert len(flows) == 40
    for flow in flows:
        assert flow.refused, "each says why"
        assert set(flow.refused) <= {"tls", "time-out", "reset"}


@pytest.mark.parametrize(
    "said", [b"\x16", b"\x16\x03\x01\x02\x00\x01\x00", b""], ids=["a byte", "half a hello", "nothing"]
)
def test_an_agent_that_stops_within_its_first_words(tmp_path: Path, pki: Pki, said: bytes) -> None:
    """Rules with a host wait for a name, and TLS is waited for: not for longer than a handshake may take."""
    given = [*rules(pki), {"host": "*.example.com", "lane": "refuse"}]
    with (
        Server(echo, server_context(pki, NAME)) as server,
        Running(tmp_path / "data", given, server.address, relay={"handshake_timeout": 0.5}) as relay,
    ):
        with socket.create_connection(relay.address) as client:
            client.settimeout(5)
            client.sendall(said)
            assert client.recv(1) == b""
        relay.idle()
        relay.stop()
        assert relay.flow().refused == ["time-out"]
        assert not server.accepted


@pytest.mark.parametrize("name", [".pi.example.com", "api\x00example.com", "api example com", "\x80pi.example.com"])
def test_a_name_that_cannot_be_one(tmp_path: Path, pki: Pki, name: str) -> None:
    hello = client_hello().replace(NAME.encode(), name.encode("latin-1"))
    with (
        Server(echo, server_context(pki, NAME)) as server,
        Running(tmp_path / "data", rules(pki), server.address) as relay,
    ):
        attack(relay, hello, wait=3)
        relay.idle()
        relay.stop()
        assert relay.flow().refused[0] in ("tls", "certificate")
        assert "\x00" not in str(relay.flow().notes)


def test_an_offer_that_only_tests_us_is_left_out() -> None:
    assert usable((b"\xaa\xaa", b"h2", b"", b"http/1.1")) == ("h2", "http/1.1")


def test_a_client_hello_is_read_once_however_it_drips() -> None:
    body = bytes(MAX_HELLO - 4)
    message = b"\x01" + len(body).to_bytes(3) + body
    records = b"".join(b"\x16\x03\x01\x00\x01" + message[at : at + 1] for at in range(12_000))
    reader = HelloReader()
    began = time.process_time()
    for at in range(len(records)):
        assert reader.feed(records[at : at + 1]) is None
    assert time.process_time() - began < 1
    with pytest.raises(Malformed):
        reader.feed(b"\x17\x03\x01\x00\x01\x00")


def test_plain_flows_are_closed_in_any_order(tmp_path: Path) -> None:
    """Resets and ends of both sides, at any time: every flow has its end on record, and no descriptor stays."""
    chance = random.Random(6)

    def whims(sock: socket.socket) -> None:
        with suppress(OSError):
            sock.settimeout(0.05)
            for _ in range(chance.randrange(4)):
                with suppress(TimeoutError):
                    sock.recv(100)
                sock.sendall(bytes(chance.randrange(200_000)))
            if chance.random() < 0.4:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)

    before = len(list(Path("/proc/self/fd").iterdir()))
    with Server(whims) as server, Running(tmp_path, RULES, server.address) as relay:
        for _ in range(120):
            with suppress(OSError), socket.create_connection(relay.address) as client:
                client.settimeout(0.05)
                client.sendall(bytes(chance.randrange(200_000)))
                if chance.random() < 0.5:
                    client.shutdown(socket.SHUT_WR)
                if chance.random() < 0.5:
                    client.recv(100_000)
                if chance.random() < 0.4:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        relay.idle()
        relay.stop()
        flows = relay.flows()
        assert len(flows) == 120
        assert all(flow.closed for flow in flows)
        assert not [flow.closed for flow in flows if flow.closed["reason"] == "internal-error"]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


@pytest.mark.parametrize("absolute", [False, True])
def test_a_request_that_names_hosts_of_different_rules(tmp_path: Path, *, absolute: bool) -> None:
    """Servers don't agree on which of them counts, so none of the rules can hold."""
    given = [*RULES, {"host": "*.example.com", "lane": "refuse"}]
    target = b"http://a.example.com/" if absolute else b"/"
    other = b"" if absolute else b"Host: a.example.com\r\n"
    with Server(echo) as server, Running(tmp_path, given, server.address) as relay:
        attack(relay, b"GET " + target + b" HTTP/1.1\r\nHost: open.example.net\r\n" + other + b"\r\n", wait=3)
        relay.idle()
        relay.stop()
        assert relay.flow().refused == ["host"]
        assert not server.accepted
