"""Hashes of files within SFTP: packets as clients and servers write them, cut at every byte, and hostile ones."""

import hashlib
import random
import struct

import pytest

from appliance.model import Direction
from appliance.relay.ssh_files import MAX_OPEN, MAX_WAITING, File, SftpFiles

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
CONTENT = bytes(range(256)) * 5
HASH = hashlib.sha256(CONTENT).hexdigest()
Said = tuple[Direction, bytes]


def packet(kind: int, *parts: bytes | int) -> bytes:
    body = bytes([kind]) + b"".join(
        struct.pack("!I", part) if isinstance(part, int) else struct.pack("!I", len(part)) + part for part in parts
    )
    return struct.pack("!I", len(body)) + body


def offset(kind: int, number: int, handle: bytes, at: int, *parts: bytes | int) -> bytes:
    """READ and WRITE, which have 64 bits in the middle."""
    after = b"".join(
        struct.pack("!I", part) if isinstance(part, int) else struct.pack("!I", len(part)) + part for part in parts
    )
    body = bytes([kind]) + struct.pack("!II", number, len(handle)) + handle + struct.pack("!Q", at) + after
    return struct.pack("!I", len(body)) + body


def opened(flags: int, number: int = 1, handle: bytes = b"h", path: bytes = b"/a b") -> list[Said]:
    return [(CLIENT, packet(3, number, path, flags, 0)), (SERVER, packet(102, number, handle))]


def upload(order: list[int] | None = None, size: int = 500) -> list[Said]:
    starts = list(range(0, len(CONTENT), size))
    said = opened(0x1A)
    for number, index in enumerate(order or range(len(starts))):
        at = starts[index]
        said += [(CLIENT, offset(6, 10 + number, b"h", at, CONTENT[at : at + size]))]
        said += [(SERVER, packet(101, 10 + number, 0, b"", b""))]
    return [*said, (CLIENT, packet(4, 90, b"h")), (SERVER, packet(101, 90, 0, b"", b""))]


def download(size: int = 500) -> list[Said]:
    said = opened(1)
    starts = range(0, len(CONTENT) + size, size)
    said += [(CLIENT, offset(5, 10 + number, b"h", at, size)) for number, at in enumerate(starts)]
    for number, at in enumerate(starts):
        part = CONTENT[at : at + size]
        said += [(SERVER, packet(103, 10 + number, part) if part else packet(101, 10 + number, 1, b"", b""))]
    return [*said, (CLIENT, packet(4, 90, b"h"))]


def found(said: list[Said], step: int = 2**20) -> list[File]:
    files, observer = list[File](), SftpFiles()
    for direction, data in said:
        for at in range(0, len(data), step):
            files += observer.receive(direction, data[at : at + step])
    return files


@pytest.mark.parametrize("step", [1, 2, 3, 5, 13, 64, 2**20])
def test_a_file_is_hashed_however_it_is_cut(step: int) -> None:
    assert found(upload(), step) == [File(b"/a b", CLIENT, len(CONTENT), HASH)]
    assert found(download(), step) == [File(b"/a b", SERVER, len(CONTENT), HASH)]


def test_an_empty_file_has_the_hash_of_nothing() -> None:
    said = [*opened(0x1A), (CLIENT, packet(4, 2, b"h"))]
    assert found(said) == [File(b"/a b", CLIENT, 0, hashlib.sha256().hexdigest())]


def test_what_is_not_in_order_has_no_hash() -> None:
    assert found(upload([1, 0, 2])) == [File(b"/a b", CLIENT, len(CONTENT), "")]
    said = [*opened(1), (CLIENT, offset(5, 2, b"h", 100, 10)), (SERVER, packet(103, 2, b"x" * 10))]
    assert found([*said, (CLIENT, packet(4, 3, b"h"))]) == [File(b"/a b", SERVER, 10, "")]


def test_folders_and_what_failed_are_no_files() -> None:
    said = [
        (CLIENT, packet(11, 1, b"/")), (SERVER, packet(102, 1, b"d")), (CLIENT, packet(12, 2, b"d")),
        (CLIENT, packet(4, 3, b"d")), (CLIENT, packet(3, 4, b"/none", 1, 0)), (SERVER, packet(101, 4, 2, b"", b"")),
        (CLIENT, packet(4, 5, b"x")),
    ]  # fmt: skip
    assert found(said) == []


def test_nothing_grows_without_end() -> None:
    observer = SftpFiles()
    for number in range(MAX_WAITING + 100):
        observer.receive(CLIENT, packet(3, number, b"/f", 1, 0))
    for number in range(MAX_OPEN + 100):
        for direction, data in opened(1, number, str(number).encode()):
            observer.receive(direction, data)
    assert len(observer._opening) <= MAX_WAITING
    assert len(observer._opened) == MAX_OPEN


def test_noise_is_not_read() -> None:
    """Nothing raises, and a packet that is none ends the reading."""
    chance = random.Random(7)
    for _ in range(300):
        observer = SftpFiles()
        said = [*upload(), *download()]
        for direction, data in said:
            hurt = bytearray(data)
            for _ in range(chance.randrange(3)):
                hurt[chance.randrange(len(hurt))] = chance.randrange(256)
            observer.receive(direction, bytes(hurt))
        observer.receive(CLIENT, chance.randbytes(1000))
    assert found([(CLIENT, b"\0\0\0\0\0"), *upload()]) == []
