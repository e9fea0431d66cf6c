"""The appliance's CA certificate, for agents and people to trust after comparing its fingerprint.

It is read anew after a rotation. While the overlap with the former CA lasts, the file has both certificates, the
present one first: who takes it then verifies what either has signed.
"""

from datetime import UTC, datetime

from fastapi import APIRouter, Response

from api.deps import AnyParts
from api.models import Certificate

router = APIRouter(prefix="/v1/ca", tags=["certificate"])


@router.get("")
def show(parts: AnyParts) -> Certificate:
    """The certificate and its SHA-256 fingerprint. Compare it with what `verbatim ca` prints on the gateway."""
    ours = parts.authority()
    return Certificate(fingerprint_sha256=ours.fingerprint, pem=ours.pem.decode("ascii"))


@router.get(".crt", response_class=Response)
def download(parts: AnyParts) -> Response:
    """The certificate as a PEM file, during an overlap with the former one behind it."""
    ours = parts.authority()
    return Response(
        ours.bundle(datetime.now(UTC)),
        media_type="application/x-pem-file",
        headers={
            "Content-Disposition": 'attachment; filename="verbatim-ca.crt"',
            "Verbatim-Fingerprint-SHA256": ours.fingerprint,
        },
    )
