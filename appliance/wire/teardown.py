"""Take everything of ours out of the kernel: from then on the machine forwards as if Verbatim had never been there.

In this order, so that nothing unrecorded passes before the last step, and nothing recorded is lost:

1. Refuse while a wire process runs, and while the kernel forwards, unless the caller wants that.
2. Have the program refuse everything (`settings.stalled`), and move what the rings hold to the journal. Where the
   journal takes no more, this is undone: nothing was removed.
3. Journal `torn-down`, and keep since when nothing is recorded (`DATA/state/torn-down.json`), for the next start.
4. Detach the recording program, and move the rest (refusals of the meantime): without its mark nothing passes.
5. Remove the gate, the clsact qdiscs that nobody else uses, neighbour entries, the rules and routes that lead to
   relays, pins, and the nftables table last.

A teardown that died goes on where it was when it is repeated.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from pyroute2 import IPRoute

from appliance import config, status
from appliance.errors import DamagedEvidence, Refused, Unavailable
from appliance.journal import JournalKey, Writer
from appliance.log import configure
from appliance.wire import abi, bpf, clock, filters, former, interlock, loader, routing
from appliance.wire.control import SOCKET, Client
from appliance.wire.faults import Faults
from appliance.wire.former import Former
from appliance.wire.interfaces import claim
from appliance.wire.neighbours import Neighbours
from appliance.wire.notes import Notes
from appliance.wire.ring import Ring

SYSCTL = Path("/proc/sys/net")
FILE = "torn-down.json"
PATIENCE = 2.0  # seconds for a running process to answer


class TornDown(msgspec.Struct, frozen=True):
    """What the next start has to know. `ring`: id of the one that was drained, "" where there was none; `until`: its
    last position; `since_ns`, `since_boottime_ns`: from which moment of `boot` on nothing was recorded."""

    since_ns: int
    since_boottime_ns: int
    boot: str
    ring: str = ""
    until: int = 0


@dataclass(slots=True)
class Removed:
    """`things`: what was taken out, for people; `drained`: bytes that were in rings, and are in the journal."""

    things: list[str] = field(default_factory=list)
    drained: int = 0


def recall(data: Path) -> TornDown | None:
    """The teardown since the last start. None: there was none, or nobody can tell."""
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((data / "state" / FILE).read_bytes(), type=TornDown)
    return None


def _forget(data: Path) -> None:
    (data / "state" / FILE).unlink(missing_ok=True)


def resumed(down: TornDown, interfaces: Sequence[str], notes: Notes, data: Path) -> None:
    """Recording goes on: put on record since when nothing was recorded."""
    now = notes.now()
    text = "program and locks were taken out of the kernel by a teardown: until now nothing was recorded"
    bounds = {"since_ns": down.since_ns, "until_ns": now.unix}
    if down.boot == now.boot:
        bounds |= {"since_boottime_ns": down.since_boottime_ns, "until_boottime_ns": now.boottime}
    notes.event("unguarded", text, now, **bounds, interfaces=list(interfaces))
    if notes.flush():
        _forget(data)


def switches(names: Sequence[str], root: Path = SYSCTL) -> list[str]:
    """The sysctls by which the kernel forwards what comes from these interfaces, as sysctl(8) takes them."""
    whole = {"ipv4": "ipv4/ip_forward", "ipv6": "ipv6/conf/all/forwarding"}
    found = []
    for family, every in whole.items():
        single = [f"{family}/conf/{name}/{knob}" for name in names for knob in ("forwarding", "force_forwarding")]
        found += [every] if _is_on(root / every) else [path for path in single if _is_on(root / path)]
    return [f"net/{path}" if "." in path else f"net.{path.replace('/', '.')}" for path in found]


def teardown(settings: config.Settings, *, stay_open: bool = False) -> Removed:
    """See the top; what was removed, nothing where nothing was there.

    `stay_open`: also while the kernel forwards. Raises `Refused`: a wire process runs, or the kernel forwards;
    `Unavailable`: the journal takes no more, or the kernel says no.
    """
    configure(settings.log_level, "wire")
    with suppress(Unavailable):
        Client(settings.data / "run" / SOCKET, timeout=PATIENCE).status()
        raise Refused("wire: a process is running; stop verbatim wire first, then tear down")
    with ExitStack() as held:
        held.enter_context(closing(claim()))
        netlink = held.enter_context(IPRoute())
        neighbours = held.enter_context(closing(Neighbours()))
        work = _Teardown(settings, netlink, neighbours)
        if not work.anything:
            return Removed()
        on = switches([*settings.wire.agents, *settings.wire.upstream])
        if on and not stay_open:
            raise Refused(
                f"wire: the kernel forwards ({', '.join(on)}), and after this nothing would record it; "
                f"sysctl -w {' '.join(f'{name}=0' for name in on)}, or say --open"
            )
        return work.run(on)


class _Teardown:
    """What there is to remove, and its removal."""

    def __init__(self, settings: config.Settings, netlink: IPRoute, neighbours: Neighbours) -> None:
        self._settings = settings
        self._netlink = netlink
        self._neighbours = neighbours
        self._links = {link["index"]: str(link.get_attr("IFLA_IFNAME")) for link in netlink.get_links()}
        self._named = {*settings.wire.agents, *settings.wire.upstream}
        self._filters = {index: found for index in self._links if (found := filters.present(index, netlink))}
        self._places = [place for place, entry in neighbours.permanent().items() if entry.ours]
        bpffs = settings.wire.bpffs
        self._pins = [folder for folder in (*former.folders(bpffs), bpffs) if folder.is_dir()]
        self._steering = routing.present(netlink)
        self._table = interlock.present(settings.wire.table)

    @property
    def anything(self) -> bool:
        return bool(self._filters or self._places or self._pins or self._steering or self._table)

    def run(self, on: Sequence[str]) -> Removed:
        """`on`: the switches by which the kernel forwards all the same."""
        done, data = Removed(), self._settings.data
        folder, key = data / "journal" / "wire", JournalKey.load_or_create(data)
        with Writer(folder, key, settings=self._settings.journal) as writer, _rings(self._pins) as rings:
            notes = Notes(writer, clock.boot_id())
            Faults(notes.event).inherit(status.read(data).get("wire"), notes.now())
            with self._refusing():
                before: dict[str, Any] = {}
                for one, ring in rings:
                    if one.id or ring.fill:
                        notes.open(self._settings.node, one.id, ring.position, notes.now(), **before)
                    self._drain(one, ring, writer, notes, done, ring.position + ring.fill)
                    before = {"after": one.id, "until": ring.position}  # as former.py says it
                self._tell(rings, notes, on, done)
            self._detach(done, filters.ARRIVAL)
            for one, ring in rings:
                self._drain(one, ring, writer, notes, done, None)
            self._keep(rings, notes)
        self._detach(done, filters.DEPARTURE)
        for index in (index for index, name in self._links.items() if index in self._filters or name in self._named):
            if filters.strip(index, self._netlink):
                done.things.append(f"clsact qdisc of {self._links[index]}")
        for index, address in self._places:
            done.things.append(f"neighbour entry of {address} on {self._links.get(index, index)}")
        self._neighbours.reconcile({})
        if self._steering:
            routing.remove(self._netlink)
            done.things.append(f"rules and routes of table {routing.TABLE}")
        for folder in self._pins:
            (folder / "ring").unlink(missing_ok=True)  # before its name: see former.remove
            done.things.append(f"pins in {folder}")
        loader.unpin(self._settings.wire.bpffs)
        if self._table:
            interlock.remove(self._settings.wire.table)
            done.things.append(f"nftables table inet {self._settings.wire.table}")
        status.withdraw(data, "wire")
        return done

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """The program forwards nothing any more; it goes on as before where the block fails."""
        fd = bpf.get(self._settings.wire.bpffs / "settings") if self._version == abi.ABI else None
        if fd is None:  # none is pinned, or one of another layout: it records until it is detached
            yield
            return
        kernel = bpf.Map(fd)
        before = kernel.lookup(bytes(4)) or b""
        try:
            kernel.update(bytes(4), (1).to_bytes(4, "little") + before[4:])  # struct settings begins with `stalled`
            try:
                yield
            except BaseException:
                kernel.update(bytes(4), before)
                raise
        finally:
            os.close(fd)

    @property
    def _version(self) -> int:
        """The ABI of the pinned program; 0: there is none."""
        if (fd := bpf.get(self._settings.wire.bpffs / "meta")) is None:
            return 0
        try:
            return abi.Meta.unpack(bpf.Map(fd).lookup(bytes(4)) or bytes(abi.Meta.LAYOUT.size)).abi
        finally:
            os.close(fd)

    def _drain(self, one: Former, ring: Ring, writer: Writer, notes: Notes, done: Removed, end: int | None) -> None:
        """Move what the ring holds to the journal, up to `end`; None: all. Raises `Unavailable`, with what to do."""
        begun = ring.position
        try:
            left = former.empty(ring, writer, notes, end)
        except Unavailable as error:
            what = "nothing was removed" if end is not None else "nothing passes; tear down again"
            raise Unavailable(f"wire: {ring.fill} bytes of the ring are not in the journal, {what}: {error}") from error
        except DamagedEvidence:
            left = ring.fill
        finally:
            done.drained += ring.position - begun
        if left and end is None:
            text = f"{left} bytes that the ring held were never completed, or cannot be read"
            bounds = {"from": ring.position, "to": ring.position + left}
            notes.event("ring-lost", text, notes.now(), ring=one.id, **bounds)

    def _tell(self, rings: "Rings", notes: Notes, on: Sequence[str], done: Removed) -> None:
        """Put the teardown on record. Raises `Unavailable`: it could not be, and nothing was removed."""
        before = recall(self._settings.data)
        since = self._keep(rings, notes)
        text = "program, ring and locks were taken out of the kernel: from here on nothing is recorded"
        if on:
            text += ", and the kernel forwards"
        notes.event("torn-down", text, notes.now(), since_ns=since, forwarding=list(on), drained=done.drained)
        if not notes.flush():
            if before is None:
                _forget(self._settings.data)
            raise Unavailable(f"wire: the teardown cannot be put on record, nothing was removed: {notes.held}")

    def _keep(self, rings: "Rings", notes: Notes) -> int:
        """Save what the next start has to know; since when nothing is recorded."""
        now = notes.now()
        known = recall(self._settings.data) or TornDown(now.unix, now.boottime, now.boot)
        if rings and rings[-1][0].id:
            known = msgspec.structs.replace(known, ring=rings[-1][0].id, until=rings[-1][1].position)
        state = self._settings.data / "state"
        fresh = state / f"{FILE}.new"
        try:
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(known))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(state / FILE)
        except OSError as error:
            raise Unavailable(f"{state / FILE}: {error.strerror}; free disk space, then tear down again") from error
        return known.since_ns

    def _detach(self, done: Removed, place: filters.Place) -> None:
        for index, places in self._filters.items():
            if place in places:
                filters.detach(index, self._netlink, (place,))
                if place in filters.present(index, self._netlink):
                    name = self._links[index]
                    raise Unavailable(
                        f"interface {name}: its filter cannot be removed; run as root, see tc filter show"
                    )
                done.things.append(f"filter {place.name} of {self._links[index]}")


Rings = Sequence[tuple[Former, Ring]]


@contextmanager
def _rings(pins: Sequence[Path]) -> Iterator[Rings]:
    """The pinned rings, oldest first."""
    with ExitStack() as held:
        found = []
        for folder in pins:
            if (one := former.pinned(folder)) is not None:
                held.callback(os.close, one.fd)
                found.append((one, held.enter_context(closing(Ring(one.fd, one.bytes)))))
        yield found


def _is_on(path: Path) -> bool:
    try:
        return path.read_text("ascii").strip() != "0"
    except OSError:  # no such protocol or interface
        return False
