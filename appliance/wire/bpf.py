"""The bpf(2) system call, as far as the appliance needs it: maps, pins, programs, test runs.

Layouts are those of `union bpf_attr` in linux/bpf.h. Failures are `OSError` with the errno of the kernel and the
command in the text; what is no failure (no such key) is a return value.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

HASH: Final = 1
ARRAY: Final = 2
PERCPU_ARRAY: Final = 6
LRU_HASH: Final = 9
LPM_TRIE: Final = 11
RINGBUF: Final = 27

ANY: Final = 0
NOEXIST: Final = 1
NO_PREALLOC: Final = 1  # flag of create_map; tries need it

SCHED_CLS: Final = 3
XDP: Final = 6
PSEUDO_MAP_FD: Final = 1
LD_IMM64: Final = 0x18

_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PROG_LOAD, _PIN, _GET = range(8)
_TEST_RUN, _INFO, _QUERY, _LOOKUP_BATCH, _TAKE_BATCH = 10, 15, 16, 24, 25
_SYSCALL = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 280)
_BATCHED = frozenset({HASH, LRU_HASH})
_BATCH = 1024
_LOG_BYTES = 16 * 2**20

_libc = ctypes.CDLL(None, use_errno=True)


def _call(command: int, what: str, attr: bytes) -> tuple[int, bytes]:
    """The result and the attributes as the kernel left them."""
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result = _libc.syscall(_SYSCALL, command, buffer, len(attr))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf {what}: {os.strerror(code)}")
    return result, buffer.raw


def _address(buffer: ctypes.Array[Any]) -> int:
    return ctypes.addressof(buffer)


def possible_cpus() -> int:
    """How many values an entry of a per-CPU map has."""
    last = Path("/sys/devices/system/cpu/possible").read_text("ascii").strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


def create_map(kind: int, key_size: int, value_size: int, max_entries: int, name: str, flags: int = 0) -> int:
    """A new map's file descriptor."""
    text = name.encode("ascii")[:15]
    attr = struct.pack("<7I16s", kind, key_size, value_size, max_entries, flags, 0, 0, text)
    return _call(_MAP_CREATE, f"MAP_CREATE {name}", attr)[0]


def pin(fd: int, path: Path) -> None:
    """Name an object in bpffs. The path must be free."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _call(_PIN, f"OBJ_PIN {path}", struct.pack("<QII", _address(name), fd, 0))


def get(path: Path) -> int | None:
    """The file descriptor of a pinned object; None: nothing is pinned there."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        return _call(_GET, f"OBJ_GET {path}", struct.pack("<QII", _address(name), 0, 0))[0]
    except FileNotFoundError:
        return None


def _info(fd: int, size: int) -> bytes:
    info = ctypes.create_string_buffer(size)
    _call(_INFO, "OBJ_GET_INFO_BY_FD", struct.pack("<IIQ", fd, size, _address(info)))
    return info.raw


def map_id(fd: int) -> int:
    """The kernel's number of a map (struct bpf_map_info, .id)."""
    return int(struct.unpack_from("<II", _info(fd, 24))[1])


def program_id(fd: int) -> int:
    """The kernel's number of a program."""
    return int(struct.unpack_from("<II", _info(fd, 16))[1])


def programs_at(ifindex: int, kind: int) -> list[int]:
    """Ids of the programs that are attached to an interface at a tcx hook; none where the kernel has no such hook."""
    ids = (ctypes.c_uint32 * 64)()
    attr = struct.pack("<4IQ2I4Q", ifindex, kind, 0, 0, _address(ids), len(ids), 0, 0, 0, 0, 0)
    try:
        _, answer = _call(_QUERY, "PROG_QUERY", attr)
    except OSError:
        return []
    return [int(one) for one in ids[: struct.unpack_from("<I", answer, 24)[0]]]


