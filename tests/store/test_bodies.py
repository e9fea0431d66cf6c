import gzip
import io
import os
import zlib
from collections.abc import Callable

import lz4.frame
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedInput, Refused, VerbatimError
from appliance.store import bodies

LIMIT = 1 << 20
BLOCKS = [os.urandom(1000), b"", b"a" * 100_000, b"end"]
CODECS: dict[str, Callable[[bytes], bytes]] = {
    "lz4": lz4.frame.compress,
    "zstd": zstd.compress,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
}


@pytest.mark.parametrize("encoding", CODECS)
def test_all_frames_are_decoded(encoding: str) -> None:
    """Decoding the first frame alone loses rows without an error."""
    packed = b"".join(CODECS[encoding](block) for block in BLOCKS)
    assert bodies.decode(packed, encoding, LIMIT) == b"".join(BLOCKS)
    assert bodies.decode(packed, encoding.upper(), LIMIT) == b"".join(BLOCKS)


@pytest.mark.parametrize("encoding", CODECS)
def test_a_body_that_unpacks_beyond_the_limit_is_refused(encoding: str) -> None:
    with pytest.raises(Refused, match="larger than 1048576 bytes when unpacked"):
        bodies.decode(CODECS[encoding](bytes(50 * LIMIT)), encoding, LIMIT)
    assert len(bodies.decode(CODECS[encoding](bytes(LIMIT)), encoding, LIMIT)) == LIMIT


@pytest.mark.parametrize("encoding", CODECS)
def test_a_body_cut_anywhere_is_malformed(encoding: str) -> None:
    packed = CODECS[encoding](b"some text that is packed " * 10)
    for cut in range(1, len(packed)):
        with pytest.raises(MalformedInput, match="compressed body"):
            bodies.decode(packed[:cut], encoding, LIMIT)


@given(st.sampled_from(list(CODECS)), st.binary(max_size=200))
def test_garbage_is_ours_to_refuse(encoding: str, body: bytes) -> None:
    try:
        bodies.decode(body, encoding, LIMIT)
    except VerbatimError:
        return


def test_plain_and_unknown_encodings() -> None:
    assert bodies.decode(b"x", "", LIMIT) == bodies.decode(b"x", "identity", LIMIT) == b"x"
    with pytest.raises(Refused, match="none of lz4"):
        bodies.decode(b"x", "br", LIMIT)


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n", b"abc0123456789"),
    ],
)
def test_chunks(sent: bytes, body: bytes) -> None:
    stream = io.BytesIO(sent + b"next")
    assert bodies.read(stream, None, "Chunked", LIMIT) == body
    assert stream.read() == b"next"


@pytest.mark.parametrize(
    "sent", [b"", b"x\r\n", b"-1\r\n", b"3\r\nab", b"3\r\nabcd\r\n0\r\n\r\n", b"3" * 100, b"3\r\nabc\r\n"]
)
def test_broken_chunks_are_malformed(sent: bytes) -> None:
    with pytest.raises(MalformedInput, match="chunk of the body"):
        bodies.read(io.BytesIO(sent), None, "chunked", LIMIT)


def test_length() -> None:
    assert bodies.read(io.BytesIO(b"abcdef"), "3", "", LIMIT) == b"abc"
    assert bodies.read(io.BytesIO(b"abc"), None, "", LIMIT) == b""
    for length, error in (("4", MalformedInput), ("-1", MalformedInput), ("x", MalformedInput), ("9999999", Refused)):
        with pytest.raises(error):
            bodies.read(io.BytesIO(b"abc"), length, "", LIMIT)
    with pytest.raises(Refused):
        bodies.read(io.BytesIO(b"ffffff\r\n"), None, "chunked", LIMIT)


def test_form() -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\nSELECT\r\n1\r\n'
        b'--b\r\nContent-Disposition: form-data; name="param_x"\r\n\r\n\xc3\xa4\r\n--b--\r\n'
    )
    assert bodies.form(body, 'multipart/form-data; boundary="b"') == {"query": "SELECT\r\n1", "param_x": "ä"}
    for cut in range(len(body) - 4):
        with pytest.raises(MalformedInput, match="form"):
            bodies.form(body[:cut], "multipart/form-data; boundary=b")
    with pytest.raises(MalformedInput, match="no boundary"):
        bodies.form(body, "multipart/form-data")
