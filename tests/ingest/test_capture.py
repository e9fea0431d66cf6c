"""The capture vectors, judged by what they were made from and by tshark."""

import shutil
import struct
import subprocess
from pathlib import Path

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import MalformedInput
from appliance.ingest.capture import MAX_PACKET, Capture
from appliance.wire.abi import pack_address, unpack_address
from tests.ingest.captures import events, journal, packets
from tests.vectors.pcap import make

OK = sorted(name for name in make.CASES if name.startswith("ok_"))


def read(path: Path) -> tuple[list[bytes], str]:
    with Capture(path) as capture:
        return [packet.data for packet in capture], capture.fault


@pytest.mark.parametrize("name", sorted(make.CASES))
def test_vector_is_what_the_script_makes(name: str) -> None:
    assert (make.HERE / name).read_bytes() == make.CASES[name].data


def test_no_vector_is_left_over() -> None:
    assert {path.name for path in make.HERE.glob("*.pcap*")} == set(make.CASES)


@pytest.mark.parametrize("name", OK)
def test_the_same_two_packets(name: str, tmp_path: Path) -> None:
    summary, found = journal(make.HERE / name, tmp_path / "j")
    (syn, syn_bytes), (data, data_bytes) = packets(found)
    assert (summary.packets, summary.skipped, summary.fault) == (2, {}, "")
    unit = make.CASES[name].unit
    for record, time in zip((syn, data), make.TIMES, strict=True):
        assert abs(record.time - time) < max(unit, 2)
        assert (record.source_port, record.destination_port) == (40000, 5432)
        assert unpack_address(record.source) in ("10.0.0.1", "fd00::1")
        assert unpack_address(record.destination) in ("10.0.0.2", "fd00::2")
        assert record.family == (4 if record.source[:12] == pack_address("10.0.0.1")[:12] else 6)
        assert (record.protocol, record.window) == (6, 64240)
    assert (syn.seq, syn.tcp_flags, syn.payload) == (1000, 2, 0)
    assert (data.seq, data.tcp_flags, data.payload) == (1001, 0x18, 5)
    assert data_bytes[data.header :] == b"hello"
    assert len(syn_bytes) == syn.length == syn.header


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
@pytest.mark.parametrize("name", OK)
def test_tshark_reads_the_same(name: str, tmp_path: Path) -> None:
    fields = ("frame.time_epoch", "tcp.srcport", "tcp.dstport", "tcp.seq_raw", "tcp.len")
    options = [part for field in fields for part in ("-e", field)]
    run = subprocess.run(
        ["tshark", "-n", "-r", str(make.HERE / name), "-T", "fields", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    told = [line.split("\t") for line in run.stdout.splitlines()]
    _, found = journal(make.HERE / name, tmp_path / "j")
    ours = [
        [f"{r.time // 10**9}.{r.time % 10**9:09}", *map(str, (r.source_port, r.destination_port, r.seq, r.payload))]
        for r, _ in packets(found)
    ]
    assert ours == told


@pytest.mark.parametrize(
    ("name", "expected", "fault"),
    [
        ("truncated_packet.pcap", [make.FRAMES[0], make.FRAMES[1][:-3]], "ends in the middle of the record"),
        ("truncated_header.pcap", [make.FRAMES[0]], "ends in the middle of the record"),
        ("truncated_block.pcapng", [make.FRAMES[0], make.FRAMES[1][:-2]], "ends in the middle of the block"),
        ("absurd_length.pcap", list(make.FRAMES), "claims 2147483648 bytes"),
        ("bad_block_end.pcapng", [make.FRAMES[0]], "does not end where it should"),
        ("unknown_interface.pcapng", [make.FRAMES[1]], ""),
        ("no_packets.pcap", [], ""),
    ],
)
def test_broken_file_gives_what_is_there(name: str, expected: list[bytes], fault: str) -> None:
    found, said = read(make.HERE / name)
    assert found == expected
    assert fault in said
    assert bool(fault) == bool(said)


def test_packets_without_times_get_those_before(tmp_path: Path) -> None:
    _, found = journal(make.HERE / "simple_blocks.pcapng", tmp_path / "j")
    assert [record.time for record, _ in packets(found)] == [0, 0]
    assert events(found)["packets-untimed"]["packets"] == 2


def test_dropped_packets_are_told(tmp_path: Path) -> None:
    summary, found = journal(make.HERE / "ok_drops.pcapng", tmp_path / "j")
    assert summary.lost == events(found)["capture-lost"]["packets"] == 5


def test_drops_of_interfaces_that_are_none_are_not_remembered(tmp_path: Path) -> None:
    """Each would take memory for as long as the file goes on."""
    path = tmp_path / "drops.pcapng"
    option = make.option(5, (9).to_bytes(8, "little")) + make.option(0, b"")
    strange = b"".join(make.block(5, struct.pack("<III", number, 0, 0) + option) for number in range(1, 100))
    path.write_bytes(make.section() + make.interface() + strange)
    with Capture(path) as capture:
        assert list(capture) == []
        assert (capture.lost, capture.fault) == (0, "")


def test_simple_blocks_are_cut_at_the_snap_length(tmp_path: Path) -> None:
    path = tmp_path / "snap.pcapng"
    frame = make.FRAMES[1]
    body = len(frame).to_bytes(4, "little") + frame[:56]
    path.write_bytes(make.section() + make.interface(snap=56) + make.block(3, body))
    with Capture(path) as capture:
        (packet,) = capture
    assert (packet.data, packet.wire) == (frame[:56], len(frame))


def test_time_stays_within_64_bits(tmp_path: Path) -> None:
    path = tmp_path / "far.pcapng"
    seconds = make.option(9, b"\x00") + make.option(14, (-1).to_bytes(8, "little", signed=True))
    blocks = [make.enhanced(make.FRAMES[0], ticks) for ticks in (2**64 - 1, 0, 5)]
    path.write_bytes(make.section() + make.interface(options=seconds) + b"".join(blocks))
    with Capture(path) as capture:
        assert [packet.time_ns for packet in capture] == [2**63 - 1, 0, 4 * 10**9]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"GET / HTTP/1.1\r\n", "neither pcap nor pcapng"),
        (b"\x1f\x8b\x08" + bytes(40), "gzip; unpack it first"),
        (b"\x28\xb5\x2f\xfd" + bytes(40), "zstd; unpack it first"),
        (make.pcap(make.FRAMES)[:20], "ends within its header"),
        (make.section()[:10], "broken section header"),
        (bytes(100), "neither pcap nor pcapng"),
    ],
)
def test_no_capture_file(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "what.pcap"
    path.write_bytes(content)
    with pytest.raises(MalformedInput, match=reason) as caught:
        Capture(path)
    assert str(path) in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput, match="no such file"):
        Capture(tmp_path / "absent")
    with pytest.raises(MalformedInput, match="a folder"):
        Capture(tmp_path)


