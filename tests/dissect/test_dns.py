"""DNS, with scapy as the other implementation."""

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRRMX, DNSRROPT, DNSRRSOA, DNSRRSRV, EDNS0TLV

from appliance.dissect import Match
from appliance.dissect.dns import MAX_QUERIES, MAX_TEXT, Dns, parse
from appliance.dissect.dns_tcp import KEPT, DnsTcp
from appliance.model import Message
from tests.dissect.harness import C, Gap, S, Turn, assert_any_cut, assert_survives, assert_truncated, play

VECTORS = Path(__file__).parents[1] / "vectors" / "dns"
CASES = sorted(path.stem for path in VECTORS.glob("*.json"))


def query(number: int = 7, name: str = "example.org", kind: str = "A", **more: Any) -> bytes:
    return bytes(DNS(id=number, rd=1, qd=DNSQR(qname=name, qtype=kind), **more))


def answer(number: int = 7, name: str = "example.org", **more: Any) -> bytes:
    more.setdefault("an", DNSRR(rrname=name, type="A", ttl=300, rdata="192.0.2.1"))
    return bytes(DNS(id=number, qr=1, rd=1, ra=1, qd=DNSQR(qname=name), **more))


def framed(*messages: bytes) -> bytes:
    return b"".join(struct.pack("!H", len(message)) + message for message in messages)


def record(name: bytes, kind: int, data: bytes, ttl: int = 60) -> bytes:
    return name + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def message(*records: bytes, questions: bytes = b"\x01a\x00\x00\x01\x00\x01", counts: int = 1) -> bytes:
    """A response with these bytes as its questions and answers."""
    return struct.pack("!HHHHHH", 7, 0x8180, counts, len(records), 0, 0) + questions + b"".join(records)


# -- datagrams -----------------------------------------------------------------------------------------------------


def test_query_and_response() -> None:
    asked, said = query(), answer()
    played = play(Dns, [(C, asked), (S, said)])
    first, second = played.messages
    assert (first.kind, first.text, first.start, first.end) == ("query", "example.org IN A", 0, len(asked))
    assert first.attrs["questions"] == [{"name": "example.org", "type": "A", "class": "IN"}]
    assert first.attrs["flags"] == ["rd"]
    assert second.kind == "response"
    assert second.reply_to == 0
    assert second.text == "example.org IN A\nexample.org 300 A 192.0.2.1"
    assert second.attrs["answers"] == [
        {"name": "example.org", "type": "A", "class": "IN", "ttl": 300, "data": "192.0.2.1"}
    ]
    assert second.attrs["flags"] == ["rd", "ra"]
    assert not second.flags
    assert played.bytes_of(second) == said


def test_a_response_answers_the_query_of_its_id() -> None:
    asked = [query(number, f"h{number}.example") for number in (1, 2, 3)]
    played = play(Dns, [(C, one) for one in asked] + [(S, answer(2, "h2.example")), (S, answer(9, "h9.example"))])
    assert [one.reply_to for one in played.messages] == [None, None, None, len(asked[0]), None]


def test_no_more_queries_are_remembered_than_the_maximum() -> None:
    asked = [query(number) for number in range(MAX_QUERIES + 1)]
    turns: list[Turn] = [(C, one) for one in asked]
    played = play(Dns, [*turns, (S, answer(0)), (S, answer(1))])
    assert [one.reply_to for one in played.messages[-2:]] == [None, len(asked[0])]


def test_name_error_is_in_the_text() -> None:
    (said,) = play(
        Dns, [(S, answer(an=[], rcode=3, ns=DNSRRSOA(rrname="org", mname="ns.org", rname="root.org")))]
    ).messages
    assert said.attrs["rcode"] == "NXDOMAIN"
    assert said.text.endswith("NXDOMAIN")
    assert said.attrs["authority"][0]["data"].startswith("ns.org root.org ")


@pytest.mark.parametrize(
    ("given_record", "data"),
    [
        (DNSRR(rrname="x", type="AAAA", rdata="2001:db8::1"), "2001:db8::1"),
        (DNSRR(rrname="x", type="CNAME", rdata="y.example"), "y.example"),
        (DNSRR(rrname="x", type="TXT", rdata=[b"v=spf1 -all", b'q"\x00\xff.']), '"v=spf1 -all" "q\\"\\000\\255."'),
        (DNSRRMX(rrname="x", preference=10, exchange="mx.example"), "10 mx.example"),
        (DNSRRSRV(rrname="x", priority=1, weight=2, port=5060, target="sip.example"), "1 2 5060 sip.example"),
    ],
)
def test_records_that_scapy_makes(given_record: Any, data: str) -> None:
    parsed = parse(answer(an=given_record))
    assert parsed.attrs["answers"][0]["data"] == data
    assert not parsed.flags


