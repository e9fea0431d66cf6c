"""Tokens: what passes, what is refused and why, and how keys are cached."""

import hmac
import json
import ssl
import threading
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

from appliance.config import Issuer
from appliance.errors import MalformedInput, Refused, Unavailable
from appliance.identity import ca
from appliance.identity.jwks import MIN_REFETCH, fetch_json, usable_keys
from appliance.identity.oidc import MAX_ACTORS, Verifier

ISSUER = "https://idp.example"
NOW = 1_800_000_000.0
RSA = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
OTHER = RSAKey.generate_key(2048, {"kid": "two", "use": "sig"})
ELLIPTIC = ECKey.generate_key("P-256", {"kid": "curve", "use": "sig"})


class Provider:
    """An issuer whose keys, and whether it answers, the test decides."""

    def __init__(self, *keys: RSAKey | ECKey) -> None:
        self.keys = keys
        self.down = False
        self.fetched: list[str] = []
        self.now = NOW
        issuer = Issuer(issuer=ISSUER, audience=("verbatim",))
        self.verifier = Verifier([issuer], fetch=self.fetch, clock=lambda: self.now, monotonic=lambda: self.now)

    def fetch(self, issuer: Issuer, url: str) -> Any:
        self.fetched.append(url)
        if self.down:
            raise Unavailable("down")
        if url.endswith("/.well-known/openid-configuration"):
            return {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/jwks"}
        return KeySet(list(self.keys)).as_dict(private=False)


def claims(**changes: Any) -> dict[str, Any]:
    made = {"iss": ISSUER, "aud": "verbatim", "sub": "alice", "client_id": "agent", "iat": NOW, "exp": NOW + 600}
    return {name: value for name, value in (made | changes).items() if value is not None}


def base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(body: dict[str, Any], key: Any = RSA, **header: Any) -> str:
    head = {"alg": "RS256", "kid": key.kid, "typ": "at+jwt"} | header
    return jwt.encode({k: v for k, v in head.items() if v is not None}, body, key, algorithms=[str(head["alg"])])


def test_identity_of_a_token() -> None:
    act = {"sub": "robot", "act": {"sub": "planner"}}
    token = sign(claims(groups=["red", "blue"], roles=["auditor"], act=act, azp="agent-one"))
    verified = Provider(RSA).verifier.verify(token)
    identity = verified.identity
    assert (identity.issuer, identity.subject, identity.client) == (ISSUER, "alice", "agent-one")
    assert identity.act == ("robot", "planner")
    assert identity.groups == ("red", "blue")
    assert len(identity.token_sha256) == 64
    assert token not in repr(verified)
    assert verified.roles == {"auditor"}
    assert verified.expires_ns == int(NOW + 600) * 10**9


def test_elliptic_curve_key_and_audience_list() -> None:
    token = sign(claims(aud=["other", "verbatim"]), ELLIPTIC, alg="ES256")
    assert Provider(RSA, ELLIPTIC).verifier.verify(token).identity.subject == "alice"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"aud": "other"}, "audience"),
        ({"aud": None}, "audience"),
        ({"exp": None}, "no expiry"),
        ({"exp": NOW - 60}, "expired"),
        ({"exp": "soon"}, "not a time"),
        ({"nbf": NOW + 60}, "not valid yet"),
        ({"iat": NOW + 60}, "issued in the future"),
        ({"sub": None}, "no subject"),
        ({"sub": 7}, "no subject"),
        ({"iss": "https://elsewhere.example"}, "issuer"),
        ({"iss": None}, "issuer"),
        ({"act": "robot"}, "act claim"),
        ({"act": {"act": {"sub": "x"}}}, "act claim"),
    ],
)
def test_claims_that_are_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(Refused, match=why):
        Provider(RSA).verifier.verify(sign(claims(**change)))


def test_actor_chain_is_bounded() -> None:
    act: dict[str, Any] = {"sub": "a"}
    for _ in range(MAX_ACTORS):
        act = {"sub": "a", "act": act}
    with pytest.raises(Refused, match="actors deep"):
        Provider(RSA).verifier.verify(sign(claims(act=act)))


def test_foreign_key_under_a_known_key_id() -> None:
    forged = RSAKey.generate_key(2048, {"kid": "one"})
    with pytest.raises(Refused, match="signature"):
        Provider(RSA).verifier.verify(sign(claims(), forged))


def test_algorithm_confusion_is_refused() -> None:
    _, body, _ = sign(claims()).split(".")
    head = base64url(b'{"alg":"HS256","kid":"one"}')
    unsigned = base64url(b'{"alg":"none"}')
    seal = hmac.digest(RSA.as_pem(private=False), f"{head}.{body}".encode(), "sha256")
    for forged in (f"{head}.{body}.{base64url(seal)}", f"{unsigned}.{body}."):
        with pytest.raises(Refused, match="algorithm"):
            Provider(RSA).verifier.verify(forged)


def test_id_token_type_is_refused() -> None:
    with pytest.raises(Refused, match="type"):
        Provider(RSA).verifier.verify(sign(claims(), typ="logout+jwt"))


@pytest.mark.parametrize("token", ["", "x", "a.b", "a.b.c", "....", "é.é.é", "e30.e30.", "W10.W10.", "A" * 20_000])
def test_what_is_no_token(token: str) -> None:
    with pytest.raises((MalformedInput, Refused)):
        Provider(RSA).verifier.verify(token)


