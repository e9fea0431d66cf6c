"""Exported packets, as tshark reads them: the same streams, the same times, nothing malformed."""

import subprocess
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from appliance.model import ChunkRow, Direction
from appliance.replay import pcapng

SESSION = UUID("01890000-0000-7000-8000-000000000000")
START = 1_800_000_000_123_456_789
CLIENT, SERVER = Direction.CLIENT, Direction.SERVER


def described(transport: str = "tcp", *, six: bool = False, ending: str = "fin") -> dict[str, Any]:
    addresses = ("fd00::1", "fd00::2") if six else ("192.0.2.1", "198.51.100.2")
    return {
        "session_id": str(SESSION),
        "transport": transport,
        "ending": ending,
        "coverage": "complete",
        "findings": [],
        "client": {"address": addresses[0], "port": 40000},
        "server": {"address": addresses[1], "port": 5432},
        "identity": {"issuer": "https://idp", "subject": "alice", "client": "agent", "run_id": ""},
    }


def chunk(direction: Direction, offset: int, data: bytes, after_ms: int, copy: int = 0) -> ChunkRow:
    return ChunkRow(SESSION, 0, START, direction, offset, START + after_ms * 10**6, data, copy)


def written(path: Path, session: dict[str, Any], *chunks: ChunkRow) -> Path:
    with path.open("wb") as file:
        pcapng.write_header(file)
        pcapng.write_session(file, session, START, START + 10**9, chunks)
    return path


def tshark(path: Path, *options: str) -> list[str]:
    command = ["tshark", "-r", str(path), "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def followed(path: Path) -> tuple[bytes, bytes]:
    """Both directions of the first TCP stream."""
    sides = (bytearray(), bytearray())
    lines = tshark(path, "-q", "-z", "follow,tcp,raw,0")
    body = [line for line in lines if line and set(line.strip()) <= set("0123456789abcdef")]
    for line in body:
        sides[line.startswith("\t")].extend(bytes.fromhex(line.strip()))
    return bytes(sides[0]), bytes(sides[1])


@pytest.mark.parametrize("six", [False, True])
def test_streams_are_the_same(tmp_path: Path, six: bool) -> None:
    big = bytes(range(256)) * 300
    path = written(
        tmp_path / "out.pcapng",
        described(six=six),
        chunk(CLIENT, 0, b"SELECT 1", 1),
        chunk(SERVER, 0, big, 2),
        chunk(SERVER, 0, b"conflicting copy", 2, copy=1),
        chunk(CLIENT, 8, b"more", 3),
    )
    assert followed(path) == (b"SELECT 1more", big)
    assert not tshark(path, "-Y", "_ws.malformed or tcp.analysis.flags or tcp.checksum.status == 0")
    times = tshark(path, "-T", "fields", "-e", "frame.time_epoch", "-Y", 'frame contains "SELECT"')
    assert times == ["1800000000.124456789"]
    comment = tshark(path, "-T", "fields", "-e", "frame.comment", "-Y", "frame.number == 1")
    assert str(SESSION) in comment[0]
    assert "subject=alice" in comment[0]


def test_gap_stays_a_gap(tmp_path: Path) -> None:
    path = written(
        tmp_path / "gap.pcapng", described(), chunk(CLIENT, 0, b"before", 1), chunk(CLIENT, 100, b"after", 2)
    )
    assert tshark(path, "-Y", "tcp.analysis.lost_segment")


def test_bytes_that_came_late_have_their_place(tmp_path: Path) -> None:
    path = written(
        tmp_path / "late.pcapng",
        described() | {"findings": ["gap", "late"]},
        chunk(CLIENT, 0, b"one ", 1),
        chunk(CLIENT, 8, b"three", 2),
        chunk(CLIENT, 4, b"two ", 3),
    )
    assert followed(path)[0] == b"one two three"
    (end,) = tshark(path, "-T", "fields", "-e", "tcp.seq", "-Y", "tcp.flags.fin == 1 and tcp.srcport == 40000")
    assert end == "14"  # relative numbers: the SYN is 0


@pytest.mark.parametrize(("ending", "flag"), [("rst", "tcp.flags.reset"), ("fin", "tcp.flags.fin")])
def test_ends_as_it_was_recorded(tmp_path: Path, ending: str, flag: str) -> None:
    path = written(tmp_path / "end.pcapng", described(ending=ending), chunk(CLIENT, 0, b"x", 1))
    assert tshark(path, "-Y", f"{flag} == 1")


def test_open_session_has_no_end(tmp_path: Path) -> None:
    path = written(tmp_path / "open.pcapng", described(ending="open"), chunk(CLIENT, 0, b"x", 1))
    assert not tshark(path, "-Y", "tcp.flags.reset == 1 or tcp.flags.fin == 1")


def test_datagrams(tmp_path: Path) -> None:
    path = written(
        tmp_path / "udp.pcapng", described("udp"), chunk(CLIENT, 0, b"ask", 1), chunk(SERVER, 0, b"answer", 2)
    )
    assert tshark(path, "-T", "fields", "-e", "udp.payload") == [b"ask".hex(), b"answer".hex()]


@pytest.mark.parametrize("six", [False, True])
@pytest.mark.parametrize(("transport", "number"), [("47", 47), ("icmp", None)])
def test_other_protocols_keep_their_number(tmp_path: Path, transport: str, number: int | None, six: bool) -> None:
    data = b"\x80\0\0\0\0\1\0\2whole"
    path = written(tmp_path / "other.pcapng", described(transport, six=six), chunk(CLIENT, 0, data, 1))
    field = "ipv6.nxt" if six else "ip.proto"
    assert tshark(path, "-T", "fields", "-e", field) == [str(number or (58 if six else 1))]
    assert data in path.read_bytes()