@pytest.mark.parametrize(
    ("kind", "raw", "data"),
    [
        (1, b"\xc0\x00\x02\x01", "192.0.2.1"),
        (257, b"\x00\x05issuelets.example", '0 issue "lets.example"'),
        (256, b"\x00\x0a\x00\x01https://x/", '10 1 "https://x/"'),
        (43, b"\x30\x39\x08\x02\xab\xcd", "12345 8 2 abcd"),
        (44, b"\x04\x02\xab", "4 2 ab"),
        (48, b"\x01\x01\x03\x08\x01\x02", "257 3 8 AQI="),
        (52, b"\x03\x01\x01\xab\xcd", "3 1 1 abcd"),
        (46, b"\x00\x01\x08\x02" + bytes(12) + b"\x00\x07\x00\x01\x02", "A 8 2 0 0 0 7 . AQI="),
        (
            65,
            b"\x00\x01\x00\x00\x01\x00\x06\x02h2\x02h3\x00\x03\x00\x02\x01\xbb\x00\x04\x00\x04\xc0\x00\x02\x01",
            "1 . alpn=h2,h3 port=443 ipv4hint=192.0.2.1",
        ),
        (64, b"\x00\x00\x03svc\x00", "0 svc"),
        (
            65,
            b"\x00\x01\x00\x00\x05\x00\x02\x01\x02\x00\x06\x00\x10" + bytes(15) + b"\x01",
            "1 . ech=AQI= ipv6hint=::1",
        ),
        (65280, b"\x01\x02", "\\# 2 0102"),
        (65280, b"", ""),
        (1, b"\x01\x02", "\\# 2 0102"),  # an address too short
        (16, b"\x05ab", "\\# 3 056162"),  # a string longer than its record
        (5, b"\x01a\x00\x00", "\\# 4 01610000"),  # bytes behind the name
        (65, b"\x00\x01\x00\x00\x03\x00\x09\x01", "\\# 8 0001000003000901"),  # a parameter longer than its record
    ],
)
def test_data(kind: int, raw: bytes, data: str) -> None:
    parsed = parse(message(record(b"\x01x\x00", kind, raw)))
    assert parsed.attrs["answers"][0]["data"] == data
    assert ("undecoded" in parsed.flags) == data.startswith("\\#")
    assert "malformed" not in parsed.flags


def test_names_are_shown_safely() -> None:
    parsed = parse(message(questions=b"\x05a.b\\\n\x03\xe2\x98\x83\x00\x00\x01\x00\x01"))
    assert parsed.attrs["questions"][0]["name"] == "a\\.b\\\\\\010.\\226\\152\\131"


def test_the_root() -> None:
    parsed = parse(message(questions=b"\x00\x00\x02\x00\x01"))
    assert parsed.text == ". IN NS"


def test_compressed_names() -> None:
    questions = b"\x03www\x07example\x03org\x00\x00\x01\x00\x01"
    parsed = parse(
        message(record(b"\xc0\x0c", 5, b"\x03cdn\xc0\x10"), record(b"\x01z\xc0\x0c", 1, bytes(4)), questions=questions)
    )
    names = [(one["name"], one["data"]) for one in parsed.attrs["answers"]]
    assert names == [("www.example.org", "cdn.example.org"), ("z.www.example.org", "0.0.0.0")]


@pytest.mark.parametrize(
    "pointer", [b"\xc0\x0c", b"\xc0\xff", b"\xc0\x0d", b"\x01a\xc0\x0c", b"\xc0", b"\x40", b"\x85a"]
)
def test_bad_pointers_and_labels(pointer: bytes) -> None:
    """To itself, forward, beyond the message, into a loop, cut off, of an unknown kind."""
    parsed = parse(message(questions=pointer + b"\x00\x01\x00\x01"))
    assert parsed.flags == ("malformed",)
    assert parsed.attrs["questions"] == []


def test_a_name_of_more_than_255_bytes() -> None:
    label = b"\x3f" + b"a" * 63
    assert parse(message(questions=label * 3 + b"\x3d" + b"b" * 61 + b"\x00\x00\x01\x00\x01")).flags == ()
    assert parse(message(questions=label * 4 + b"\x00\x00\x01\x00\x01")).flags == ("malformed",)


def test_edns() -> None:
    asked = query(ar=DNSRROPT(rclass=1232, z=0x8000, rdata=[EDNS0TLV(optcode=10, optdata=b"\x01\x02")]))
    parsed = parse(asked)
    expected = {"version": 0, "size": 1232, "do": True, "options": [{"option": "COOKIE", "data": "0102"}]}
    assert parsed.attrs["edns"] == expected
    assert parsed.attrs["additional"] == []


