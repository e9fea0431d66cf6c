"""Log-ins at a PostgreSQL server: by the gateway with a credential, and by the agent itself."""

from collections.abc import Callable

import pytest
from scramp import ScramMechanism

from appliance.relay.failure import Refusal
from appliance.relay.mediator import Commands, Pass, Say, Take
from appliance.relay.postgres_login import Login, PassThrough
from tests.dissect.postgres_bytes import OK, query, typed, z
from tests.relay.database_play import PASSWORD, C, S, secret
from tests.relay.postgres_play import authentication

OFFER = authentication(10, z("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256") + b"\0")
PLAIN_OFFER = authentication(10, z("SCRAM-SHA-256") + b"\0")
CLEARTEXT, SALTED = authentication(3), authentication(5, b"\1\2\3\4")


def refused(step: Callable[[], object]) -> str:
    with pytest.raises(Refusal) as caught:
        step()
    assert PASSWORD not in caught.value.text
    return caught.value.reason


def said(commands: Commands) -> bytes:
    """What the gateway says to the server, and nothing to the agent."""
    taken, told = commands
    assert isinstance(taken, Take)
    assert taken.direction is S
    assert isinstance(told, Say)
    assert told.to is S
    assert told.data[:1] == b"p"
    assert int.from_bytes(told.data[1:5]) == len(told.data) - 1
    return told.data[5:]


# -- by the gateway --------------------------------------------------------------------------------------------------


class ScramServer:
    """A server that knows `password`."""

    def __init__(self, password: str) -> None:
        mechanism = ScramMechanism("SCRAM-SHA-256")
        salt, stored, server, iterations = mechanism.make_auth_info(password)
        self._server = mechanism.make_server(lambda user: (salt, stored, server, iterations))

    def first(self, message: bytes) -> bytes:
        assert message.startswith(b"SCRAM-SHA-256\0")
        assert int.from_bytes(message[14:18]) == len(message) - 18
        self._server.set_client_first(message[18:].decode())
        return authentication(11, self._server.get_server_first().encode())

    def final(self, message: bytes) -> bytes:
        self._server.set_client_final(message.decode())
        return authentication(12, self._server.get_server_final().encode())


def proven() -> tuple[Login, bytes]:
    """Up to the server's last message."""
    login, server = Login(secret(), tls=False), ScramServer(PASSWORD)
    challenge = server.first(said(login.asked(OFFER)))
    return login, server.final(said(login.asked(challenge)))


def test_scram() -> None:
    login, last = proven()
    assert login.asked(last) == [Take(S, last)]
    assert not login.done
    assert login.asked(OK) == [Pass(S, OK)]
    assert (login.done, login.method) == (True, "scram-sha-256")


def test_a_server_that_skips_its_proof() -> None:
    login, _ = proven()
    assert refused(lambda: login.asked(OK)) == "server-signature"


def test_a_server_with_another_proof() -> None:
    login, last = proven()
    forged = last[:-4] + b"AAA="
    assert refused(lambda: login.asked(forged)) == "server-signature"
    assert not login.done


def test_md5() -> None:
    login = Login(secret(), tls=False)
    assert said(login.asked(SALTED)) == z("md56b981070351d42a9810f756910b146eb")  # by md5sum
    login.asked(OK)
    assert (login.done, login.method) == (True, "md5")


def test_in_clear_only_within_tls() -> None:
    login = Login(secret(), tls=True)
    assert said(login.asked(CLEARTEXT)) == z(PASSWORD)
    assert refused(lambda: Login(secret(), tls=False).asked(CLEARTEXT)) == "cleartext-password"


def test_a_server_that_does_not_ask() -> None:
    login = Login(None, tls=False)
    assert login.asked(OK) == [Pass(S, OK)]
    assert (login.done, login.method) == (True, "trust")


@pytest.mark.parametrize("asked", [OFFER, SALTED, CLEARTEXT])
def test_no_credential(asked: bytes) -> None:
    assert refused(lambda: Login(None, tls=True).asked(asked)) == "no-credential"


@pytest.mark.parametrize("second", [CLEARTEXT, SALTED, OFFER, authentication(12, b"v=")])
def test_a_server_asks_in_one_way(second: bytes) -> None:
    for first in (OFFER, SALTED, CLEARTEXT):
        login = Login(secret(), tls=True)
        login.asked(first)
        assert refused(lambda login=login: login.asked(second)) == "unsupported-login"  # type: ignore[misc]


