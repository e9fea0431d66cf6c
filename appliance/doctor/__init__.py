"""`verbatim doctor`: looks at machine and appliance, says what is wrong and how to mend it.

It changes nothing and may run on a live gateway, before the first start, and without root (then it says what it could
not judge). What the kernel can do is tried with objects that end with the attempt, in a network namespace of its own.
Everything that may have to wait for an answer does so at the same time, and not longer than `PATIENCE`.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from appliance.config import Settings
from appliance.doctor import data, locks, machine, network, relays, rules, services
from appliance.doctor.finding import Check, Finding, Level, exit_code
from appliance.errors import VerbatimError

__all__ = ["Check", "Finding", "Level", "examine", "exit_code"]

PATIENCE = 4.5  # seconds for what asks others: issuers, store, nft
Look = Callable[[], Iterable[Finding]]


def examine(settings: Settings, *, root: bool) -> list[Finding]:
    """Every check's findings, in the order of `Check`."""
    heard, unheard = services.heard(settings)
    said, now = heard or {}, time.time()
    slow: list[tuple[Check, str, Look]] = [
        (Check.FEATURES, "", machine.features),
        (Check.INTERLOCK, "", partial(locks.lock, settings)),
        (Check.OTHER_TABLES, "", partial(locks.other_tables, settings)),
        (Check.STORE, "", partial(services.store, settings, heard)),
        *((Check.ISSUERS, one.issuer, partial(services.issuer, settings, one)) for one in settings.issuers),
    ]
    waiting = [(check, about, _begin(check, about, look)) for check, about, look in slow]
    nics, blind = _interfaces()
    quick: list[tuple[Check, Look]] = [
        (Check.KERNEL, machine.kernel),
        (Check.HEADERS, machine.kernel_headers),
        (Check.COMPILER, machine.compiler),
        (Check.BPFFS, partial(machine.bpffs, settings)),
        (Check.NFTABLES, machine.nftables),
        (Check.MEMORY, partial(machine.memory, settings)),
        (Check.LIMITS, machine.limits),
        *(((Check.LIMITS, partial(relays.open_files, settings, said)),) if settings.relayed else ()),
        (Check.CLOCK, partial(machine.clock, settings)),
        (Check.FORWARDING, partial(network.forwarding, settings, heard)),
        (Check.RP_FILTER, partial(network.rp_filter, settings)),
        (Check.REDIRECTS, partial(network.switches, settings)),
        (Check.INTERFACES, partial(network.interfaces, settings, nics)),
        (Check.OFFLOADS, partial(network.offloads, settings, nics)),
        (Check.RULES, partial(rules.rules, settings, nics)),
        (Check.RULES, partial(rules.routes, settings, nics)),
        (Check.RELAYS, partial(relays.proxy, settings, nics)),
        (Check.RELAYS, partial(relays.authorities, settings)),
        (Check.API, partial(rules.api, settings, nics)),
        (Check.PORTS, partial(services.ports, settings, heard)),
        (Check.PINS, partial(locks.pins, settings)),
        (Check.RING, partial(locks.ring, settings)),
        (Check.FILTERS, partial(locks.attached, settings, nics)),
        (Check.DATA, partial(data.folder, settings)),
        (Check.DISK, partial(data.disk, settings)),
        (Check.JOURNAL, partial(data.journal, settings, heard)),
        (Check.JOURNAL, partial(data.aside, settings)),
        (Check.JOURNAL_KEY, partial(data.journal_key, settings)),
        (Check.CA, partial(data.authority, settings)),
        (Check.SECRETS, partial(relays.secrets, settings)),
        (Check.PROCESSES, lambda: unheard or services.processes(settings, said, now)),
        (Check.REFUSALS, partial(services.refusals, said)),
    ]
    found = [*blind, *(finding for check, look in quick for finding in _careful(check, "", look))]
    deadline = time.monotonic() + PATIENCE
    for check, about, answer in waiting:
        found += _collect(check, about, answer, deadline)
    if not settings.issuers:
        remedy = "add [[issuers]], or no agent gets a lease"
        found.append(Finding(Check.ISSUERS, "", Level.FAIL, "no issuer is configured", remedy))
    if not root:
        found.append(Finding(Check.ROOT, "", Level.UNKNOWN, "not run as root: not all can be seen", "run it with sudo"))
    order = list(Check)
    return sorted(found, key=lambda finding: order.index(finding.check))


def _interfaces() -> tuple[dict[str, network.Nic], list[Finding]]:
    """Those of this network namespace; and a finding when the kernel does not tell."""
    nics: dict[str, network.Nic] = {}

    def look() -> Iterator[Finding]:
        nics.update(network.look())
        yield from ()

    return nics, list(_careful(Check.INTERFACES, "", look))


def _careful(check: Check, about: str, look: Look) -> Iterator[Finding]:
    """A check that fails itself is a finding too."""
    try:
        yield from look()
    except PermissionError as error:
        yield Finding(check, about, Level.UNKNOWN, f"not allowed to look: {error.strerror or error}", "run it as root")
    except VerbatimError as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding(check, about, Level.UNKNOWN, f"could not be judged: {what}", remedy or "run it again")
    except Exception as error:  # the machine, or a file on it, is as nobody expected: the other checks go on
        text = f"could not be judged: {type(error).__name__}: {error}".removesuffix(": ")
        yield Finding(check, about, Level.UNKNOWN, text, "run it again; if it stays, see what this check looks at")


def _begin(check: Check, about: str, look: Look) -> "queue.Queue[list[Finding]]":
    """In a thread that nobody waits for longer than `PATIENCE`: resolvers and servers may take minutes."""
    answer: queue.Queue[list[Finding]] = queue.Queue()
    threading.Thread(target=lambda: answer.put(list(_careful(check, about, look))), daemon=True).start()
    return answer


def _collect(check: Check, about: str, answer: "queue.Queue[list[Finding]]", deadline: float) -> list[Finding]:
    try:
        return answer.get(timeout=max(0.01, deadline - time.monotonic()))
    except queue.Empty:
        text = f"no answer within {PATIENCE:g} s"
        level = Level.FAIL if check in (Check.ISSUERS, Check.STORE) else Level.UNKNOWN
        return [Finding(check, about, level, text, "see that it can be reached, and how busy this machine is")]
