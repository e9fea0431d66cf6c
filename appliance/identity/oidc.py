"""Verifies access tokens of OpenID providers and turns them into identities.

A token must be a JWT (RFC 7519, RFC 9068) of a configured issuer, signed with an allowed asymmetric algorithm by a key
of the issuer's JWKS (`jwks.py`), for one of our audiences, valid now. Keys are cached: fetched again when they are
older than `jwks_refresh` or when a token names an unknown key, and used for at most `jwks_max_stale` seconds while
the issuer does not answer. The token itself is never kept: an identity carries its claims and its SHA-256.
"""

import hashlib
import json
import time
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import BadSignatureError, InvalidKeyIdError, JoseError
from joserfc.util import urlsafe_b64decode

from appliance.config import Issuer
from appliance.errors import MalformedInput, Refused
from appliance.identity.jwks import Clock, Fetch, Keys, fetch_json
from appliance.model import Identity

MAX_TOKEN = 16 * 1024
MAX_ACTORS = 8
MAX_GROUPS = 256
TYPES = frozenset({"", "jwt", "at+jwt", "application/at+jwt"})

Changed = Callable[[str, frozenset[str], frozenset[str]], None]  # issuer, thumbprints that came, that went


@dataclass(frozen=True, slots=True)
class Verified:
    """An access token that passed: whose it is, their roles here, and until when (Unix ns)."""

    identity: Identity
    roles: frozenset[str]
    expires_ns: int


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
        self._thumbprints: dict[str, frozenset[str]] = {}

    def faults(self) -> dict[str, str]:
        """What is wrong with issuers now: name → text."""
        found: dict[str, str] = {}
        for keys in self._keys.values():
            if fault := keys.fault:
                name, text = fault
                found[name] = f"{found[name]} | {text}" if name in found else text
        return found

    def tend(self, changed: Changed) -> None:
        """To be called every few seconds: refresh keys that are due; `changed` hears when an issuer has other keys."""
        for issuer, keys in self._keys.items():
            keys.tend()
            now = keys.thumbprints
            before = self._thumbprints.get(issuer, now)
            if now != before:
                changed(issuer, now - before, before - now)
            self._thumbprints[issuer] = now

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
