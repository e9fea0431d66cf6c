"""HPACK: the examples of RFC 7541 appendix C, what the `hpack` package encodes, and credentials."""

import pickle

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dissect.http2_hpack import MAX_LIST, MAX_REPEATED, MAX_TABLE, UNKNOWN, Decoder

Fields = list[tuple[str, str]]
FIRST: Fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")]
SECOND: Fields = [*FIRST, ("cache-control", "no-cache")]
THIRD: Fields = [
    (":method", "GET"), (":scheme", "https"), (":path", "/index.html"), (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
]  # fmt: skip
REQUESTS = {  # C.3 and C.4: the same without and with Huffman coding
    "plain": (
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ),
    "huffman": (
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_examples_of_the_rfc(name: str) -> None:
    decoder = Decoder()
    for block, fields in zip(REQUESTS[name], (FIRST, SECOND, THIRD), strict=True):
        data = bytes.fromhex(block)
        read = decoder.decode(data)
        assert (read.fields, read.unread, read.secrets) == (fields, len(data), [])
    assert decoder.size == 164


FIELDS = st.lists(
    st.tuples(
        st.sampled_from(["x", "accept", "authorization", "x-api-key", "cookie", ":path", "x-long-name-that-is-new"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(FIELDS, max_size=6), st.booleans(), st.sampled_from([0, 60, 200, 4096]))
def test_what_a_real_encoder_says(blocks: list[list[tuple[str, str, bool]]], huffman: bool, table: int) -> None:
    encoder, decoder, oracle = hpack.Encoder(), Decoder(), hpack.Decoder()
    encoder.header_table_size = table
    for fields in blocks:
        data = encoder.encode(fields, huffman=huffman)
        oracle.decode(data)
        read = decoder.decode(data)
        assert read.unread == len(data)
        assert not read.unknown
        for (name, value), (sent, meant, _) in zip(read.fields, fields, strict=True):
            assert (name, len(value)) == (sent, len(meant))
            if name in ("authorization", "x-api-key"):
                assert set(value.rpartition(" ")[2]) <= {"*"}
            else:
                assert value == meant
        assert decoder.size == oracle.header_table._current_size
    pickle.loads(pickle.dumps(decoder))


@settings(max_examples=400)
@given(st.binary(max_size=120))
def test_anything(data: bytes) -> None:
    decoder = Decoder()
    for _ in range(2):
        read = decoder.decode(data)
        assert 0 <= read.unread <= len(data)
        assert all(0 <= start < end <= len(data) for start, end, _ in read.secrets)
        assert decoder.size <= 4096


class TestLost:
    def test_what_comes_after_is_known_again(self) -> None:
        encoder, decoder = hpack.Encoder(), Decoder()
        decoder.decode(encoder.encode([("x-seen", "1")]))
        encoder.encode([("x-unseen", "2")])
        decoder.lose()
        read = decoder.decode(
            encoder.encode([("x-seen", "1"), ("x-unseen", "2"), ("x-new", "3"), ("x-unseen", "other")])
        )
        assert read.unknown
        assert read.fields == [("x-new", "3"), (UNKNOWN, "*****")]
        again = decoder.decode(encoder.encode([("x-new", "3")]))
        assert (again.fields, again.unknown) == ([("x-new", "3")], False)

    def test_a_value_without_a_name_is_a_credential(self) -> None:
        encoder, decoder = hpack.Encoder(), Decoder()
        encoder.encode([("x-api-key", "first")], huffman=False)
        decoder.lose()
        data = encoder.encode([("x-api-key", "second")], huffman=False)
        ((start, end, _),) = decoder.decode(data).secrets
        assert data[start:end] == b"second"

    def test_an_index_past_the_table(self) -> None:
        assert Decoder().decode(b"\x82\xbe").unread == 1


class TestBounds:
    def test_list(self) -> None:
        data = b"".join(b"\x00\x01x\x7f\x81\x07" + b"v" * 1024 for _ in range(1000))
        read = Decoder().decode(data)
        assert read.truncated
        assert sum(len(name) + len(value) + 32 for name, value in read.fields) <= MAX_LIST

    def test_repeated_entries(self) -> None:
        read = Decoder().decode(b"\x40\x01x\x7f\x81\x07" + b"v" * 1024 + b"\xbe" * 10_000)
        assert read.truncated
        assert len(read.fields) <= 1 + MAX_REPEATED // 1000

    def test_table(self) -> None:
        decoder = Decoder()
        decoder.decode(b"\x3f\xe1\xff\xff\x07")  # 16 MiB
        for _ in range(200):
            decoder.decode(b"\x40\x01x\x7f\x81\x07" + b"v" * 1024)
        assert decoder.size <= MAX_TABLE
        assert decoder.decode(b"\xff\x20").unknown  # the peers may still have it

    @pytest.mark.parametrize(
        "data", [b"\xff\xff\xff\xff\xff\xff\x01", b"\x40\x01x\x7f\xff\xff\xff\xff\xff\x00", b"\x40\x05x", b"\x40"]
    )
    def test_integers_and_strings(self, data: bytes) -> None:
        assert Decoder().decode(data).unread == 0
