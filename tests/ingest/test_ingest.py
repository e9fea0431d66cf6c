"""From a capture file to the store: once, whole, and after any crash."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import config, ingest
from appliance.errors import DamagedEvidence, MalformedInput, Refused, Unavailable
from appliance.ingest import spans
from appliance.journal import FrameKind, JournalFull, JournalKey
from appliance.model import Identity
from tests.ingest.captures import conversation, file, frames
from tests.vectors.pcap import make

UP, DOWN = b"question " * 300, bytes(range(256)) * 100


@pytest.fixture
def settings(tmp_path: Path) -> config.Settings:
    return config.Settings(data=tmp_path / "data")


@pytest.fixture
def drained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The recorder and the store are not asked; the folders that they would have been given."""
    folders: list[Path] = []

    def drain(folder: Path, settings: config.Settings, progress: ingest.Progress) -> None:
        folders.append(folder)
        progress(1, 1)

    monkeypatch.setattr(ingest, "_drain", drain)
    return folders  # type: ignore[return-value]


def run(path: Path, settings: config.Settings, identity: Identity | None = None) -> ingest.Summary:
    return ingest.ingest(path, settings, identity=identity, progress=lambda done, total: None)


def test_taken_once(settings: config.Settings, drained: list[Path], tmp_path: Path) -> None:
    capture = make.HERE / "ok_nano.pcap"
    first = run(capture, settings)
    assert not first.already
    assert [folder.name for folder in drained] == [f"ingest-{first.sha256[:16]}"]
    assert first.stream == first.sha256[:32]
    shutil.copy(capture, tmp_path / "copy.pcap")
    second = run(tmp_path / "copy.pcap", settings)
    assert second.already
    assert "already ingested" in second.sentence()
    assert len(drained) == 1
    assert list((settings.data / "journal").iterdir()) == [], "the store has all of it"


def test_progress_rises_to_the_size_of_the_file(settings: config.Settings, drained: list[Path], tmp_path: Path) -> None:
    capture = file(tmp_path, *conversation(40000, bytes(3 * 2**20), b"", 1400), link=make.RAW)
    told: list[tuple[int, int]] = []
    ingest.ingest(capture, settings, identity=None, progress=lambda *report: told.append(report))
    assert told == sorted(told)
    size = capture.stat().st_size
    assert told[-1] == (size, size)
    assert len({done for done, _ in told}) > 3


def test_complete_journal_is_not_made_again(
    settings: config.Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*arguments: object) -> None:
        raise Unavailable("the store is away; wait")

    capture = make.HERE / "ok_nano.pcap"
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "_drain", fail)
        with pytest.raises(Unavailable):
            run(capture, settings, Identity(subject="first", method="ingest"))
    (folder,) = (settings.data / "journal").iterdir()
    before = frames(folder, JournalKey.load(settings.data))
    assert before[-1].kind is FrameKind.CLOSE
    seen: list[Any] = []
    monkeypatch.setattr(ingest, "_drain", lambda path, *rest: seen.append(frames(path, JournalKey.load(settings.data))))
    summary = run(capture, settings, Identity(subject="second", method="ingest"))
    assert seen == [before]
    assert (summary.packets, summary.already) == (2, False)


