"""How much DNS carries besides lookups: raw data, counted right and bounded."""

import base64
import random
import struct
import time

import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR

from appliance.dissect.dns import Dns
from appliance.dissect.dns_tcp import DnsTcp
from appliance.dissect.dns_volume import MAX_NAMES, MAX_TYPES, sizes_of
from appliance.dissect.volume import entropy
from appliance.model import Message
from tests.dissect.harness import C, S, play


def query(name: str, kind: str | int = "A", number: int = 7) -> bytes:
    return bytes(DNS(id=number, rd=1, qd=DNSQR(qname=name, qtype=kind)))


def test_sizes_are_those_on_the_wire() -> None:
    asked = {(b"example", b"org"): 2, (b"a.b\\\n", b"\xe2\x98\x83"): 1, (): 5}
    assert sizes_of(asked, 9, 4) == {"names": 28, "labels": 6, "longest_label": 7, "records": 9, "free": 4}
    assert sizes_of({(): 1}, 0, 0) == {"names": 0, "labels": 0, "longest_label": 0, "records": 0, "free": 0}


def test_entropy() -> None:
    assert entropy({}) == 0.0
    assert entropy({"a": 9}) == 0.0
    assert entropy({"a": 1, "b": 1, "c": 1, "d": 1}) == 2.0


def test_of_each_message() -> None:
    said = DNS(
        id=7,
        qr=1,
        qd=DNSQR(qname="abcdef.example.org", qtype="TXT"),
        an=[
            DNSRR(rrname="abcdef.example.org", type="TXT", rdata=[b"x" * 200, b"y" * 50]),
            DNSRR(rrname="abcdef.example.org", type=65399, rdata=b"anything"),
            DNSRR(rrname="abcdef.example.org", type="A", rdata="192.0.2.1"),
        ],
    )
    asked, answered = play(Dns, [(C, query("abcdef.example.org", "TXT")), (S, bytes(said))]).messages
    assert asked.attrs["sizes"] == {"names": 16, "labels": 3, "longest_label": 7, "records": 0, "free": 0}
    assert answered.attrs["sizes"] == {"names": 16, "labels": 3, "longest_label": 7, "records": 264, "free": 260}


@pytest.mark.parametrize("tcp", [False, True])
def test_a_tunnel_shows_in_the_sums_of_its_session(tcp: bool) -> None:
    """As iodine or dnscat2 do: the payload in labels of 63 bytes, each name once."""
    draw = random.Random(1)
    names = []
    for _ in range(40):
        text = base64.b32encode(draw.randbytes(75)).decode().lower().rstrip("=")
        names.append(f"{text[:60]}.{text[60:]}.t.example.org")
    turns = [(C, query(name, "TXT", number)) for number, name in enumerate(names)]
    if tcp:
        turns = [(who, struct.pack("!H", len(data)) + data) for who, data in turns]
    found = play(DnsTcp if tcp else Dns, turns).dissector.attrs["lookups"]
    assert (found["queries"], found["responses"], found["different_names"]) == (40, 0, 40)
    assert found["name_bytes"] == sum(len(name) - name.count(".") for name in names)
    assert (found["longest_label"], found["longest_name"]) == (60, max(map(len, names)))
    assert found["types"] == {"TXT": 40}
    assert found["entropy"] > 4.8
    assert "more_names" not in found


def test_usual_lookups_look_otherwise() -> None:
    turns = [(C, query(name)) for name in ("www.example.org", "WWW.example.org", "mail.example.org", "www.python.org")]
    turns.append((S, bytes(DNS(id=7, qr=1, rcode=3, qd=DNSQR(qname="www.example.org")))))
    found = play(Dns, turns).dissector.attrs["lookups"]
    assert (found["queries"], found["responses"], found["nxdomain"], found["different_names"]) == (4, 1, 1, 3)
    assert found["entropy"] < 4.2


def test_what_is_kept_of_names_is_bounded() -> None:
    turns = [(C, query(f"n{number}.example.org", 1000 + number)) for number in range(2 * MAX_NAMES)]
    found = play(Dns, turns).dissector.attrs["lookups"]
    assert (found["different_names"], found["more_names"]) == (MAX_NAMES, True)
    assert len(found["types"]) == MAX_TYPES + 1
    assert found["types"]["others"] == 2 * MAX_NAMES - MAX_TYPES


def test_a_session_without_messages_says_nothing() -> None:
    assert Dns().attrs == {}


def test_a_name_is_not_read_again_for_each_pointer_to_it() -> None:
    """Two thousand questions about one name: what its length costs is paid once."""

    def cost(name: bytes) -> float:
        asked = name + struct.pack("!HH", 1, 1) + struct.pack("!HHH", 0xC00C, 1, 1) * 2000
        data = struct.pack("!HHHHHH", 7, 0x0100, 2001, 0, 0, 0) + asked
        spent = []
        for _ in range(5):
            dissector = Dns()
            began = time.process_time()
            (message,) = dissector.receive(C, data, 1)
            spent.append(time.process_time() - began)
            assert isinstance(message, Message)
            assert len(message.attrs["questions"]) == 2001
            assert dissector.attrs["lookups"]["name_bytes"] == 2001 * sum(name[:1]) * (len(name) // (name[0] + 1))
        return min(spent)

    long = b"".join(bytes([4]) + b"%04d" % number for number in range(50)) + b"\0"
    assert cost(long) < 4 * cost(b"\1a\0")
