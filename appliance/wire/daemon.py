"""The wire process: keeps the program attached and its maps current, and drains the ring into the journal.

One loop, one thread, so that nothing needs a lock. The ring comes first: after each piece of other work it is drained
again. Whatever happens to this process, the program, its maps, the ring and the interlock stay: recording goes on into
the ring, and when that is full, nothing passes. Only `teardown` opens the gateway again.
"""

import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from pyroute2.netlink.exceptions import NetlinkError

from appliance import config, status
from appliance.errors import Unavailable, VerbatimError
from appliance.identity.leases import Now
from appliance.journal import FrameKind, JournalKey, Writer, set_foreign_aside
from appliance.log import configure
from appliance.wire import clock, former, interlock, leasing, loader, maps
from appliance.wire.abi import Meta, Reason, SettingsValue
from appliance.wire.answers import Answers, word
from appliance.wire.control import SOCKET, Server
from appliance.wire.drain import Drain
from appliance.wire.faults import Faults
from appliance.wire.interfaces import Interfaces, claim
from appliance.wire.leasing import Leasing
from appliance.wire.names import Names, named_rules
from appliance.wire.neighbours import Neighbours
from appliance.wire.notes import Notes
from appliance.wire.quotas import Quotas
from appliance.wire.relays import Relays
from appliance.wire.resets import Sender
from appliance.wire.ring import SPAN, Ring
from appliance.wire.routing import Routing
from appliance.wire.spooled import Spooled
from appliance.wire.standstill import Standstill
from appliance.wire.sweep import Sweeper
from appliance.wire.teardown import recall, resumed
from appliance.wire.untold import Untold
from appliance.wire.watch import Watch
from appliance.wire.windows import Reopener

IDLE = 0.05  # seconds to wait for news at most: the ring's wake-ups get lost
ALERT = 0.005  # the same within a second of traffic, when one that is lost costs most
GATHER = 0.002  # seconds in which more records may come, so that spans are few
LULL = 0.01  # the same where little comes; a burst meanwhile is held back by windows
PLENTY = 256 * 1024  # bytes drained at once, after which there is no waiting
LITTLE = 256 * 1024  # bytes drained between two waits, up to which the longer one will do
SECOND = 1_000_000_000
SWEEP = 5 * SECOND
HURRY = 2 * SECOND  # the same while the table of flows is crowded

log = structlog.get_logger()


