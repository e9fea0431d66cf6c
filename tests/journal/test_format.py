"""The vectors, byte for byte: what the writer produces and what the reader makes of good and bad files."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import appliance.journal
from appliance.journal import MAX_PAYLOAD, FrameKind, JournalKey, Layout
from appliance.journal.format import (
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    TAG_BYTES,
    FrameHeader,
    SegmentHeader,
    SegmentSeal,
    frame_bytes,
)
from tests.vectors.journal import make

EXPECTED = json.loads((make.HERE / "expected.json").read_text())
HEADER = SegmentHeader(make.KEY.key_id, make.STREAM, 1, 1, 4096, b"\x01" * 16)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", sorted(make.CASES))
def test_writer_produces_the_vector(name: str, tmp_path: Path) -> None:
    make.CASES[name].make(tmp_path)
    (tmp_path / "lock").unlink()
    assert files(tmp_path) == files(make.HERE / name)


@pytest.mark.parametrize("name", sorted(make.CASES))
def test_reader_understands_the_vector(name: str) -> None:
    assert make.observe(make.HERE / name) == EXPECTED[name]["read"]


def test_every_vector_folder_is_a_case() -> None:
    assert {path.name for path in make.HERE.iterdir() if path.is_dir() and path.name[0] != "_"} == set(make.CASES)
    assert set(EXPECTED) == set(make.CASES)


def test_expectations_are_what_the_names_say() -> None:
    """`expected.json` is generated: these are the claims that it must not change silently."""

    def kinds(name: str) -> list[str]:
        return [" ".join(map(str, said[:3])) for said in EXPECTED[name]["read"]]

    assert kinds("ok_two_frames")[:2] == ["frame 1 OPEN", "frame 2 SPAN"]
    assert kinds("torn_tail") == ["frame 1 EVENT", "frame 2 EVENT", "frame 3 CLOSE", "end {'torn_tails': 1}"]
    for name in ("corrupt_middle", "corrupt_length", "replayed_frame"):
        assert kinds(name)[:3] == ["frame 1 EVENT", "damage 2 1", "frame 3 EVENT"], name
    for name in ("corrupt_segment_header", "missing_segment"):
        assert "damage 3 2" in kinds(name), name
    assert kinds("missing_first_segment")[0] == "damage 1 2"
    assert not any("damage" in said for said in kinds("stale_recycled"))
    assert [said[1] for said in EXPECTED["stale_recycled"]["read"][:-1]] == list(range(9, 18))
    assert kinds("wrong_version") == ["damage 1 None", "end {'torn_tails': 0}"]
    assert kinds("wrong_version_stream") == ["error MalformedInput"]
    assert kinds("wrong_key") == ["error DamagedEvidence"]


def test_specification_shows_the_bytes_of_the_vector() -> None:
    shown = bytes.fromhex(
        "".join(re.findall(r"^    ([0-9a-f]{32,64})$", appliance.journal.__doc__ or "", re.MULTILINE))
    )
    segment = (make.HERE / "ok_two_frames" / "0000000000000001.seg").read_bytes()
    assert shown == segment[:HEADER_BYTES] + segment[200:280]


def test_key_does_not_show_itself() -> None:
    assert "secret" not in repr(JournalKey(bytes(32)))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 4095, MAX_PAYLOAD])
def test_frame_is_padded_to_eight_with_zeros(length: int) -> None:
    into = bytearray(b"\xff" * (frame_bytes(length) + 8))
    size = SegmentSeal(make.KEY, HEADER).seal(
        memoryview(into), 1, FrameKind.SPAN, bytes(length), length=length, time_ns=0
    )
    end = FRAME_HEADER_BYTES + length + TAG_BYTES
    assert size == frame_bytes(length)
    assert size % 8 == 0
    assert into[end:size] == bytes(size - end)
    assert into[size:] == b"\xff" * 8


@given(st.data())
def test_any_changed_bit_is_noticed(data: st.DataObject) -> None:
    seal = SegmentSeal(make.KEY, HEADER)
    into = bytearray(frame_bytes(40))
    seal.seal(memoryview(into), 7, FrameKind.EVENT, b"e" * 40, length=40, time_ns=5, layout=Layout.RING)
    bit = data.draw(st.integers(0, (FRAME_HEADER_BYTES + 40 + TAG_BYTES) * 8 - 1))
    into[bit // 8] ^= 1 << bit % 8
    header = FrameHeader.parse(bytes(into[:FRAME_HEADER_BYTES]), seal.mark)
    if header is not None:
        assert seal.open(header, into[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + header.length + TAG_BYTES]) is None


@given(st.integers(0, HEADER_BYTES * 8 - 1))
def test_any_changed_bit_of_the_segment_header_is_noticed(bit: int) -> None:
    raw = bytearray(SegmentSeal(make.KEY, HEADER).header_bytes())
    raw[bit // 8] ^= 1 << bit % 8
    if 8 * 8 <= bit < 10 * 8:
        return  # the version: an error of its own, see the vector wrong_version
    header = SegmentHeader.parse(bytes(raw))
    assert header is None or not SegmentSeal(make.KEY, header).header_is_authentic(bytes(raw))
