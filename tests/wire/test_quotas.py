"""What the program and user space count together comes out as what there is."""

import os
from collections.abc import Iterator

import pytest

from appliance.wire import bpf
from appliance.wire.abi import FlowKey, Owner, Quota, pack_address
from appliance.wire.quotas import EVERYBODY, U64, Quotas, owner


def key(address: str = "10.0.0.77", port: int = 1000) -> bytes:
    return FlowKey(pack_address(address), pack_address("192.0.2.1"), port, 80, 6, 6 if ":" in address else 4).pack()


class Books:
    """Real maps; `opened` is what the program does."""

    def __init__(self) -> None:
        self.fds = [
            bpf.create_map(bpf.HASH, Owner.LAYOUT.size, Quota.LAYOUT.size, 16, "quotas"),
            bpf.create_map(bpf.HASH, Owner.LAYOUT.size, 8, 16, "released"),
        ]
        self.quotas, self.released = (bpf.Map(fd) for fd in self.fds)
        self.tested = Quotas(self.quotas, self.released)

    def opened(self, name: bytes, flows: int) -> None:
        for each in (name, EVERYBODY):
            held = self.quotas.lookup(each)
            before = Quota.unpack(held).opened if held else 0
            self.quotas.update(each, Quota(before + flows).pack())

    def held(self, name: bytes) -> int:
        """As the program reckons."""
        quota, released = self.quotas.lookup(name), self.released.lookup(name)
        return (Quota.unpack(quota).opened if quota else 0) - (U64.unpack(released)[0] if released else 0)

    def survey(self, flows: list[tuple[bytes, int, int]], now: int) -> None:
        self.tested.begin(now)
        for each in flows:
            self.tested.seen(*each)
        self.tested.settle()


@pytest.fixture
def books() -> Iterator[Books]:
    if os.geteuid():
        pytest.skip("needs root for BPF maps")
    books = Books()
    yield books
    for fd in books.fds:
        os.close(fd)


def test_owners() -> None:
    assert owner(key(), 7) == U64.pack(7) + b"\xff" * 8
    assert owner(key("10.0.0.77"), 0) == owner(key("10.0.0.1"), 0) == pack_address("10.0.0.0")
    assert owner(key("2001:db8::1:2:3"), 0) == owner(key("2001:db8::4"), 0) == pack_address("2001:db8::")
    assert owner(key("2001:db8:0:1::4"), 0) != owner(key("2001:db8::4"), 0)


def test_flows_that_are_gone_are_released(books: Books) -> None:
    lease = owner(key(), 7)
    books.opened(lease, 5)
    books.survey([(key(port=1), 7, 50), (key(port=2), 7, 60)], now=100)
    assert (books.held(lease), books.held(EVERYBODY)) == (2, 2)
    books.tested.release([(key(port=1), 7)])
    assert (books.held(lease), books.held(EVERYBODY)) == (1, 1)
    books.tested.release([])
    assert books.held(EVERYBODY) == 1


def test_a_flow_that_begins_while_the_survey_looks_is_not_released(books: Books) -> None:
    lease = owner(key(), 7)
    books.opened(lease, 1)
    books.tested.begin(100)
    books.opened(lease, 1)
    books.tested.seen(key(port=1), 7, 50)
    books.tested.seen(key(port=2), 7, 101)
    books.tested.settle()
    assert books.held(lease) == 2


def test_who_has_nothing_is_forgotten_and_begins_anew(books: Books) -> None:
    lease = owner(key(), 7)
    books.opened(lease, 3)
    books.survey([], now=100)
    assert books.held(lease) == 0
    books.survey([], now=200)
    assert [name for name, _ in books.quotas.items() if name != EVERYBODY] == []
    assert [name for name, _ in books.released.items() if name != EVERYBODY] == []
    books.opened(lease, 1)
    assert books.held(lease) == 1


def test_an_error_is_gone_with_the_next_survey(books: Books) -> None:
    """As after a restart that lost what was taken out: nothing is released that was not opened."""
    lease = owner(key(), 7)
    books.opened(lease, 2)
    books.released.update(lease, U64.pack(9))
    books.survey([(key(port=1), 7, 1), (key(port=2), 7, 2)], now=100)
    assert books.held(lease) == 2
