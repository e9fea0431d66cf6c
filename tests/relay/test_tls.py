"""TLS that is terminated: the server first, then the agent; what neither side accepts; what passes as it is."""

import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from appliance.dissect.tls_hello import Malformed
from appliance.relay.tls import HelloReader, begins_tls
from tests.lab.net import PYTHON
from tests.lab.pki import Pki
from tests.relay.running import Running
from tests.relay.servers import Server, client_context, echo, server_context

NAME = "api.example.com"


def rules(pki: Pki, **relay: Any) -> list[dict[str, Any]]:
    return [{"to": "127.0.0.0/8", "lane": "relay", "protocol": "tcp", "relay": {"ca": str(pki.certificate), **relay}}]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
def test_the_plaintext_is_recorded_and_both_legs_are_verified(
    tmp_path: Path, pki: Pki, version: ssl.TLSVersion
) -> None:
    tls = server_context(pki, NAME, alpn=("http/1.1",))
    with Server(echo, tls) as server, Running(tmp_path / "data", rules(pki), server.address) as relay:
        context = client_context(relay.ca, alpn=("h2", "http/1.1"))
        context.maximum_version = version
        with context.wrap_socket(socket.create_connection(relay.address), server_hostname=NAME) as client:
            assert client.version() == version.name.replace("_", ".")
            assert client.selected_alpn_protocol() == "http/1.1"
            client.sendall(b"secret question")
            assert client.recv(100) == b"secret question"
            client.unwrap().close()
        relay.idle()
        relay.stop()
        flow = relay.flow()
    assert flow.data == [b"secret question", b"secret question"]
    assert flow.closed["ending"] == "fin"
    (told,) = flow.notes_of("tls")
    assert told["attrs"]["sni"] == NAME
    assert told["attrs"]["alpn"] == "http/1.1"
    (upstream,) = flow.notes_of("upstream")
    assert upstream["attrs"]["tls"]["certificate"]["subject"]
    assert not server.failures


def test_sessions_are_resumed_on_both_sides(tmp_path: Path, pki: Pki) -> None:
    tls = server_context(pki, NAME)
    with Server(echo, tls) as server, Running(tmp_path / "data", rules(pki), server.address) as relay:
        context, session = client_context(relay.ca), None
        for _ in range(2):
            sock = socket.create_connection(relay.address)
            with context.wrap_socket(sock, server_hostname=NAME, session=session) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                session = client.session
                reused = client.session_reused
                client.unwrap().close()
            relay.idle()
        assert reused
        relay.stop()
        first, second = relay.flows()
    assert not first.notes_of("tls")[0]["attrs"]["resumed"]
    assert second.notes_of("tls")[0]["attrs"]["resumed"]
    assert second.notes_of("upstream")[0]["attrs"]["tls"]["resumed"]


def test_an_agent_without_a_name_gets_the_address(tmp_path: Path, pki: Pki) -> None:
    tls = server_context(pki, NAME, "127.0.0.1")
    with Server(echo, tls) as server, Running(tmp_path / "data", rules(pki), server.address) as relay:
        context = client_context(relay.ca)
        with context.wrap_socket(socket.create_connection(relay.address), server_hostname="127.0.0.1") as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


@pytest.mark.parametrize("what", ["expired", "another name", "another authority"])
def test_a_server_whose_certificate_is_bad_is_refused(tmp_path: Path, pki: Pki, what: str) -> None:
    days = (-5, -1) if what == "expired" else (-1, 5)
    signer = Pki(tmp_path / "other") if what == "another authority" else pki
    tls = server_context(signer, "elsewhere.example.com" if what == "another name" else NAME, days=days)
    with Server(echo, tls) as server, Running(tmp_path / "data", rules(pki), server.address) as relay:
        context = client_context(relay.ca)
        with pytest.raises(ssl.SSLError, match=r"(?i)access denied"):
            context.wrap_socket(socket.create_connection(relay.address), server_hostname=NAME)
        relay.idle()
        relay.stop()
        flow = relay.flow()
    assert flow.refused == ["certificate"]
    assert flow.data == [b"", b""]
    assert flow.closed["reason"] == "certificate"