class Map:
    """A map of the kernel by its file descriptor, which the caller owns. Keys and values are bytes of fixed size."""

    __slots__ = ("_cpus", "_stride", "fd", "key_size", "max_entries", "type", "value_size")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        layout = struct.unpack_from("<6I", _info(fd, 24))
        self.type: int = layout[0]
        self.key_size: int = layout[2]
        self.value_size: int = layout[3]
        self.max_entries: int = layout[4]
        self._stride = self.value_size
        self._cpus = 1
        if self.type == PERCPU_ARRAY:
            self._stride = (self.value_size + 7) // 8 * 8
            self._cpus = possible_cpus()

    def _key(self, key: bytes) -> ctypes.Array[ctypes.c_char]:
        if len(key) != self.key_size:
            raise ValueError(f"a key of {len(key)} bytes for a map of keys of {self.key_size}")
        return ctypes.create_string_buffer(key, len(key))

    def lookup(self, key: bytes) -> bytes | None:
        """The value; None: no such key. Of a per-CPU map: all CPUs' values in a row, each padded to 8 bytes."""
        name, value = self._key(key), ctypes.create_string_buffer(self._stride * self._cpus)
        attr = struct.pack("<IxxxxQQQ", self.fd, _address(name), _address(value), 0)
        try:
            _call(_LOOKUP, "MAP_LOOKUP_ELEM", attr)
        except FileNotFoundError:
            return None
        return value.raw

    def lookup_percpu(self, key: bytes) -> list[bytes]:
        """One value per possible CPU; no such key: an empty list."""
        values = self.lookup(key) or b""
        return [values[at : at + self.value_size] for at in range(0, len(values), self._stride)]

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Set a value. `OSError` with E2BIG: the map is full; with EEXIST, ENOENT: as `flags` asked for."""
        if len(value) != self._stride * self._cpus:
            raise ValueError(f"a value of {len(value)} bytes for a map of values of {self._stride * self._cpus}")
        name, content = self._key(key), ctypes.create_string_buffer(value, len(value))
        attr = struct.pack("<IxxxxQQQ", self.fd, _address(name), _address(content), flags)
        _call(_UPDATE, "MAP_UPDATE_ELEM", attr)

    def delete(self, key: bytes) -> bool:
        """False: there was no such key."""
        name = self._key(key)
        try:
            _call(_DELETE, "MAP_DELETE_ELEM", struct.pack("<IxxxxQQQ", self.fd, _address(name), 0, 0))
        except FileNotFoundError:
            return False
        return True

    def keys(self) -> Iterator[bytes]:
        """All keys. Entries that come and go meanwhile may be missed or seen twice; at most twice `max_entries` are."""
        name = ctypes.create_string_buffer(self.key_size)
        following = ctypes.create_string_buffer(self.key_size)
        address = 0
        for _ in range(2 * self.max_entries):
            try:
                attr = struct.pack("<IxxxxQQQ", self.fd, address, _address(following), 0)
                _call(_NEXT_KEY, "MAP_GET_NEXT_KEY", attr)
            except FileNotFoundError:
                return
            yield following.raw
            name.raw = following.raw
            address = _address(name)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, as `keys()` finds them. Hashes are read a thousand entries at a time."""
        if self.type in _BATCHED:
            yield from self._batches()
            return
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def take(self) -> list[tuple[bytes, bytes]]:
        """All entries of a hash, which are gone from it then: each is taken as it is at that moment, or stays."""
        return list(self._batches(_TAKE_BATCH))

    def _batches(self, command: int = _LOOKUP_BATCH) -> Iterator[tuple[bytes, bytes]]:
        room = min(_BATCH, self.max_entries)
        while True:
            try:
                yield from self._batches_of(room, command)
                return
            except OSError as error:
                # One bucket of the hash holds more entries than the batch has room for. What was seen is seen again.
                if error.errno != errno.ENOSPC or room >= self.max_entries:
                    raise
                room = min(room * 8, self.max_entries)

    def _batches_of(self, room: int, command: int) -> Iterator[tuple[bytes, bytes]]:
        keys = ctypes.create_string_buffer(self.key_size * room)
        values = ctypes.create_string_buffer(self._stride * room)
        names, contents = memoryview(keys), memoryview(values)  # .raw would copy all of them for each entry
        token = ctypes.create_string_buffer(max(8, self.key_size))
        layout = struct.Struct("<QQQQIIQQ")
        start, last = 0, False
        while not last:
            fields = (start, _address(token), _address(keys), _address(values), room, self.fd, 0, 0)
            attr = ctypes.create_string_buffer(layout.pack(*fields), layout.size)
            if _libc.syscall(_SYSCALL, command, attr, layout.size) < 0:
                code = ctypes.get_errno()
                if code != errno.ENOENT:
                    what = "LOOKUP" if command == _LOOKUP_BATCH else "LOOKUP_AND_DELETE"
                    raise OSError(code, f"bpf MAP_{what}_BATCH: {os.strerror(code)}")
                last = True
            for index in range(layout.unpack(attr.raw)[4]):
                key = names[index * self.key_size : (index + 1) * self.key_size]
                yield bytes(key), bytes(contents[index * self._stride : (index + 1) * self._stride])
            start = _address(token)


