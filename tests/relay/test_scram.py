"""SCRAM-SHA-256 as a client: RFC 7677's own example, and servers that are not what they should be."""

import time

import pytest

from appliance.identity.secret_text import SecretText
from appliance.relay.failure import Failure
from appliance.relay.scram import MAX_ITERATIONS, Scram

NONCE = "rOprNGfwEbeRWgbNEkqO"
SALT = "W22ZaJ0SNY7soEsUEjb6gQ=="
SERVER_FIRST = f"r={NONCE}%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s={SALT},i=4096".encode()


def begun() -> Scram:
    one = Scram(SecretText("pencil"), NONCE)
    assert one.first() == f"n,,n=*,r={NONCE}".encode()
    return one


def proven() -> Scram:
    one = begun()
    assert one.final(SERVER_FIRST).startswith(b"c=biws,r=" + NONCE.encode())
    return one


def test_the_example_of_the_rfc() -> None:
    """RFC 7677, section 3, whose user is `user`: the name is in what is signed."""
    one = begun()
    one._client.client_first_bare = f"n=user,r={NONCE}"
    assert one.final(SERVER_FIRST).endswith(b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    one.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


BAD_FIRSTS = [
    ("another nonce", b"r=other,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"),
    ("no nonce of its own", f"r={NONCE},s={SALT},i=4096".encode()),
    ("few iterations", SERVER_FIRST.replace(b"4096", b"4095")),
    ("many iterations", SERVER_FIRST.replace(b"4096", b"100001")),
    ("iterations without end", SERVER_FIRST.replace(b"4096", b"9" * 1500)),
    ("no number", SERVER_FIRST.replace(b"4096", b"4e9")),
    ("a negative number", SERVER_FIRST.replace(b"4096", b"-4096")),
    ("no salt", SERVER_FIRST.replace(SALT.encode(), b"")),
    ("salt that is not base64", SERVER_FIRST.replace(SALT.encode(), b"W22=ZaJ0")),
    ("a mandatory extension", b"m=x," + SERVER_FIRST),
    ("an error", b"e=other-error"),
    ("an error of its own words", b"e=whatever"),
    ("nothing", b""),
    ("commas", b",,,,"),
    ("no UTF-8", b"\xff" + SERVER_FIRST),
    ("too long", SERVER_FIRST + b",x=" + b"y" * 5000),
]


@pytest.mark.parametrize("said", [case[1] for case in BAD_FIRSTS], ids=[case[0] for case in BAD_FIRSTS])
def test_a_first_message_that_is_not_taken(said: bytes) -> None:
    begin = time.thread_time()
    with pytest.raises(Failure) as caught:
        begun().final(said)
    assert caught.value.reason == "scram"
    assert time.thread_time() - begin < 0.5


def test_as_many_iterations_as_are_allowed() -> None:
    assert begun().final(SERVER_FIRST.replace(b"4096", str(MAX_ITERATIONS).encode()))


BAD_FINALS = [
    b"",
    b"v=",
    b"v=AAAA",
    b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    b"e=invalid-proof",
    b"e=x",
    b"\xff",
]


@pytest.mark.parametrize("said", BAD_FINALS)
def test_a_server_that_does_not_prove_itself(said: bytes) -> None:
    with pytest.raises(Failure) as caught:
        proven().verify(said)
    assert caught.value.reason == "server-signature"


def test_a_password_that_cannot_be_used() -> None:
    with pytest.raises(Failure) as caught:
        Scram(SecretText("bell \x07 within"))
    assert caught.value.reason == "secret"
    assert "bell" not in caught.value.text
