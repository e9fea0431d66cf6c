"""Name constraints of the CA (RFC 5280 section 4.2.1.10): for which names and networks its certificates are believed.

A name stands for itself and all below it; networks and names are judged apart: with names permitted and no network, any
address is. Clients check this themselves; here it is checked before signing, so that the reason is told.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from cryptography import x509

from appliance.config import HOST
from appliance.errors import MalformedInput

Network = IPv4Network | IPv6Network
Subject = str | IPv4Address | IPv6Address  # of a certificate: a DNS name in lower case, perhaps *.something, an address
Subtree = str | Network


@dataclass(frozen=True, slots=True)
class Constraints:
    """Subtrees that certificates must be in, where there are any of their type, and must not be in."""

    permitted: tuple[Subtree, ...] = ()
    excluded: tuple[Subtree, ...] = ()

    @classmethod
    def parse(cls, permitted: Iterable[str], excluded: Iterable[str]) -> "Constraints":
        """Of names and networks as people write them. Raises `MalformedInput`."""
        return cls(tuple(_subtree(each) for each in permitted), tuple(_subtree(each) for each in excluded))

    @classmethod
    def of(cls, certificate: x509.Certificate) -> "Constraints":
        """What a CA's certificate says; subtrees of other types than names and addresses are left out."""
        try:
            found = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        except x509.ExtensionNotFound:
            return cls()
        return cls(_known(found.permitted_subtrees), _known(found.excluded_subtrees))

    def extension(self) -> x509.NameConstraints | None:
        if not (self.permitted or self.excluded):
            return None
        permitted, excluded = ([_general(each) for each in side] or None for side in (self.permitted, self.excluded))
        return x509.NameConstraints(permitted, excluded)

    def forbids(self, subject: Subject) -> str:
        """Why no certificate may be made for `subject`; empty: it may."""
        alike = [each for each in self.permitted if isinstance(each, str) == isinstance(subject, str)]
        if alike and not any(_within(subject, each) for each in alike):
            return f"outside of what the CA is permitted ({', '.join(map(str, alike))})"
        for each in self.excluded:
            if _within(subject, each) or (isinstance(subject, str) and _reaches(subject, each)):
                return f"excluded from the CA ({each})"
        return ""


def subject(text: str) -> Subject:
    """A DNS name or address as people, clients and certificates write it. Raises `MalformedInput`."""
    try:
        return ip_address(text.removeprefix("[").removesuffix("]"))
    except ValueError:
        pass
    name = text.lower().removesuffix(".")
    if len(name) > 253 or not HOST.fullmatch(name):
        raise MalformedInput(f"certificate: {text[:253]!r} is neither an address nor a DNS name")
    return name


def general_name(subject: Subject) -> x509.GeneralName:
    return x509.DNSName(subject) if isinstance(subject, str) else x509.IPAddress(subject)


def _subtree(text: str) -> Subtree:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        pass
    name = text.lower().removesuffix(".")
    if "*" in name or name.startswith(".") or "/" in name or not HOST.fullmatch(name):
        raise MalformedInput(
            f"constraint: {text!r} is neither a name nor a network; write example.com (with all below it) or 10.0.0.0/8"
        )
    return name


def _general(subtree: Subtree) -> x509.GeneralName:
    return x509.DNSName(subtree) if isinstance(subtree, str) else x509.IPAddress(subtree)


def _known(subtrees: Iterable[x509.GeneralName] | None) -> tuple[Subtree, ...]:
    found: list[Subtree] = []
    for each in subtrees or ():
        if isinstance(each, x509.DNSName):
            found.append(each.value.lower().removeprefix("."))
        elif isinstance(each, x509.IPAddress) and isinstance(each.value, IPv4Network | IPv6Network):
            found.append(each.value)
    return tuple(found)


def _within(subject: Subject, subtree: Subtree) -> bool:
    if isinstance(subject, str):
        name = subject.removeprefix("*.")
        return isinstance(subtree, str) and (name == subtree or name.endswith(f".{subtree}"))
    return not isinstance(subtree, str) and subject in subtree


def _reaches(subject: str, subtree: Subtree) -> bool:
    """A wildcard stands for names one level below it, of which one may be in the subtree."""
    return (
        subject.startswith("*.")
        and isinstance(subtree, str)
        and subtree.partition(".")[2] == subject.removeprefix("*.")
    )
