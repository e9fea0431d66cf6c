import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.ingest.link import LINKS, NO_TAG, Network
from tests.vectors.pcap import make

PACKET = make.PACKETS4[0]
TAG = bytes.fromhex("8100a064")


@pytest.mark.parametrize(
    ("link", "head", "tag"),
    [
        (1, make.MACS + b"\x08\x00", NO_TAG),
        (1, make.MACS + b"\x86\xdd", NO_TAG),
        (1, make.MACS + TAG + b"\x08\x00", 0xA064),
        (1, make.MACS + bytes.fromhex("91000001") + TAG * 7 + b"\x86\xdd", 1),
        (1, make.SNAP, NO_TAG),
        (12, b"", NO_TAG),
        (14, b"", NO_TAG),
        (113, make.SLL_HEAD + TAG + b"\x08\x00", 0xA064),
        (276, b"\x81\x00" + make.SLL2_HEAD + TAG[2:] + b"\x86\xdd", 0xA064),
        (0, b"\0\0\0\x1c", NO_TAG),
        (108, b"\0\0\0\x18", NO_TAG),
    ],
)
def test_where_the_packet_begins(link: int, head: bytes, tag: int) -> None:
    assert LINKS[link](head + PACKET) == Network(len(head), tag)


@pytest.mark.parametrize(
    ("link", "frame"),
    [
        (1, make.MACS + b"\x08\x06" + bytes(28)),
        (1, make.MACS + TAG * 9 + b"\x08\x00" + PACKET),
        (1, make.MACS + b"\x00\x30\x42\x42\x03" + bytes(45)),
        (113, make.SLL_HEAD + b"\x08\x06" + bytes(28)),
        (276, b"\x08\x06" + make.SLL2_HEAD + bytes(28)),
        (0, b"\x07\0\0\0" + PACKET),
    ],
)
def test_no_ip(link: int, frame: bytes) -> None:
    assert LINKS[link](frame) is None


@given(st.sampled_from(sorted(LINKS)), st.binary(max_size=60))
def test_any_bytes(link: int, frame: bytes) -> None:
    found = LINKS[link](frame)
    assert found is None or found.start <= 60
