"""Verifies access tokens of OpenID providers and turns them into identities.

A token must be a JWT (RFC 7519, RFC 9068) of a configured issuer, signed with an allowed asymmetric algorithm by a key
of the issuer's JWKS (RFC 7517), for one of our audiences, valid now. Keys are cached: fetched again when they are
older than `jwks_refresh` or when a token names an unknown key, and used for at most `jwks_max_stale` seconds while
the issuer does not answer. The token itself is never kept: an identity carries its claims and its SHA-256.
"""

import hashlib
import json
import ssl
import threading
import time
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx
from authlib.oidc.discovery import OpenIDProviderMetadata, get_well_known_url
from joserfc import jws, jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey
from joserfc.util import urlsafe_b64decode

from appliance.config import Issuer
from appliance.errors import MalformedInput, Refused, Unavailable
from appliance.model import Identity

MAX_TOKEN = 16 * 1024
MAX_JWKS = 1024 * 1024
MAX_KEYS = 64
MAX_ACTORS = 8
MAX_GROUPS = 256
MIN_RSA_BITS = 2048
MIN_REFETCH = 5.0  # seconds between two fetches that unknown key ids ask for: strangers choose key ids
FETCH_TIMEOUT = 5.0
TYPES = frozenset({"", "jwt", "at+jwt", "application/at+jwt"})

Fetch = Callable[[Issuer, str], Any]
Clock = Callable[[], float]
Key = RSAKey | ECKey | OKPKey


@dataclass(frozen=True, slots=True)
class Verified:
    """An access token that passed: whose it is, their roles here, and until when (Unix ns)."""

    identity: Identity
    roles: frozenset[str]
    expires_ns: int


def fetch_json(issuer: Issuer, url: str) -> Any:
    """GET `url` and decode its JSON body; https only. Raises `Unavailable`."""
    if not url.startswith("https://"):
        raise Unavailable(f"issuer {issuer.issuer}: {url} is not https; correct the issuer or jwks_uri")
    try:
        context = ssl.create_default_context(cafile=str(issuer.ca) if issuer.ca else None)
        with (
            httpx.Client(verify=context, timeout=FETCH_TIMEOUT, trust_env=False) as client,
            client.stream("GET", url, headers={"Accept": "application/json"}) as answer,
        ):
            answer.raise_for_status()
            body = bytearray()
            for part in answer.iter_bytes():
                body += part
                if len(body) > MAX_JWKS:
                    raise Unavailable(f"issuer {issuer.issuer}: {url} answers more than {MAX_JWKS} bytes")
        return json.loads(body)
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise Unavailable(f"issuer {issuer.issuer}: {url}: {error or type(error).__name__}") from error


@dataclass(slots=True)
class Keys:
    """The JWKS of one issuer, cached."""

    issuer: Issuer
    fetch: Fetch
    clock: Clock
    by_id: dict[str, Key] = field(default_factory=dict)
    fetched: float = float("-inf")
    tried: float = float("-inf")
    failure: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, key_id: str | None) -> Key:
        """The key named `key_id`, or the only key when the token names none.

        Raises `Refused` when the issuer has no such key, `Unavailable` when that cannot be found out.
        """
        key, now = self._pick(key_id), self.clock()
        if key is None or now - self.fetched > self.issuer.jwks_refresh:
            # One at a time asks the issuer. Who has a key that may be used does not wait for the answer to another.
            usable = key is not None and now - self.fetched <= self.issuer.jwks_max_stale
            if self.lock.acquire(blocking=not usable):
                try:
                    self._refresh_if_due(key_id)
                finally:
                    self.lock.release()
            key, now = self._pick(key_id), self.clock()
        if now - self.fetched > self.issuer.jwks_max_stale:
            raise Unavailable(
                f"the keys of issuer {self.issuer.issuer} are not to be had ({self.failure or 'never fetched'}); "
                "try again when it answers"
            )
        if key is None:
            raise Refused("token: signed with a key that its issuer does not publish; get a new token")
        return key

    def _pick(self, key_id: str | None) -> Key | None:
        if key_id is None:
            return next(iter(self.by_id.values())) if len(self.by_id) == 1 else None
        return self.by_id.get(key_id)

    def _refresh_if_due(self, key_id: str | None) -> None:
        now = self.clock()
        known = self._pick(key_id) is not None and now - self.fetched <= self.issuer.jwks_refresh
        if known or now - self.tried < MIN_REFETCH:
            return
        try:
            self.by_id = fetch_keys(self.issuer, self.fetch)
            self.fetched, self.failure = now, ""
        except Unavailable as error:
            self.failure = str(error)
        finally:
            self.tried = self.clock()  # from the end: an issuer that times out is not asked without a pause


def fetch_keys(issuer: Issuer, fetch: Fetch = fetch_json) -> dict[str, Key]:
    """The issuer's usable signature keys by key id, fetched now. Raises `Unavailable`."""
    return usable_keys(fetch(issuer, issuer.jwks_uri or _discover(issuer, fetch)))


def _discover(issuer: Issuer, fetch: Fetch) -> str:
    document = fetch(issuer, get_well_known_url(issuer.issuer, external=True))
    if not isinstance(document, dict):
        raise Unavailable(f"issuer {issuer.issuer}: its discovery document is not a JSON object")
    metadata = OpenIDProviderMetadata(document)
    try:
        metadata.validate_issuer()
        metadata.validate_jwks_uri()
    except ValueError as error:
        raise Unavailable(f"issuer {issuer.issuer}: its discovery document: {error}") from error
    if document["issuer"] != issuer.issuer:
        raise Unavailable(f"issuer {issuer.issuer}: its discovery document names another issuer")
    return str(document["jwks_uri"])


