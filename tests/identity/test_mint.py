"""Leaves for relays, as curl and OpenSSL see them."""

import socket
import ssl
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance.errors import MalformedInput, Refused
from appliance.identity import ca
from appliance.identity.mint import LIFETIME, MAX_NAMES, Leaf, Mint, names_of, utc_now
from tests.identity.test_ca_rotation import verifies


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ours(tmp_path: Path, clock: Clock) -> ca.Current:
    ca.load_or_create(tmp_path, "gate", clock.now)
    return ca.Current(tmp_path, "gate")


@pytest.fixture
def mint(ours: ca.Current, clock: Clock) -> Mint:
    return Mint(ours, clock)


def server_certificate(common: str, *names: str) -> x509.Certificate:
    """As a server would show it, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(subject, subject, key.public_key(), 5, now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )


def common_name(leaf: Leaf) -> str:
    return str(leaf.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


@contextmanager
def serving(leaf: Leaf) -> Iterator[int]:
    """A TLS server that says ok to whoever comes; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.load_into(context)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with suppress(OSError), context.wrap_socket(sock, server_side=True) as tls:
                        tls.recv(4096)
                        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def curl(port: int, trusted: Path, host: str) -> tuple[int, str]:
    command = [
        "curl",
        "-sS",
        "--max-time",
        "9",
        "--cacert",
        str(trusted),
        "--resolve",
        f"*:{port}:127.0.0.1",
        f"https://{host}:{port}/",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.returncode, done.stdout + done.stderr


def test_curl_believes_it_for_its_names_and_no_others(mint: Mint, tmp_path: Path) -> None:
    trusted = tmp_path / "keys" / "ca.crt"
    with serving(
        mint.leaf(["db.shop.example"], server_certificate("Shop", "*.shop.example", "shop.example", "db.other"))
    ) as port:
        for host in ("db.shop.example", "any.shop.example", "shop.example", "db.other"):
            assert curl(port, trusted, host) == (0, "ok")
        assert curl(port, trusted, "other.example.org")[0] == 60
    with serving(mint.leaf(["127.0.0.1"])) as port:
        assert curl(port, trusted, "127.0.0.1") == (0, "ok")
        assert curl(port, trusted, "db.example")[0] == 60


def test_who_trusts_only_the_former_ca_connects_during_an_overlap(mint: Mint, tmp_path: Path) -> None:
    former = tmp_path / "former.crt"
    former.write_bytes((tmp_path / "keys" / "ca.crt").read_bytes())
    before = mint.leaf(["db.example"])
    ca.rotate(tmp_path, now=utc_now())
    leaf = mint.leaf(["db.example"])
    assert leaf is not before
    with serving(leaf) as port:
        assert curl(port, former, "db.example") == (0, "ok")
        assert curl(port, tmp_path / "keys" / "ca.crt", "db.example") == (0, "ok")


def test_what_is_taken_from_the_servers_certificate(mint: Mint) -> None:
    shop = server_certificate("The Shop", "*.example", "shop.other")
    leaf = mint.leaf(["db.example"], shop)
    assert (common_name(leaf), names_of(leaf.certificate)) == ("The Shop", ("db.example", "*.example", "shop.other"))
    other = mint.leaf(["db.elsewhere"], shop)  # the server's certificate is for other names: nothing is taken
    assert (common_name(other), names_of(other.certificate)) == ("db.elsewhere", ("db.elsewhere",))
    two = mint.leaf(["a.db.example"], shop)  # a wildcard stands for one label
    assert names_of(two.certificate) == ("a.db.example",)
    assert common_name(mint.leaf(["db.example"], server_certificate("shop.other.org", "db.example"))) == "db.example"
    assert common_name(mint.leaf(["db.example"], server_certificate("db\x07", "db.example"))) == "db.example"


def test_names_of_a_server_are_bounded_and_names(mint: Mint) -> None:
    names = ["db.example", "a b", "x/y", *(f"n{number}.example" for number in range(3 * MAX_NAMES))]
    leaf = mint.leaf(["DB.example."], server_certificate("db.example", *names))
    found = names_of(leaf.certificate)
    assert (len(found), found[:2]) == (MAX_NAMES, ("db.example", "n0.example"))


def test_kept_by_name_and_server_within_a_bound(ours: ca.Current, clock: Clock) -> None:
    mint = Mint(ours, clock, limit=3)
    one, other = server_certificate("a", "a.example"), server_certificate("a", "a.example")
    first = mint.leaf(["a.example"], one)
    assert mint.leaf(["a.example"], one) is first
    assert mint.leaf(["a.example"], other) is not first
    assert mint.leaf(["a.example"]) is not first
    assert mint.leaf(["a.example"], one) is first  # it is the latest now
    mint.leaf(["b.example"])
    assert (len(mint), mint.leaf(["a.example"], one) is first) == (3, True)


def test_short_lived_and_made_anew_in_time(mint: Mint, clock: Clock, ours: ca.Current, tmp_path: Path) -> None:
    first = mint.leaf(["a.example"])
    begins, ends = first.certificate.not_valid_before_utc, first.certificate.not_valid_after_utc
    assert timedelta(minutes=59) < clock.now - begins < timedelta(minutes=61)
    assert abs(ends - clock.now - LIFETIME) < timedelta(seconds=2)
    clock.now += timedelta(days=5, hours=23)
    assert mint.leaf(["a.example"]) is first
    clock.now += timedelta(hours=2)
    assert mint.leaf(["a.example"]) is not first
    clock.now = ours().certificate.not_valid_after_utc - timedelta(days=1)
    last = mint.leaf(["a.example"])
    assert last.certificate.not_valid_after_utc == ours().certificate.not_valid_after_utc
    assert verifies(tmp_path, ours().certificate, last.chain, clock.now)
    clock.now += timedelta(days=1)
    with pytest.raises(Refused, match="the CA ended on"):
        mint.leaf(["a.example"])


@pytest.mark.parametrize("names", [[], [""], ["a\0.example"], ["*"], ["a" * 300]])
def test_what_is_no_name(mint: Mint, names: list[str]) -> None:
    with pytest.raises(MalformedInput, match="certificate: "):
        mint.leaf(names)
    assert len(mint) == 0


def test_its_key_reaches_no_file(mint: Mint, tmp_path: Path) -> None:
    leaf = mint.leaf(["a.example"])
    assert mint.leaf(["b.example"]).key is leaf.key
    before = set(Path("/proc/self/fd").iterdir())
    leaf.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert set(Path("/proc/self/fd").iterdir()) == before
    secret = ca.private_pem(leaf.key).splitlines()[1]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_quick_enough_for_each_connection(mint: Mint) -> None:
    upstream = server_certificate("shop", "*.example", "shop.other")
    spent = []
    for number in range(100):
        started = time.thread_time()
        mint.leaf([f"a{number}.example"], upstream)
        spent.append(time.thread_time() - started)
    assert statistics.median(spent) < 0.001
