"""What of a capture is in the journal, and that it is the same every time."""

from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP

from appliance.errors import MalformedInput
from appliance.ingest import spans
from appliance.journal import PLAIN, FrameKind
from appliance.model import Identity
from appliance.session.assembler import Assembler
from appliance.wire.abi import RECORD_F_FRAGMENT
from tests.ingest.captures import conversation, events, file, journal, packets, said
from tests.vectors.pcap import make


def test_frames_of_a_file(tmp_path: Path) -> None:
    who = Identity("i", "s", act=("a",), groups=("g", "h"), method="ingest")
    summary, found = journal(make.HERE / "ok_nano.pcap", tmp_path / "j", who)
    assert [frame.kind for frame in found] == [FrameKind.OPEN, FrameKind.CLOCK, FrameKind.SPAN, FrameKind.CLOSE]
    (opening,) = said(found, FrameKind.OPEN)
    assert (opening["node"], opening["source"], opening["boot"]) == ("gateway", "ingest:ok_nano.pcap", "")
    assert opening["identity"] | {"act": ["a"], "groups": ["g", "h"], "method": "ingest"} == opening["identity"]
    assert found[1].payload == bytes(16)
    assert (found[2].layout, found[2].ring_start, found[2].ring_end) == (PLAIN, 0, 0)
    assert [frame.time_ns for frame in found] == [make.TIMES[0], make.TIMES[0], make.TIMES[1], make.TIMES[1]]
    assert (summary.packets, summary.captured) == (2, sum(map(len, make.FRAMES)))
    assert summary.stream == b"s".hex() * 16


def test_same_frames_every_time(tmp_path: Path) -> None:
    capture = file(tmp_path, *conversation(40000, bytes(200_000), bytes(900_000)), link=make.RAW)
    first, second = journal(capture, tmp_path / "a")[1], journal(capture, tmp_path / "b")[1]
    assert first == second
    assert len(first) > 5


def test_spans_are_of_a_moderate_size(tmp_path: Path) -> None:
    big = [bytes(IP(src="10.0.0.1", dst="10.0.0.2") / UDP(dport=53) / bytes(60_000)) for _ in range(40)]
    _, found = journal(file(tmp_path, *big, link=make.RAW), tmp_path / "j")
    sizes = [len(frame.payload) for frame in found if frame.kind is FrameKind.SPAN]
    assert len(packets(found)) == 40
    assert all(spans.SPAN <= size < spans.SPAN + 61_000 for size in sizes[:-1])


def test_no_packets(tmp_path: Path) -> None:
    summary, found = journal(make.HERE / "no_packets.pcap", tmp_path / "j")
    assert [frame.kind for frame in found] == [FrameKind.OPEN, FrameKind.CLOCK, FrameKind.CLOSE]
    assert summary.packets == 0


def test_noise_is_counted_by_reason(tmp_path: Path) -> None:
    summary, found = journal(make.HERE / "noise.pcapng", tmp_path / "j")
    assert summary.packets == 0
    assert summary.skipped == {"malformed": 3, "not IP": 1, "too few bytes captured": 1}
    assert events(found)["packets-skipped"]["counts"] == summary.skipped
    assert "5 packets" in events(found)["packets-skipped"]["text"]
    assert "not recorded: 3 malformed" in summary.sentence()


def test_packets_of_unknown_interfaces_are_counted(tmp_path: Path) -> None:
    summary, _ = journal(make.HERE / "unknown_interface.pcapng", tmp_path / "j")
    assert (summary.packets, summary.skipped) == (1, {"malformed": 1})


def test_end_of_a_cut_file_is_told(tmp_path: Path) -> None:
    summary, found = journal(make.HERE / "truncated_packet.pcap", tmp_path / "j")
    assert summary.packets == 2
    event = events(found)["capture-truncated"]
    assert event["offset"] == (make.HERE / "truncated_packet.pcap").stat().st_size
    assert summary.fault in event["text"]
    assert "not read to the end" in summary.sentence()
    (_, (cut, data)) = packets(found)
    assert (cut.payload, data[cut.header :]) == (5, b"he")


def test_link_type_that_is_not_known(tmp_path: Path) -> None:
    with pytest.raises(MalformedInput, match=r"link type 105 is not supported.*editcap"):
        journal(make.HERE / "wireless.pcap", tmp_path / "j")


def test_known_link_types_beside_an_unknown_one(tmp_path: Path) -> None:
    path = tmp_path / "both.pcapng"
    blocks = make.interface(105), make.interface(make.RAW), make.enhanced(b"x" * 50, 0, 0)
    path.write_bytes(make.section() + b"".join(blocks) + make.enhanced(make.PACKETS4[0], 0, 1))
    summary, found = journal(path, tmp_path / "j")
    assert (summary.packets, summary.skipped) == (1, {"link type not supported": 1})
    assert events(found)["packets-skipped"]["link_types"] == {"105": 1}


def test_fragments_become_whole_in_the_session_stage(tmp_path: Path) -> None:
    from appliance.config import Record
    from appliance.model import ChunkRow

    _, found = journal(make.HERE / "fragments.pcapng", tmp_path / "j")
    assert [bool(record.flags & RECORD_F_FRAGMENT) for record, _ in packets(found)] == [False, True, True]
    machine = Assembler(b"s" * 16, Record(), "gateway")
    rows = [row for frame in found for row in machine.feed(frame)]
    assert b"".join(row.data for row in rows if isinstance(row, ChunkRow)) == b"hello"