BAD = [
    ("GSSAPI", authentication(7), "unsupported-login"),
    ("a code that nobody knows", authentication(99), "unsupported-login"),
    ("SCRAM from its middle", authentication(11, b"r=x"), "unsupported-login"),
    ("channel binding only", authentication(10, z("SCRAM-SHA-256-PLUS") + b"\0"), "unsupported-login"),
    ("no mechanism", authentication(10), "unsupported-login"),
    ("mechanisms without end", authentication(10, b"SCRAM-SHA-256"), "protocol"),
    ("short salt", authentication(5, b"abc"), "protocol"),
    ("no code", typed("R", b"\0\0"), "protocol"),
]


@pytest.mark.parametrize(("asked", "reason"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_what_is_not_answered(asked: bytes, reason: str) -> None:
    assert refused(lambda: Login(secret(), tls=True).asked(asked)) == reason


# -- by the agent ----------------------------------------------------------------------------------------------------


def first_message(flag: str, mechanism: str = "SCRAM-SHA-256") -> bytes:
    bare = f"{flag},,n=,r=abc".encode()
    return typed("p", z(mechanism) + len(bare).to_bytes(4) + bare)


FINAL = typed("p", b"c=biws,r=abcdef,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")


def through(*, agent_tls: bool = True, server_tls: bool = True) -> PassThrough:
    return PassThrough(agent_tls=agent_tls, server_tls=server_tls)


def test_channel_binding_is_not_offered() -> None:
    one = through()
    assert not one.wants_agent()
    assert one.asked(OFFER) == [Take(S, OFFER), Say(C, PLAIN_OFFER)]
    assert one.wants_agent()
    assert one.answered(first_message("n")) == [Pass(C, first_message("n"))]
    assert not one.wants_agent()
    assert one.asked(authentication(11, b"r=abcdef")) == [Pass(S, authentication(11, b"r=abcdef"))]
    assert one.answered(FINAL) == [Pass(C, FINAL)], "a proof is no password"
    one.asked(authentication(12, b"v=x"))
    assert not one.wants_agent()
    one.asked(OK)
    assert (one.done, one.method) == (True, "scram-sha-256")


def test_a_client_that_missed_the_offer_is_told_what_helps() -> None:
    one = through()
    one.asked(OFFER)
    with pytest.raises(Refusal) as caught:
        one.answered(first_message("y"))
    assert caught.value.reason == "channel-binding"
    assert "channel_binding=disable" in caught.value.hint


def test_a_server_that_offers_no_binding_takes_that_client() -> None:
    one = through()
    assert one.asked(PLAIN_OFFER) == [Pass(S, PLAIN_OFFER)]
    assert one.answered(first_message("y")) == [Pass(C, first_message("y"))]


def test_binding_that_is_needed_is_refused() -> None:
    assert refused(lambda: through().asked(authentication(10, z("SCRAM-SHA-256-PLUS") + b"\0"))) == "channel-binding"
    one = through()
    one.asked(OFFER)
    bound = first_message("p=tls-server-end-point", "SCRAM-SHA-256-PLUS")
    assert refused(lambda: one.answered(bound)) == "channel-binding"


@pytest.mark.parametrize("asked", [CLEARTEXT, SALTED, authentication(7), OFFER])
def test_what_is_not_scram_is_kept_by_length_only(asked: bytes) -> None:
    one = through()
    one.asked(asked)
    answer = typed("p", z("open sesame"))
    assert one.answered(answer) == [Pass(C, answer, ((5, len(answer) - 1, "password"),))]


def test_an_encrypted_password_does_not_leave_in_clear() -> None:
    assert refused(lambda: through(server_tls=False).asked(CLEARTEXT)) == "cleartext-password"
    one = through(agent_tls=False, server_tls=False)
    assert one.asked(CLEARTEXT) == [Pass(S, CLEARTEXT)], "as the agent chose"


def test_an_answer_that_is_none() -> None:
    one = through()
    one.asked(CLEARTEXT)
    assert refused(lambda: one.answered(query("SELECT 1"))) == "protocol"
