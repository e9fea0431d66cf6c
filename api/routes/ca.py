"""The appliance's CA certificate, for agents and people to trust after comparing its fingerprint."""

from fastapi import APIRouter, Response

from api.deps import AnyParts
from api.models import Certificate

router = APIRouter(prefix="/v1/ca", tags=["certificate"])


@router.get("")
def show(parts: AnyParts) -> Certificate:
    """The certificate and its SHA-256 fingerprint. Compare it with what `verbatim ca` prints on the gateway."""
    return Certificate(fingerprint_sha256=parts.authority.fingerprint, pem=parts.authority.pem.decode("ascii"))


@router.get(".crt", response_class=Response)
def download(parts: AnyParts) -> Response:
    """The certificate as a PEM file."""
    return Response(
        parts.authority.pem,
        media_type="application/x-pem-file",
        headers={
            "Content-Disposition": 'attachment; filename="verbatim-ca.crt"',
            "Verbatim-Fingerprint-SHA256": parts.authority.fingerprint,
        },
    )