def test_keys_are_fetched_once_and_again_after_rotation() -> None:
    provider = Provider(RSA)
    for _ in range(5):
        provider.verifier.verify(sign(claims()))
    assert len(provider.fetched) == 2, "discovery and keys, once"
    provider.keys = (OTHER,)
    provider.now += MIN_REFETCH + 1
    assert provider.verifier.verify(sign(claims(), OTHER)).identity.subject == "alice"
    with pytest.raises(Refused, match="does not publish"):
        provider.verifier.verify(sign(claims(), RSA))


def test_unknown_key_ids_do_not_make_us_hammer_the_issuer() -> None:
    provider = Provider(RSA)
    provider.verifier.verify(sign(claims()))
    before = len(provider.fetched)
    for _ in range(50):
        with pytest.raises(Refused):
            provider.verifier.verify(sign(claims(), OTHER))
    assert len(provider.fetched) - before <= 2


def test_issuer_down_old_keys_serve_for_a_while_and_no_longer() -> None:
    provider = Provider(RSA)
    provider.verifier.verify(sign(claims()))
    provider.down = True
    provider.now += 1800
    assert provider.verifier.verify(sign(claims(exp=NOW + 9000))).identity.subject == "alice"
    provider.now += 1900
    with pytest.raises(Unavailable, match="not to be had"):
        provider.verifier.verify(sign(claims(exp=NOW + 9000)))


def test_who_has_a_usable_key_does_not_wait_while_the_issuer_hangs() -> None:
    provider = Provider(RSA)
    provider.verifier.verify(sign(claims(exp=NOW + 5000)))
    provider.now += 400  # older than jwks_refresh
    asked, answer = threading.Event(), threading.Event()
    usual = provider.fetch

    def hang(issuer: Issuer, url: str) -> Any:
        asked.set()
        answer.wait(20)
        provider.down = True
        return usual(issuer, url)

    provider.verifier._keys[ISSUER].fetch = hang
    first = threading.Thread(target=provider.verifier.verify, args=(sign(claims(exp=NOW + 5000)),))
    first.start()
    assert asked.wait(10)
    assert provider.verifier.verify(sign(claims(exp=NOW + 5000))).identity.subject == "alice"
    assert first.is_alive()
    answer.set()
    first.join(10)
    assert not first.is_alive()


def test_an_issuer_that_times_out_is_left_alone_for_a_while() -> None:
    provider = Provider(RSA)
    usual = provider.fetch

    def slow(issuer: Issuer, url: str) -> Any:
        provider.now += 2 * MIN_REFETCH
        provider.down = True
        return usual(issuer, url)

    provider.verifier._keys[ISSUER].fetch = slow
    for _ in range(3):  # those who waited for the first one's answer
        with pytest.raises(Unavailable):
            provider.verifier.verify(sign(claims(exp=NOW + 5000)))
    assert len(provider.fetched) == 1


def test_issuer_down_from_the_start() -> None:
    provider = Provider(RSA)
    provider.down = True
    with pytest.raises(Unavailable):
        provider.verifier.verify(sign(claims()))


def test_broken_answer_does_not_replace_good_keys() -> None:
    provider = Provider(RSA)
    provider.verifier.verify(sign(claims()))
    provider.keys = ()
    provider.now += 400
    assert provider.verifier.verify(sign(claims())).identity.subject == "alice"


def test_discovery_of_another_issuer_is_refused() -> None:
    def lying(issuer: Issuer, url: str) -> Any:
        return {"issuer": "https://evil.example", "jwks_uri": "https://evil.example/jwks"}

    verifier = Verifier([Issuer(issuer=ISSUER, audience=("verbatim",))], fetch=lying, clock=lambda: NOW)
    with pytest.raises(Unavailable, match="another issuer"):
        verifier.verify(sign(claims()))


@pytest.mark.filterwarnings("ignore:Key size")
def test_unusable_keys_are_left_out() -> None:
    weak = RSAKey.generate_key(1024, {"kid": "weak"}, auto_kid=False).as_dict(private=False)
    secret = OctKey.generate_key(256, {"kid": "secret"}).as_dict(private=True)
    encryption = RSAKey.generate_key(2048, {"kid": "enc", "use": "enc"}).as_dict(private=False)
    good = RSA.as_dict(private=False)
    keys = usable_keys({"keys": [weak, secret, encryption, {"kty": "RSA"}, "x", None, good]})
    assert list(keys) == ["one"]
    answers: tuple[Any, ...] = ({}, [], {"keys": {}}, {"keys": []}, None, {"keys": [secret]})
    for broken in answers:
        with pytest.raises(Unavailable):
            usable_keys(broken)


@pytest.fixture
def https(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A real HTTPS server that answers every path with a JWKS."""
    body = json.dumps(KeySet([RSA]).as_dict(private=False)).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    authority = ca.load_or_create(tmp_path, "idp")
    certificate, key = ca.api_certificate(authority, tmp_path, ["localhost"], datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_port}", tmp_path / "keys" / "ca.crt"
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetch_over_https_verifies_the_certificate(https: tuple[str, Path]) -> None:
    url, trusted = https
    issuer = Issuer(issuer=url, audience=("verbatim",), ca=trusted)
    assert "one" in usable_keys(fetch_json(issuer, f"{url}/jwks"))
    with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
        fetch_json(issuer.model_copy(update={"ca": None}), f"{url}/jwks")
    with pytest.raises(Unavailable, match="not https"):
        fetch_json(issuer, "http://localhost/jwks")
