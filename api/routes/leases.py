"""Leases: an agent shows its access token, and its address is bound to that identity for a time."""

import time
from dataclasses import replace
from datetime import UTC, datetime

from fastapi import APIRouter, status

from api.deps import ADMIN, AnyParts, Caller, Parts, Peer
from api.errors import Conflict, NotFound
from api.models import Lease, LeaseIdentity, LeaseRequest, Leases, RenewRequest
from appliance.identity.leases import Lease as Held
from appliance.identity.leases import LeaseHeld, holder
from appliance.identity.oidc import Verified

router = APIRouter(prefix="/v1/leases", tags=["leases"])


@router.post("", status_code=status.HTTP_201_CREATED)
def grant(request: LeaseRequest, caller: Caller, address: Peer, parts: AnyParts) -> Lease:
    """Bind the caller's own address to the token's identity until the token ends, or the configured maximum."""
    identity = replace(caller.identity, run_id=request.run_id, method="lease")
    try:
        return _shown(parts.wire.grant(address, identity, _until(caller, request.seconds, parts)))
    except LeaseHeld as error:
        raise Conflict(str(error)) from error


@router.get("")
def list_leases(caller: Caller, parts: AnyParts) -> Leases:
    """The caller's own live leases; all of them for the role admin."""
    return Leases(leases=[_shown(lease) for lease in parts.wire.list() if _may_see(caller, lease)])


@router.post("/{lease_id}/renew")
def renew(lease_id: str, request: RenewRequest, caller: Caller, parts: AnyParts) -> Lease:
    """Prolong a lease with a newer token of the same identity. Its flows go on."""
    held = _find(lease_id, caller, parts)
    try:
        return _shown(parts.wire.renew(held.id, _until(caller, request.seconds, parts), caller.identity))
    except LeaseHeld as error:
        raise Conflict(str(error)) from error


@router.delete("/{lease_id}", status_code=status.HTTP_204_NO_CONTENT)
def revoke(lease_id: str, caller: Caller, parts: AnyParts) -> None:
    """End a lease now, and with it every flow that it carries. Own leases; any lease for the role admin."""
    parts.wire.revoke(_find(lease_id, caller, parts).id)


def _find(lease_id: str, caller: Verified, parts: Parts) -> Held:
    for lease in parts.wire.list():
        if lease.id == lease_id and _may_see(caller, lease):
            return lease
    raise NotFound("no live lease of yours has this id; GET /v1/leases lists them")


def _may_see(caller: Verified, lease: Held) -> bool:
    return ADMIN in caller.roles or holder(caller.identity) == holder(lease.identity)


def _until(caller: Verified, seconds: float | None, parts: Parts) -> int:
    longest = parts.settings.leases.max_seconds
    now = time.time_ns()
    return min(caller.expires_ns, now + int(min(seconds or longest, longest) * 1_000_000_000))


def _shown(lease: Held) -> Lease:
    identity = lease.identity
    return Lease(
        lease_id=lease.id,
        address=lease.address,
        expires=datetime.fromtimestamp(lease.expires_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        identity=LeaseIdentity(
            issuer=identity.issuer,
            subject=identity.subject,
            client=identity.client,
            act=list(identity.act),
            groups=list(identity.groups),
            run_id=identity.run_id,
        ),
    )
