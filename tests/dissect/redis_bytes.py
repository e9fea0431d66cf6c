"""Redis' wire format, written by hand."""

from tests.dissect.harness import C, S, Turn


def command(*words: bytes | str) -> bytes:
    """An array of bulk strings."""
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(map(bulk, parts))


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def array(*values: bytes) -> bytes:
    """Of values that are encoded already."""
    return b"*%d\r\n" % len(values) + b"".join(values)


def push(*values: bytes) -> bytes:
    return b">%d\r\n" % len(values) + b"".join(values)


OK = b"+OK\r\n"
SECRETS = (b"wachtwoord", b"geheim-1", b"geheim-2", b"geheim-3", b"geheim-4", b"geheim-5", b"geheim-6", b"geheim-7")
LOGINS: list[Turn] = [
    (C, command("AUTH", SECRETS[0]) + command("auth", "alice", SECRETS[1])),
    (S, OK + b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"),
    (C, command("HELLO", "3", "AUTH", "bob", SECRETS[2], "SETNAME", "me")),
    (S, b"%1\r\n" + bulk(b"proto") + b":3\r\n"),
    (C, command("ACL", "SETUSER", "carol", "on", b">" + SECRETS[3], "+@all", "~*")),
    (S, OK),
    (C, command("CONFIG", "SET", "maxclients", "10", "requirepass", SECRETS[4])),
    (S, OK),
    (C, command("MIGRATE", "h", "6379", "", "0", "99", "COPY", "AUTH2", "dave", SECRETS[5], "KEYS", "auth", "x")),
    (S, b"+NOKEY\r\n"),
    (C, b'AUTH "' + SECRETS[6] + b'"\r\n'),
    (S, OK),
    (C, command("MULTI") + command("AUTH", SECRETS[7]) + command("EXEC")),
    (S, OK + b"+QUEUED\r\n" + array(OK)),
]
