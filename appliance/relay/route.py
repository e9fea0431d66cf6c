"""Which rule a flow is of: by the server's address and port, and by the names that the agent gave for the server.

A rule whose `host` is the name wins over one whose host is `*.` and its end (the longer end first), and these over
rules without a host; then the longest network wins, then a port, then a protocol: as the program does it (bpf/flow.h).
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

from appliance.config import Rule

Address = IPv4Address | IPv6Address


class Match(NamedTuple):
    """A rule and its number in the configuration, from 1."""

    number: int
    rule: Rule


class Routes:
    """The rules for TCP."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [Match(number, rule) for number, rule in enumerate(rules, 1) if rule.protocol in ("any", "tcp")]

    def candidates(self, address: str, port: int) -> list[Match]:
        """All rules that may decide once a name is known."""
        server = ip_address(address)
        return [match for match in self._rules if _prefix(match.rule, server) >= 0 and match.rule.port in (0, port)]

    def choose(self, address: str, port: int, name: str = "") -> Match | None:
        """The rule for a server at this address that the agent calls `name`; "": by no name."""
        server = ip_address(address)
        fitting = [
            match for match in self.candidates(address, port) if not match.rule.host or match.rule.is_about(name)
        ]
        return max(fitting, key=lambda match: _closeness(match.rule, server), default=None)


def _prefix(rule: Rule, server: Address) -> int:
    """Length of the rule's network if the server is in it; -1: it is not."""
    if rule.to is None:
        return 0
    return rule.to.prefixlen if server.version == rule.to.version and server in rule.to else -1


def _closeness(rule: Rule, server: Address) -> tuple[int, int, bool, bool]:
    host = 0 if not rule.host else len(rule.host) if rule.host.startswith("*.") else 1024
    return host, _prefix(rule, server), rule.port != 0, rule.protocol != "any"
