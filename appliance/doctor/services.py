"""The processes and what they need of others: ports, the store, the issuers."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from urllib.parse import urlsplit

from joserfc.jwk import ECKey, RSAKey

from appliance.config import Issuer, Settings
from appliance.doctor.finding import Check, Finding, Level
from appliance.doctor.network import forwards
from appliance.doctor.rules import opens
from appliance.errors import MalformedInput, Unavailable, VerbatimError
from appliance.health import MAX_LAG, PROCESSES, RELAY, State, parts
from appliance.identity.jwks import Key, fetch_json, fetch_keys
from appliance.overview import Said, backlog_seconds, counts, lag_seconds
from appliance.status import check_readable, read
from appliance.store import schema
from appliance.store.client import open_store
from appliance.store.link import SERVICE_FILE

STEP, WHOLE = 1.5, 4.0  # seconds for each step of an issuer's answer, and for the answer
LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}  # RFC 7518 §3.4


def heard(settings: Settings) -> tuple[Said | None, list[Finding]]:
    """What the processes published; None where this user may not see it. And what is wrong with asking."""
    try:
        check_readable(settings.data)
    except MalformedInput as error:
        what, _, remedy = str(error).partition("; ")
        return {}, [Finding(Check.PROCESSES, "", Level.FAIL, what, remedy)]
    except Unavailable as error:
        what, _, remedy = str(error).partition("; ")
        return None, [Finding(Check.PROCESSES, "", Level.UNKNOWN, what, remedy)]
    return read(settings.data), []


def processes(settings: Settings, said: Said, now: float) -> Iterator[Finding]:
    """Each process's faults. One that never ran is a warning while the gateway does not forward, nor has a pin."""
    begun = bool(said) or settings.wire.bpffs.is_dir() or forwards(settings)
    names = (*PROCESSES, RELAY) if settings.relayed else PROCESSES
    for name, part in parts(said, embedded=not settings.store.url, names=names).items():
        for fault, text in part.faults.items():
            what, _, remedy = text.rpartition("; ") if "; " in text else (text, "", "")
            level = Level.WARN if part.state is State.STOPPED and not begun else Level.FAIL
            shown = what if fault in ("stopped", "silent") else f"{fault}: {what}"
            yield Finding(Check.PROCESSES, name, level, shown, remedy or "see its log")
        if part.state is State.OK:
            yield Finding(Check.PROCESSES, name, Level.OK, "works")
        if part.repairs:
            told = ", ".join(f"{fault} {count}" for fault, count in sorted(part.repairs.items()))
            remedy = "find out who takes these away; 'verbatim events' says when"
            yield Finding(Check.PROCESSES, f"{name} repairs", Level.WARN, f"put back since start: {told}", remedy)
    lag, behind = lag_seconds(said, now), backlog_seconds(said, now)
    if lag is not None and behind is not None:
        text = f"{behind:.1f} s of the journal not read, {lag:.1f} s behind in the store"
        if max(lag, behind) > MAX_LAG:
            remedy = "see why 'verbatim record' lags: store, processor, memory; search does not show the newest traffic"
            yield Finding(Check.PROCESSES, "backlog", Level.WARN, text, remedy)
        else:
            yield Finding(Check.PROCESSES, "backlog", Level.OK, text)


def refusals(said: Said) -> Iterator[Finding]:
    found = counts(said.get("wire"), "refusals")
    if found is not None:
        told = ", ".join(f"{count:.0f} {reason}" for reason, count in found.items() if count)
        text = f"packets since the program was loaded: {told or 'none'}"
        yield Finding(Check.REFUSALS, "", Level.OK, text)


def ports(settings: Settings, said: Said | None) -> Iterator[Finding]:
    """Are the addresses that the processes want to listen on free, or theirs? `said`: None: that cannot be seen."""
    taken = listeners()
    wanted = [("api", "api.listen", address) for address in settings.api.listen]
    wanted += [(RELAY, "relay.proxy", address) for address in settings.relay.proxy]
    if not settings.store.url:
        wanted.append(("store", "store.listen", settings.store.listen))
    for process, setting, address in wanted:
        host, _, port = address.rpartition(":")
        try:
            number, at = int(port), ip_address(host.removeprefix("[").removesuffix("]"))
        except ValueError:
            if process == "store":  # `rules.api` tells of the others
                text = f"{setting} {address!r} is not an address and port"
                yield Finding(Check.PORTS, process, Level.FAIL, text, "write 127.0.0.1:0 or [::1]:0")
            continue
        status = said.get(process) if said is not None else None
        used = any(each == number and _clash(at, other) for other, each in taken)
        if number == 0:
            continue
        if status is not None and status.live:
            yield Finding(Check.PORTS, process, Level.OK, f"{address} is its own")
        elif used and said is None:
            text = f"{address} is in use; whether by 'verbatim {process}', cannot be seen"
            yield Finding(Check.PORTS, process, Level.UNKNOWN, text, "run it as root")
        elif used:
            text = f"{address} is in use by another program"
            remedy = f"stop that (ss -ltnp 'sport = :{number}'), or change {setting}"
            yield Finding(Check.PORTS, process, Level.FAIL, text, remedy)
        else:
            yield Finding(Check.PORTS, process, Level.OK, f"{address} is free")


