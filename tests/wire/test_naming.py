"""DNS answers, honest and hostile: what a rule about a host may learn from them."""

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR, DNSRR

from appliance.wire.naming import MAX_TTL, Answer, read_answer

WWW = "www.example.com"


def message(*records: Any, name: str = WWW, **more: Any) -> bytes:
    fields = {"qr": 1, "qd": [DNSQR(qname=name)], "an": list(records)} | more
    return bytes(DNS(**fields))


def a(name: str = WWW, address: str = "192.0.2.1", ttl: int = 300) -> Any:
    return DNSRR(rrname=name, type="AAAA" if ":" in address else "A", rdata=address, ttl=ttl)


def alias(name: str, target: str, ttl: int = 300) -> Any:
    return DNSRR(rrname=name, type="CNAME", rdata=target, ttl=ttl)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (message(a()), [("192.0.2.1", 300)]),
        (message(a(address="2001:db8::1", ttl=7)), [("2001:db8::1", 7)]),
        (message(a(), a(address="192.0.2.2", ttl=5)), [("192.0.2.1", 300), ("192.0.2.2", 5)]),
        (message(alias(WWW, "cdn.example", 20), a("cdn.example")), [("192.0.2.1", 20)]),
        (
            message(a("cdn.example", ttl=9), alias(WWW, "b.example"), alias("b.example", "cdn.example")),
            [("192.0.2.1", 9)],
        ),
        (message(a(name="WWW.Example.COM"), name="wWw.example.com"), [("192.0.2.1", 300)]),
        (message(a(ttl=MAX_TTL + 1)), [("192.0.2.1", 0)]),
    ],
    ids=["IPv4", "IPv6", "two", "alias", "aliases in disorder", "case", "negative time"],
)
def test_addresses_of_the_name_that_was_asked_for(data: bytes, found: list[tuple[str, int]]) -> None:
    assert read_answer(data) == Answer(WWW, tuple((ip_address(address), ttl) for address, ttl in found))


LOOP = message(alias(WWW, "b.example"), alias("b.example", WWW))
POINTER = struct.pack("!HHHHHH", 1, 0x8000, 1, 1, 0, 0) + b"\xc0\x0c" + bytes(4)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message(a())[:20],
        message(a(), qr=0),
        message(a(), rcode=3),
        message(a(), opcode=4),
        message(a("other.example")),
        message(alias("other.example", WWW), a("cdn.example")),
        LOOP,
        POINTER,
        struct.pack("!HHHHHH", 1, 0x8000, 1, 1, 0, 0) + b"\x3fa" * 40,
        message(),
        message(DNSRR(rrname=WWW, type="TXT", rdata="192.0.2.1")),
    ],
    ids=[
        "empty", "cut", "query", "failed", "update", "of another name", "alias of another name", "loop", "pointer loop",
        "endless name", "nothing", "text",
    ],
)  # fmt: skip
def test_what_is_no_answer(data: bytes) -> None:
    assert read_answer(data) is None


def test_every_cut_is_harmless() -> None:
    whole = message(alias(WWW, "cdn.example"), a("cdn.example"), a("cdn.example", "2001:db8::1"))
    for end in range(len(whole)):
        said = read_answer(whole[:end])
        assert said is None or len(said.addresses) == 1
    assert read_answer(whole) == Answer(WWW, ((IPv4Address("192.0.2.1"), 300), (IPv6Address("2001:db8::1"), 300)))


@given(st.binary(max_size=1232), st.booleans())
def test_anything_may_come(data: bytes, plausible: bool) -> None:
    read_answer(struct.pack("!HHHHHH", 1, 0x8000, 1, 9, 0, 0) + data if plausible else data)
