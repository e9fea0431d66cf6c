"""What the processes published, as Prometheus metrics. The README lists them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from appliance.status import Status, read

# name, help, kind, process, path of the value in what it published
SIMPLE: tuple[tuple[str, str, type[Metric], str, tuple[str, ...]], ...] = (
    ("verbatim_ring_bytes", "Size of the recording ring.", GaugeMetricFamily, "wire", ("ring", "bytes")),
    (
        "verbatim_ring_fill_bytes",
        "Bytes in the ring that wait for the journal.",
        GaugeMetricFamily,
        "wire",
        ("ring", "fill"),
    ),
    (
        "verbatim_recorded_packets",
        "Packets recorded and forwarded.",
        CounterMetricFamily,
        "wire",
        ("recorded", "packets"),
    ),
    ("verbatim_recorded_bytes", "Bytes recorded and forwarded.", CounterMetricFamily, "wire", ("recorded", "bytes")),
    ("verbatim_journal_bytes", "Bytes of journal on disk.", GaugeMetricFamily, "wire", ("journal", "bytes")),
    ("verbatim_journal_room_bytes", "Bytes until traffic stalls.", GaugeMetricFamily, "wire", ("journal", "room")),
    (
        "verbatim_journal_stalled",
        "1 while traffic is stalled because the journal is full.",
        GaugeMetricFamily,
        "wire",
        ("journal", "stalled"),
    ),
    ("verbatim_interlock", "1 while the nftables interlock is in place.", GaugeMetricFamily, "wire", ("interlock",)),
    ("verbatim_leases", "Live leases.", GaugeMetricFamily, "wire", ("leases",)),
    ("verbatim_flows", "Flows that the kernel knows.", GaugeMetricFamily, "wire", ("flows",)),
    (
        "verbatim_backlog_bytes",
        "Journal bytes that the recorder has not read.",
        GaugeMetricFamily,
        "record",
        ("backlog_bytes",),
    ),
    (
        "verbatim_lag_seconds",
        "Age of the oldest record that is not in the store.",
        GaugeMetricFamily,
        "record",
        ("lag_seconds",),
    ),
    ("verbatim_sessions_open", "Sessions that go on.", GaugeMetricFamily, "record", ("sessions_open",)),
    ("verbatim_rows", "Rows inserted since start.", CounterMetricFamily, "record", ("rows",)),
    ("verbatim_damaged_frames", "Journal frames that could not be read.", CounterMetricFamily, "record", ("damaged",)),
    (
        "verbatim_torn_tails",
        "Journal frames that a crash left half written.",
        CounterMetricFamily,
        "record",
        ("torn_tails",),
    ),
)


class Published(Collector):
    """Collects from the status files at each scrape."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def collect(self) -> Iterator[Metric]:
        said = read(self._data)
        up = GaugeMetricFamily("verbatim_up", "1 while the process publishes its status.", labels=["process"])
        for name in ("wire", "record", "store", "api"):
            up.add_metric([name], float(name in said and said[name].live))
        yield up
        for name, text, kind, process, path in SIMPLE:
            value = _value(said.get(process), path)
            if isinstance(value, int | float):
                yield kind(name, text, value=float(value))  # type: ignore[call-arg]
        refusals = CounterMetricFamily("verbatim_refusals", "Packets refused, by reason.", labels=["reason"])
        counts = _value(said.get("wire"), ("refusals",))
        for reason, count in sorted(counts.items()) if isinstance(counts, dict) else ():
            refusals.add_metric([str(reason)], float(count))
        yield refusals


def _value(status: Status | None, path: Iterable[str]) -> Any:
    value: Any = status.values if status else None
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def render(data: Path) -> bytes:
    """The metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Published(data))
    return generate_latest(registry)
