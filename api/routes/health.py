"""`/healthz` for load balancers and people, `/metrics` for Prometheus.

Both read the few small status files and nothing else. Strangers hear which part fails; why, and what was found wrong,
is for callers on this machine and for tokens that may read records: it would tell an agent how its attack goes.
"""

from ipaddress import ip_address

from fastapi import APIRouter, Request, Response

from api.deps import READERS, AnyParts, Peer, caller
from api.errors import Unauthenticated
from api.metrics import render
from api.models import Health, PartFault
from appliance.errors import Refused, Unavailable
from appliance.health import PARTS, PROCESSES, State
from appliance.health import parts as judged
from appliance.status import read

router = APIRouter(tags=["health"])


@router.get("/healthz", responses={503: {"model": Health}})
def healthz(request: Request, parts: AnyParts, response: Response, peer: Peer) -> Health:
    """200 when every part works, else 503. What is wrong, and the remedy, is not told to strangers."""
    settings = parts.settings
    said = read(settings.data)
    names = PROCESSES if "api" in said and said["api"].live else PARTS  # that it answers is known
    found = judged(said, embedded=not settings.store.url, names=names)
    failing = any(part.state is not State.OK for part in found.values())
    response.status_code = 503 if failing else 200
    status = "failing" if failing else "ok"
    if not _trusted(request, peer):
        return Health(status=status, parts={name: _word(part.state) for name, part in found.items()})
    faults = [
        PartFault(process=name, name=fault, text=text)
        for name, part in found.items()
        for fault, text in part.faults.items()
    ]
    return Health(status=status, parts={name: part.verdict for name, part in found.items()}, faults=faults)


@router.get("/metrics", response_class=Response)
def metrics(request: Request, parts: AnyParts, peer: Peer) -> Response:
    """Prometheus text format. From this machine, or with a token that may read records."""
    if not _here(request, peer) and not caller(request).roles & READERS:
        raise Refused(
            f"metrics: need one of the roles {', '.join(sorted(READERS))}, or a scrape from the gateway itself"
        )
    return Response(render(parts.settings), media_type="text/plain; version=0.0.4; charset=utf-8")


def _trusted(request: Request, peer: str) -> bool:
    """On this machine, or with a reader's token. Without one, or with a bad one, the caller is a stranger."""
    if _here(request, peer):
        return True
    if "authorization" not in request.headers:
        return False
    try:
        return bool(caller(request).roles & READERS)
    except (Unauthenticated, Unavailable):
        return False


def _here(request: Request, peer: str) -> bool:
    """On this machine: over loopback, or with the very address that was asked, which nobody else can answer from."""
    server = request.scope.get("server")
    return ip_address(peer).is_loopback or (server is not None and server[0] == peer)


def _word(state: State) -> str:
    return "ok" if state is State.OK else "failing"