def test_damaged_journal_is_made_anew(settings: config.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.store import client

    class Nowhere:
        def __enter__(self) -> None: ...

        def __exit__(self, *reason: object) -> None: ...

    def damaged(*arguments: object) -> None:
        raise DamagedEvidence("the journal has no end; ingest the file again")

    from appliance import record

    monkeypatch.setattr(client, "open_store", lambda settings, role: Nowhere())
    monkeypatch.setattr(record, "drain", damaged)
    with pytest.raises(DamagedEvidence):
        run(make.HERE / "ok_nano.pcap", settings)
    assert list((settings.data / "journal").iterdir()) == []


@pytest.mark.parametrize("name", ["wireless.pcap", "empty.pcap", "absent.pcap"])
def test_no_capture_leaves_nothing_behind(
    name: str, settings: config.Settings, drained: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty.pcap").touch()
    path = make.HERE / name if (make.HERE / name).exists() else tmp_path / name
    with pytest.raises(MalformedInput) as caught:
        run(path, settings)
    assert str(path) in str(caught.value)
    assert not drained
    assert not list(settings.data.glob("journal/*"))
    assert not list(settings.data.glob("state/ingested/*"))


def test_growing_file_is_refused(
    settings: config.Settings, drained: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(tmp_path, *make.PACKETS4, link=make.RAW)

    def grow(*arguments: Any, **named: Any) -> ingest.Summary:
        with path.open("ab") as opened:
            opened.write(b"more")
        return spans.write(*arguments, **named)

    monkeypatch.setattr(ingest, "write", grow)
    with pytest.raises(MalformedInput, match="it changed while it was read"):
        run(path, settings)
    assert not drained


def test_full_disk(settings: config.Settings, drained: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise JournalFull("no room")

    monkeypatch.setattr(ingest, "write", full)
    with pytest.raises(Unavailable, match="make room for twice its size"):
        run(make.HERE / "ok_nano.pcap", settings)
    assert not list(settings.data.glob("journal/*"))


def test_journal_is_not_bound_by_the_limit_of_the_wire(
    tmp_path: Path, drained: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = config.Settings(data=tmp_path / "data", journal=config.Journal(max_bytes=65536, min_free_bytes=1))
    path = file(tmp_path, *conversation(40000, bytes(2**20), b""), link=make.RAW)
    assert run(path, small).packets > 1000


def test_journal_is_on_the_disk_before_it_has_its_name(
    settings: config.Settings, drained: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, rename = os.fdatasync, Path.rename

    def syncing(file: int) -> None:
        order.append("sync")
        sync(file)

    def renaming(self: Path, to: Path) -> Path:
        order.append(self.suffix)
        return rename(self, to)

    monkeypatch.setattr(os, "fdatasync", syncing)
    monkeypatch.setattr(Path, "rename", renaming)
    run(make.HERE / "ok_nano.pcap", settings)
    assert order[-2:] == ["sync", ".partial"]


def test_same_file_twice_at_once_is_refused(
    settings: config.Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    capture = make.HERE / "ok_nano.pcap"

    def again(*arguments: object) -> None:
        with pytest.raises(Refused, match="another process is ingesting"):
            run(capture, settings)

    monkeypatch.setattr(ingest, "_drain", again)
    assert not run(capture, settings).already


# -- with the real recorder and store, in processes of their own: chDB belongs to one process ------------------------


def verbatim(data: Path, *arguments: str) -> list[dict[str, Any]]:
    run = subprocess.run(
        [sys.executable, "-m", "appliance", *arguments, "--data", str(data), "--json"], capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr.decode()
    return [json.loads(line) for line in run.stdout.splitlines()]


def stream(data: Path, session: str, direction: str) -> bytes:
    command = [sys.executable, "-m", "appliance", "stream", session, "--direction", direction, "--data", str(data)]
    return subprocess.run(command, capture_output=True, check=True).stdout


def everything(data: Path) -> dict[str, list[list[Any]]]:
    """All rows of all tables, in a fixed order."""
    script = """
import json, sys
from pathlib import Path
from appliance import config
from appliance.store.client import open_store
with open_store(config.load(data=Path(sys.argv[1])), "reader") as store:
    found = {}
    for table in ("sessions", "messages", "chunks", "findings", "events"):
        rows = [list(map(str, row.values())) for row in store.select(f"SELECT * FROM {table}")]
        found[table] = sorted(rows)
    print(json.dumps(found))
"""
    run = subprocess.run([sys.executable, "-c", script, str(data)], capture_output=True, check=False)
    assert run.returncode == 0, run.stderr.decode()
    found: dict[str, list[list[Any]]] = json.loads(run.stdout)
    return found


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("capture")
    talks = [conversation(port, UP, DOWN) for port in range(40000, 40006)]
    mixed = [packet for turn in zip(*talks, strict=True) for packet in turn]
    noise = bytes.fromhex("45000003")
    return file(folder, *mixed, noise, link=make.RAW)


@pytest.fixture(scope="module")
def clean(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[Any]]]:
    """What a run without interruption stores."""
    data = tmp_path_factory.mktemp("clean")
    (summary,) = verbatim(data, "ingest", str(capture))
    assert (summary["already"], summary["skipped"]) == (False, {"too few bytes captured": 1})
    (summary,) = verbatim(data, "ingest", str(capture))
    assert summary["already"]
    found = everything(data)
    assert len({row[0] for row in found["sessions"]}) == 6
    return found


KILLS = [
    ("after", "appliance.journal.writer:Writer.append", 3),  # in the middle of the journal
    ("before", "appliance.ingest:Path.rename", 2),  # segment, then the complete folder
    ("after", "appliance.ingest:sync_folder", 3),
    ("before", "appliance.store.client:Store.insert", 1),
    ("after", "appliance.store.client:Store.insert", 2),
    ("after", "appliance.record:Recorder.write_snapshot", 1),
    ("before", "appliance.record:Recorder.forget", 1),
    ("after", "appliance.record:Recorder.forget", 1),
    ("after", "appliance.ingest:_write_durably", 2),
]


@pytest.mark.parametrize(("when", "where", "count"), KILLS)
def test_killed_and_run_again(
    when: str,
    where: str,
    count: int,
    capture: Path,
    clean: dict[str, list[list[Any]]],
    tmp_path: Path,
) -> None:
    killed = subprocess.run(
        [sys.executable, "-m", "tests.ingest.killed", str(tmp_path), str(capture), when, where, str(count)],
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    verbatim(tmp_path, "ingest", str(capture))
    assert everything(tmp_path) == clean
    assert not list((tmp_path / "journal").iterdir())
    assert not list((tmp_path / "state").glob("*.snapshot"))


def test_streams_come_back_exactly(capture: Path, tmp_path: Path) -> None:
    verbatim(tmp_path, "ingest", str(capture), "--identity", "subject=agent-7,issuer=https://idp.example")
    sessions = verbatim(tmp_path, "sessions")
    assert len(sessions) == 6
    for session in sessions:
        assert session["source"] == f"ingest:{capture.name}"
        assert session["coverage"] == "complete"
        assert session["identity"]["subject"] == "agent-7"
        assert session["identity"]["method"] == "ingest"
    assert stream(tmp_path, sessions[0]["session_id"], "server") == DOWN
    assert stream(tmp_path, sessions[0]["session_id"], "client") == UP


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("tcpdump") is None, reason="needs root and tcpdump")
def test_what_tcpdump_saw(tmp_path: Path) -> None:
    """A live TCP conversation on loopback, in super-packets: streams as they were sent."""
    import socket

    from appliance.ingest.capture import Capture

    path = tmp_path / "live.pcap"
    sent = os.urandom(500_000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        room = ["-s", "65535", "-B", "32768"]  # enough for all packets, however slow tcpdump is
        command = ["tcpdump", "-i", "lo", "-U", "--immediate-mode", *room, "-w", str(path), "tcp", "port", str(port)]
        tcpdump = subprocess.Popen(command, stderr=subprocess.PIPE)
        try:
            assert tcpdump.stderr is not None
            line = b""
            while b"listening on" not in line:
                line = tcpdump.stderr.readline()
                assert line, "tcpdump ended"
            with socket.create_connection(("127.0.0.1", port), 30) as client, server.accept()[0] as peer:
                client.sendall(b"give")
                assert peer.recv(4, socket.MSG_WAITALL) == b"give"
                for at in range(0, len(sent), 20_000):
                    peer.sendall(sent[at : at + 20_000])
                    assert client.recv(20_000, socket.MSG_WAITALL) == sent[at : at + 20_000]
                peer.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
            fins = 0
            while fins < 2:  # flags byte of Ethernet, IPv4, TCP without IP options
                with Capture(path) as so_far:
                    fins = sum(packet.data[47] & 1 for packet in so_far if len(packet.data) > 47)
        finally:
            tcpdump.send_signal(signal.SIGINT)
            tcpdump.communicate()
    verbatim(tmp_path / "data", "ingest", str(path))
    (session,) = verbatim(tmp_path / "data", "sessions")
    assert session["bytes"] == {"client": 4, "server": len(sent)}
    assert session["coverage"] == "complete"
    assert stream(tmp_path / "data", session["session_id"], "server") == sent
