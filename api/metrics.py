"""What the processes published, as Prometheus metrics. The README lists them.

Names follow Prometheus' rules: base units, `_total` for what only grows. Values of a process that is gone are its last
ones; `verbatim_up` and `verbatim_status_age_seconds` tell. The ring goes on, and the kernel is asked for it.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.config import Settings
from appliance.health import PROCESSES, Part, State, parts
from appliance.overview import Said, backlog_seconds, counts, lag_seconds, look, number, ring

GAUGE, COUNTER = GaugeMetricFamily, CounterMetricFamily

# name (a counter's without _total), help, kind, process, path of the value in what it published
SIMPLE: tuple[tuple[str, str, type[Metric], str, tuple[str, ...]], ...] = (
    ("verbatim_recorded_packets", "Packets recorded and forwarded.", COUNTER, "wire", ("recorded", "packets")),
    ("verbatim_recorded_bytes", "Bytes recorded and forwarded.", COUNTER, "wire", ("recorded", "bytes")),
    ("verbatim_journal_bytes", "Bytes of journal on disk.", GAUGE, "wire", ("journal", "bytes")),
    ("verbatim_journal_room_bytes", "Bytes until traffic stalls.", GAUGE, "wire", ("journal", "room")),
    (
        "verbatim_journal_stalled",
        "1 while traffic is stalled because the journal is full.",
        GAUGE,
        "wire",
        ("journal", "stalled"),
    ),
    ("verbatim_interlock", "1 while the nftables interlock is in place.", GAUGE, "wire", ("interlock",)),
    ("verbatim_leases", "Live leases.", GAUGE, "wire", ("leases",)),
    ("verbatim_flows", "Flows that the kernel knows.", GAUGE, "wire", ("flows",)),
    (
        "verbatim_backlog_bytes",
        "Journal bytes that the recorder has not read.",
        GAUGE,
        "record",
        ("backlog_bytes",),
    ),
    ("verbatim_sessions_open", "Sessions that go on.", GAUGE, "record", ("sessions_open",)),
    ("verbatim_sessions_bytes", "Memory that their state takes, about.", GAUGE, "record", ("sessions_bytes",)),
    (
        "verbatim_memory_short",
        "Times that record.max_memory was reached and some of it was given up.",
        COUNTER,
        "record",
        ("memory_short",),
    ),
    ("verbatim_rows", "Rows inserted since start.", COUNTER, "record", ("rows",)),
    ("verbatim_damaged_frames", "Journal frames that could not be read.", COUNTER, "record", ("damaged",)),
    ("verbatim_torn_tails", "Journal frames that a crash left half written.", COUNTER, "record", ("torn_tails",)),
    ("verbatim_store_bytes", "Bytes of the embedded store on disk.", GAUGE, "store", ("bytes",)),
    ("verbatim_store_parts", "Parts of the embedded store's tables.", GAUGE, "store", ("parts",)),
    ("verbatim_relay_flows", "Flows that relays serve.", GAUGE, "relay", ("flows",)),
    ("verbatim_relay_accepted", "Flows that relays accepted.", COUNTER, "relay", ("accepted",)),
)

# What the program counts besides refusals (appliance/wire/abi.py, Counter): its name in the status -> metric, help
OTHERS: dict[str, tuple[str, str]] = {
    "local": ("verbatim_local_packets", "Packets passed to the gateway itself, unrecorded."),
    "foreign": ("verbatim_foreign_frames", "Frames dropped because they were addressed to another host."),
    "no-role": ("verbatim_no_role_packets", "Packets dropped on an interface that has no role."),
    "unreported": ("verbatim_unreported_flows", "Flows that ended while the ring had no room to say so."),
    "clamped": ("verbatim_clamped_packets", "Packets forwarded with a lower window than they came with."),
    "held": ("verbatim_held_windows", "Times that a window was held until the ring had room again."),
    "untold": ("verbatim_untold_refusals", "Refused packets that no refusal record counts, there were too many."),
}


class Published(Collector):
    """Collects from the status files at each scrape."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def collect(self) -> Iterator[Metric]:
        seen = look(self._settings)
        said, now = seen.said, seen.time
        found = parts(said, embedded=not self._settings.store.url, names=PROCESSES)
        yield from _processes(said, found)
        size, filled = ring(seen)
        yield from _single(GAUGE, "verbatim_ring_bytes", "Size of the recording ring.", size)
        yield from _single(GAUGE, "verbatim_ring_fill_bytes", "Bytes in the ring that wait for the journal.", filled)
        for name, text, kind, process, path in SIMPLE:
            yield from _single(kind, name, text, number(said.get(process), *path))
        yield from _single(
            GAUGE,
            "verbatim_backlog_seconds",
            "Recorded time that the recorder has not read.",
            backlog_seconds(said, now),
        )
        yield from _single(
            GAUGE, "verbatim_lag_seconds", "Age of the oldest record that is not in the store.", lag_seconds(said, now)
        )
        for other, (name, text) in OTHERS.items():
            yield from _single(COUNTER, name, text, number(said.get("wire"), "others", other))
        yield from _labelled(
            COUNTER, "verbatim_refusals", "Packets refused, by reason.", "reason", said, "wire", "refusals"
        )
        yield from _labelled(
            COUNTER,
            "verbatim_relay_refused",
            "Flows that relays refused, by reason.",
            "reason",
            said,
            "relay",
            "refused",
        )
        yield from _labelled(
            GAUGE, "verbatim_store_rows", "Rows of the embedded store, by table.", "table", said, "store", "rows"
        )


def _processes(said: Said, found: dict[str, Part]) -> Iterator[Metric]:
    up = GAUGE("verbatim_up", "1 while the process publishes its status.", labels=["process"])
    age = GAUGE("verbatim_status_age_seconds", "Time since the process last published its status.", labels=["process"])
    fault = GAUGE("verbatim_fault", "1 while this is wrong; absent when it is not.", labels=["process", "name"])
    repairs: dict[str, int] = {}
    for process, part in found.items():
        up.add_metric([process], float(process in said and said[process].live))
        if process in said:
            age.add_metric([process], max(0.0, said[process].age))
        for name in part.faults:
            fault.add_metric([process, name], 1.0)
        for name, count in part.repairs.items():
            repairs[name] = repairs.get(name, 0) + count
    yield from (up, age, fault)
    healthy = all(part.state is State.OK for part in found.values())
    yield GAUGE("verbatim_healthy", "1 while every process works and nothing is wrong.", value=float(healthy))
    mended = COUNTER("verbatim_repairs", "What was put back after someone took it away, since start.", labels=["name"])
    for name, count in sorted(repairs.items()):
        mended.add_metric([name], float(count))
    yield mended


def _single(kind: type[Metric], name: str, text: str, found: float | None) -> Iterator[Metric]:
    if found is not None:
        yield kind(name, text, value=float(found))  # type: ignore[call-arg]


def _labelled(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    label: str,
    said: Said,
    process: str,
    key: str,
) -> Iterator[Metric]:
    family = kind(name, text, labels=[label])
    for each, count in (counts(said.get(process), key) or {}).items():
        family.add_metric([each], float(count))
    yield family


def render(settings: Settings) -> bytes:
    """The metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Published(settings))
    return generate_latest(registry)
