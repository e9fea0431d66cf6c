"""What routes depend on: the verified caller, the caller's roles, the store, the wire process."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated

from fastapi import Depends, Request

from api.errors import Unauthenticated
from appliance.config import Settings
from appliance.errors import MalformedInput, Refused
from appliance.identity.ca import Current
from appliance.identity.oidc import Verified, Verifier
from appliance.store.client import Store
from appliance.store.rows import AuditRow
from appliance.wire.control import Client

READERS = frozenset({"auditor", "investigator", "admin"})
AUDITORS = frozenset({"auditor", "admin"})
ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Parts:
    """The long-lived parts of the API process, made once at start."""

    settings: Settings
    verifier: Verifier
    authority: Current
    store: Store
    audit: Store  # the same store, open for writing: who read what
    wire: Client


def parts(request: Request) -> Parts:
    found = request.app.state.parts
    assert isinstance(found, Parts)
    return found


def peer(request: Request) -> str:
    """The caller's address as the kernel saw it. Headers that claim another one are not read."""
    if request.client is None:
        raise MalformedInput("request: has no peer address")
    address = ip_address(request.client.host.partition("%")[0])
    mapped = address.ipv4_mapped if address.version == 6 else None
    return str(mapped or address)


def caller(request: Request) -> Verified:
    """The verified bearer of the request's access token (RFC 6750 §2.1). Raises `Unauthenticated`."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("no access token; send 'Authorization: Bearer <token>'")
    try:
        return parts(request).verifier.verify(token.strip())
    except (MalformedInput, Refused) as error:
        raise Unauthenticated(str(error)) from error


def with_role(roles: frozenset[str]) -> Callable[[Request, Verified], Verified]:
    """Whoever reads records needs a role, and is on record before the answer: no audit row, no answer."""

    def check(request: Request, caller: Annotated[Verified, Depends(caller)]) -> Verified:
        if not caller.roles & roles:
            raise Refused(f"this needs one of the roles {', '.join(sorted(roles))}; ask your identity provider for it")
        asked = f"{request.url.path}?{request.url.query}" if request.url.query else request.url.path
        actor = f"{caller.identity.subject} {caller.identity.issuer}"
        parts(request).audit.insert([AuditRow(time.time_ns(), actor, request.scope["route"].name, asked)])
        return caller

    return check


AnyParts = Annotated[Parts, Depends(parts)]
Peer = Annotated[str, Depends(peer)]
Caller = Annotated[Verified, Depends(caller)]
Reader = Annotated[Verified, Depends(with_role(READERS))]
Auditor = Annotated[Verified, Depends(with_role(AUDITORS))]
