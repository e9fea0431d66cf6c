"""Credentials in HTTP: the agent's token, which ends at the gateway, and the rule's own, which takes its place.

A token comes as `Bearer`, or in `Basic`, which is all that many clients' proxy settings can hold: as the password, or
as the user's name where there is no password. Where the rule's credential goes into a field of its own, as X-Api-Key,
clients have a place for a key there and none in Authorization: so it may hold the token, bare.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from appliance.identity.credential import AUTHORIZATION, Kind, Secret
from appliance.relay.failure import Failure
from appliance.relay.mediator import Note

Range = tuple[int, int, str]  # start, end, what
AUTHORIZED: Final = AUTHORIZATION.encode()
PROXY_AUTHORIZED: Final = b"proxy-authorization"
# A field that may hold a token, in bytes that are not a well-formed head: with all that may be its continuation.
_LOOSE: Final = rb"(%b)[^\n:]{0,64}:([^\n]*(?:\n[ \t][^\n]*)*)"


class Head(Protocol):
    """Of HTTP/1 or HTTP/2: `values` of the fields with a name in lower case."""

    def values(self, name: bytes) -> list[bytes]: ...


def token_fields(secret: Secret | None) -> tuple[bytes, ...]:
    """Names in lower case of the fields that may hold an agent's token, where the rule has this credential. The first
    one that a request has counts."""
    if secret is None or secret.kind is not Kind.TOKEN or not secret.header:
        return (AUTHORIZED,)
    return tuple(dict.fromkeys((AUTHORIZED, secret.header.encode("latin-1"))))


def token_of(head: Head, names: Iterable[bytes]) -> str | None:
    """The token in the first of these fields that is there; "": it holds none, or comes several times; None: there is
    no such field."""
    for name in names:
        if values := head.values(name):
            bare = len(values) == 1 and b" " not in values[0] and name not in (AUTHORIZED, PROXY_AUTHORIZED)
            return values[0].decode("latin-1") if bare else token_in(values)
    return None


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


def loose_secrets(data: bytes, names: Iterable[bytes]) -> tuple[Range, ...]:
    """Where tokens may be in bytes that were not understood; `names` of the fields that may hold one."""
    fields = re.compile(_LOOSE % b"|".join(map(re.escape, names)), re.IGNORECASE)
    return tuple((*found.span(2), found[1].lower().decode()) for found in fields.finditer(data) if found[2])


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
