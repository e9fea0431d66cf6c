"""The HTTPS server towards hostile clients: real sockets, real TLS."""

import json
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from api import server
from api.app import create, listen
from api.app import server as make
from api.deps import Parts
from appliance.config import Settings
from appliance.identity import ca
from appliance.identity.oidc import Verifier
from appliance.store.client import Store
from appliance.wire.control import Client
from tests.api.conftest import Leases

LIMIT = 0.5  # seconds for a request, in these tests


@dataclass(frozen=True)
class Served:
    port: int
    trust: ssl.SSLContext

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), 10)
        return self.trust.wrap_socket(plain, server_hostname="127.0.0.1")

    def ask(self, raw: bytes) -> tuple[int, str]:
        """Status and body of whatever is answered until the connection's end."""
        with self.connect() as sock:
            sock.sendall(raw)
            return answer(sock)


def answer(sock: ssl.SSLSocket) -> tuple[int, str]:
    whole = bytearray()
    while data := sock.recv(65536):
        whole += data
    head, _, body = bytes(whole).partition(b"\r\n\r\n")
    return int(head.split(b" ")[1]), body.decode()


def is_over(sock: ssl.SSLSocket) -> bool:
    """Send a byte more, and look for the end."""
    try:
        sock.sendall(b"a")
        return not sock.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.fixture(scope="module")
def served(settings: Settings, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("server")
    authority = ca.Current(folder, "gateway")
    parts = Parts(settings, Verifier(settings.issuers), authority, store, store, cast(Client, Leases()))
    running = make(create(parts), *ca.api_certificate(authority(), folder, ["127.0.0.1"]))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listen(f"127.0.0.1:{port}")]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "REQUEST_SECONDS", LIMIT)
        thread.start()
        yield Served(port, ssl.create_default_context(cadata=authority().pem.decode()))
        running.should_exit = True
        thread.join(20)


def error(body: str) -> str:
    said = json.loads(body)["error"]
    assert set(said) == {"code", "message"}
    return str(said["code"])


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /v1/leases HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_who_does_not_finish_a_request_is_cut_off(served: Served, begun: bytes) -> None:
    with served.connect() as sock:
        sock.sendall(begun)
        started = time.monotonic()
        with suppress(OSError):
            while sock.recv(4096):
                pass
        assert LIMIT / 2 < time.monotonic() - started < 10 * LIMIT


def test_dripping_bytes_does_not_help(served: Served) -> None:
    with served.connect() as sock:
        sock.settimeout(LIMIT / 10)
        sock.sendall(b"GET /v1/ca HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        drips = 0
        while drips < 100 and not is_over(sock):
            drips += 1
    assert 2 <= drips <= 50


def test_an_idle_connection_may_ask_again(served: Served) -> None:
    with served.connect() as sock:
        for _ in range(2):
            sock.sendall(b"GET /v1/ca HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
            sock.settimeout(2 * LIMIT)
            with pytest.raises(TimeoutError):  # what is left of the answer, then silence, but no end
                answer(sock)
            sock.settimeout(10)


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_long(served: Served, announced: bool) -> None:
    size = server.MAX_BODY + 1
    how, body = b"Content-Length: %d" % size, bytes(size)
    if not announced:
        how, body = b"Transfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (size, bytes(size))
    head = b"POST /v1/leases HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n%s\r\n\r\n"
    status, said = served.ask(head % how + body)
    assert (status, error(said)) == (413, "too-large")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01 what is this\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 2 * server.MAX_HEADERS,
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked, x\r\n\r\n",
    ],
    ids=["no HTTP", "headers too long", "length", "encoding"],
)
def test_what_is_not_http_is_answered_in_the_one_shape(served: Served, raw: bytes) -> None:
    status, said = served.ask(raw)
    assert status in (400, 501)
    assert error(said) == "malformed"


def test_one_address_cannot_take_all_connections(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PEER_CONNECTIONS", 3)
    held = [served.connect() for _ in range(3)]
    try:
        with served.connect() as one_more:
            assert is_over(one_more)
    finally:
        for sock in held:
            sock.close()


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.0.0.5", "10.0.0.5"),
        ("::ffff:10.0.0.5", "10.0.0.5"),
        ("fd00:1::5", "fd00:1::/64"),
        ("fd00:1:0:0:9::7", "fd00:1::/64"),
        ("fd00:2::5", "fd00:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("somewhere", "somewhere"),
    ],
)
def test_a_host_has_one_64_however_many_addresses(address: str, host: str) -> None:
    assert server.host_of(address) == host


def test_a_connection_that_says_nothing_is_not_accepted(served: Served) -> None:
    """Without its first byte it takes none of the API's descriptors for `SILENCE_SECONDS`."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    silent = [socket.create_connection(("127.0.0.1", served.port), 5) for _ in range(50)]
    try:
        assert served.ask(b"GET /v1/ca HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")[0] == 200
        assert len(list(Path("/proc/self/fd").iterdir())) < before + 2 * len(silent) - 10
    finally:
        for sock in silent:
            sock.close()


def test_a_dropped_connection_makes_room(served: Served) -> None:
    for _ in range(3 * server.PEER_CONNECTIONS):
        status, _ = served.ask(b"GET /v1/ca HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert status == 200


def test_old_tls_and_weak_ciphers_are_refused(served: Served) -> None:
    for ciphers, version in (
        ("ALL", ssl.TLSVersion.TLSv1_1),
        ("AES128-SHA", ssl.TLSVersion.TLSv1_2),
        ("ECDHE-ECDSA-AES128-SHA", ssl.TLSVersion.TLSv1_2),
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", served.port), 5) as plain,
            pytest.raises(OSError, match=r"SSL|reset"),
        ):
            context.wrap_socket(plain)


def test_plain_http_gets_no_answer(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), 5) as sock:
        sock.sendall(b"GET /v1/ca HTTP/1.1\r\nHost: x\r\n\r\n")
        with suppress(ConnectionResetError):
            assert not sock.recv(100).startswith(b"HTTP")
