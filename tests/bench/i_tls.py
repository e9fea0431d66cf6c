"""TLS, terminated on both sides: the relay, with its journal, against HAProxy and mitmproxy, which record nothing.

Client and server share one core, and each bridge has another to itself. Where client and server are the limit, work for
each second of a bridge's CPU time tells what the bridge itself could do.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.bench import Figure, load, peers
from tests.bench.load import MIB
from tests.bench.peers import Bridge, Place
from tests.bench.stand import ENDS, HERE, NAME, SUBJECT, Stand, Subject, compared, in_turns

TITLE = "TLS terminated on both sides: the relay against HAProxy and mitmproxy"
SECONDS = 3
ROUNDS = 5
BULK, SMALL = 4, 16  # connections
RELAY, HAPROXY, MITMPROXY = "relay", "HAProxy", "mitmproxy"


def subjects(stand: Stand) -> list[Subject]:
    """The relay, HAProxy and mitmproxy in front of nginx."""
    certificate, key = stand.server_pair
    server = Place(HERE, 8000)
    load.origin(stand.host, stand.folder / "origin", server, certificate, key, ENDS)
    bridge = Bridge(Place(HERE, 8001), certificate, key, server, NAME, stand.pki.certificate)
    other = replace(bridge, listen=Place(HERE, 8002))
    return [
        stand.relay(RELAY, server, {"ca": str(stand.pki.certificate)}),
        Subject(HAPROXY, bridge.listen, peers.haproxy(stand.host, stand.folder / "haproxy", bridge, SUBJECT)),
        Subject(MITMPROXY, other.listen, peers.mitmproxy(stand.host, stand.folder / "mitmproxy", other, SUBJECT)),
    ]


def run(say: Callable[[str], None]) -> list[Figure]:
    with Stand() as stand:
        several = subjects(stand)

        def bulk(one: Subject) -> tuple[float, float]:
            said = load.wrk(stand.host, f"https://{one.place}/bulk", seconds=SECONDS, connections=BULK, core=ENDS)
            return said.bytes_per_second / MIB * SECONDS, SECONDS

        def small(one: Subject) -> tuple[float, float]:
            said = load.wrk(stand.host, f"https://{one.place}/small", seconds=SECONDS, connections=SMALL, core=ENDS)
            if said.failed:
                raise RuntimeError(f"{one.name}: {said.failed} requests failed")
            return said.requests_per_second * SECONDS, SECONDS

        return figures(several, bulk, small, say)


def figures(
    several: Sequence[Subject],
    bulk: Callable[[Subject], tuple[float, float]],
    small: Callable[[Subject], tuple[float, float]],
    say: Callable[[str], None],
) -> list[Figure]:
    much = in_turns(several, bulk, rounds=ROUNDS, unit="MiB", say=say)
    many = in_turns(several, small, rounds=ROUNDS, unit="requests", say=say)
    return [
        *compared("i", f"bulk, {BULK} connections", much, RELAY, HAPROXY, "MiB", "ratio >= 1.0"),
        *compared("i", f"bulk, {BULK} connections", much, RELAY, MITMPROXY, "MiB"),
        *compared("i", f"small requests, {SMALL} connections", many, RELAY, HAPROXY, "requests", "ratio >= 0.9"),
        *compared("i", f"small requests, {SMALL} connections", many, RELAY, MITMPROXY, "requests", "ratio >= 30"),
    ]
