"""The control socket: what a client asks for, and what a wrong one gets."""

import selectors
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

import msgspec
import pytest

from appliance.errors import MalformedInput, Refused, Unavailable
from appliance.identity.leases import Lease, LeaseHeld, LeaseUnknown
from appliance.model import Identity
from appliance.wire.control import MAX_CLIENTS, MAX_LINE, Answer, Client, Json, Server
from tests.lab.wait import until

ANN = Identity(issuer="https://idp.example", subject="ann", act=("b", "c"), groups=("dba",))
LEASE = Lease("00000000000000ff", "192.0.2.7", ANN, 1, 2, 3, "boot", "agents0")


@contextmanager
def serving(path: Path, answer: Answer) -> Iterator[Path]:
    """A server in a thread of its own, with `answer` behind it."""
    selector = selectors.DefaultSelector()
    server = Server(path, answer, selector)
    stop_here, stop_there = socket.socketpair()
    selector.register(stop_here, selectors.EVENT_READ, None)

    def loop() -> None:
        while True:
            for key, mask in selector.select(10):
                if key.data is None:
                    return
                key.data(mask)

    thread = Thread(target=loop)
    thread.start()
    try:
        yield path
    finally:
        stop_there.send(b"x")
        thread.join()
        server.close()
        selector.close()
        stop_here.close()
        stop_there.close()


def talk(path: Path, *lines: bytes) -> list[Json]:
    """One connection, all lines at once, one answer for each."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(b"".join(lines))
        with sock.makefile("rb") as answers:
            return [msgspec.json.decode(answers.readline()) for _ in lines]


def echo(request: Json) -> Json:
    return {"asked": request}


def test_each_operation_says_what_is_asked_and_gives_back_what_was_answered(tmp_path: Path) -> None:
    asked: list[Json] = []

    def answer(request: Json) -> Json:
        asked.append(request)
        replies: dict[str, Json] = {"list": {"leases": [LEASE.to_json()]}, "status": {"status": {"leases": 1}}}
        return replies.get(request["do"], {"lease": LEASE.to_json()})

    public = Lease.from_json(LEASE.to_json())
    assert public.identity == ANN
    with serving(tmp_path / "wire.sock", answer) as path:
        client = Client(path)
        assert client.grant("192.0.2.7", ANN, 9) == public
        assert client.renew(LEASE.id, 10) == public
        assert client.renew(LEASE.id, 10, ANN) == public
        assert client.revoke(LEASE.id) == public
        assert client.list() == (public,)
        assert client.status() == {"leases": 1}
    assert [request["do"] for request in asked] == ["grant", "renew", "renew", "revoke", "list", "status"]
    assert asked[0]["identity"]["act"] == ["b", "c"]
    assert "identity" not in asked[1]
    assert asked[2]["expires_ns"] == 10


@pytest.mark.parametrize("kind", [LeaseHeld, LeaseUnknown, MalformedInput, Refused, Unavailable])
def test_errors_reach_the_client_as_they_were_raised(tmp_path: Path, kind: type[Exception]) -> None:
    def answer(request: Json) -> Json:
        raise kind("thing: reason; remedy")

    with serving(tmp_path / "wire.sock", answer) as path, pytest.raises(kind, match="thing: reason; remedy") as raised:
        Client(path).list()
    assert raised.type is kind


def test_a_fault_of_the_server_is_answered_without_its_details(tmp_path: Path) -> None:
    def answer(request: Json) -> Json:
        raise ZeroDivisionError("secret")

    with serving(tmp_path / "wire.sock", answer) as path, pytest.raises(Unavailable) as raised:
        Client(path).list()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("line", [b"\n", b"x\n", b"[]\n", b'"x"\n', b"\xff\xfe\n", b"[" * 10_000 + b"\n", b'{"do":\n'])
def test_a_wrong_line_gets_an_error_and_the_connection_goes_on(tmp_path: Path, line: bytes) -> None:
    with serving(tmp_path / "wire.sock", echo) as path:
        wrong, right = talk(path, line, b'{"do":"list"}\n')
    assert wrong["error"]["code"] == "malformed"
    assert right == {"asked": {"do": "list"}}


def test_a_request_may_come_in_pieces_and_several_at_once(tmp_path: Path) -> None:
    with serving(tmp_path / "wire.sock", echo) as path, socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        for byte in b'{"do":"a"}\n{"do":"b"}\n{"do"':
            sock.sendall(bytes([byte]))
        sock.sendall(b':"c"}\n')
        with sock.makefile("rb") as answers:
            assert [msgspec.json.decode(answers.readline())["asked"]["do"] for _ in "abc"] == ["a", "b", "c"]


def test_a_line_without_end_ends_the_connection_only(tmp_path: Path) -> None:
    with serving(tmp_path / "wire.sock", echo) as path:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(path))
            with suppress(BrokenPipeError):
                sock.sendall(b"x" * 4 * MAX_LINE)
            with suppress(ConnectionResetError):  # it went before it had read all
                assert sock.recv(1) == b""
        assert talk(path, b'{"do":"list"}\n') == [{"asked": {"do": "list"}}]


def test_a_client_that_does_not_listen_does_not_hold_up_the_others(tmp_path: Path) -> None:
    def answer(request: Json) -> Json:
        return {"long": "x" * 300_000}

    with serving(tmp_path / "wire.sock", answer) as path, socket.socket(socket.AF_UNIX) as deaf:
        deaf.settimeout(5)
        deaf.connect(str(path))
        deaf.sendall(b"{}\n" * 20)
        assert len(talk(path, b"{}\n")[0]["long"]) == 300_000
        with deaf.makefile("rb") as answers:  # and gets all its answers in the end
            assert [len(answers.readline()) for _ in range(20)] == [300_012] * 20


def test_there_is_a_limit_to_the_clients(tmp_path: Path) -> None:
    with serving(tmp_path / "wire.sock", echo) as path:
        socks = [socket.socket(socket.AF_UNIX) for _ in range(MAX_CLIENTS + 1)]
        try:
            for sock in socks:
                sock.settimeout(5)
                sock.connect(str(path))
            assert socks[-1].recv(1) == b""
        finally:
            for sock in socks:
                sock.close()
        until(lambda: answered(path), "there is room again")


def answered(path: Path) -> bool:
    try:
        return talk(path, b"{}\n") == [{"asked": {}}]
    except (ConnectionError, msgspec.DecodeError):
        return False


def test_the_socket_is_private_and_replaces_one_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "wire.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with serving(path, echo):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert list(tmp_path.iterdir()) == [path]
        assert talk(path, b"{}\n")
    assert not path.exists()


def test_without_a_wire_process_it_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="start verbatim wire"):
        Client(tmp_path / "wire.sock").list()


def test_a_wire_process_that_does_not_answer_is_unavailable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "wire.sock"))
        mute.listen()
        with pytest.raises(Unavailable, match="no answer in time"):
            Client(tmp_path / "wire.sock", timeout=0.1).list()