def test_a_bad_certificate_passes_as_ciphertext_where_the_rule_says_so(tmp_path: Path, pki: Pki) -> None:
    other = Pki(tmp_path / "other")
    tls = server_context(other, NAME)
    with Server(echo, tls) as server, Running(tmp_path / "data", rules(pki, opaque="pass"), server.address) as relay:
        context = client_context(other.certificate)
        with context.wrap_socket(socket.create_connection(relay.address), server_hostname=NAME) as client:
            client.sendall(b"end to end")
            assert client.recv(100) == b"end to end"
            client.unwrap().close()
        relay.idle()
        relay.stop()
        flow = relay.flow()
    assert flow.notes_of("opaque")[0]["attrs"]["reason"] == "certificate"
    assert flow.data[0].startswith(b"\x16\x03")
    assert b"end to end" not in flow.data[0]


@pytest.mark.parametrize("opaque", ["refuse", "pass"])
def test_a_name_that_the_ca_may_not_certify(tmp_path: Path, pki: Pki, opaque: str) -> None:
    made = subprocess.run(
        [PYTHON, "-m", "appliance", "ca", "init", "--exclude", NAME, "--data", tmp_path / "data"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert not made.returncode, made.stderr
    tls = server_context(pki, NAME)
    with Server(echo, tls) as server, Running(tmp_path / "data", rules(pki, opaque=opaque), server.address) as relay:
        sock = socket.create_connection(relay.address)
        if opaque == "pass":
            with client_context(pki.certificate).wrap_socket(sock, server_hostname=NAME) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                client.unwrap().close()
        else:
            with pytest.raises(ssl.SSLError, match="access denied"):
                client_context(relay.ca).wrap_socket(sock, server_hostname=NAME)
        relay.idle()
        relay.stop()
        flow = relay.flow()
    if opaque == "pass":
        assert flow.notes_of("opaque")[0]["attrs"]["reason"] == "certificate"
    else:
        assert flow.refused == ["certificate"]
        assert f"{NAME} is excluded from the CA" in flow.notes_of("refused")[0]["text"]


@pytest.mark.parametrize("opaque", ["refuse", "pass"])
def test_a_protocol_that_the_rule_does_not_mediate(tmp_path: Path, pki: Pki, opaque: str) -> None:
    tls = server_context(pki, NAME, alpn=("smtp",))
    given = rules(pki, opaque=opaque, mode="mediate", application="http")
    with Server(echo, tls) as server, Running(tmp_path / "data", given, server.address) as relay:
        context = client_context(pki.certificate)
        context.set_alpn_protocols(["smtp"])
        sock = socket.create_connection(relay.address)
        if opaque == "pass":
            with context.wrap_socket(sock, server_hostname=NAME) as client:
                assert client.selected_alpn_protocol() == "smtp"
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                client.unwrap().close()
        else:
            with pytest.raises(ssl.SSLError, match="access denied"):
                context.wrap_socket(sock, server_hostname=NAME)
        relay.idle()
        relay.stop()
        flow = relay.flow()
    if opaque == "pass":
        assert flow.notes_of("opaque")[0]["attrs"]["reason"] == "alpn"
    else:
        assert flow.refused == ["alpn"]
        assert not server.accepted


def test_verification_may_be_off(tmp_path: Path, pki: Pki) -> None:
    other = Pki(tmp_path / "other")
    tls = server_context(other, "elsewhere.example.com")
    with Server(echo, tls) as server, Running(tmp_path / "data", rules(pki, verify=False), server.address) as relay:
        context = client_context(relay.ca)
        with context.wrap_socket(socket.create_connection(relay.address), server_hostname=NAME) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"


@pytest.mark.parametrize("opaque", ["refuse", "pass"])
def test_an_agent_that_pins_is_refused_or_passes_at_its_next_try(tmp_path: Path, pki: Pki, opaque: str) -> None:
    tls = server_context(pki, NAME)
    with Server(echo, tls) as server, Running(tmp_path / "data", rules(pki, opaque=opaque), server.address) as relay:
        context = client_context(pki.certificate)  # it trusts the server's authority alone
        with pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(socket.create_connection(relay.address), server_hostname=NAME)
        relay.idle()
        if opaque == "pass":
            with context.wrap_socket(socket.create_connection(relay.address), server_hostname=NAME) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
                client.unwrap().close()
            relay.idle()
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                context.wrap_socket(socket.create_connection(relay.address), server_hostname=NAME)
            relay.idle()
        relay.stop()
        first, second = relay.flows()
    assert first.refused == ["pinned"]
    if opaque == "pass":
        assert second.notes_of("opaque")[0]["attrs"]["reason"] == "pinned"
    else:
        assert second.refused == ["pinned"]


def test_a_name_that_a_rule_refuses(tmp_path: Path, pki: Pki) -> None:
    given = [*rules(pki), {"host": "*.example.com", "lane": "refuse"}]
    tls = server_context(pki, NAME)
    with Server(echo, tls) as server, Running(tmp_path / "data", given, server.address) as relay:
        context = client_context(relay.ca)
        with pytest.raises(ssl.SSLError, match="access denied"):
            context.wrap_socket(socket.create_connection(relay.address), server_hostname=NAME)
        relay.idle()
        relay.stop()
        assert relay.flow().refused == ["refused-by-rule"]
        assert not server.accepted, "the server never hears of it"


def test_a_name_opens_what_is_closed_without_one(tmp_path: Path, pki: Pki) -> None:
    (named,) = rules(pki)
    given = [named | {"host": "*.example.com"}, {"to": "127.0.0.0/8", "protocol": "tcp", "lane": "refuse"}]
    tls = server_context(pki, NAME)
    with Server(echo, tls) as server, Running(tmp_path / "data", given, server.address) as relay:
        context = client_context(relay.ca)
        with context.wrap_socket(socket.create_connection(relay.address), server_hostname=NAME) as client:
            client.sendall(b"by its name")
            assert client.recv(100) == b"by its name"
        with pytest.raises(ssl.SSLError, match="access denied"):
            context.wrap_socket(socket.create_connection(relay.address), server_hostname="example.org")
        relay.idle()
        relay.stop()
        assert [flow.refused for flow in relay.flows()] == [[], ["refused-by-rule"]]
        assert server.accepted == 1


def client_hello() -> bytes:
    """As OpenSSL says it."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_a_client_hello_in_any_pieces() -> None:
    whole = client_hello()
    for cut in range(1, len(whole)):
        assert HelloReader().feed(whole[:cut]) is None
    found = HelloReader().feed(whole)
    assert found is not None
    assert found.sni == NAME
    assert begins_tls(whole[:1])
    assert not begins_tls(b"GET / HTTP/1.1\r\n")
    with pytest.raises(Malformed):
        HelloReader().feed(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00" + bytes(10))


def test_garbage_in_the_place_of_a_handshake(tmp_path: Path, pki: Pki) -> None:
    tls = server_context(pki, NAME)
    with Server(echo, tls) as server, Running(tmp_path / "data", rules(pki), server.address) as relay:
        with socket.create_connection(relay.address) as client:
            client.sendall(b"\x16\x03\x01\x00\x04\xff\xff\xff\xff")
            assert client.recv(100) == b""
        context = client_context(relay.ca)
        with context.wrap_socket(socket.create_connection(relay.address), server_hostname=NAME) as after:
            after.sendall(b"x")
            assert after.recv(1) == b"x"
            after.unwrap().close()
        relay.idle()
        relay.stop()
        first, second = relay.flows()
    assert first.refused == ["tls"]
    assert second.closed["ending"] == "fin"
