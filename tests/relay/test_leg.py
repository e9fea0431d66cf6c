"""One leg by itself, with a real peer on loopback."""

import asyncio
import socket
import ssl
import struct
import threading
from pathlib import Path

import pytest

from appliance.relay import leg as leg_module
from appliance.relay.failure import Failure
from appliance.relay.leg import AGAIN, RECEIVE, Leg
from appliance.relay.tcp_info import unacknowledged
from tests.lab.pki import Pki
from tests.lab.wait import until
from tests.relay.servers import client_context, server_context

NAME = "server.example.com"
SAID = bytes(range(256)) * 160  # 40 KiB, three TLS records


def peer_that_resets(sock: socket.socket, context: ssl.SSLContext) -> None:
    """Shakes hands, says `SAID`, waits until all is with the leg's socket, and resets."""
    tls = context.wrap_socket(sock, server_side=True)
    tls.sendall(SAID)
    until(lambda: not unacknowledged(tls), "everything has arrived")
    tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tls.close()


@pytest.mark.parametrize("receive", [1, RECEIVE], ids=["full receives", "a short one at last"])
def test_what_came_before_a_reset_is_read_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receive: int
) -> None:
    monkeypatch.setattr(leg_module, "RECEIVE", receive)
    monkeypatch.setattr(leg_module, "_SCRATCH", memoryview(bytearray(receive)))
    pki = Pki(tmp_path / "pki")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        own = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
    peer = threading.Thread(target=peer_that_resets, args=(theirs, server_context(pki, NAME)))
    peer.start()

    async def read() -> bytes:
        leg = Leg(asyncio.get_running_loop(), own)
        await leg.start_tls(client_context(pki.certificate), server=False, server_name=NAME)
        await asyncio.to_thread(peer.join, 20)
        found, view = bytearray(), memoryview(bytearray(len(SAID) + 1))
        while len(found) < len(SAID):
            size = leg.read_into(view)
            assert size != AGAIN
            found += view[:size]
        with pytest.raises(Failure, match="the connection failed"):
            leg.read_into(view)
        leg.close()
        return bytes(found)

    assert asyncio.run(read()) == SAID
