"""TLS against OpenSSL's own handshakes (conftest.py) and hand-made records; JA4 against FoxIO's published values."""

import hashlib
import ssl
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dissect import Match
from appliance.dissect.tls import MAX_HANDSHAKE, MAX_RECORD, Tls
from appliance.dissect.tls_hello import (
    HELLO_RETRY,
    ClientHello,
    Malformed,
    is_grease,
    ja4,
    parse_certificate,
    parse_client_hello,
    parse_server_hello,
)
from tests.dissect.conftest import Handshake
from tests.dissect.harness import C, Gap, S, Turn, assert_any_cut, assert_survives, assert_truncated, play

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part, 16) for part in text.split(","))


# the worked example of FoxIO's JA4.md, with GREASE put in
CHROME = ClientHello(
    version=0x0303,
    ciphers=numbers("5a5a,1301,1302,1303,c02b,c02f,c02c,c030,cca9,cca8,c013,c014,009c,009d,002f,0035"),
    extensions=numbers("1a1a,001b,0000,0033,0010,4469,0017,002d,000d,0005,0023,0012,002b,ff01,000b,000a,0015"),
    sni="a.example",
    alpn=(b"h2", b"http/1.1"),
    versions=numbers("8a8a,0304,0303"),
    signatures=numbers("0403,0804,0401,0503,0805,0501,0806,0601"),
)


class TestJa4:
    def test_published_example(self) -> None:
        assert ja4(CHROME) == "t13d1516h2_8daaf6152771_e5627efa2ab1"

    def test_published_hash_without_signatures(self) -> None:
        assert ja4(replace(CHROME, signatures=())).split("_")[2] == "6d807ffa2a79"

    @pytest.mark.parametrize(
        ("alpn", "said"),
        [
            ((), "00"),
            ((b"",), "00"),
            ((b"h2",), "h2"),
            ((b"http/1.1",), "h1"),
            ((b"x",), "xx"),
            ((b"\xab",), "ab"),
            ((b"\xab\xcd",), "ad"),
            ((b"\x30\xab",), "3b"),
            ((b"\x30\x31\xab\xcd",), "3d"),
            ((b"\x30\xab\xcd\x31",), "01"),
        ],
    )
    def test_published_alpn_examples(self, alpn: tuple[bytes, ...], said: str) -> None:
        assert ja4(replace(CHROME, alpn=alpn))[8:10] == said

    @pytest.mark.parametrize(
        ("change", "start"),
        [
            ({"versions": ()}, "t12d"),
            ({"versions": (), "version": 0x0300}, "ts3d"),
            ({"versions": (0x9999,)}, "t00d"),
            ({"extensions": (0x002B,)}, "t13i1501"),
            ({"ciphers": tuple(range(0x100, 0x1A0))}, "t13d99"),
        ],
    )
    def test_first_part(self, change: dict[str, Any], start: str) -> None:
        assert ja4(replace(CHROME, **change)).startswith(start)

    def test_nothing_to_hash(self) -> None:
        assert ja4(replace(CHROME, ciphers=(), extensions=(0, 16))) == "t13d0002h2_000000000000_000000000000"

    def test_grease(self) -> None:
        assert [number for number in range(65536) if is_grease(number)] == [0x0A0A + 0x1010 * n for n in range(16)]


