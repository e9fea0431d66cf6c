"""What relays need: addresses for the proxy, open files, and the secrets and CA files that rules name."""

import resource
import ssl
import stat
from collections.abc import Iterator, Mapping

from appliance.config import Settings, endpoint
from appliance.doctor.finding import Check, Finding, Level
from appliance.doctor.network import Nic
from appliance.errors import VerbatimError
from appliance.identity.credential import Kind
from appliance.identity.secrets import KEY, Secrets, names
from appliance.journal.key import key_path
from appliance.overview import Said
from appliance.relay.accepting import files_for, flows_of

KINDS = {
    "http": (Kind.TOKEN, Kind.PASSWORD),
    "postgres": (Kind.PASSWORD,),
    "mysql": (Kind.PASSWORD,),
    "redis": (Kind.PASSWORD,),
    "ssh": (Kind.SSH_KEY, Kind.PASSWORD),
}  # of credentials that each application logs in with


def proxy(settings: Settings, nics: Mapping[str, Nic]) -> Iterator[Finding]:
    """Does the explicit proxy listen where agents are, and nowhere else?"""
    own = {address: name for name, nic in nics.items() for address in nic.addresses}
    remedy = f"set relay.proxy to addresses of {', '.join(settings.wire.agents) or 'an interface in wire.agents'}"
    for text in settings.relay.proxy:
        address, _ = endpoint(text)
        name = own.get(str(address))
        if address.is_unspecified:
            told = "listens on every address, also on the upstream side"
            yield Finding(Check.RELAYS, text, Level.WARN, told, remedy)
        elif name is None and not address.is_loopback:
            yield Finding(Check.RELAYS, text, Level.FAIL, "not an address of this machine", remedy)
        elif name not in settings.wire.agents:
            told = "not an address of an interface that agents are behind"
            yield Finding(Check.RELAYS, text, Level.FAIL, told, remedy)
        else:
            yield Finding(Check.RELAYS, text, Level.OK, f"the proxy of agents behind {name}")


def authorities(settings: Settings) -> Iterator[Finding]:
    """The CA files that servers' certificates are verified with. Raises `PermissionError` for one of others."""
    for number, rule in enumerate(settings.rules, 1):
        if (path := rule.relay.ca) is None:
            continue
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        except PermissionError:
            raise
        except OSError as error:  # ssl.SSLError is one
            told = f"CA file {path} cannot be read: {error.strerror or error}"
            yield Finding(Check.RELAYS, f"rule {number}", Level.FAIL, told, "correct relay.ca, or put a PEM file there")
        else:
            yield Finding(Check.RELAYS, f"rule {number}", Level.OK, f"CA file {path}")


def secrets(settings: Settings) -> Iterator[Finding]:
    """Is what rules name there, of a kind that will do, and readable with the key?"""
    path = key_path(settings.data, KEY)
    kept = names(settings.data)
    if path.parent == settings.data / "keys" and path.exists() and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        told = f"{path} has mode {mode:o}: other users can read the secrets"
        yield Finding(Check.SECRETS, "key", Level.FAIL, told, f"chmod 600 {path}")
        return
    if kept and not path.exists():
        told = f"{path} is not there: whether the {len(kept)} secrets can be read is not known"
        remedy = "restore it from its backup; a credential of systemd is seen in its unit only"
        yield Finding(Check.SECRETS, "key", Level.UNKNOWN, told, remedy)
        return
    known = Secrets(settings.data)
    for number, rule in enumerate(settings.rules, 1):
        relay = rule.relay
        wanted = ((relay.secret, KINDS.get(relay.application, ())), (relay.client_certificate, (Kind.TLS_CLIENT,)))
        for name, kinds in wanted:
            if not name:
                continue
            try:
                found = known.get(name, *kinds)
            except VerbatimError as error:
                what, _, remedy = str(error).partition("; ")
                yield Finding(Check.SECRETS, f"rule {number}", Level.FAIL, what, remedy)
            else:
                yield Finding(Check.SECRETS, f"rule {number}", Level.OK, f"secret {name}, of kind {found.kind}")


def open_files(settings: Settings, said: Said) -> Iterator[Finding]:
    """As many as flows need: of the process that runs, else of this one."""
    status = said.get("relay")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if status is not None and status.live:
        hard = resource.prlimit(status.pid, resource.RLIMIT_NOFILE)[1]
    wanted, most = settings.relay.max_connections, flows_of(hard)
    if hard != resource.RLIM_INFINITY and most < wanted:
        told = f"{hard} at most: enough for {most} flows of a relay process, relay.max_connections is {wanted}"
        remedy = f"set LimitNOFILE={files_for(wanted)} or more in the unit of 'verbatim relay'"
        yield Finding(Check.LIMITS, "relay", Level.WARN, told, remedy)
    else:
        yield Finding(Check.LIMITS, "relay", Level.OK, "unlimited" if hard < 0 else f"{hard} at most")
