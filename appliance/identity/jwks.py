"""The signature keys of OpenID providers (JWKS, RFC 7517): fetched, judged, cached.

What the issuer's address answers is not trusted to be well meant: it has a deadline, a size and a shape. An answer that
is no good never replaces keys that are, and is a fault (`Keys.fault`); so is an issuer that does not answer. The keys
that are known serve for `jwks_max_stale` seconds more. Strangers choose the key ids in their tokens: an unknown one
makes us ask the issuer, but seldom, one at a time, and few wait for the answer.
"""

import asyncio
import json
import ssl
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx
from authlib.oidc.discovery import OpenIDProviderMetadata, get_well_known_url
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from appliance.config import Issuer
from appliance.errors import Refused, Unavailable

MAX_JWKS = 1024 * 1024
MAX_KEYS = 64
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192  # a longer one would cost a second of processor time a token
MIN_REFETCH = 5.0  # seconds between two fetches
MAX_WAITING = 8  # callers who wait for one fetch; the API has forty threads
FETCH_TIMEOUT = 5.0  # seconds for one step: a connection, an answer's next bytes
DEADLINE = 10.0  # seconds for a whole answer, however slowly it drips

Fetch = Callable[[Issuer, str], Any]
Clock = Callable[[], float]
Key = RSAKey | ECKey | OKPKey


class UnusableKeys(Unavailable):
    """The issuer answers, but not with keys that can be used."""


def fetch_json(issuer: Issuer, url: str, seconds: float = FETCH_TIMEOUT, deadline: float = DEADLINE) -> Any:
    """GET `url` and decode its JSON body; https only, no redirects. `seconds`: for each step. Raises `Unavailable`."""
    name = f"issuer {issuer.issuer}"
    if not url.startswith("https://"):
        raise UnusableKeys(f"{name}: {url} is not https; correct the issuer or jwks_uri")
    try:
        body = _within(deadline, _get(issuer, url, seconds))
    except TimeoutError as error:
        raise Unavailable(f"{name}: {url}: no whole answer within {deadline:g} s") from error
    except httpx.InvalidURL as error:
        raise UnusableKeys(f"{name}: {url!r} is no address: {error}; correct the issuer or jwks_uri") from error
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise Unavailable(
            f"{name}: {url}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnusableKeys(f"{name}: {url} does not answer with JSON") from error


async def _get(issuer: Issuer, url: str, seconds: float) -> bytes:
    context = trust(issuer)
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}  # what is packed could be of any size
    body = bytearray()
    async with (
        httpx.AsyncClient(verify=context, timeout=seconds, trust_env=False) as client,
        client.stream("GET", url, headers=headers) as answer,
    ):
        answer.raise_for_status()
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise UnusableKeys(f"issuer {issuer.issuer}: {url} answers packed, though it was asked not to")
        async for part in answer.aiter_raw():
            body += part
            if len(body) > MAX_JWKS:
                raise UnusableKeys(f"issuer {issuer.issuer}: {url} answers more than {MAX_JWKS} bytes")
    return bytes(body)


def trust(issuer: Issuer) -> ssl.SSLContext:
    """What the issuer's certificate is verified with. Raises `Unavailable` where that file cannot be used."""
    try:
        return ssl.create_default_context(cafile=str(issuer.ca) if issuer.ca else None)
    except OSError as error:
        name = f"issuer {issuer.issuer}: its certificate file {issuer.ca}"
        raise Unavailable(f"{name}: {error.strerror or error}; correct issuers[].ca") from error


