"""Rules about hosts, on the wire: the addresses that recorded DNS answers give a name are put into map rules.

The program copies the answers of name servers upstream, which agents asked by recorded flows, to a ring of their own
(`bpf/record.h`). It is read at once, but an agent may be quicker: a connection to an address without a rule is dropped
without an answer while rules name hosts (`REASON_NO_NAME`), and the SYN that is sent again finds the rule.

An address is a host's for as long as the answer may be used, but at least `SHORTEST`, at most `LONGEST`, and `GRACE`
longer, since clients look names up before they connect. Connections that were let through go on afterwards. Whom
to believe is a matter of the rules: agents can only ask name servers that a rule lets them reach, so name yours there.

Of several rules that fit a name, the closest is taken: the host itself, else the longest `*.` part.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from appliance import config
from appliance.identity.leases import Now
from appliance.wire.abi import ANSWER_BYTES, Record, RuleValue
from appliance.wire.bpf import Map
from appliance.wire.maps import LANES, rule_key
from appliance.wire.naming import Answer, read_answer
from appliance.wire.records import DISCARD, LENGTH, RING_HEADER
from appliance.wire.ring import Ring

SECOND = 1_000_000_000
SHORTEST, LONGEST, GRACE = 30, 86400, 60  # seconds
RESUMED = 300  # seconds for which an address stays that the process before this one learnt
MAX_LEARNT = 8192  # entries of map rules; those that end first make room
EXACT = 128  # prefix of one address

Event = Callable[..., None]  # Notes.event


@dataclass(frozen=True, slots=True)
class Named:
    """A rule about a host and its number."""

    number: int
    rule: config.Rule


def named_rules(rules: Sequence[config.Rule]) -> tuple[Named, ...]:
    """The rules whose addresses are learnt, the closest names first. Where a relay hears the name, it is asked."""

    def key(rule: config.Rule) -> set[bytes]:
        return {rule_key(network, rule.protocol, rule.port)[0] for network in rule.networks()}

    relayed = {one for rule in rules if rule.lane == "relay" for one in key(rule)}
    found = [
        Named(number, rule)
        for number, rule in enumerate(rules, 1)
        if rule.host and rule.lane != "relay" and not key(rule) & relayed
    ]
    return tuple(sorted(found, key=lambda one: (one.rule.host.startswith("*."), -len(one.rule.host))))


class Names:
    """What was learnt, in map `rules`. `fixed`: the entries of the configuration, which stay as they are."""

    def __init__(
        self, rules: Sequence[Named], fixed: Mapping[bytes, bytes], kernel: Map, ring: Ring, event: Event
    ) -> None:
        self._rules = rules
        self._fixed = fixed
        self._kernel = kernel
        self._ring = ring
        self._event = event
        self._until: dict[bytes, int] = {}  # key of map rules → boot time

    def fileno(self) -> int:
        """Readable when an answer came; wake-ups get lost."""
        return self._ring.fileno()

    def entries(self) -> Mapping[bytes, int]:
        """Keys of map rules that were learnt, each with the boot time (ns) until which it holds."""
        return self._until

    def resume(self, there: Mapping[bytes, bytes], now: Now) -> dict[bytes, bytes]:
        """What a process with the same rules learnt, of `there`, map rules as it was: it is kept for a while."""
        values = {self._value(one) for one in self._rules}
        kept = {key: value for key, value in there.items() if key not in self._fixed and value in values}
        self._until = dict.fromkeys(kept, now.boottime + RESUMED * SECOND)
        return kept

    def step(self, now: Now) -> bool:
        """Take in the answers that came. Whether there were any."""
        ring = self._ring
        start, end = ring.position, ring.committed(ring.position)
        if end == start:
            return False
        with ring.span(start, end) as span:
            messages = list(_messages(bytes(span)))
        ring.advance(end)
        for message in messages:
            if (answer := read_answer(message)) is not None:
                self.learn(answer, now)
        return True

    def learn(self, answer: Answer, now: Now) -> None:
        """Put the addresses of a name that some rule is about into the map."""
        if not config.HOST.fullmatch(answer.name):
            return
        closest = [one for one in self._rules if one.rule.is_about(answer.name)]
        for address, ttl in answer.addresses:
            if not (address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local):
                taken: set[bytes] = set()
                for one in closest:
                    self._put(one, answer.name, address, ttl, taken, now)

    def _put(
        self, one: Named, name: str, address: IPv4Address | IPv6Address, ttl: int, taken: set[bytes], now: Now
    ) -> None:
        if not any(address in network for network in one.rule.networks()):
            return
        network: IPv4Network | IPv6Network = ip_network(address)
        key, _ = rule_key(network, one.rule.protocol, one.rule.port)
        if key in taken or key in self._fixed:
            return
        taken.add(key)
        until = now.boottime + (min(max(ttl, SHORTEST), LONGEST) + GRACE) * SECOND
        value = self._value(one)
        known = key in self._until
        if not known and len(self._until) >= MAX_LEARNT:
            self._forget(min(self._until, key=self._until.__getitem__))
        if not known or self._kernel.lookup(key) != value:
            self._kernel.update(key, value)
            text = f"{name} has the address {address}: rule {one.number} is about it"
            self._event("name-learnt", text, now, name=name, address=str(address), rule=one.number, ttl=ttl)
        self._until[key] = max(until, self._until.get(key, 0))

    def expire(self, now: Now) -> None:
        """Take out what no answer tells of any more."""
        for key in [key for key, until in self._until.items() if until <= now.boottime]:
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        self._kernel.delete(key)
        del self._until[key]

    @staticmethod
    def _value(one: Named) -> bytes:
        return RuleValue(id=one.number, lane=LANES[one.rule.lane], unbound=one.rule.unbound, prefix=EXACT).pack()


def _messages(span: bytes) -> Iterator[bytes]:
    """The DNS messages of a piece of the ring."""
    at = 0
    while at + RING_HEADER.size <= len(span):
        word, _ = RING_HEADER.unpack_from(span, at)
        at += RING_HEADER.size
        if not word & DISCARD:
            record = Record.unpack(span, at)
            first = at + Record.LAYOUT.size
            yield span[first : first + min(record.length, ANSWER_BYTES)]
        at += (word & LENGTH) + 7 & ~7