class TestHandshakes:
    def test_tls13(self, handshake: Handshake) -> None:
        turns = handshake(TLS13)
        played = assert_any_cut(Tls, turns, step=11)
        assert played.kinds() == ["client_hello", "server_hello"]
        hello, answer = played.messages
        attrs = played.dissector.attrs
        assert (attrs["sni"], attrs["version"], attrs["cipher"]) == ("a.example", "TLS 1.3", "TLS_AES_256_GCM_SHA384")
        assert attrs["alpn_offered"] == ["h2", "http/1.1"]
        assert attrs["versions_offered"] == ["TLS 1.3", "TLS 1.2"]
        assert attrs["ech"] is False
        assert attrs["ja4"].startswith("t13d")
        assert attrs["ja4"][8:10] == "h2"
        assert "alpn" not in attrs
        assert played.dissector.opaque
        assert played.bytes_of(hello) == bytes(played.streams[C][5 : hello.end])
        assert played.bytes_of(hello)[0] == 1
        assert int.from_bytes(played.bytes_of(hello)[1:4]) == len(played.bytes_of(hello)) - 4
        assert answer.reply_to == hello.start
        assert attrs["records"] == {
            "client": count_records(played.streams[C]),
            "server": count_records(played.streams[S]),
        }
        assert_truncated(Tls, turns, step=13)

    def test_tls12(self, handshake: Handshake) -> None:
        turns = handshake(TLS12)
        played = assert_any_cut(Tls, turns, step=11)
        assert played.kinds() == ["client_hello", "server_hello", "certificate"]
        attrs = played.dissector.attrs
        assert (attrs["version"], attrs["alpn"]) == ("TLS 1.2", "http/1.1")
        assert attrs["cipher"] == "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
        assert attrs["certificate"]["subject"] == "CN=a.example"
        assert attrs["certificate"]["names"] == ["a.example", "b.example"]
        assert attrs["certificate"]["not_before"] == "2020-01-01T00:00:00+00:00"
        certificate = played.messages[2]
        der = played.bytes_of(certificate)[10:]
        assert attrs["certificate"]["sha256"] == hashlib.sha256(der).hexdigest()
        assert "b.example" in certificate.text
        assert played.dissector.opaque
        assert attrs["records"] == {
            "client": count_records(played.streams[C]),
            "server": count_records(played.streams[S]),
        }

    def test_hello_retry_request(self, handshake: Handshake) -> None:
        played = assert_any_cut(Tls, handshake(TLS13, groups="secp384r1"), step=17)
        assert played.kinds() == ["client_hello", "server_hello", "client_hello", "server_hello"]
        first, retry, second, answer = played.messages
        assert retry.attrs["retry"] is played.dissector.attrs["retry"] is True
        assert "retry" not in answer.attrs
        assert (retry.reply_to, answer.reply_to) == (first.start, second.start)
        assert played.dissector.opaque

    def test_no_name(self, handshake: Handshake) -> None:
        attrs = play(Tls, handshake(TLS13, alpn=(), name="")).dissector.attrs
        assert (attrs["sni"], attrs["alpn_offered"]) == ("", [])
        assert attrs["ja4"][3] == "i"

    def test_not_opaque_before_an_answer(self, client_hello: bytes) -> None:
        turns: list[Turn] = [(C, client_hello), (S, b"\x15\x03\x03\x00\x02\x02\x28")]
        played = assert_any_cut(Tls, turns, step=7)
        assert not played.dissector.opaque
        alert = played.messages[1]
        assert alert.attrs == {"level": "fatal", "description": "handshake_failure"}
        assert played.bytes_of(alert) == b"\x02\x28"

    def test_fragmented_and_joined(self, handshake: Handshake) -> None:
        """Handshake messages cut into records of 50 bytes, then all of a flight in one record."""
        turns = [(whose, data) for whose, data in handshake(TLS12) if isinstance(data, bytes)]
        whole = play(Tls, list(turns))
        hello, flight = turns[0][1][5:], b"".join(bodies(turns[1][1]))
        pieces = b"".join(record(22, hello[place : place + 50]) for place in range(0, len(hello), 50))
        played = assert_any_cut(Tls, [(C, pieces), (S, record(22, flight))], step=9)
        assert [m.attrs for m in played.messages] == [m.attrs for m in whole.messages]
        assert (played.messages[0].start, played.messages[0].end) == (5, len(pieces))
        assert played.messages[2].start == played.messages[1].end

    def test_settled_at_once(self, handshake: Handshake) -> None:
        tls = Tls(10, 20)
        tls.receive(C, b"\x16\x03", 1)
        assert (tls.settled(C), tls.settled(S)) == (12, 20)


class TestBroken:
    def test_record_that_is_none(self) -> None:
        tls = Tls()
        (said,) = tls.receive(C, b"GET / HTTP/1.1", 1)
        assert said.start == 0
        assert tls.successor == "raw"
        assert tls.rest(C) == b"GET / HTTP/1.1"

    def test_record_that_is_none_behind_a_hello(self, client_hello: bytes) -> None:
        played = assert_any_cut(Tls, [(C, client_hello + b"not a record")], step=11)
        assert [(m.kind, m.flags) for m in played.messages] == [("client_hello", ()), ("record", ("malformed",))]
        assert played.dissector.successor is None
        assert played.dissector.attrs["unframed"] is True

    def test_hello_with_broken_lengths(self, client_hello: bytes) -> None:
        broken = bytearray(client_hello)
        broken[43] = 0xFF  # the session id's length
        played = play(Tls, [(C, bytes(broken))])
        assert [(m.kind, m.flags) for m in played.messages] == [("client_hello", ("malformed",))]

    def test_endless_handshake_message(self) -> None:
        huge = record(22, b"\x01" + (MAX_HANDSHAKE + 1).to_bytes(3) + b"x" * 100)
        played = assert_any_cut(Tls, [(C, huge + record(23, b"data"))])
        assert [(m.start, m.end, m.flags) for m in played.messages] == [(5, 9, ("malformed",))]
        assert played.dissector.opaque

    def test_many_small_fragments(self, client_hello: bytes) -> None:
        pieces = b"".join(
            record(22, client_hello[place : place + 1]) + record(22, b"") for place in range(5, len(client_hello))
        )
        played = play(Tls, [(C, pieces)])
        assert played.messages[0].attrs["sni"] == "a.example"

    def test_gap(self, handshake: Handshake) -> None:
        turns = handshake(TLS12)
        for number, (whose, data) in enumerate(turns):
            assert isinstance(data, bytes)
            lost: list[Turn] = [*turns[:number], (whose, Gap(len(data))), *turns[number + 1 :]]
            played = play(Tls, lost)
            assert played.dissector.opaque
            assert "unframed" not in played.dissector.attrs
            short: list[Turn] = [*turns[:number], (whose, Gap(3)), (whose, data[3:]), *turns[number + 1 :]]
            assert play(Tls, short).dissector.opaque

    def test_gap_within_a_sealed_record(self) -> None:
        data = record(23, b"x" * 100)
        turns: list[Turn] = [(C, data[:20]), (C, Gap(30)), (C, data[50:] + data)]
        assert play(Tls, turns).dissector.attrs == {"records": {"client": 2, "server": 0}}

    @pytest.mark.parametrize("parse", [parse_client_hello, parse_server_hello, parse_certificate])
    @given(data=st.binary(max_size=200))
    def test_any_handshake_body(self, parse: Any, data: bytes) -> None:
        try:
            parse(data)
        except Malformed:
            return

    def test_certificate_that_is_none(self) -> None:
        body = b"\x00\x00\x07\x00\x00\x04junk"
        assert parse_certificate(body) == {
            "sha256": hashlib.sha256(b"junk").hexdigest(), "chain": 1, "unreadable": True,
        }  # fmt: skip
        assert parse_certificate(b"\x00\x00\x00") == {}