def _clash(wanted: IPv4Address | IPv6Address, taken: IPv4Address | IPv6Address) -> bool:
    """Of two addresses that mean all of them, one is enough; that of IPv6 may mean IPv4 as well."""
    everything = wanted.is_unspecified and taken.version == wanted.version
    return taken == wanted or taken.is_unspecified or everything


def listeners() -> list[tuple[IPv4Address | IPv6Address, int]]:
    """Address and port of every listening TCP socket of this network namespace (proc(5), net/tcp)."""
    found = []
    for name in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/thread-self/net", name).read_text("ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN:
                    host, _, port = fields[1].partition(":")
                    words = bytes.fromhex(host)  # of 4 bytes in the machine's order
                    packed = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                    found.append((ip_address(packed), int(port, 16)))
    return found


def store(settings: Settings, said: Said | None) -> Iterator[Finding]:
    """Does it answer, with this release's tables? An embedded store that nobody serves is not opened.

    `said`: None: whether anybody does cannot be seen. Raises `PermissionError` where this user may not ask.
    """
    if not settings.store.url:
        if said is None:
            yield Finding(Check.STORE, "", Level.UNKNOWN, "whether it is served cannot be seen", "run it as root")
            return
        if not ((status := said.get("store")) and status.live):
            yield Finding(Check.STORE, "", Level.WARN, "is not served now", "start 'verbatim store'")
            return
        with suppress(FileNotFoundError), (settings.data / "run" / SERVICE_FILE).open("rb"):
            pass  # whoever may not read where it answers would be told that it does not
    try:
        with open_store(settings, "reader", embed=False) as opened:
            ((row),) = opened.select("SELECT max(version) AS version FROM schema_version")
            schema.check(int(row["version"]), "the store")
    except VerbatimError as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding(Check.STORE, "", Level.FAIL, what, remedy or "see its log")
    else:
        yield Finding(Check.STORE, "", Level.OK, f"answers, schema version {row['version']}")


def issuer(settings: Settings, one: Issuer) -> Iterator[Finding]:
    """Discovery document, keys, their algorithms; and whether agents get there for a token."""
    try:
        keys = fetch_keys(one, partial(fetch_json, seconds=STEP, deadline=WHOLE))
    except (Unavailable, MalformedInput) as error:
        if isinstance(error.__cause__, PermissionError):  # of the certificate file, which the API's user may read
            raise error.__cause__ from error
        text = str(error).removeprefix(f"issuer {one.issuer}: ")
        what, _, remedy = text.partition("; ")
        remedy = remedy or "see that this machine reaches it, and issuers[].issuer, jwks_uri and ca"
        yield Finding(Check.ISSUERS, one.issuer, Level.FAIL, what, remedy)
        return
    offered = {name for key in keys.values() for name in algorithms(key)}
    if not offered & set(one.algorithms):
        text = f"none of its {len(keys)} keys is for {', '.join(one.algorithms)}"
        remedy = f"add one of {', '.join(sorted(offered))} to issuers[].algorithms, or a key there"
        yield Finding(Check.ISSUERS, one.issuer, Level.FAIL, text, remedy)
    else:
        yield Finding(Check.ISSUERS, one.issuer, Level.OK, f"answers, {len(keys)} signature keys")
    address = urlsplit(one.issuer)
    if not address.hostname:  # with a jwks_uri any name will do
        return
    with suppress(OSError, ValueError):
        port = address.port or 443
        found = {entry[4][0] for entry in socket.getaddrinfo(address.hostname, port, type=socket.SOCK_STREAM)}
        if found and not any(opens(settings, str(each), port) for each in found):
            text = f"no unbound rule opens {', '.join(sorted(map(str, found)))} port {port}"
            remedy = "add one with protocol tcp and unbound = true, unless agents get their tokens another way"
            yield Finding(Check.ISSUERS, one.issuer, Level.WARN, text, remedy)


def algorithms(key: Key) -> tuple[str, ...]:
    """Signature algorithms that a key is good for (RFC 7518 §3.1, RFC 8037)."""
    if isinstance(key, RSAKey):
        return tuple(f"{family}{bits}" for family in ("RS", "PS") for bits in (256, 384, 512))
    if isinstance(key, ECKey):
        return tuple(filter(None, (CURVES.get(str(key.curve_name)),)))
    return ("EdDSA",)