def test_other_pcapng_version_is_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "v2.pcapng"
    path.write_bytes(make.section(major=2) + make.interface() + make.enhanced(make.FRAMES[0], 0))
    found, fault = read(path)
    assert (found, "another pcapng version" in fault) == ([], True)


def test_blocks_of_absurd_size_are_not_read_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.pcapng"
    for kind in (1, 6):
        path.write_bytes(make.section() + kind.to_bytes(4, "little") + (2**32 - 4).to_bytes(4, "little") + bytes(1000))
        assert "claims 4294967292 bytes" in read(path)[1]
    path.write_bytes(make.section() + make.block(0xBAD, bytes(3 * 2**20)) + make.interface())
    assert read(path) == ([], ""), "blocks that nobody needs may be long"


def test_reads_what_dpkt_writes(tmp_path: Path) -> None:
    path = tmp_path / "dpkt.pcap"
    with path.open("wb") as file:
        writer = dpkt.pcap.Writer(file, nano=True)
        for frame in make.FRAMES:
            writer.writepkt(frame, ts=12.5)
    assert read(path) == (list(make.FRAMES), "")
    path = tmp_path / "dpkt.pcapng"
    with path.open("wb") as file:
        section = dpkt.pcapng.SectionHeaderBlockLE(opts=[dpkt.pcapng.PcapngOptionLE(code=0)])
        interface = dpkt.pcapng.InterfaceDescriptionBlockLE(snaplen=2**16, opts=[dpkt.pcapng.PcapngOptionLE(code=0)])
        ng = dpkt.pcapng.Writer(file, shb=section, idb=interface)
        for frame in make.FRAMES:
            ng.writepkt(frame, ts=12.5)
    with Capture(path) as capture:
        assert [(packet.data, packet.time_ns) for packet in capture] == [(f, 12_500_000_000) for f in make.FRAMES]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(make.CASES)), st.integers(0), st.binary(max_size=40), st.booleans())
def test_never_raises_on_what_it_reads(
    tmp_path_factory: pytest.TempPathFactory, name: str, at: int, noise: bytes, cut: bool
) -> None:
    """Any part replaced, or cut off: packets or a fault, or `MalformedInput` for the very first bytes."""
    data = make.CASES[name].data
    at %= len(data)
    path = tmp_path_factory.getbasetemp() / "noise.pcap"
    path.write_bytes(data[:at] + noise + (b"" if cut else data[at + len(noise) :]))
    try:
        found, _ = read(path)
    except MalformedInput:
        assert at < 24
    else:
        assert all(len(frame) <= MAX_PACKET for frame in found)
