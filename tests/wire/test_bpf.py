"""The bpf(2) wrappers, against the running kernel."""

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from appliance.wire import bpf
from appliance.wire.bpf import Map

EXIST = 2  # BPF_EXIST of linux/bpf.h
KINDS = [(bpf.HASH, 0), (bpf.LRU_HASH, 0), (bpf.LPM_TRIE, bpf.NO_PREALLOC)]


def _key(number: int) -> bytes:
    return struct.pack("<I", 32) + struct.pack(">I", number)


@pytest.fixture(params=KINDS, ids=["hash", "lru", "trie"])
def made(request: pytest.FixtureRequest) -> Iterator[Map]:
    kind, flags = request.param
    fd = bpf.create_map(kind, 8, 4, 4096, "test", flags)
    yield Map(fd)
    os.close(fd)


def test_map_knows_itself(made: Map) -> None:
    assert (made.key_size, made.value_size, made.max_entries) == (8, 4, 4096)


def test_entries_come_and_go(made: Map) -> None:
    assert made.lookup(_key(1)) is None
    made.update(_key(1), b"aaaa")
    made.update(_key(1), b"bbbb")
    assert made.lookup(_key(1)) == b"bbbb"
    assert made.delete(_key(1)) is True
    assert made.delete(_key(1)) is False


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 3000])
def test_items_are_all_entries_once(made: Map, count: int) -> None:
    expected = {_key(number): struct.pack("<I", number) for number in range(count)}
    for key, value in expected.items():
        made.update(key, value)
    items = list(made.items())
    assert len(items) == count
    assert dict(items) == expected
    assert set(made.keys()) == set(expected)


def test_wrong_sizes_are_refused_before_the_kernel_reads_beyond(made: Map) -> None:
    for call in (
        lambda: made.lookup(b"short"),
        lambda: made.update(_key(1), b"toolong"),
        lambda: made.update(b"", b"aaaa"),
        lambda: made.delete(b""),
    ):
        with pytest.raises(ValueError, match="bytes for a map"):
            call()


def test_flags_and_fullness_are_the_kernels_errors() -> None:
    fd = bpf.create_map(bpf.HASH, 4, 4, 2, "small")
    small = Map(fd)
    small.update(b"aaaa", b"1111", bpf.NOEXIST)
    with pytest.raises(FileExistsError, match="MAP_UPDATE_ELEM"):
        small.update(b"aaaa", b"1111", bpf.NOEXIST)
    with pytest.raises(FileNotFoundError):
        small.update(b"bbbb", b"1111", EXIST)
    small.update(b"bbbb", b"1111")
    with pytest.raises(OSError, match="MAP_UPDATE_ELEM") as raised:
        small.update(b"cccc", b"1111")
    assert raised.value.errno == errno.E2BIG
    os.close(fd)


def test_a_value_per_cpu() -> None:
    fd = bpf.create_map(bpf.PERCPU_ARRAY, 4, 4, 2, "percpu")
    counts = Map(fd)
    cpus = bpf.possible_cpus()
    counts.update(bytes(4), b"".join(struct.pack("<II", cpu, 0) for cpu in range(cpus)))
    assert counts.lookup_percpu(bytes(4)) == [struct.pack("<I", cpu) for cpu in range(cpus)]
    assert counts.lookup_percpu(struct.pack("<I", 2)) == []
    assert [key for key, _ in counts.items()] == [struct.pack("<I", index) for index in range(2)]
    os.close(fd)


def _instruction(code: int, registers: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, registers, offset, immediate)


RETURN_2 = _instruction(0xB7, 0, 0, 2) + _instruction(0x95)


def test_relocate_replaces_numbers_by_file_descriptors_of_maps_only() -> None:
    wide = _instruction(0x18, 0x01, 0, 3) + _instruction(0, 0, 0, 0x18)  # a constant, its second half like an opcode
    named = _instruction(0x18, 0x11, 0, 3) + _instruction(0)
    assert (
        bpf.relocate(wide + named + RETURN_2, {3: 77})
        == wide + _instruction(0x18, 0x11, 0, 77) + _instruction(0) + RETURN_2
    )


def test_programs_run_on_packets() -> None:
    fd = bpf.load_program(RETURN_2, "two")
    assert bpf.program_id(fd) > 0
    done = bpf.run_once(fd, bytes(60), bytes(192))
    assert (done.result, done.packet, len(done.context)) == (2, bytes(60), 192)
    os.close(fd)


def test_a_refused_program_says_why() -> None:
    with pytest.raises(OSError, match=r"(?s)PROG_LOAD bad: Permission denied.*R0 !read_ok"):
        bpf.load_program(_instruction(0x95), "bad")
