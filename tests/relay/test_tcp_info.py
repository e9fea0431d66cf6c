"""What is counted of a socket, whichever way its peer ended."""

import socket
from collections.abc import Iterator

import pytest

from appliance.relay.tcp_info import counts
from tests.lab.wait import until

Pair = tuple[socket.socket, socket.socket]
RESET = b"\x01\0\0\0\0\0\0\0"


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Ours, and the peer's."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as peer,
        listener.accept()[0] as ours,
    ):
        yield ours, peer


def received(ours: socket.socket, read: int) -> int:
    found = counts(ours, read)
    assert found is not None
    return found["received"]


@pytest.mark.parametrize("read", [0, 4, 10], ids=["nothing", "a part", "everything"])
def test_a_fin_is_no_byte(pair: Pair, read: int) -> None:
    ours, peer = pair
    peer.sendall(b"ten bytes!")
    until(lambda: len(ours.recv(10, socket.MSG_PEEK)) == 10, "the bytes")
    ours.recv(read)
    assert received(ours, read) == 10
    peer.shutdown(socket.SHUT_WR)
    until(lambda: ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x08", "CLOSE_WAIT")
    assert received(ours, read) == 10


@pytest.mark.parametrize("fin", [False, True])
def test_a_reset_before_and_behind_a_fin(pair: Pair, fin: bool) -> None:
    """Behind a FIN it comes as the answer to what nobody is there to read."""
    ours, peer = pair
    peer.sendall(b"ten bytes!")
    assert ours.recv(10, socket.MSG_WAITALL) == b"ten bytes!"
    if fin:
        peer.close()
        assert ours.recv(10) == b""
        ours.sendall(b"too late")
    else:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        peer.close()
    until(lambda: ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x07", "CLOSED")
    assert received(ours, 10) == 10