def usable_keys(document: Any) -> dict[str, Key]:
    """The public signature keys of a JWKS by key id; those we cannot or must not use are left out.

    Symmetric keys, encryption keys and RSA keys under 2048 bits are never used. Raises `Unavailable` when the document
    is no JWKS or holds no usable key, so that a broken answer never replaces good keys.
    """
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise Unavailable("the issuer's JWKS is not a JSON object with a list of keys")
    found: dict[str, Key] = {}
    for entry in entries[:MAX_KEYS]:
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
            continue
        try:
            for key in KeySet.import_key_set({"keys": [entry]}).keys:
                if isinstance(key, RSAKey) and key.public_key.key_size < MIN_RSA_BITS:
                    continue
                if isinstance(key, RSAKey | ECKey | OKPKey):
                    found[str(entry.get("kid") or key.thumbprint())] = key
        except (JoseError, ValueError, TypeError, KeyError):
            continue
    if not found:
        raise Unavailable("the issuer's JWKS holds no usable signature key")
    return found


class Verifier:
    """Verifies tokens of the configured issuers. Thread-safe."""

    def __init__(
        self,
        issuers: Sequence[Issuer],
        *,
        fetch: Fetch = fetch_json,
        clock: Clock = time.time,
        monotonic: Clock = time.monotonic,
    ) -> None:
        self._keys = {issuer.issuer: Keys(issuer, fetch, monotonic) for issuer in issuers}
        self._clock = clock

    def verify(self, token: str) -> Verified:
        """Check `token` (compact JWS) and give its identity.

        Raises `MalformedInput` when it is no JWT, `Refused` when a check fails, `Unavailable` when the issuer's keys
        are not to be had. Messages never hold parts of the token.
        """
        if len(token) > MAX_TOKEN:
            raise MalformedInput(f"token: longer than {MAX_TOKEN} bytes")
        header, claims = _peek(token)
        keys = self._keys.get(str(claims.get("iss", "")))
        if keys is None:
            raise Refused("token: its issuer is not one of the configured issuers")
        issuer = keys.issuer
        if header.get("alg") not in issuer.algorithms:
            raise Refused(f"token: its algorithm is not allowed; use one of {', '.join(issuer.algorithms)}")
        if str(header.get("typ", "")).lower() not in TYPES:
            raise Refused("token: its type is not that of an access token (RFC 9068: at+jwt)")
        key_id = header.get("kid")
        key = keys.find(str(key_id) if key_id is not None else None)
        try:
            decoded = jwt.decode(token, key, algorithms=list(issuer.algorithms))
        except (BadSignatureError, InvalidKeyIdError) as error:
            raise Refused("token: its signature is not valid") from error
        except (JoseError, ValueError, TypeError) as error:
            raise Refused("token: does not fit its issuer's key; get a new token") from error
        return self._judge(decoded.claims, issuer, token)

    def _judge(self, claims: Mapping[str, Any], issuer: Issuer, token: str) -> Verified:
        now = self._clock()
        audience = claims.get("aud")
        audiences = {audience} if isinstance(audience, str) else set(_strings(audience))
        if claims.get("iss") != issuer.issuer:
            raise Refused("token: its issuer is not the one that signed it")
        if not audiences & set(issuer.audience):
            raise Refused(f"token: not for this service; its audience must be one of {', '.join(issuer.audience)}")
        expires = _time(claims, "exp")
        if expires is None:
            raise Refused("token: has no expiry (exp)")
        if expires <= now - issuer.leeway:
            raise Refused("token: expired; get a new one")
        not_before, issued = _time(claims, "nbf"), _time(claims, "iat")
        if not_before is not None and not_before > now + issuer.leeway:
            raise Refused("token: not valid yet (nbf); compare the clocks")
        if issued is not None and issued > now + issuer.leeway:
            raise Refused("token: issued in the future (iat); compare the clocks")
        subject = claims.get("sub")
        if not isinstance(subject, str) or not subject:
            raise Refused("token: names no subject (sub)")
        client = claims.get("azp") or claims.get("client_id") or ""
        identity = Identity(
            issuer=issuer.issuer,
            subject=subject,
            client=client if isinstance(client, str) else "",
            act=actors(claims.get("act")),
            groups=_strings(claims.get(issuer.groups_claim))[:MAX_GROUPS],
            token_sha256=hashlib.sha256(token.encode()).hexdigest(),
        )
        return Verified(identity, frozenset(_strings(claims.get(issuer.roles_claim))), int(expires * 1_000_000_000))


def actors(act: Any) -> tuple[str, ...]:
    """Subjects of an RFC 8693 §4.1 `act` claim, the current actor first. Raises `Refused` when malformed or deep."""
    chain: list[str] = []
    while act is not None:
        subject = act.get("sub") if isinstance(act, dict) else None
        if not isinstance(subject, str) or not subject:
            raise Refused("token: its act claim names no subject (RFC 8693 §4.1)")
        if len(chain) == MAX_ACTORS:
            raise Refused(f"token: its act claim is more than {MAX_ACTORS} actors deep")
        chain.append(subject)
        act = act.get("act")
    return tuple(chain)


def _peek(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Header and claims before any check, only to choose the issuer and its key."""
    try:
        signature = jws.extract_compact(token.encode("ascii"))
        claims = json.loads(urlsafe_b64decode(token.split(".")[1].encode("ascii")))
        header = signature.headers()
    except (JoseError, ValueError, TypeError, KeyError, Base64Error, RecursionError) as error:
        raise MalformedInput("token: not a signed JWT; send the access token as it was issued") from error
    if not isinstance(claims, dict) or "crit" in header:
        raise MalformedInput("token: not a signed JWT that this service understands")
    return header, claims


def _strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list | tuple) else ()


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**40:
        raise Refused(f"token: its {name} is not a time")
    return float(value)
