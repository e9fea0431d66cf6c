"""Mints what a relay shows to its clients: a certificate for the name that they asked for, signed by our CA.

In: the name of the ClientHello (or the original destination's address, where it has none), and the certificate that the
server showed. Out: a `Leaf`, with what clients check of the server's own: its names, where the asked one is among them,
and its common name. One key serves all leaves of a process and never reaches a disk.

Names and certificates are what clients and servers sent: they are bounded, and what is no name is left out.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from ssl import SSLContext

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance.config import HOST
from appliance.errors import MalformedInput
from appliance.identity.ca import Authority, pem, private_pem
from appliance.identity.certificate import MAX_COMMON_NAME, ends, leaf
from appliance.identity.constraints import Constraints, Subject, subject

LIFETIME = timedelta(days=7)
FRESH = timedelta(days=1)  # a leaf is made anew when it has less left than this, or half of its life
MAX_LEAVES = 4096  # of different names or servers, kept at one time; each has about 2 KiB
MAX_NAMES = 100  # of one certificate
MAX_LOOKED_AT = 1000  # of a server's certificate; what is behind these is not taken over

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Leaf:
    """A certificate with its chain, the leaf first and without the root, and its key. Immutable."""

    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]

    @cached_property
    def pem(self) -> bytes:
        """The chain."""
        return b"".join(map(pem, self.chain))

    def load_into(self, context: SSLContext) -> None:
        """Have a server's `context` show it. Python's ssl reads files only: this one is in memory and has no name."""
        file = os.memfd_create("verbatim-leaf", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(file), "wb") as writer:
                writer.write(private_pem(self.key) + self.pem)
            context.load_cert_chain(f"/proc/self/fd/{file}")
        finally:
            os.close(file)


class Mint:
    """Makes leaves, and keeps the last `MAX_LEAVES`. For one thread.

    `authority` gives the CA as it is now (`ca.Current`): after a rotation, new leaves are signed by the new one.
    """

    def __init__(self, authority: Callable[[], Authority], clock: Clock = utc_now, limit: int = MAX_LEAVES) -> None:
        self._authority = authority
        self._clock = clock
        self._limit = limit
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._leaves: OrderedDict[tuple[tuple[str, ...], bytes], tuple[datetime, Authority, Leaf]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._leaves)

    def leaf(self, names: Sequence[str], upstream: x509.Certificate | None = None) -> Leaf:
        """A leaf for `names` (DNS names or addresses, the asked one first), like the server's certificate `upstream`.

        Raises `MalformedInput` when one is no name, `Refused` when the CA's constraints forbid one or the CA has ended.
        """
        key = tuple(names), b"" if upstream is None else upstream.fingerprint(hashes.SHA256())
        authority, now = self._authority(), self._clock()
        if (kept := self._leaves.get(key)) is not None and kept[1] is authority and now < kept[0]:
            self._leaves.move_to_end(key)
            return kept[2]
        made = self._mint([subject(name) for name in names], upstream, authority, now)
        left = ends(made.certificate) - now
        until = now + max(left - FRESH, left / 2)
        if bridge := authority.overlap(now):
            until = min(until, ends(bridge))
        self._leaves[key] = until, authority, made
        self._leaves.move_to_end(key)
        while len(self._leaves) > self._limit:
            self._leaves.popitem(last=False)
        return made

    def _mint(
        self, asked: Sequence[Subject], upstream: x509.Certificate | None, authority: Authority, now: datetime
    ) -> Leaf:
        if not asked:
            raise MalformedInput("certificate: no name or address to issue it for")
        subjects, common = list(dict.fromkeys(asked)), ""
        theirs = () if upstream is None else names_of(upstream)
        if upstream is not None and any(_matches(asked[0], each) for each in theirs):
            allowed = Constraints.of(authority.certificate)
            also = (each for each in theirs if each not in asked and not allowed.forbids(each))
            subjects = [*subjects, *also][:MAX_NAMES]
            common = _common_name(upstream, subjects)
        certificate = leaf(authority.issuer, self._key.public_key(), subjects, now, LIFETIME, common=common)
        bridge = authority.overlap(now)
        return Leaf((certificate,) if bridge is None else (certificate, bridge), self._key)


def names_of(certificate: x509.Certificate) -> tuple[Subject, ...]:
    """The names and addresses that a server's certificate is for, of those that can be one."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return ()
    names: dict[Subject, None] = {}
    for each in islice(found, MAX_LOOKED_AT):
        if isinstance(each, x509.DNSName | x509.IPAddress):
            try:
                names[subject(str(each.value))] = None
            except MalformedInput:
                continue
    return tuple(names)


def _matches(asked: Subject, name: Subject) -> bool:
    """RFC 6125 section 6.4.3: a wildcard stands for one label, the leftmost."""
    if asked == name:
        return True
    if not isinstance(asked, str) or not isinstance(name, str) or not name.startswith("*."):
        return False
    return asked.partition(".")[2] == name[2:]


def _common_name(upstream: x509.Certificate, subjects: Sequence[Subject]) -> str:
    """The server's own where that is one of the names, or none at all: a name there is judged as one (OpenSSL)."""
    try:
        found = [str(each.value) for each in upstream.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except ValueError:
        return ""
    usable = len(found) == 1 and 0 < len(found[0]) <= MAX_COMMON_NAME and found[0].isprintable()
    if not usable or (HOST.fullmatch(found[0].lower()) and found[0].lower() not in subjects):
        return ""
    return found[0]
