"""The gateway's log-in to a MySQL server, by the vendors' descriptions of each method."""

import base64

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from appliance.identity.credential import Kind, Secret
from appliance.identity.secret_text import SecretText
from appliance.relay.failure import Refusal
from appliance.relay.mysql_login import ED25519, SHA2, SHA256, Login
from appliance.relay.mysql_messages import CLEAR, NATIVE
from tests.dissect.mysql_bytes import SCRAMBLE
from tests.relay.database_play import PASSWORD, secret
from tests.relay.mysql_play import scrambled, scrambled_sha2

OTHER = bytes(range(40, 60))
KEY = rsa.generate_private_key(65537, 2048)
PEM = KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
OAEP = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)


def login(plugin: str, *, tls: bool = False) -> Login:
    return Login(secret(), plugin, SCRAMBLE, tls=tls)


def switch(plugin: str, scramble: bytes = OTHER + b"\0") -> bytes:
    return b"\xfe" + plugin.encode() + b"\0" + scramble


def decrypted(answer: bytes, scramble: bytes) -> bytes:
    """RSA-OAEP of the password and a NUL, XOR the scramble over and over."""
    mixed = KEY.decrypt(answer, OAEP)
    return bytes(byte ^ scramble[at % len(scramble)] for at, byte in enumerate(mixed))


def test_native_password() -> None:
    one = login(NATIVE)
    assert one.first() == scrambled()
    assert one.asked(switch(NATIVE)) == scrambled(scramble=OTHER)


def test_caching_sha2_password_that_is_cached() -> None:
    one = login(SHA2)
    assert one.first() == scrambled_sha2()
    assert one.asked(b"\1\3") is None
    with pytest.raises(Refusal):
        one.asked(b"\1\4")


def test_caching_sha2_password_by_tls() -> None:
    one = login(NATIVE, tls=True)
    one.first()
    assert one.asked(switch(SHA2)) == scrambled_sha2(scramble=OTHER)
    assert one.asked(b"\1\4") == PASSWORD.encode() + b"\0"
    assert one.method == SHA2


def test_caching_sha2_password_by_the_servers_key() -> None:
    one = login(SHA2)
    one.first()
    assert one.asked(b"\1\4") == b"\2"
    answer = one.asked(b"\1" + PEM)
    assert answer is not None
    assert decrypted(answer, SCRAMBLE) == PASSWORD.encode() + b"\0"


def test_sha256_password() -> None:
    one = login(SHA256)
    assert one.first() == b""
    assert one.asked(switch(SHA256)) == b"\1"
    answer = one.asked(b"\1" + PEM)
    assert answer is not None
    assert decrypted(answer, OTHER) == PASSWORD.encode() + b"\0"
    assert login(SHA256, tls=True).asked(switch(SHA256)) == PASSWORD.encode() + b"\0"


def test_ed25519() -> None:
    """The public key is that of the password `secret` in MariaDB's documentation; it verifies what is answered."""
    known = base64.b64decode("ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY=")
    nonce = bytes(range(32))
    documented = Secret("orders", Kind.PASSWORD, SecretText("secret"), "svc")
    answer = Login(documented, NATIVE, SCRAMBLE, tls=False).asked(switch(ED25519, nonce))
    assert answer is not None
    Ed25519PublicKey.from_public_bytes(known).verify(answer, nonce)


def test_the_password_in_clear() -> None:
    assert login(NATIVE, tls=True).asked(switch(CLEAR, b"")) == PASSWORD.encode() + b"\0"
    with pytest.raises(Refusal, match="its connection is not encrypted"):
        login(NATIVE).asked(switch(CLEAR, b""))


@pytest.mark.parametrize("plugin", [CLEAR, SHA256, "dialog", ""])
@pytest.mark.parametrize("tls", [False, True])
def test_a_greeting_never_gets_the_password(plugin: str, tls: bool) -> None:
    assert PASSWORD.encode() not in login(plugin, tls=tls).first()


@pytest.mark.parametrize(
    "asked",
    [
        (b"\1\3",),
        (switch(NATIVE), switch(SHA2)),
        (switch(NATIVE), b"\1\4"),
        (switch(SHA2), b"\1" + PEM),
        (switch(SHA2), b"\1\4", b"\1"),
        (switch(SHA2), b"\1\4", b"\1" + b"x" * 9000),
        (switch(SHA2), b"\1\4", b"\1-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"),
        (switch(SHA2), b"\1\4", b"\1" + PEM, b"\1" + PEM),
        (switch(NATIVE, b"short\0"),),
        (switch(ED25519, bytes(20)),),
        (switch("dialog"),),
        (b"\xfe",),
        (b"\2",),
    ],
)
def test_what_a_server_must_not_ask(asked: tuple[bytes, ...]) -> None:
    one = login(NATIVE)
    *before, last = asked
    for each in before:
        one.asked(each)
    with pytest.raises(Refusal):
        one.asked(last)


def test_a_key_that_is_too_small_for_the_password() -> None:
    small = rsa.generate_private_key(65537, 1024).public_key()
    pem = small.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    one = Login(Secret("orders", Kind.PASSWORD, SecretText("x" * 200), "svc"), SHA2, SCRAMBLE, tls=False)
    one.first()
    one.asked(b"\1\4")
    with pytest.raises(Refusal, match="too small"):
        one.asked(b"\1" + pem)
