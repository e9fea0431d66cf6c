"""SSH in the clear, and as a relay records it, written by hand."""

import struct

from appliance.dissect import ssh_messages as ssh
from appliance.dissect.ssh_relayed import START, frame
from tests.dissect.harness import C, S, Turn

OFFER = (
    "curve25519-sha256,ext-info-c",
    "ssh-ed25519,ssh-rsa",
    *["aes128-ctr"] * 2,
    *["hmac-sha2-256"] * 2,
    *["none"] * 2,
    "",
    "",
)


def packet(payload: bytes) -> bytes:
    """RFC 4253 §6, not encrypted."""
    padding = 8 - (len(payload) + 5) % 8
    padding += 8 if padding < 4 else 0
    return struct.pack("!IB", len(payload) + padding + 1, padding) + payload + bytes(padding)


def kexinit(*lists: str) -> bytes:
    return packet(b"\x14" + bytes(16) + b"".join(map(ssh.string, lists or OFFER)) + bytes(5))


KEY = ssh.string("ssh-ed25519") + ssh.string(bytes(32))
REPLY = packet(b"\x1f" + ssh.string(KEY) + ssh.string(bytes(32)) + ssh.string("signature"))
NEWKEYS = packet(b"\x15")
HANDSHAKE: list[Turn] = [
    (C, b"SSH-2.0-client_1 some comment\r\n" + kexinit()),
    (S, b"welcome\r\nSSH-2.0-server_2\r\n" + kexinit()),
    (C, packet(b"\x1e" + ssh.string(bytes(32)))),
    (S, REPLY + NEWKEYS + b"sealed"),
    (C, NEWKEYS + b"sealed too"),
]


def said(number: int, **fields: object) -> bytes:
    """A message of a relayed stream."""
    return frame(ssh.encode(number, **fields))


def data(content: bytes, recipient: int = 0) -> bytes:
    return said(ssh.DATA, recipient=recipient, data=content)


def sftp(kind: int, number: int, *rest: bytes) -> bytes:
    body = bytes([kind]) + struct.pack("!I", number) + b"".join(rest)
    return ssh.string(body)


def status(number: int, code: int, text: str = "") -> bytes:
    return sftp(101, number, struct.pack("!I", code), ssh.string(text), ssh.string(""))


def u32(number: int) -> bytes:
    return struct.pack("!I", number)


def u64(number: int) -> bytes:
    return struct.pack("!Q", number)


# the agent calls its channel 0, the server calls it 7
LOGIN: list[Turn] = [
    (
        C,
        START + said(ssh.USERAUTH_REQUEST, user="alice", service="ssh-connection", method="password", password="*" * 9),
    ),
    (S, START + said(ssh.USERAUTH_FAILURE, methods="publickey,password", partial=False)),
    (C, said(ssh.USERAUTH_REQUEST, user="alice", service="ssh-connection", method="password", password="*" * 12)),
    (S, said(ssh.USERAUTH_SUCCESS)),
]
OPEN: list[Turn] = [
    *LOGIN,
    (C, said(ssh.CHANNEL_OPEN, type="session", sender=0, window=1 << 21, maximum=1 << 15)),
    (S, said(ssh.OPEN_CONFIRMATION, recipient=0, sender=7, window=1 << 21, maximum=1 << 15)),
]


def request(kind: str, *, direction: str = "client", want_reply: bool = False, **fields: object) -> bytes:
    recipient = 7 if direction == "client" else 0
    return said(ssh.CHANNEL_REQUEST, recipient=recipient, type=kind, want_reply=want_reply, **fields)


