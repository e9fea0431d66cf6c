"""Credentials in HTTP: the agent's token, which ends at the gateway, and the rule's own, which takes its place.

A token comes as `Bearer`, or in `Basic`, which is all that many clients' proxy settings can hold: as the password, or
as the user's name where there is no password.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Final

from appliance.identity.credential import AUTHORIZATION, Kind, Secret
from appliance.relay.failure import Failure
from appliance.relay.mediator import Note

Range = tuple[int, int, str]  # start, end, what
AUTHORIZED: Final = AUTHORIZATION.encode()
PROXY_AUTHORIZED: Final = b"proxy-authorization"
# A field that may hold a token, in bytes that are not a well-formed head: with all that may be its continuation.
_LOOSE: Final = re.compile(rb"authorization[^\n:]{0,64}:([^\n]*(?:\n[ \t][^\n]*)*)", re.IGNORECASE)


def token_in(values: Sequence[bytes]) -> str:
    """The token of `Bearer` or `Basic` (RFC 6750 §2.1, RFC 7617); "": there is none, or several."""
    if len(values) != 1:
        return ""
    scheme, _, rest = values[0].partition(b" ")
    rest = rest.strip()
    if scheme.lower() == b"bearer":
        return rest.decode("latin-1")
    if scheme.lower() != b"basic":
        return ""
    try:
        user, _, password = base64.b64decode(rest, validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return ""
    return (password or user).decode("latin-1")


def hidden(value: bytes) -> int:
    """How many bytes of a field's value may be shown: its scheme."""
    scheme, space, rest = value.partition(b" ")
    return len(scheme) + 1 if space and rest and scheme.isalnum() and len(scheme) <= 16 else 0


def loose_secrets(data: bytes) -> tuple[Range, ...]:
    """Where tokens may be in bytes that were not understood."""
    return tuple((*found.span(1), "authorization") for found in _LOOSE.finditer(data) if found[1])


def credential_field(secret: Secret) -> tuple[bytes, bytes]:
    """Name (in lower case) and value of the field that carries a rule's credential. Raises `Failure`."""
    if secret.kind is Kind.TOKEN:
        name, value = secret.field()
        return name.encode("latin-1"), value.reveal().encode("latin-1")
    if secret.kind is Kind.PASSWORD:
        pair = f"{secret.user}:{secret.value.reveal()}".encode()
        return AUTHORIZED, b"Basic " + base64.b64encode(pair)
    raise Failure("secret", f"secret {secret.name}: HTTP takes a token or a password, not a {secret.kind}")


def credential_note(secret: Secret, name: bytes) -> Note:
    """That the rule's credential is used, and in which field."""
    login = {"secret": secret.name, "method": f"header {name.decode('latin-1')}"}
    return Note("upstream", f"the credential {secret.name} is put into requests", {"login": login})
