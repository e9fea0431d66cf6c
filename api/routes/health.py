"""`/healthz` for load balancers and people, `/metrics` for Prometheus."""

from ipaddress import ip_address

from fastapi import APIRouter, Request, Response

from api.deps import READERS, AnyParts, Peer, caller
from api.metrics import render
from api.models import Health
from appliance.errors import Refused
from appliance.health import judge

router = APIRouter(tags=["health"])


@router.get("/healthz", responses={503: {"model": Health}})
def healthz(parts: AnyParts, response: Response, peer: Peer) -> Health:
    """200 when every part works, else 503. What is wrong is told to callers on this machine only."""
    verdicts = judge(parts.settings.data, embedded=not parts.settings.store.url)
    failing = any(verdict != "ok" for verdict in verdicts.values())
    response.status_code = 503 if failing else 200
    if not ip_address(peer).is_loopback:
        verdicts = {name: "ok" if verdict == "ok" else "failing" for name, verdict in verdicts.items()}
    return Health(status="failing" if failing else "ok", parts=verdicts)


@router.get("/metrics", response_class=Response)
def metrics(request: Request, parts: AnyParts, peer: Peer) -> Response:
    """Prometheus text format. From this machine, or with a token that may read records."""
    if not ip_address(peer).is_loopback and not caller(request).roles & READERS:
        raise Refused(
            f"metrics: need one of the roles {', '.join(sorted(READERS))}, or a scrape from the gateway itself"
        )
    return Response(render(parts.settings.data), media_type="text/plain; version=0.0.4; charset=utf-8")