ACCEPTED = said(ssh.CHANNEL_SUCCESS, recipient=0)
ENDED: list[Turn] = [
    (S, request("exit-status", direction="server", status=3)),
    (S, said(ssh.EOF, recipient=0) + said(ssh.CLOSE, recipient=0)),
    (C, said(ssh.CLOSE, recipient=7) + said(ssh.DISCONNECT, reason=11, description="disconnected by user")),
]
TERMINAL: list[Turn] = [
    *OPEN,
    (C, request("env", name="LANG", value="C.UTF-8")),
    (C, request("pty-req", want_reply=True, term="xterm-256color", columns=80, rows=24)),
    (C, request("shell", want_reply=True)),
    (S, ACCEPTED * 2 + data(b"\x1b]0;title\x07$ ")),
    (C, data(b"l", 7)), (S, data(b"l")), (C, data(b"x\x7fs", 7)), (S, data(b"x\b \bs")),
    (C, data(b"\r", 7)), (S, data(b"\r\n\x1b[01;34mdir\x1b[0m  gr\xc3\xb6\xc3\x9fe\r\n$ ")),
    (C, request("window-change", columns=120, rows=40)),
    (C, data(b"sudo id\r", 7)), (S, data(b"sudo id\r\n[sudo] password for alice: ")),
    (C, data(b"gehe", 7)), (C, data(b"im!\r", 7)), (S, data(b"\r\nuid=0(root)\r\n")),
    (C, said(ssh.WINDOW_ADJUST, recipient=7, bytes=100) + request("signal", signal="INT")),
    *ENDED,
]  # fmt: skip
FILES: list[Turn] = [
    *OPEN,
    (C, request("subsystem", want_reply=True, name="sftp")), (S, ACCEPTED),
    (C, data(ssh.string(b"\1" + u32(3)), 7)), (S, data(ssh.string(b"\2" + u32(3)))),
    (C, data(sftp(3, 1, ssh.string("/tmp/a"), u32(26), u32(4), u32(0o644)), 7)),
    (S, data(sftp(102, 1, ssh.string("H")))),
    (C, data(sftp(6, 2, ssh.string("H"), u64(0), ssh.string(b"hello ")), 7)),
    (C, data(sftp(6, 3, ssh.string("H"), u64(6), ssh.string(b"world"))[:20], 7)),
    (C, data(sftp(6, 3, ssh.string("H"), u64(6), ssh.string(b"world"))[20:], 7)),
    (S, data(status(2, 0) + status(3, 0))),
    (C, data(sftp(5, 4, ssh.string("H"), u64(0), u32(100)), 7)), (S, data(sftp(103, 4, ssh.string("hello world")))),
    (C, data(sftp(5, 5, ssh.string("H"), u64(11), u32(100)), 7)), (S, data(status(5, 1, "End of file"))),
    (C, data(sftp(4, 6, ssh.string("H")), 7)),
    (C, said(ssh.FILE, path="/tmp/a", direction="upload", bytes=11, sha256="ab" * 32)),
    (S, data(status(6, 0))),
    (C, data(sftp(11, 7, ssh.string("/tmp")), 7)), (S, data(sftp(102, 7, ssh.string("D")))),
    (C, data(sftp(12, 8, ssh.string("D")), 7)),
    (S, data(sftp(104, 8, u32(1), ssh.string("a"), ssh.string("-rw-r--r-- 1 a"), u32(5), u64(11), u32(0o644)))),
    (C, data(sftp(200, 9, ssh.string("posix-rename@openssh.com"), ssh.string("/tmp/a"), ssh.string("/tmp/b")), 7)),
    (S, data(status(9, 3, "Permission denied"))),
    (C, data(sftp(14, 10, ssh.string("/tmp/d"), u32(4), u32(0o755)) + sftp(13, 11, ssh.string("/tmp/b")), 7)),
    (S, data(status(10, 0) + status(11, 2, "No such file"))),
    (C, data(sftp(17, 12, ssh.string("/tmp/b")), 7)),
    (C, data(sftp(200, 13, ssh.string("statvfs@openssh.com"), ssh.string("/")), 7)),
    (S, data(sftp(105, 12, u32(1), u64(99)) + sftp(201, 13, bytes(88)))),
    *ENDED,
]  # fmt: skip
COPY: list[Turn] = [
    *OPEN,
    (C, request("exec", want_reply=True, command="scp -r -p -t /tmp")), (S, ACCEPTED + data(b"\0")),
    (C, data(b"T1 0 1 0\nD0755 0 folder\n", 7)), (S, data(b"\0\0")),
    (C, data(b"C0644 11 a file.txt\nhello", 7)), (S, data(b"\0")), (C, data(b" world\0", 7)), (S, data(b"\0")),
    (C, data(b"E\nC0600 3 b\nabc\0", 7)), (S, data(b"\0\x01scp: /tmp/b: Permission denied\n")),
    *ENDED,
]  # fmt: skip
FORWARDS: list[Turn] = [
    *LOGIN,
    (C, said(ssh.CHANNEL_OPEN, type="direct-tcpip", sender=1, window=9, maximum=9, address="10.0.0.1", port=5432,
             originator="127.0.0.1", originator_port=1)),
    (S, said(ssh.OPEN_FAILURE, recipient=1, reason=1, description="port forwarding is not allowed")),
    (C, said(ssh.GLOBAL_REQUEST, name="tcpip-forward", want_reply=True, address="0.0.0.0", port=80)),
    (S, said(ssh.REQUEST_FAILURE)),
    (C, said(ssh.CHANNEL_OPEN, type="odd@example.com", sender=2, window=9, maximum=9, data=b"\0\1")),
    (S, said(ssh.OPEN_FAILURE, recipient=2, reason=3, description="")),
]  # fmt: skip
QUESTIONS: list[Turn] = [
    (C, START + said(ssh.USERAUTH_REQUEST, user="bob", service="ssh-connection", method="keyboard-interactive")),
    (S, START + said(ssh.USERAUTH_INFO_REQUEST, prompts=[("Password: ", False)])),
    (C, said(ssh.USERAUTH_INFO_RESPONSE, responses=[b"geheim-1"])), (S, said(ssh.USERAUTH_FAILURE, methods="password")),
    (C, said(ssh.USERAUTH_REQUEST, user="bob", service="ssh-connection", method="password", password="geheim-2")),
    (S, said(ssh.USERAUTH_SUCCESS)),
]  # fmt: skip
