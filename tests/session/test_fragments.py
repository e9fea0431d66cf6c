import random

from appliance.session.fragments import MAX_DATAGRAMS, TIMEOUT_NS, Fragments, Whole
from appliance.session.packets import network
from tests.session.traffic import ip4

A, B = bytes(16), bytes(15) + b"\1"


def add(fragments: Fragments, packet: bytes, now: int = 0, captured: int | None = None) -> Whole | None:
    part = network(packet[:captured])
    assert part is not None
    return fragments.add(A, B, part, memoryview(packet[:captured]), now)


def cut(payload: bytes, size: int, number: int = 7) -> list[bytes]:
    parts = []
    for start in range(0, len(payload), size):
        more = 0x2000 if start + size < len(payload) else 0
        parts.append(ip4(17, "10.0.0.1", "10.0.0.2", payload[start : start + size], more | start // 8, number))
    return parts


def test_in_any_order() -> None:
    payload = random.Random(1).randbytes(5000)
    parts = cut(payload, 1480)
    random.Random(2).shuffle(parts)
    fragments = Fragments()
    found = [whole for part in parts if (whole := add(fragments, part))]
    assert found == [Whole(payload, 0)]
    assert len(fragments) == 0


def test_repetitions_with_another_content_are_counted() -> None:
    fragments = Fragments()
    add(fragments, ip4(17, "10.0.0.1", "10.0.0.2", b"AAAAAAAABBBBBBBB", 0x2000))
    assert add(fragments, ip4(17, "10.0.0.1", "10.0.0.2", b"XXXXXXXX", 0x2001)) is None
    whole = add(fragments, ip4(17, "10.0.0.1", "10.0.0.2", b"CC", 2))
    assert whole == Whole(b"AAAAAAAABBBBBBBBCC", 8)


def test_a_datagram_whose_fragments_overlap_is_given_up() -> None:
    """RFC 8200 section 4.5; tests/session/hostile shows that Linux does so for IPv4."""
    fragments = Fragments()
    add(fragments, ip4(17, "10.0.0.1", "10.0.0.2", b"AAAAAAAABBBBBBBB", 0x2000))
    assert add(fragments, ip4(17, "10.0.0.1", "10.0.0.2", b"XXXXXXXXCC", 1)) is None
    assert (fragments.lost, len(fragments)) == (2, 0)


def test_what_never_becomes_whole_is_counted_and_forgotten() -> None:
    fragments = Fragments()
    add(fragments, cut(bytes(100), 48)[0])
    fragments.expire(TIMEOUT_NS - 1)
    assert fragments.lost == 0
    fragments.expire(TIMEOUT_NS)
    assert (fragments.lost, len(fragments)) == (1, 0)


def test_bounded() -> None:
    fragments = Fragments()
    for number in range(3 * MAX_DATAGRAMS):
        add(fragments, cut(bytes(100), 48, number % 65536)[0])
    assert len(fragments) == MAX_DATAGRAMS
    assert fragments.lost == 2 * MAX_DATAGRAMS


def test_a_fragment_that_was_cut_by_the_capture_is_lost() -> None:
    fragments = Fragments()
    first, second = cut(bytes(range(64)), 32)
    assert add(fragments, first) is None
    assert add(fragments, second, captured=40) is None
    assert fragments.lost == 1


def test_longer_than_ip_allows() -> None:
    fragments = Fragments()
    assert add(fragments, ip4(17, "10.0.0.1", "10.0.0.2", bytes(200), 0x1FFF)) is None
    assert fragments.lost == 1