class TestDetect:
    def test_hellos(self, handshake: Handshake) -> None:
        turns = handshake(TLS13)
        client, server = bytes(turns[0][1]), bytes(turns[1][1])  # type: ignore[arg-type]
        assert {Tls.detect(client[:length], b"") for length in range(6)} == {Match.MORE}
        assert Tls.detect(client[:6], b"") is Match.YES
        assert Tls.detect(b"", server) is Match.YES
        assert Tls.detect(client[:3], server) is Match.YES
        assert Tls.detect(b"", client) is Match.NO

    @pytest.mark.parametrize(
        "client",
        [
            b"GET / HTTP/1.1\r\n",
            b"\x80\x2e\x01\x03\x01\x00\x15",  # a hello in the SSL 2.0 format
            b"\x16\x02\x00\x00\x05\x01",
            b"\x16\x03\x05\x00\x05\x01",
            b"\x16\x03\x01\x00\x05\x02",
            b"\x16\x03\x01" + (MAX_RECORD + 1).to_bytes(2) + b"\x01",
            b"\x15\x03\x03\x00\x03\x01",
        ],
    )
    def test_something_else(self, client: bytes) -> None:
        assert Tls.detect(client, b"") is Match.NO

    def test_midstream(self) -> None:
        assert Tls.detect(record(23, b"x" * 50), b"") is Match.YES
        played = play(Tls, [(C, record(23, b"x" * 50))])
        assert played.dissector.opaque
        assert played.messages == []

    @given(st.binary(max_size=16), st.binary(max_size=16))
    def test_any(self, client: bytes, server: bytes) -> None:
        Tls.detect(client, server)


HELLO_RETRY_BODY = b"\x03\x03" + HELLO_RETRY + b"\x00\x13\x01\x00\x00\x06\x00\x2b\x00\x02\x03\x04"


def test_server_hello_is_parsed() -> None:
    hello = parse_server_hello(HELLO_RETRY_BODY)
    assert (hello.version, hello.cipher, hello.retry) == (0x0304, 0x1301, True)


PIECES = st.one_of(
    st.binary(max_size=30),
    st.builds(lambda kind, body: record(kind, body), st.sampled_from([20, 21, 22, 23, 24, 99]), st.binary(max_size=30)),
    st.builds(
        lambda kind, body: record(22, bytes([kind]) + len(body).to_bytes(3) + body),
        st.sampled_from([1, 2, 11, 16, 99]),
        st.one_of(st.binary(max_size=60), st.just(HELLO_RETRY_BODY)),
    ),
    st.integers(1, 40).map(Gap),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([C, S]), PIECES), max_size=8), st.sampled_from([None, 1, 3]))
def test_survives_anything(turns: list[Turn], split: int | None) -> None:
    played = assert_survives(Tls, turns, split=split)
    whole = play(Tls, turns)
    assert [(m.kind, m.start, m.end, m.flags) for m in played.messages] == [
        (m.kind, m.start, m.end, m.flags) for m in whole.messages
    ]


def record(kind: int, body: bytes) -> bytes:
    return bytes([kind, 3, 3]) + len(body).to_bytes(2) + body


def bodies(records: bytes) -> list[bytes]:
    """The bodies of the handshake records at the start."""
    found = []
    while records[:1] == b"\x16":
        length = int.from_bytes(records[3:5])
        found.append(records[5 : 5 + length])
        records = records[5 + length :]
    return found


def count_records(stream: bytes | bytearray) -> int:
    place = count = 0
    while place < len(stream):
        place += 5 + int.from_bytes(stream[place + 3 : place + 5])
        count += 1
    return count