def test_edns_extends_the_response_code() -> None:
    said = parse(answer(an=[], rcode=0, ar=DNSRROPT(extrcode=1)))
    assert said.attrs["rcode"] == "BADVERS"


def test_an_answer_cut_by_its_sender() -> None:
    (said,) = play(Dns, [(S, answer(an=[], tc=1))]).messages
    assert said.flags == ("truncated",)
    assert "tc" in said.attrs["flags"]


@pytest.mark.parametrize("data", [b"x", bytes(11)])
def test_what_is_no_message_at_all(data: bytes) -> None:
    (only,) = play(Dns, [(C, data)]).messages
    assert (only.kind, only.flags, only.start, only.end) == ("malformed", ("malformed",), 0, len(data))


def test_bytes_behind_the_message() -> None:
    (only,) = play(Dns, [(C, query() + b"x")]).messages
    assert (only.kind, only.flags) == ("query", ("malformed",))
    assert only.attrs["questions"]


def test_every_truncated_datagram() -> None:
    whole = answer(ar=DNSRROPT(rclass=1232))
    for length in range(len(whole)):
        (only,) = assert_survives(Dns, [(S, whole[:length])]).messages if length else [None]
        assert only is None or "malformed" in only.flags


# -- streams -------------------------------------------------------------------------------------------------------

STREAM: list[Turn] = [
    (C, framed(query(1), query(2, "b.example", "TXT"))),
    (S, framed(answer(1), answer(2, "b.example"))),
]


def test_a_stream_in_any_cut() -> None:
    played = assert_any_cut(DnsTcp, STREAM)
    assert played.kinds() == ["query", "query", "response", "response"]
    assert [one.reply_to for one in played.messages] == [None, None, 0, len(framed(query(1)))]
    assert played.bytes_of(played.messages[1]) == framed(query(2, "b.example", "TXT"))


def test_a_stream_that_ends_early() -> None:
    assert_truncated(DnsTcp, STREAM)
    played = play(DnsTcp, [(C, framed(query())[:-3])])
    assert [(one.kind, one.flags) for one in played.messages] == [("query", ("truncated",))]


def test_a_zone_transfer() -> None:
    asked = framed(query(5, kind="AXFR"))
    played = play(DnsTcp, [(C, asked), (S, framed(answer(5), answer(5), answer(5)))])
    assert [one.reply_to for one in played.messages] == [None, 0, 0, 0]


def test_a_gap_inside_a_message() -> None:
    first, second = framed(answer(1)), framed(answer(2))
    played = play(DnsTcp, [(S, first[:20]), (S, Gap(len(first) - 25)), (S, first[-5:] + second)])
    one, two = played.messages
    assert (one.start, one.end, one.flags) == (0, len(first), ("truncated",))
    assert (two.start, two.kind, two.flags) == (len(first), "response", ())


def test_a_gap_up_to_a_message() -> None:
    first, second = framed(answer(1)), framed(answer(2))
    played = play(DnsTcp, [(S, first[:20]), (S, Gap(len(first) - 20)), (S, second)])
    assert [(one.start, one.flags) for one in played.messages] == [(0, ("truncated",)), (len(first), ())]


def test_a_gap_over_messages() -> None:
    first = framed(answer(1))
    played = play(DnsTcp, [(S, first[:1]), (S, Gap(300)), (S, first)])
    assert [(one.kind, one.start, one.flags) for one in played.messages] == [
        ("malformed", 0, ("truncated",)),
        ("response", 301, ()),
    ]


def test_a_gap_with_no_message_behind_it() -> None:
    played = play(DnsTcp, [(S, Gap(10)), (S, b"\xff" * 50), (S, framed(answer(1)))])
    assert [(one.kind, one.start, one.end) for one in played.messages] == [("undissected", 10, 16)]


# -- detection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client", "server", "match"),
    [
        (query(), b"", Match.YES),
        (query(ar=DNSRROPT(rclass=4096)), b"", Match.YES),
        (query(kind="HTTPS"), answer(), Match.YES),
        (b"", answer(), Match.YES),
        (b"", b"", Match.MORE),
        (answer(), b"", Match.NO),  # a client does not answer
        (query()[:-1], b"", Match.NO),
        (query() + b"x", b"", Match.NO),
        (b"\0" * 40, b"", Match.NO),
        (b"\x16\xfe\xfd" + bytes(40), b"", Match.NO),  # DTLS
        (b"GET / HTTP/1.1\r\n\r\n", b"", Match.NO),
        (b"\x23" + bytes(47), b"", Match.NO),  # NTP
        (bytes.fromhex("c000000001088394c8f03e515708"), b"", Match.NO),  # QUIC
    ],
)
def test_detect_datagrams(client: bytes, server: bytes, match: Match) -> None:
    assert Dns.detect(client, server) is match


