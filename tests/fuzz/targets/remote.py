"""Redis and SSH, each by itself: see `dialogue`."""

import struct
from collections.abc import Iterator
from typing import Final

from appliance.dissect.redis import Redis
from appliance.dissect.ssh import Ssh
from appliance.dissect.ssh_messages import parse
from appliance.dissect.ssh_relayed import START, SshRelayed
from appliance.dissect.ssh_terminal import readable
from tests.dissect import ssh_bytes
from tests.dissect.harness import C, Gap, S
from tests.dissect.redis_bytes import LOGINS, OK, array, bulk, command, push
from tests.fuzz.dialogue import Turn
from tests.fuzz.targets import Target
from tests.fuzz.targets.dissectors import _target as dissector

REDIS_WORDS: Final = (
    command("AUTH", "x"), command("HELLO", "3", "AUTH", "a", "b"), command("PING"), command("SUBSCRIBE", "a"),
    command("UNSUBSCRIBE"), command("CLIENT", "REPLY", "SKIP"), command("RESET"), command("PSYNC", "?", "-1"),
    b"*2\r\n$4\r\nAUTH\r\n$9999\r\n", b"config set requirepass ", b"MONITOR\r\n", b"+QUEUED\r\n", b"*?\r\n", b".\r\n",
    b"$?\r\n;1\r\na\r\n;0\r\n", b"|1\r\n+a\r\n:1\r\n", b"%1\r\n", b"~1\r\n", b"*-1\r\n", b"$-1\r\n", b"*999999999\r\n",
    b"=7\r\ntxt:abc\r\n", b"!5\r\nERR x\r\n", b"+1.000000 [0 a] \"auth\" \"x\"\r\n", b"+FULLRESYNC a 0\r\n",
)  # fmt: skip
SSH_WORDS: Final = (
    b"SSH-2.0-x\r\n", b"SSH-1.5-x\n", ssh_bytes.kexinit(), ssh_bytes.REPLY, ssh_bytes.NEWKEYS,
    ssh_bytes.packet(b"\1\0\0\0\2\0\0\0\0\0\0\0\0"),
)  # fmt: skip
RELAYED_WORDS: Final = (
    START, ssh_bytes.data(b"x"), ssh_bytes.data(b"x\r", 7), ssh_bytes.data(b"Password: "), ssh_bytes.ACCEPTED,
    ssh_bytes.request("subsystem", name="sftp"), ssh_bytes.request("exec", command="scp -t /"),
    ssh_bytes.request("pty-req", term="x"), ssh_bytes.said(97, recipient=7), ssh_bytes.said(97, recipient=0),
    ssh_bytes.data(ssh_bytes.status(1, 0)), ssh_bytes.data(b"C0644 3 a\nabc\0", 7), b"\x1b[1m", b"\x1b]0;", b"\x08",
)  # fmt: skip


def redis() -> Iterator[tuple[Turn, ...]]:
    yield tuple(LOGINS)
    yield (
        (C, command("SUBSCRIBE", "a", "b") + command("UNSUBSCRIBE") + command("GET", "k")),
        (S, push(bulk(b"subscribe"), bulk(b"a"), b":1\r\n") + array(bulk(b"message"), bulk(b"a"), bulk(b"x"))),
        (S, array(bulk(b"subscribe"), bulk(b"b"), b":2\r\n") + array(bulk(b"unsubscribe"), b"$-1\r\n", b":0\r\n")),
        (C, Gap(9)),
        (S, bulk(b"v")),
        (C, command("SET", "k", b"\xff\0") + command("CLIENT", "REPLY", "OFF") + b"PING\r\n" + command("MONITOR")),
        (S, Gap(3)),
        (S, OK + b"*2\r\n%1\r\n+a\r\n*?\r\n:1\r\n.\r\n|1\r\n+t\r\n,1.5\r\n~2\r\n#t\r\n(12\r\n_\r\n"),
        (S, b'+1.000000 [0 a:1] "auth" "geheim"\r\n-ERR x\r\n$?\r\n;2\r\nab\r\n;0\r\n=7\r\ntxt:abc\r\n'),
    )
    yield ((C, command("CONFIG", "GET", "*")), (S, array(bulk(b"requirepass"), bulk(b"geheim"))))
    yield ((C, command("PSYNC", "?", "-1")), (S, b"\n+FULLRESYNC a 0\r\n$9\r\nREDIS0011"), (C, command("SYNC")))


def ssh() -> Iterator[tuple[Turn, ...]]:
    yield tuple(ssh_bytes.HANDSHAKE)
    yield ((C, b"SSH-2.0-a\n" + ssh_bytes.kexinit()), (S, b"hi\nSSH-1.99-b\n" + ssh_bytes.kexinit()), (S, Gap(4)))


def relayed() -> Iterator[tuple[Turn, ...]]:
    for turns in (ssh_bytes.TERMINAL, ssh_bytes.FILES, ssh_bytes.COPY, ssh_bytes.FORWARDS, ssh_bytes.QUESTIONS):
        yield tuple(turns)
    yield (*ssh_bytes.OPEN, (S, Gap(4)), (S, ssh_bytes.data(b"on")), (C, Gap(4)), (C, ssh_bytes.data(b"on\r", 7)))


def check_payload(data: bytes) -> None:
    """One message by itself: it is read, or a `ValueError`; and what a terminal shows of any bytes is text."""
    try:
        parsed = parse(data)
    except ValueError:
        parsed = None
    if parsed is not None:
        for start, end in parsed.places.values():
            assert 0 < start <= end <= len(data), "a field outside of its message"
    assert len(readable(data).encode()) <= 16 * len(data) + 16


def payloads() -> list[bytes]:
    found = []
    for turns in relayed():
        for _, data in turns:
            rest = data.removeprefix(START) if isinstance(data, bytes) else b""
            while len(rest) > 4:
                (length,) = struct.unpack_from("!I", rest)
                found.append(rest[4 : 4 + length])
                rest = rest[4 + length :]
    return found


TARGETS: Final = {
    "redis": dissector(Redis, redis, REDIS_WORDS, hints=True),
    "ssh": dissector(Ssh, ssh, SSH_WORDS),
    "ssh_relayed": dissector(SshRelayed, relayed, RELAYED_WORDS, hints=True, size=8192),
    "ssh_messages": Target(check_payload, payloads, (b"\0\0\0\4", b"password", b"session", b"\xff\xff\xff\xff"), 1024),
}