def _within(seconds: float, coroutine: Coroutine[Any, Any, bytes]) -> bytes:
    """Its result; `TimeoutError` when that takes longer. A name server that hangs is not waited for."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(asyncio.wait_for(coroutine, seconds))
    finally:
        loop.close()


@dataclass(slots=True)
class Keys:
    """The JWKS of one issuer, cached. `fault`: name and text of what is wrong with it now; None: nothing."""

    issuer: Issuer
    fetch: Fetch
    clock: Clock
    by_id: dict[str, Key] = field(default_factory=dict)
    fetched: float = float("-inf")
    tried: float = float("-inf")
    failure: Unavailable | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(MAX_WAITING))

    @property
    def fault(self) -> tuple[str, str] | None:
        if self.failure is None:
            return None
        known = self.clock() - self.fetched <= self.issuer.jwks_max_stale
        now = "known keys serve for a while" if known else "no new lease is given"
        text = f"{self.failure}: {now}, leases that are held live on; see that the issuer can be reached"
        if isinstance(self.failure, UnusableKeys):
            return "issuer-keys-unusable", f"{text} and what it publishes as its JWKS"
        return "issuer-unreachable", f"{text} from the gateway"

    @property
    def thumbprints(self) -> frozenset[str]:
        """RFC 7638, of the keys that are in use."""
        return frozenset(key.thumbprint() for key in self.by_id.values())

    def find(self, key_id: str | None) -> Key:
        """The key named `key_id`, or the only key when the token names none.

        Raises `Refused` when the issuer has no such key, `Unavailable` when that cannot be found out now.
        """
        key, now = self._pick(key_id), self.clock()
        if key is None or now - self.fetched > self.issuer.jwks_refresh:
            # One at a time asks the issuer. Who has a key that may be used does not wait for the answer to another.
            usable = key is not None and now - self.fetched <= self.issuer.jwks_max_stale
            self._ask(key_id, wait=not usable)
            key, now = self._pick(key_id), self.clock()
        if now - self.fetched > self.issuer.jwks_max_stale:
            raise Unavailable(
                f"the keys of issuer {self.issuer.issuer} are not to be had ({self.failure or 'never fetched'}); "
                "leases that are held live on, for a new one try again when the issuer answers"
            )
        if key is None:
            raise Refused("token: signed with a key that its issuer does not publish; get a new token")
        return key

    def tend(self) -> None:
        """Ask the issuer when that is due, though nobody needs a key: what is wrong with it shows before."""
        if self.failure is not None or self.clock() - self.fetched > self.issuer.jwks_refresh:
            self._ask(None, wait=False, always=True)

    def _pick(self, key_id: str | None) -> Key | None:
        if key_id is None:
            return next(iter(self.by_id.values())) if len(self.by_id) == 1 else None
        return self.by_id.get(key_id)

    def _ask(self, key_id: str | None, *, wait: bool, always: bool = False) -> None:
        if not self.lock.acquire(blocking=False):
            if not wait:
                return
            if not self.waiting.acquire(blocking=False):
                raise Unavailable(f"issuer {self.issuer.issuer}: is being asked for its keys; try again in a moment")
            try:
                self.lock.acquire()
            finally:
                self.waiting.release()
        try:
            self._refresh_if_due(key_id, always)
        finally:
            self.lock.release()

    def _refresh_if_due(self, key_id: str | None, always: bool) -> None:
        now = self.clock()
        known = not always and self._pick(key_id) is not None and now - self.fetched <= self.issuer.jwks_refresh
        if known or now - self.tried < MIN_REFETCH:
            return
        try:
            self.by_id = fetch_keys(self.issuer, self.fetch)
            self.fetched, self.failure = now, None
        except Unavailable as error:
            self.failure = error
        finally:
            self.tried = self.clock()  # from the end: an issuer that times out is not asked without a pause


def fetch_keys(issuer: Issuer, fetch: Fetch = fetch_json) -> dict[str, Key]:
    """The issuer's usable signature keys by key id, fetched now. Raises `Unavailable`."""
    return usable_keys(fetch(issuer, issuer.jwks_uri or _discover(issuer, fetch)))


def _discover(issuer: Issuer, fetch: Fetch) -> str:
    document = fetch(issuer, get_well_known_url(issuer.issuer, external=True))
    if not isinstance(document, dict):
        raise UnusableKeys(f"issuer {issuer.issuer}: its discovery document is not a JSON object")
    metadata = OpenIDProviderMetadata(document)
    try:
        metadata.validate_issuer()
        metadata.validate_jwks_uri()
    except (ValueError, TypeError, AttributeError) as error:
        raise UnusableKeys(f"issuer {issuer.issuer}: its discovery document: {error}") from error
    if document["issuer"] != issuer.issuer:
        raise UnusableKeys(f"issuer {issuer.issuer}: its discovery document names another issuer")
    return str(document["jwks_uri"])


def usable_keys(document: Any) -> dict[str, Key]:
    """The public signature keys of a JWKS by key id; those we cannot or must not use are left out.

    Symmetric and private keys (whoever reads them can sign), encryption keys and RSA keys of other than 2048 to 8192
    bits are never used. Raises `UnusableKeys` when the document is no JWKS, names two keys by one id, or holds no
    usable key, so that a broken answer never replaces good keys.
    """
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise UnusableKeys("the issuer's JWKS is not a JSON object with a list of keys")
    found: dict[str, Key] = {}
    for entry in entries[:MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        key = _import(entry)
        if key is None:
            continue
        id = str(entry.get("kid") or key.thumbprint())
        if id in found and found[id].thumbprint() != key.thumbprint():
            raise UnusableKeys("the issuer's JWKS names two keys by one key id")
        found[id] = key
    if not found:
        raise UnusableKeys("the issuer's JWKS holds no usable signature key")
    return found


def _import(entry: dict[str, Any]) -> Key | None:
    try:
        (key,) = KeySet.import_key_set({"keys": [entry]}).keys
        if not isinstance(key, RSAKey | ECKey | OKPKey) or key.is_private:
            return None
        if isinstance(key, RSAKey) and not MIN_RSA_BITS <= key.public_key.key_size <= MAX_RSA_BITS:
            return None
        key.thumbprint()
        return key
    except (JoseError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
