"""Poisoned keys: whatever an issuer's address answers, good keys stay, bad ones are never used, and it is told."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey

from appliance.config import Issuer
from appliance.errors import Refused, Unavailable
from appliance.identity import ca
from appliance.identity.jwks import MAX_JWKS, MAX_WAITING, MIN_REFETCH, Keys, fetch_json, usable_keys
from appliance.identity.oidc import Verifier
from tests.identity.test_oidc import ISSUER, NOW, OTHER, RSA, Provider, claims, sign

GOOD = RSA.as_dict(private=False)
SAME_ID = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"}).as_dict(private=False)
CURVE_SAME_ID = ECKey.generate_key("P-256", {"kid": "one", "use": "sig"}).as_dict(private=False)
SECRET = OctKey.generate_key(256, {"kid": "one"}).as_dict(private=True)
DEEP = "[" * 100_000

POISON: dict[str, Any] = {
    "hmac keys": {"keys": [SECRET]},
    "hmac key under a known id": {"keys": [SECRET | {"alg": "RS256"}]},
    "private keys": {"keys": [RSA.as_dict(private=True)]},
    "two keys of one id": {"keys": [GOOD, SAME_ID]},
    "two kinds of one id": {"keys": [GOOD, CURVE_SAME_ID]},
    "no keys": {"keys": []},
    "keys of nonsense": {"keys": [{"kty": "RSA", "n": 7, "e": None, "kid": ["x"]}, 1, None, []]},
    "huge modulus": {"keys": [{"kty": "RSA", "kid": "one", "e": "AQAB", "n": "_" + "w" * 12000}]},
    "not an object": [1],
    "null": None,
}


@pytest.mark.parametrize("name", POISON)
def test_a_poisoned_answer_does_not_replace_good_keys_and_is_a_fault(name: str) -> None:
    provider = Provider(RSA)
    verifier = provider.verifier
    verifier.verify(sign(claims(exp=NOW + 9000)))
    assert verifier.faults() == {}
    verifier._keys[ISSUER].fetch = lambda issuer, url: (
        {"issuer": ISSUER, "jwks_uri": "https://x.example/jwks"} if "well-known" in url else POISON[name]
    )
    provider.now += 400
    assert verifier.verify(sign(claims(exp=NOW + 9000))).identity.subject == "alice"
    (fault,) = verifier.faults().items()
    assert fault[0] == "issuer-keys-unusable"
    assert "known keys serve for a while" in fault[1]
    assert "see that the issuer" in fault[1]
    for _ in range(3):
        provider.now += 1500
        verifier.tend(lambda *_: None)
    with pytest.raises(Unavailable, match="not to be had"):
        verifier.verify(sign(claims(exp=NOW + 9000)))
    assert "no new lease is given" in verifier.faults()["issuer-keys-unusable"]
    verifier._keys[ISSUER].fetch = provider.fetch
    provider.now += MIN_REFETCH
    verifier.tend(lambda *_: None)
    assert verifier.faults() == {}


def test_one_good_key_among_bad_ones_serves() -> None:
    assert list(usable_keys({"keys": [SECRET | {"kid": "a"}, GOOD, {"kty": "RSA"}, GOOD]})) == ["one"]


def test_other_keys_are_told_with_their_thumbprints() -> None:
    provider, told = Provider(RSA), list[tuple[str, frozenset[str], frozenset[str]]]()
    tell: Callable[..., None] = lambda *what: told.append(what)  # noqa: E731
    provider.verifier.tend(tell)
    provider.verifier.tend(tell)
    assert told == []
    provider.keys = (OTHER,)
    provider.now += 400
    provider.verifier.tend(tell)
    provider.verifier.tend(tell)
    assert told == [(ISSUER, frozenset({OTHER.thumbprint()}), frozenset({RSA.thumbprint()}))]


def test_an_issuer_that_is_down_shows_before_anybody_asks_and_when_it_is_back() -> None:
    provider = Provider(RSA)
    provider.down = True
    provider.verifier.tend(lambda *_: None)
    assert "no new lease is given" in provider.verifier.faults()["issuer-unreachable"]
    asked = len(provider.fetched)
    provider.verifier.tend(lambda *_: None)
    assert len(provider.fetched) == asked, "not without a pause"
    provider.down = False
    provider.now += MIN_REFETCH
    provider.verifier.tend(lambda *_: None)
    assert provider.verifier.faults() == {}


@pytest.mark.parametrize("url", ["https://[::1/jwks", "https://x.example:port/jwks", "https://x\x00.example/jwks"])
def test_an_address_that_is_none_is_a_fault(url: str) -> None:
    provider = Provider(RSA)
    verifier = provider.verifier

    def published(issuer: Issuer, asked: str) -> Any:
        return {"issuer": ISSUER, "jwks_uri": url} if "well-known" in asked else fetch_json(issuer, asked)

    verifier._keys[ISSUER].fetch = published
    verifier.tend(lambda issuer, came, went: None)
    (fault,) = verifier.faults().items()
    assert fault[0] == "issuer-keys-unusable"
    with pytest.raises(Unavailable):
        verifier.verify(sign(claims(exp=NOW + 900)))


def test_thousands_of_unknown_key_ids_cause_few_fetches_and_few_wait() -> None:
    """While the issuer hangs, who comes with an unknown key id is sent away rather than kept."""
    release, asked = threading.Event(), threading.Event()
    fetches: list[str] = []

    def hang(issuer: Issuer, url: str) -> Any:
        fetches.append(url)
        asked.set()
        release.wait(20)
        return KeySet([RSA]).as_dict(private=False)

    keys = Keys(Issuer(issuer=ISSUER, audience=("v",), jwks_uri="https://x.example/jwks"), hang, time.monotonic)
    answers: list[type[Exception] | None] = []

    def ask(number: int) -> None:
        try:
            keys.find(f"unknown {number}")
        except (Refused, Unavailable) as error:
            answers.append(type(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    assert asked.wait(10)
    deadline = time.monotonic() + 10
    while len(answers) < 40 - MAX_WAITING - 1 and time.monotonic() < deadline:
        release.wait(0.01)
    assert answers == [Unavailable] * (40 - MAX_WAITING - 1)
    release.set()
    for thread in threads:
        thread.join(10)
    assert answers.count(Refused) == MAX_WAITING + 1
    for number in range(3000):
        with pytest.raises(Refused):
            keys.find(f"unknown {number}")
    assert len(fetches) == 1


@dataclass
class Site:
    """An HTTPS server that answers as a test wants. `paths`: what it was asked for."""

    url: str
    trusted: Path
    answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: None
    paths: list[str] = field(default_factory=list)

    @property
    def issuer(self) -> Issuer:
        return Issuer(issuer=self.url, audience=("verbatim",), ca=self.trusted)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.paths.append(self.path)
            with suppress(OSError):
                made.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    authority = ca.load_or_create(folder, "idp")
    certificate, key = ca.api_certificate(authority, folder, ["localhost"], datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.socket = context.wrap_socket(server.socket, server_side=True)
    made = Site(f"https://localhost:{server.server_port}", folder / "keys" / "ca.crt")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def _say(body: bytes, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def _redirect(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "/elsewhere")
    handler.end_headers()


def _endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b" " * 65536)


ANSWERS: dict[str, tuple[Callable[[BaseHTTPRequestHandler], None], str]] = {
    "garbage": (_say(bytes(range(256))), "JSON"),
    "too deep": (_say(DEEP.encode()), "JSON"),
    "endless": (_endless, f"more than {MAX_JWKS} bytes"),
    "packed": (_say(b"x", Content_Encoding="br"), "packed"),
    "redirect": (_redirect, "302"),
    "cut short": (_say(b"{", Content_Length="100"), "peer|closed|complete"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_are_no_keys(site: Site, name: str) -> None:
    site.answer, says = ANSWERS[name]
    site.paths.clear()
    with pytest.raises(Unavailable, match=says):
        fetch_json(site.issuer, f"{site.url}/jwks")
    assert site.paths == ["/jwks"], "a redirect is not followed"


@pytest.mark.parametrize("where", ["head", "body"])
def test_an_answer_that_drips_ends_at_the_deadline(site: Site, where: str) -> None:
    ended = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"\r\n" if where == "body" else b"X: "))
            while True:
                handler.wfile.write(b" ")
                ended.wait(0.05)
        finally:
            ended.set()

    site.answer = drip
    began = time.monotonic()
    with pytest.raises(Unavailable, match="no whole answer within"):
        fetch_json(site.issuer, f"{site.url}/jwks", deadline=0.5)
    assert time.monotonic() - began < 3
    assert ended.wait(10), "the connection is closed"


def test_a_site_that_drips_is_a_fault_and_keys_serve_on(site: Site) -> None:
    key = KeySet([RSA]).as_dict(private=False)
    now = [NOW]
    issuer = site.issuer.model_copy(update={"jwks_uri": f"{site.url}/jwks"})

    def fetch(issuer: Issuer, url: str) -> Any:
        return fetch_json(issuer, url, deadline=0.3)

    verifier = Verifier([issuer], fetch=fetch, clock=lambda: now[0], monotonic=lambda: now[0])
    site.answer = _say(json.dumps(key).encode())
    token = sign(claims(iss=issuer.issuer, exp=NOW + 9000))
    assert verifier.verify(token)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b" ")
            time.sleep(0.05)

    site.answer = drip
    now[0] += 400
    assert verifier.verify(token)
    assert "no whole answer" in verifier.faults()["issuer-unreachable"]