def test_detect_a_stream() -> None:
    asked = framed(query())
    for length in range(len(asked)):
        assert DnsTcp.detect(asked[:length], b"") is Match.MORE
    assert DnsTcp.detect(asked, b"") is Match.YES
    assert DnsTcp.detect(asked + framed(query(8)), b"") is Match.YES
    assert DnsTcp.detect(b"", framed(answer())) is Match.YES


@pytest.mark.parametrize(
    "client",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",  # PostgreSQL's SSLRequest
        b"\x00\x00\x00\x25\x00\x03\x00\x00user\0x\0",
        b"*1\r\n$4\r\nPING\r\n",
        b"\x00\x30" + b"\0" * 48,
    ],
)
def test_other_protocols_are_not_dns(client: bytes) -> None:
    assert DnsTcp.detect(client, b"") is Match.NO


@given(st.binary(max_size=200))
def test_detect_decides_about_anything(data: bytes) -> None:
    assert Dns.detect(data, b"") is not Match.MORE or not data
    DnsTcp.detect(data, b"")
    assert DnsTcp.detect(data + bytes(4096), b"") is not Match.MORE


# -- hostile -------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=600), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_any_bytes(data: bytes, split: int) -> None:
    assert_survives(Dns, [(C, data), (S, data)])
    assert_survives(DnsTcp, [(C, data), (S, data)], split=split)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_changed_bytes(data: st.DataObject) -> None:
    whole = bytearray(answer(ar=DNSRROPT(rclass=1232), ns=DNSRRSOA(rrname="org", mname="ns.org", rname="root.org")))
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    assert_survives(Dns, [(S, bytes(whole))])
    assert_survives(DnsTcp, [(S, framed(bytes(whole)))])


def _chain() -> bytes:
    """Pointers that each point to the one before."""
    pointers = b"".join(struct.pack("!H", 0xC000 | at) for at in range(12, 8000, 2))
    name = struct.pack("!H", 0xC000 | 8010)
    return message(record(b"\0", 10, b"\0" + pointers), *[record(name, 5, name)] * 4000, questions=b"", counts=0)


def _blowing_up() -> bytes:
    """Small records, each with a name of 255 bytes that needs four characters a byte."""
    question = (b"\x3f" + b"\x01" * 63) * 3 + b"\x3d" + b"\x01" * 61 + b"\x00\x00\x01\x00\x01"
    return message(*[record(b"\xc0\x0c", 5, b"\xc0\x0c")] * 4500, questions=question)


@pytest.mark.parametrize("hostile", [_chain(), _blowing_up()], ids=["chain", "blowing-up"])
def test_hostile_compression_costs_little(hostile: bytes) -> None:
    before = time.process_time()
    parsed = parse(hostile[:65535])
    assert time.process_time() - before < 1.0
    assert len(parsed.text) < MAX_TEXT + 10000
    assert parsed.flags


# -- recorded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_vector(case: str) -> None:
    """`why`, `message` in hexadecimal, and what `text` and `flags` it has."""
    vector = json.loads((VECTORS / f"{case}.json").read_text("utf-8"))
    parsed = parse(bytes.fromhex(vector["message"]))
    assert (parsed.text, list(parsed.flags)) == (vector["text"], vector["flags"]), vector["why"]


def test_a_message_in_progress_is_read_as_far_as_it_was_kept_when_memory_was_short() -> None:
    head = struct.pack("!HHHHHH", 9, 0x8180, 1, 200, 0, 0) + b"\1a\0" + struct.pack("!HH", 1, 1)
    record = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + bytes([192, 0, 2, 1])
    whole = head + record * 200
    data, query = struct.pack("!H", len(whole)) + whole, bytes(DNS(id=9, qd=DNSQR(qname="a")))
    dissector = DnsTcp()
    out = dissector.receive(C, struct.pack("!H", len(query)) + query, 1)
    out += dissector.receive(S, data[:2000], 2)
    assert dissector.held > 2000
    assert dissector.shed() == []
    assert dissector.held < KEPT + 2000
    out += dissector.receive(S, data[2000:], 3)
    out += dissector.receive(S, data, 4)
    _, cut, after = (one for one in out if isinstance(one, Message))
    assert (cut.start, cut.end, cut.ts_ns, cut.end_ns) == (0, len(data), 2, 3)
    assert (cut.flags, cut.reply_to, len(cut.attrs["answers"])) == (("truncated",), None, (KEPT - len(head)) // 16)
    assert (after.start, after.flags, len(after.attrs["answers"])) == (len(data), (), 200)