def relocate(instructions: bytes, fds: dict[int, int]) -> bytes:
    """Put file descriptors where the program names its maps by number (`bpf_pseudo_fd(1, number)` in C)."""
    patched = bytearray(instructions)
    at = 0
    while at < len(patched):
        opcode, registers, _, number = struct.unpack_from("<BBhi", patched, at)
        if opcode == LD_IMM64:
            if registers >> 4 == PSEUDO_MAP_FD:
                struct.pack_into("<i", patched, at + 4, fds[number])
            at += 8  # its second half
        at += 8
    return bytes(patched)


def load_program(instructions: bytes, name: str, kind: int = SCHED_CLS) -> int:
    """Load a TC classifier, or another kind of program.

    `OSError`: the kernel refuses it; the text ends with the verifier's last lines.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    terms = ctypes.create_string_buffer(b"Apache-2.0")

    def load(level: int, log: int, room: int) -> int:
        fields = (kind, len(instructions) // 8, _address(code), _address(terms), level, room, log, 0, 0)
        return _call(_PROG_LOAD, f"PROG_LOAD {name}", struct.pack("<IIQQIIQII16s", *fields, name.encode("ascii")[:15]))[
            0
        ]

    try:
        return load(0, 0, 0)
    except OSError as error:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return load(1, _address(log), _LOG_BYTES)
        except OSError:
            lines = log.value.decode("ascii", "replace").strip().splitlines()[-12:]
            raise OSError(
                error.errno, "\n".join([f"bpf PROG_LOAD {name}: {os.strerror(error.errno or 0)}", *lines])
            ) from None


@dataclass(frozen=True, slots=True)
class Run:
    """What a program made of one packet: its return value, the packet and the context (struct __sk_buff) after it."""

    result: int
    packet: bytes
    context: bytes
    nanoseconds: int


def run_once(program: int, packet: bytes, context: bytes) -> Run:
    """Run a loaded program on a packet without sending it (BPF_PROG_TEST_RUN). `context`: a struct __sk_buff."""
    data = ctypes.create_string_buffer(packet, len(packet))
    out = ctypes.create_string_buffer(len(packet) + 256)
    before = ctypes.create_string_buffer(context, len(context))
    after = ctypes.create_string_buffer(len(context))
    layout = struct.Struct("<4IQQ4IQQIII4x")
    fields = (program, 0, len(packet), len(out), _address(data), _address(out), 1, 0)
    contexts = (len(context), len(context), _address(before), _address(after))
    _, attr = _call(_TEST_RUN, "PROG_TEST_RUN", layout.pack(*fields, *contexts, 0, 0, 0))
    done = layout.unpack(attr)
    return Run(done[1], out.raw[: done[3]], after.raw, done[7])
