"""All streams together: each row once, whatever dies when, and each stream's sessions its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scapy.layers.inet import TCP
from scapy.utils import PcapNgReader
from structlog.testing import capture_logs

from appliance import config, status
from appliance.journal import Frame, FrameKind, JournalKey, Writer
from appliance.model import Direction, Ending, Row, SessionRow
from appliance.record import Recorder
from appliance.record import streams as module
from appliance.record.streams import Streams
from appliance.session import relayed
from appliance.store import query
from appliance.store.client import open_store
from appliance.store.rows import by_table as by_name
from tests.cli.conftest import objects
from tests.cli.conftest import run as verbatim
from tests.lab.wait import until
from tests.record.test_recorder import (
    FRAMES,
    LIMITS,
    Killed,
    MemoryStore,
    Ticking,
    by_table,
    settled,
    small,
    write,
)
from tests.session import relaying
from tests.session.relaying import Flow, clock, exchange, span, told
from tests.session.test_assembler import clock as wire_clock
from tests.session.test_assembler import hello, numbered, opened
from tests.session.traffic import MS, SECOND, T0, Peer, Recorded, feed
from tests.session.traffic import span as wire_span
from tests.store.conftest import serving

__all__ = ["small"]  # a fixture


def chatter(flows: int, number: int = 1) -> list[Frame]:
    """A relay's stream without its first frame: flows that overlap, one record a frame."""
    every = []
    for at in range(flows):
        flow = Flow(number + at, client_port=number + at)
        every += [(at * 2 + place, record) for place, record in enumerate(exchange(flow, at * 20 * MS))]
    every.sort(key=lambda one: one[0])
    return [span(record, time=place * 60 * MS) for place, (_, record) in enumerate(every)]


def relay_stream(*frames: Frame) -> list[Frame]:
    return [one for one in relaying.stream(*frames) if isinstance(one, Frame)]


def named(settings: config.Settings, name: str, frames: list[Frame], stream: bytes) -> Path:
    """Append to a stream with an id of its own."""
    folder = settings.data / "journal" / name
    with Writer(folder, JournalKey.load_or_create(settings.data), stream, settings=LIMITS) as writer:
        for one in frames:
            writer.append(one.kind, one.payload, layout=one.layout, time_ns=one.time_ns)
    return folder


def expected(stream: bytes, name: str, frames: list[Frame]) -> list[Row]:
    machine = relayed.RelayAssembler(stream, config.Record(), "gw", name)
    return [row for one in frames for row in machine.feed(one)]


