import gzip
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from appliance.dissect.http1 import Http1
from appliance.dissect.http_body import MAX_CODINGS, MAX_DECODED, MAX_MEMBERS, codings, decode, media_type, text_of
from appliance.dissect.http_message import MAX_BODY
from tests.dissect.harness import C, S, assert_any_cut, play

Encode = Callable[[bytes], bytes]


def bare_deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


ENCODERS: list[tuple[str, Encode]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", bare_deflate),
    ("br", brotli.compress),
    ("zstd", zstandard.compress),
]


@pytest.mark.parametrize(("name", "encode"), ENCODERS)
class TestCodings:
    def test_whole(self, name: str, encode: Encode) -> None:
        data = b"".join(b"line %d\n" % number for number in range(5000))
        assert decode(encode(data), [name], whole=True) == decode(data, [], whole=True)

    def test_short(self, name: str, encode: Encode) -> None:
        data = b"".join(b"line %d\n" % number for number in range(50000))
        short = decode(encode(data)[:-20], [name], whole=True)
        assert short.flags == ("truncated",)
        assert data.startswith(short.data)

    def test_bomb(self, name: str, encode: Encode) -> None:
        bomb = decode(encode(bytes(64 * MAX_DECODED)), [name], whole=True)
        assert bomb.flags == ("truncated",)
        assert 0 < len(bomb.data) <= MAX_DECODED

    def test_broken(self, name: str, encode: Encode) -> None:
        assert decode(b"\xff\xfe" + encode(b"data"), [name], whole=True).flags == ("undecoded",)

    def test_in_a_response(self, name: str, encode: Encode) -> None:
        body = encode("gefunden: größer\n".encode() * 20)
        fields = f"Content-Type: text/plain\r\nContent-Encoding: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
        answer = f"HTTP/1.1 200 OK\r\n{fields}".encode() + body
        played = assert_any_cut(Http1, [(S, answer)])
        (response,) = played.messages
        assert response.text.count("gefunden: größer") == 20
        assert (response.attrs["encoding"], response.attrs["body_bytes"], response.flags) == (name, len(body), ())


def test_several_codings() -> None:
    body = gzip.compress(brotli.compress(b"twice"))
    assert decode(body, codings("br, identity, GZIP"), whole=True).data == b"twice"
    assert decode(b"x", ["gzip"] * (MAX_CODINGS + 1), whole=True).flags == ("undecoded",)
    assert decode(b"x", ["rot13"], whole=True).flags == ("undecoded",)


@pytest.mark.parametrize(("name", "encode"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
def test_several_members(name: str, encode: Encode) -> None:
    assert decode(encode(b"one") + encode(b"two"), [name], whole=True).data == b"onetwo"
    many = decode(encode(b"x") * (MAX_MEMBERS + 50), [name], whole=True)
    assert len(many.data) >= MAX_MEMBERS
    assert many.flags == ("truncated",)


def test_a_bomb_in_a_bomb_is_cut_at_both() -> None:
    body = gzip.compress(gzip.compress(bytes(1 << 26)))
    assert len(decode(body, ["gzip", "gzip"], whole=True).data) <= MAX_DECODED


@pytest.mark.parametrize(
    ("field", "data", "text"),
    [
        ("text/plain", b"h\xc3\xa9", "hé"),
        ("text/html; charset=ISO-8859-1", b"h\xe9", "hé"),
        ('application/json; charset="utf-16le"', "hé".encode("utf-16-le"), "hé"),
        ("text/plain; charset=punycode", b"abc-", "abc-"),
        ("text/plain; charset=zip", b"abc", "abc"),
        ("text/plain; charset=windows-9999", b"abc", "abc"),
        ("application/vnd.api+json", b"{}", "{}"),
        ("application/xml", b"\xef\xbb\xbf<a/>", "<a/>"),
        ("image/svg+xml", b"<svg/>", "<svg/>"),
        ("image/png", b"looks like text", None),
        ("application/octet-stream", b"is text", "is text"),
        ("application/octet-stream", b"\x00\x01", None),
        ("", b"\xff\xd8\xff", None),
        ("", "cut in a character é".encode()[:-1], "cut in a character "),
        ("nonsense", b"text", "text"),
    ],
)
def test_text(field: str, data: bytes, text: str | None) -> None:
    assert text_of(data, media_type(field)) == text


def test_multipart() -> None:
    body = (
        b"preamble\r\n--B\r\nContent-Disposition: form-data; name=note\r\n\r\nhello\r\n"
        b"--B\r\nContent-Type: image/png\r\n\r\n\x89PNG....\r\n--B--\r\nepilogue"
    )
    text = text_of(body, media_type('multipart/form-data; boundary="B"'))
    assert text == ("Content-Disposition: form-data; name=note\n\nhello\nContent-Type: image/png\n\n[8 bytes]")


def test_binary_body_is_not_text() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 8\r\n\r\n\x89PNGdata"
    (response,) = play(Http1, [(S, answer)]).messages
    assert "PNG" not in response.text
    assert response.attrs["sha256"]


def test_long_encoded_body_is_read_as_far_as_kept() -> None:
    data = b"".join(b"%d %d\n" % (number, number * 7919 % 104729) for number in range(400_000))
    body = zlib.compress(data, 0)
    assert len(body) > MAX_BODY
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n"
    (response,) = play(Http1, [(S, answer % len(body) + body)], split=65536).messages
    assert "truncated" in response.flags
    assert f"\n1000 {1000 * 7919 % 104729}\n" in response.text


@given(
    st.binary(max_size=200), st.lists(st.sampled_from(["gzip", "deflate", "br", "zstd", "x"]), max_size=3), st.text()
)
def test_any(data: bytes, names: list[str], field: str) -> None:
    read = decode(data, names, whole=True)
    text_of(read.data, media_type(field))
    text_of(data, media_type(f"multipart/mixed; boundary={field}"))
    play(Http1, [(C, data)])
