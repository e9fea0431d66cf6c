"""Bytes that pass unchanged: recorded first, held back by slow readers, half-closed."""

import hashlib
import os
import resource
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.journal import JournalFull
from appliance.relay.worker import Worker
from tests.lab.wait import until
from tests.relay.running import Running
from tests.relay.servers import Server, echo, end, read_all

RULES = [{"to": "127.0.0.0/8", "lane": "relay", "protocol": "tcp"}]


def test_what_both_say_is_recorded_and_passes(tmp_path: Path) -> None:
    sent = os.urandom(3_000_001)
    with Server(echo) as server, Running(tmp_path, RULES, server.address) as relay:
        with socket.create_connection(relay.address) as client:
            sending = threading.Thread(target=_send_all, args=(client, sent))
            sending.start()
            assert hashlib.sha256(read_all(client)).digest() == hashlib.sha256(sent).digest()
            sending.join()
        relay.idle()
        relay.stop()
        flow = relay.flow()
    assert flow.data == [sent, sent]
    assert flow.ended == [True, True]
    assert flow.closed["ending"] == "fin"
    assert (flow.opened["server_address"], flow.opened["server_port"]) == server.address
    assert flow.opened["rule"] == 1
    legs = flow.closed["legs"]
    assert legs["agent"]["socket"]["received"] == len(sent)
    assert legs["upstream"]["socket"]["received"] == len(sent)


def test_a_half_close_is_kept_in_both_directions(tmp_path: Path) -> None:
    heard: list[bytes] = []

    def late(sock: socket.socket) -> None:
        heard.append(read_all(sock))
        sock.sendall(b"only now")
        end(sock)

    with Server(late) as server, Running(tmp_path, RULES, server.address) as relay:
        with socket.create_connection(relay.address) as client:
            client.sendall(b"all that I say")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"only now"
        relay.idle()
        relay.stop()
        assert heard == [b"all that I say"]
        assert relay.flow().closed["ending"] == "fin"


def test_a_server_that_speaks_first_is_heard(tmp_path: Path) -> None:
    def greet(sock: socket.socket) -> None:
        sock.sendall(b"220 ready\r\n")
        echo(sock)

    with Server(greet) as server, Running(tmp_path, RULES, server.address) as relay:
        with socket.create_connection(relay.address) as client:
            assert client.recv(11, socket.MSG_WAITALL) == b"220 ready\r\n"
            client.sendall(b"QUIT")
            assert client.recv(100) == b"QUIT"
        relay.idle()
        relay.stop()
        assert relay.flow().data == [b"QUIT", b"220 ready\r\nQUIT"]


def test_a_stopped_reader_holds_its_writer_back(tmp_path: Path) -> None:
    """Nothing grows with what the peer would like to send: neither the relay nor its journal."""
    flowing = threading.Event()

    def flood(sock: socket.socket) -> None:
        block = bytes(2**20)
        for _ in range(400):
            sock.sendall(block)
        flowing.set()
        end(sock)

    with Server(flood) as server, Running(tmp_path, RULES, server.address) as relay:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.connect(relay.address)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            recorded = relay.worker.around.recording
            until(lambda: _still(lambda: recorded.bytes), "the relay to stop reading")
            assert recorded.bytes < 40 * 2**20
            assert not flowing.is_set()
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024
            left = 400 * 2**20
            while data := client.recv(2**20):
                left -= len(data)
            assert not left
        relay.idle()
        relay.stop()
        assert len(relay.flow().data[1]) == 400 * 2**20


def test_a_reset_is_passed_on_and_told(tmp_path: Path) -> None:
    heard: list[bytes] = []

    def wait(sock: socket.socket) -> None:
        heard.append(sock.recv(100))
        with pytest.raises(ConnectionResetError):
            sock.recv(100)

    with Server(wait) as server, Running(tmp_path, RULES, server.address) as relay:
        client = socket.create_connection(relay.address)
        client.sendall(b"half a word")
        until(lambda: heard, "the word to arrive")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
        relay.idle()
        relay.stop()
        flow = relay.flow()
    assert flow.closed["ending"] == "rst"
    assert flow.closed["reason"] == "agent-reset"
    assert flow.data[0] == b"half a word"
    assert flow.closed["legs"]["upstream"]["socket"]["received"] == 0, "counted before the socket was closed"
    assert not server.failures


def test_a_reset_behind_the_last_bytes_is_told(tmp_path: Path) -> None:
    """Both wait for the relay at the same time."""
    with Server(echo) as server, Running(tmp_path, RULES, server.address) as relay:
        client = socket.create_connection(relay.address)
        client.sendall(b"the first, ")
        assert client.recv(11, socket.MSG_WAITALL) == b"the first, "
        free = threading.Event()
        relay.loop.call_soon_threadsafe(free.wait)
        client.sendall(b"the last")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
        free.set()
        relay.idle()
        relay.stop()
        flow = relay.flow()
    assert flow.closed["reason"] == "agent-reset"
    assert flow.data[0] == b"the first, the last"


def test_nothing_is_forwarded_while_the_journal_takes_nothing(tmp_path: Path) -> None:
    """The journal is as large as it may be: what arrives waits, and goes on in order when there is room."""
    heard = bytearray()

    def listen(sock: socket.socket) -> None:
        while data := sock.recv(65536):
            heard.extend(data)
        end(sock)

    full = threading.Event()

    def prepare(worker: Worker) -> None:
        writer = worker._writer
        append = writer.append

        def refuse(*args: object, **named: object) -> int:
            if full.is_set():
                raise JournalFull("journal: full, for this test; wait")
            return append(*args, **named)  # type: ignore[arg-type]

        writer.append = refuse  # type: ignore[method-assign]

    with Server(listen) as server, Running(tmp_path, RULES, server.address, prepare) as relay:
        with socket.create_connection(relay.address) as client:
            client.sendall(b"before ")
            until(lambda: heard == b"before ", "what was sent before")
            full.set()
            client.sendall(b"during ")
            until(lambda: relay.worker.around.recording.stalled, "the relay to stall")
            client.sendall(b"after")
            assert "relay-stalled" in relay.worker.values()["faults"]
            assert heard == b"before "
            full.clear()
            client.shutdown(socket.SHUT_WR)
            assert read_all(client) == b""
        relay.idle()
        relay.stop()
        assert heard == b"before during after"
        assert relay.flow().data[0] == b"before during after"


def _still(value: Callable[[], int]) -> bool:
    """Did it stay the same for three looks of `until`?"""
    seen: list[int] = []

    def look() -> bool:
        seen.append(value())
        return len(seen) > 10

    until(look, "ten looks")
    return seen[0] > 0 and len(set(seen)) == 1


def _send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