def made(settings: config.Settings, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> Streams:
    monkeypatch.setattr(module, "Recorder", ticking)
    streams = Streams(settings, store, store.unfinished)
    streams.look()
    return streams


def ticking(settings: config.Settings, folder: Path, store: MemoryStore, unfinished: object) -> Recorder:
    return Recorder(settings, folder, store, unfinished, clock=Ticking(0.2))  # type: ignore[arg-type]


def work(streams: Streams) -> None:
    quiet = 0
    for _ in range(10_000):
        quiet = 0 if streams.step() or streams.values()["store"] != "ok" else quiet + 1
        if quiet > 20:
            return
    raise AssertionError("the recorders never came to rest")


ONE, TWO = b"\1" * 16, b"\2" * 16
RELAYED = relay_stream(*chatter(8))


@pytest.mark.parametrize("block", range(4))
def test_killed_at_every_operation_of_the_store(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Three streams, and the recorder dies before or behind any insertion or query."""
    rows = [*feed(FRAMES), *expected(ONE, "relay-0", RELAYED), *expected(TWO, "relay-7", RELAYED)]
    die_at = 2 + block
    while True:
        settings = settled(tmp_path / str(die_at))
        write(settings, FRAMES)
        named(settings, "relay-0", RELAYED, ONE)
        named(settings, "relay-7", RELAYED, TWO)
        store = MemoryStore()
        store.die_at = die_at
        streams = made(settings, store, monkeypatch)
        died = False
        try:
            work(streams)
        except Killed:
            died = True
            streams.close()
            streams = made(settings, store, monkeypatch)
            work(streams)
        assert streams.finish() == []
        streams.close()
        assert by_table(store.rows) == by_table(rows), f"killed at {die_at}"
        if not died:
            assert die_at > 60
            return
        die_at += 12


def live(settings: config.Settings, store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session in the middle of each of three streams, all stored; segments are released."""
    peers = [wire_span(0, *hello(Peer(client_port=port), port * MS)) for port in range(1000, 1100)]
    write(settings, numbered(opened(), wire_clock(T0, T0), *peers))
    for number, stream in ((0, ONE), (7, TWO)):
        flow = Flow(1, client_port=number)
        frames = relay_stream(span(flow.open(), flow.data(0, b"hello")), *chatter(60, 100), clock(100 * SECOND))
        named(settings, f"relay-{number}", frames, stream)
    streams = made(settings, store, monkeypatch)
    work(streams)
    assert streams.finish() == []
    streams.close()


def test_a_lost_snapshot_interrupts_the_sessions_of_its_stream_only(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, store = settled(tmp_path), MemoryStore()
    live(settings, store, monkeypatch)
    assert list((tmp_path / "journal" / "relay-0").glob("*.free")), "nothing was released"
    (tmp_path / "state" / "record-relay-0.snapshot").unlink()
    late = Flow(1, client_port=0)
    late.sent[0] = 5
    named(settings, "relay-0", [span(late.data(0, b"more", 200 * SECOND), late.close(201 * SECOND))], ONE)
    streams = made(settings, store, monkeypatch)
    work(streams)
    assert streams.finish() == []
    streams.close()
    found = Recorded(store.rows)
    first, *_, last = [row for row in found.sessions if row.source == "relay-0"]
    assert (first.ending, first.findings, first.coverage) == (Ending.INTERRUPTED, ("state-lost",), "partial")
    assert (last.ending, last.findings, last.client_address) == (Ending.FIN, ("midstream",), "::")
    assert {row.source for row in found.sessions if row.ending is Ending.OPEN} == {"wire", "relay-7"}
    assert [row.stream for row in found.events if row.kind == "state-lost"] == [ONE.hex()]


def test_a_stop_in_the_middle_goes_on_where_it_was(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, store = settled(tmp_path), MemoryStore()
    third = len(RELAYED) // 3
    for part in (RELAYED[:third], RELAYED[third : 2 * third], RELAYED[2 * third :]):
        named(settings, "relay-3", part, ONE)
        streams = made(settings, store, monkeypatch)
        work(streams)
        assert streams.finish() == []
        streams.close()
    assert by_table(store.rows) == by_table(expected(ONE, "relay-3", RELAYED))


def test_a_stream_that_comes_later_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, store = settled(tmp_path), MemoryStore()
    streams = made(settings, store, monkeypatch)
    work(streams)
    named(settings, "relay-12", RELAYED, ONE)
    named(settings, "ingest-1", RELAYED, TWO)
    streams.look()
    work(streams)
    assert streams.finish() == []
    assert by_table(store.rows) == by_table(expected(ONE, "relay-12", RELAYED))
    assert set(streams.values()["streams"]) == {"wire", "relay-12"}  # type: ignore[call-overload]
    streams.close()


def test_streams_take_turns(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long backlog of one does not keep the others waiting."""
    settings, store = settled(tmp_path), MemoryStore()
    named(settings, "relay-0", relay_stream(*chatter(200)), ONE)
    named(settings, "relay-1", relay_stream(*chatter(1)), TWO)
    streams = made(settings, store, monkeypatch)
    while not any(isinstance(row, SessionRow) and row.ending is Ending.FIN and row.source == "relay-1"
                  for row in store.rows):  # fmt: skip
        streams.step()
        assert streams.values()["backlog_bytes"]
    streams.close()


def test_memory_is_shared_by_the_streams_that_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, store = settled(tmp_path), MemoryStore()
    limit = settings.record.max_memory

    def limits() -> dict[str, int]:
        streams.look()
        work(streams)
        streams.finish()
        kept = {name: recorder._assembler for name, recorder in streams._recorders.items()}
        return {name: machine.settings.max_memory for name, machine in kept.items() if machine is not None}

    write(settings, FRAMES[:5])
    streams = made(settings, store, monkeypatch)
    assert limits() == {"wire": limit}
    named(settings, "relay-0", RELAYED, ONE)
    named(settings, "relay-1", RELAYED, TWO)
    limits()
    assert limits() == {"wire": limit // 2, "relay-0": limit // 4, "relay-1": limit // 4}
    named(settings, "relay-0", [told(FrameKind.CLOSE)], ONE)
    write(settings, FRAMES[5:8])
    named(settings, "relay-1", [clock(100 * SECOND)], TWO)
    limits()
    assert limits()["relay-1"] == limit // 2
    streams.close()


def test_what_is_said_of_all_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, store = settled(tmp_path), MemoryStore()
    streams = made(settings, store, monkeypatch)
    said = streams.values()
    assert (said["backlog_bytes"], said["lag_seconds"], said["read_ns"], said["store"]) == (0, 0.0, 0, "ok")
    flow = Flow(1)
    write(settings, FRAMES[:5])
    named(settings, "relay-0", relay_stream(span(flow.open()), clock(SECOND)), ONE)
    streams.look()
    store.failures = 1 << 30
    for _ in range(50):
        streams.step()
    said = streams.values()
    assert said["store"] == "store is away; start it"
    assert said["faults"] == {"store-refuses": "store is away; start it"}
    store.failures = 0
    work(streams)
    said = streams.values()
    each = said["streams"]
    assert isinstance(each, dict)
    assert said["rows"] == len(store.rows) == each["wire"]["rows"] + each["relay-0"]["rows"]
    assert said["sessions_open"] == each["wire"]["sessions_open"] + 1
    assert (said["store"], said["faults"], said["read_ns"]) == ("ok", {}, T0 + SECOND)
    streams.close()


def test_a_stream_of_another_version_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, store = settled(tmp_path), MemoryStore()
    named(settings, "relay-0", RELAYED, ONE)
    name = named(settings, "relay-1", RELAYED, TWO) / "stream"
    name.write_text(name.read_text().replace("verbatim-journal 1", "verbatim-journal 0"))
    with capture_logs() as said:
        streams = made(settings, store, monkeypatch)
        streams.look()
    assert [line["event"] for line in said] == ["journal-version"]
    assert "journal-version" in streams.values()["faults"]  # type: ignore[operator]
    work(streams)
    assert by_table(store.rows) == by_table(expected(ONE, "relay-0", RELAYED))
    name.write_text(name.read_text().replace("verbatim-journal 0", "verbatim-journal 1"))
    streams.look()
    assert streams.values()["faults"] == {}
    streams.close()


# -- the real thing --------------------------------------------------------------------------------------------------

SERVICE = """
import sys
from pathlib import Path
from appliance import config, record
record.run(config.Settings(data=Path(sys.argv[1]), node="gw", record={"snapshot": 3600.0}))
"""
KILLS = 2


def database(number: int) -> list[bytes]:
    """A relayed session of PostgreSQL, whose password the relay took."""
    flow = Flow(number, client_port=number)
    login = b"\0\0\0\x17\0\3\0\0user\0u\0database\0"
    asked = b"p\0\0\0\x0b******\0"
    sql = b"Q\0\0\0\x0dSELECT 1\0"
    records = [
        flow.open(number * MS),
        flow.note("protocol", protocol="postgres", time=number * MS),
        flow.data(0, login, number * MS),
        flow.data(1, b"R\0\0\0\x08\0\0\0\3", number * MS),
        flow.note("redacted", 0, number * MS, start=len(login) + 5, end=len(login) + 11, what="password"),
        flow.data(0, asked, number * MS),
        flow.note("identified", time=number * MS, identity={"subject": "bob", "method": "postgres-password"}),
        flow.data(1, b"R\0\0\0\x08\0\0\0\0Z\0\0\0\5I", number * MS),
    ]
    for turn in range(10):
        records.append(flow.data(0, sql, (number + turn) * MS))
        records.append(flow.data(1, b"D\0\0\0\x0b\0\1\0\0\0\x011C\0\0\0\x0dSELECT 1\0Z\0\0\0\5I", (number + turn) * MS))
    return [*records, flow.close((number + 20) * MS)]


def test_killed_again_and_again_while_streams_grow(tmp_path: Path) -> None:
    """`verbatim record` beside a real store gets SIGKILL while relays write; the rows are those of one quiet run. What
    is there reads as sessions of the wire do.
    """
    settings = settled(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parts: dict[str, list[list[Frame]]] = {}
    for name, first in (("relay-0", 1), ("relay-1", 500)):
        flows = [database(first + at) for at in range(120)]
        records = [record for pair in zip(*flows, strict=True) for record in pair]  # all of them at the same time
        spans = [span(*records[at : at + 7], time=at * MS) for at in range(0, len(records), 7)]
        frames = [*relay_stream(*spans), told(FrameKind.CLOSE, 3600 * SECOND)]
        step = -(-len(frames) // (2 * KILLS + 2))
        parts[name] = [frames[at : at + step] for at in range(0, len(frames), step)]
    ids = {"relay-0": ONE, "relay-1": TWO}
    rows = [row for name in parts for row in expected(ids[name], name, [one for part in parts[name] for one in part])]

    def grow(number: int) -> None:
        for name in parts:
            named(settings, name, parts[name][number], ids[name])

    def said(name: str) -> object:
        found = status.read(tmp_path).get("record")
        return found.values.get(name) if found is not None and found.pid == service.pid else 0

    def grown(before: object) -> Callable[[], bool]:
        return lambda: said("rows") != before

    with serving(tmp_path):
        for turn in range(KILLS + 1):
            grow(2 * turn)
            service = subprocess.Popen([sys.executable, "-c", SERVICE, str(tmp_path)], env=environment)
            try:
                until(lambda: said("rows"), "rows are stored", 40)
                more = grown(said("rows"))
                grow(2 * turn + 1)
                until(more, "rows are stored of which no snapshot knows", 40)
                if turn == KILLS:
                    until(lambda: said("backlog_bytes") == 0 and said("sessions_open") == 0, "all is stored", 40)
                    service.terminate()
                    assert service.wait(30) == 0
            finally:
                service.kill()
                service.wait(30)
        with open_store(settings, "reader", embed=False) as store:
            for table, members in by_name(rows).items():
                (found,) = store.select(f"SELECT count() AS n FROM {table.name}")
                assert (table.name, int(found["n"])) == (table.name, len(members))
            whole_run = Recorded(rows)
            there = query.sessions(store, query.SessionFilter(lane="relay"), 1000, None).items
            assert len(there) == len(whole_run.sessions) == 240
            for row in whole_run.sessions[::40]:
                one = query.session(store, row.session_id)
                assert one is not None
                assert (one["ending"], one["coverage"], one["identity"]["method"], one["identity"]["subject"]) == (
                    "fin", "complete", "postgres-password", "bob",
                )  # fmt: skip
                for side in Direction:
                    kept = b"".join(piece for _, piece in query.stream(store, row.session_id, side.value))
                    assert kept == whole_run.stream(side, row)
                texts = [message["text"] for message in query.messages(store, row.session_id).items]
                assert texts == [message.message.text for message in whole_run.messages(row)]
        shown(tmp_path, str(there[0]["session_id"]), whole_run.stream(Direction.SERVER, row))


def shown(data: Path, session: str, told_to_agent: bytes) -> None:
    """The verbs that show sessions, on a relayed one."""
    listed = objects(verbatim("sessions", "--protocol", "postgres", "--data", str(data), "--json"))
    assert {one["lane"] for one in listed} == {"relay"}
    assert verbatim("stream", session, "--direction", "server", "--data", str(data)).stdout == told_to_agent
    replayed = verbatim("replay", session, "--data", str(data))
    assert replayed.returncode == 0, replayed.stderr
    assert b"SELECT 1" in replayed.stdout
    file = data / "out.pcapng"
    exported = verbatim("export", session, "--pcapng", str(file), "--data", str(data))
    assert exported.returncode == 0, exported.stderr
    with PcapNgReader(str(file)) as reader:
        packets = [packet for packet in reader if TCP in packet and packet[TCP].sport == 5432]
    assert b"".join(bytes(packet[TCP].payload) for packet in packets) == told_to_agent