class Daemon:
    """Everything that the wire process holds open. `settings` must name interfaces of this network namespace."""

    def __init__(self, settings: config.Settings) -> None:
        self._settings = settings
        self._stopping = False
        self._boot = clock.boot_id()
        self._selector = selectors.DefaultSelector()
        self._closers: list[Callable[[], None]] = [self._selector.close]
        try:
            self._open(settings)
        except BaseException:
            self.close()
            raise

    def _open(self, settings: config.Settings) -> None:
        wire = settings.wire
        rules = maps.rule_entries(settings.rules)
        self._ports = interlock.api_ports(settings.api.listen)
        self._proxies = interlock.proxy_ports(settings.relay.proxy, self._ports)
        run = status.run_folder(settings.data)
        state = settings.data / "state"
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._keep(claim())
        # The interlock stands before anything can be marked, and even where something below is missing.
        lock = self._keep(interlock.Interlock(wire.table, wire.agents, wire.upstream, self._ports, self._proxies))
        lock.establish()
        self._interfaces = self._keep(Interfaces(wire, interlock.api_addresses(settings.api.listen)))
        self._neighbours = self._keep(Neighbours())
        key = JournalKey.load_or_create(settings.data)
        folder = settings.data / "journal" / "wire"
        aside = set_foreign_aside(folder)
        self._writer = self._keep(Writer(folder, key, settings=settings.journal))
        self._notes = Notes(self._writer, self._boot)
        now = self._notes.now()

        self._faults = Faults(self._notes.event)
        program = self._program = self._keep(loader.open_program(wire))
        relayed = any(rule.lane == "relay" for rule in settings.rules)
        steered = (*wire.agents, *wire.upstream) if relayed else ()
        self._routing = self._keep(Routing(steered, self._faults))
        self._relays = Relays(program.map("relays"), program.map("legs"), self._notes.event)
        self._watch = Watch(lock, self._interfaces, program, self._faults, self._notes)
        self._ring = self._keep(Ring(program.ring_fd, wire.ring_bytes))
        self._drain = Drain(self._ring, self._writer, self._notes, settings.journal, self._stall)
        formers, down = list(former.find(wire.bpffs)), recall(settings.data)
        if not formers:
            another = down is not None and down.ring not in ("", program.ring_id)
            drained = {"after": down.ring, "until": down.until} if down and another else {}
            self._notes.open(settings.node, program.ring_id, self._ring.position, now, **drained)
            if "ring" not in program.kept and not drained:
                self._notes.event("ring-created", "a new ring: what an older one held is not in this journal", now)
        if aside is not None:
            self._tell_of_a_journal(*aside, now)
        self._faults.inherit(status.read(settings.data).get("wire"), now)
        self._learn(program, rules, now)
        table = leasing.resume(state / "leases.json", settings, self._notes, now)
        self._leasing = Leasing(
            state / "leases.json",
            table,
            program.map("leases"),
            self._notes,
            dict(self._interfaces.agents),
            self._neighbours if wire.bind_link else None,
        )
        self._leasing.restore(now)
        quotas = Quotas(program.map("quotas"), program.map("released"))
        self._sweeper = Sweeper(program.map("flows"), program.map("refusals"), quotas, wire)
        self._untold = Untold(program.map("counters"))
        self._spooled = Spooled(settings.data, self._faults.noted, self._notes.flush)
        self._sender = self._keep(Sender())
        held, pressure = program.map("held"), program.map("pressure")
        self._reopener = Reopener(held, pressure, maps.reopening_level(wire), self._sender.send)
        self._answers = Answers(
            program,
            self._ring,
            self._writer,
            self._notes,
            self._drain,
            self._faults,
            self._watch,
            self._interfaces,
            self._leasing,
            self._sweeper,
            self._reopener,
            self._relays,
        )
        self._survey: Iterator[None] | None = None
        self._due: deque[Callable[[Now], None]] = deque()  # chores of this second, one a turn
        self._swept = now.boottime
        self._ended = -1  # leases that had ended when the last survey began
        self._second = 0
        self._moved = 0
        self._place(now)
        self._routing.guard(now)
        self._relays.tend(now)
        self._watch.guard(now)
        self._take_over(formers)
        if down is not None:
            resumed(down, tuple(self._interfaces.roles), self._notes, settings.data)

        self._selector.register(self._ring, selectors.EVENT_READ, lambda mask: None)
        self._selector.register(lock, selectors.EVENT_READ, self._ruleset_changed)
        self._selector.register(self._interfaces, selectors.EVENT_READ, self._news)
        self._selector.register(self._names, selectors.EVENT_READ, lambda mask: None)
        self._selector.register(self._routing, selectors.EVENT_READ, self._routes_changed)
        self._keep(Server(run / SOCKET, self._answers.answer, self._selector))

    def _learn(self, program: loader.Program, rules: dict[bytes, bytes], now: Now) -> None:
        """Bring the rules into their map, with what was learnt about hosts before."""
        kernel, named = program.map("rules"), named_rules(self._settings.rules)
        meta = Meta.unpack(program.map("meta").lookup(bytes(4)) or b"")
        number = maps.rules_number(rules, meta.program, [f"{one.number} {one.rule.host}" for one in named])
        former = SettingsValue.unpack(program.map("settings").lookup(bytes(4)) or b"")
        there = dict(kernel.items()) if named and former.rules == number else {}
        self._named = bool(named)
        self._rules = 0  # while they change, flows remember no answer
        self._stall(False)
        answers = self._keep(Ring(program.maps["answers"], loader.ANSWERS_BYTES))
        self._names = Names(named, rules, kernel, answers, self._notes.event)
        maps.reconcile(kernel, {**self._names.resume(there, now), **rules}, "rules")
        self._rules = number
        self._stall(False)

    def _take_over(self, formers: list[former.Former]) -> None:
        """The new program is attached: journal what former rings hold, before anything of the new one."""
        said: dict[str, Any] = {}
        for one in formers:
            said = former.drain(one, self._settings.node, self._writer, self._notes)
        if formers:
            ring, now = self._program.ring_id, self._notes.now()
            self._notes.open(self._settings.node, ring, self._ring.position, now, **said)
        for one in formers:
            former.remove(one)

    def _tell_of_a_journal(self, path: Path, version: str, now: Now) -> None:
        text = f"the journal was of format version {version} and is now {path.name}: what it holds beyond the store is"
        self._notes.event(
            "journal-set-aside", f"{text} read by the release that wrote it", now, path=str(path), version=version
        )

    def _keep(self, resource: Any) -> Any:
        self._closers.append(resource.close)
        return resource

    def close(self) -> None:
        """Let go of everything. What is pinned, attached and locked stays so."""
        while self._closers:
            self._closers.pop()()

    def stop(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Have `run` end soon."""
        self._stopping = True

    def run(self) -> None:
        """Serve until `stop`; then drain what is committed."""
        log.info("wire-started", interfaces=self._interfaces.indexes, ring=self._program.ring_id)
        gathered = moved = 0
        still = Standstill(self._notes.event, lambda: self._ring.fill, self._ring.size, self._notes.now())
        while not self._stopping:
            now = self._notes.now()
            still.turn(now, moved)
            moved = self._drain.step(now)
            if moved:
                self._moved = now.boottime
            self._reopener.step(self._ring.fill)
            self._names.step(now)
            busy = self._chores(now) or self._ring.fill
            wait = ALERT if now.boottime - self._moved < SECOND else IDLE
            for key, mask in self._selector.select(0 if busy or moved else wait):
                key.data(mask)
            gathered += moved
            if moved < PLENTY and (self._ring.fill or moved):
                time.sleep(IDLE if self._drain.stalled else GATHER if gathered > LITTLE else LULL)
                gathered = 0
        self._drain_all()
        self._carefully(self._tell_of_refusals, self._notes.now())
        self._notes.event("wire-stopped", "the wire process ended; program, ring and interlock stay", self._notes.now())
        status.withdraw(self._settings.data, "wire")

    def _drain_all(self) -> None:
        """Until the ring has nothing committed, or the journal takes no more; bounded by what the ring holds now."""
        end = self._ring.position + self._ring.fill
        while self._ring.position < end and self._drain.step(self._notes.now()):
            pass

    def _chores(self, now: Now) -> bool:
        """What the clock asks for. True: there is more to do at once."""
        if now.boottime - self._second >= SECOND and not self._due:
            self._second = now.boottime
            self._due.extend(self._each_second)
        if self._due:
            self._carefully(self._due.popleft(), now)
            return True
        due = (
            now.boottime - self._swept >= (HURRY if self._sweeper.crowded else SWEEP)
            or self._ended != self._leasing.ended
        )
        if self._survey is None and due and not self._drain.stalled:
            self._swept, self._ended = now.boottime, self._leasing.ended
            self._survey = self._look(now)
        if self._survey is not None:
            if next(self._survey, self) is self:
                self._survey = None
            return True
        return not self._ring.fill and self._writer.prepare()

    @property
    def _each_second(self) -> tuple[Callable[[Now], None], ...]:
        watch, ways = self._watch, (self._relays.tend, self._routing.guard, self._names.expire)
        return (
            self._leasing.expire,
            self._spooled.step,
            watch.guard,
            watch.lock,
            *ways,
            self._place,
            self._tick,
            self._settle,
            self._publish,
        )

    def _carefully(self, chore: Callable[[Now], None], now: Now) -> None:
        """What fails is tried again in a second; draining goes on meanwhile, and the other locks hold."""
        try:
            chore(now)
        except (VerbatimError, OSError, NetlinkError) as error:
            log.error("check-failed", reason=str(error))

    def _publish(self, now: Now) -> None:
        status.publish(self._settings.data, "wire", self._answers.status())

    def _tick(self, now: Now) -> None:
        if not self._drain.stalled:
            self._notes.clock(now)

    def _stall(self, stalled: bool) -> None:
        value = loader.settings_value(
            self._settings.wire,
            self._ports,
            stalled=stalled,
            rules=self._rules,
            proxies=self._proxies,
            names=self._named,
        )
        maps.put(self._program.map("settings"), bytes(4), value, "settings")

    def _ruleset_changed(self, mask: int) -> None:
        self._watch.lock(self._notes.now())

    def _routes_changed(self, mask: int) -> None:
        self._carefully(self._routing.guard, self._notes.now())

    def _news(self, mask: int) -> None:
        if self._interfaces.news():
            now = self._notes.now()
            self._carefully(self._watch.guard, now)
            self._carefully(self._place, now)

    def _place(self, now: Now) -> None:
        """Interfaces or addresses may have changed: bring maps and leases up to date, and attach to what is new."""
        found = self._interfaces.refresh()
        for name in found:
            self._notes.event("interface-found", f"interface {name} is there again", now, interface=name)
        program, roles = self._program, self._interfaces.roles
        indexes = {index: roles[name] for name, index in self._interfaces.indexes.items()}
        maps.reconcile(program.map("locals"), maps.local_entries(self._interfaces.addresses()), "locals")
        maps.reconcile(program.map("interfaces"), maps.interface_entries(indexes), "interfaces")
        maps.reconcile(program.map("networks"), maps.network_entries(self._neighbours.networks()), "networks")
        self._leasing.moved(self._interfaces.agents)
        if found:
            self._watch.guard(now)

    def _settle(self, now: Now) -> None:
        """What is wrong now, here and in the other processes, is put on record."""
        found = {**dict(self._watch.faults()), **dict(self._routing.faults())}
        if self._drain.stalled:
            found["journal-stalled"] = f"nothing is forwarded: {self._drain.reason}"
        if self._leasing.unsaved:
            found["leases-unsaved"] = f"leases cannot be saved, none is given: {self._leasing.unsaved}"
        self._faults.settle(found, now)
        said = status.read(self._settings.data)
        self._faults.watch({name: each for name, each in said.items() if name != "wire"}, now)

    def _look(self, now: Now) -> Iterator[None]:
        """Through all flows: what is over is ended, and both ends are told of what lost its lease."""
        yield from self._sweeper.survey(self._leasing.numbers, now.boottime)
        yield from self._sweeper.cut(lambda: self._leasing.numbers, self._sender.reset)
        while self._sweeper.unfinished and self._sweep():
            yield
        for chore in (self._tend, self._tell_of_refusals):
            self._carefully(chore, self._notes.now())

    def _sweep(self) -> bool:
        """End a slice of what is over, behind what the ring holds about it. False: the journal takes nothing."""
        self._drain_all()
        now = self._notes.now()
        swept = self._sweeper.finish(now.boottime)
        try:
            for span in swept.spans(min(SPAN, self._writer.max_payload)):
                self._notes.clock(now)
                self._writer.append(FrameKind.SPAN, span, time_ns=now.unix)
            self._writer.sync()
        except Unavailable as error:
            log.warning("sweep-delayed", reason=str(error))
            return False
        self._sweeper.forget(swept)
        return True

    def _tend(self, now: Now) -> None:
        """Neighbour entries may have changed unheard."""
        self._leasing.tend()

    def _tell_of_refusals(self, now: Now) -> None:
        """Those of which no record tells."""
        if news := self._untold.news():
            text = f"{sum(news.values())} refused packets of too many sources to tell of each"
            self._notes.event("refusals-untold", text, now, packets={word(Reason(r)): n for r, n in news.items()})
        if self._notes.flush():
            self._untold.keep()


def run(settings: config.Settings) -> None:
    """Be the wire process until SIGTERM or SIGINT. Raises `VerbatimError` when it cannot begin."""
    configure(settings.log_level, "wire")
    daemon = Daemon(settings)
    _hurry()
    signal.signal(signal.SIGTERM, daemon.stop)
    signal.signal(signal.SIGINT, daemon.stop)
    try:
        daemon.run()
    finally:
        daemon.close()


def _hurry() -> None:
    """While this process waits for a processor, the ring fills and the network stalls: go before ordinary processes.

    The kernel keeps a share for these all the same (sched(7), sched_rt_runtime_us); children begin as ordinary ones.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError as error:
        log.warning("priority-missing", reason=error.strerror)
