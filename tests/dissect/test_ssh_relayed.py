"""Relayed SSH against streams written by hand: log-in, terminal, commands, files, and what is none of it."""

import pytest

from appliance.dissect import Match
from appliance.dissect import ssh_messages as ssh
from appliance.dissect.conversation import Conversation
from appliance.dissect.ssh_channels import MAX_RUN
from appliance.dissect.ssh_connection import MAX_CHANNELS
from appliance.dissect.ssh_relayed import MAX_MESSAGE, START, SshRelayed
from appliance.dissect.ssh_scp import source_of
from appliance.dissect.ssh_terminal import readable
from appliance.model import Direction
from tests.dissect.harness import (
    START_NS,
    C,
    Gap,
    Played,
    S,
    Turn,
    assert_any_cut,
    assert_survives,
    assert_truncated,
    feed,
    play,
)
from tests.dissect.ssh_bytes import (
    COPY,
    ENDED,
    FILES,
    FORWARDS,
    LOGIN,
    OPEN,
    QUESTIONS,
    TERMINAL,
    data,
    request,
    said,
    sftp,
    u32,
)

STDERR = 1  # data type of EXTENDED_DATA (RFC 4254 section 5.2)
ALL = {"terminal": TERMINAL, "files": FILES, "copy": COPY, "forwards": FORWARDS, "questions": QUESTIONS}


def texts(played: Played, *kinds: str) -> list[str]:
    return [message.text for message in played.messages if message.kind in kinds]


def test_the_examples_of_the_format() -> None:
    assert START.hex(" ") == "53 53 48 2d 52 45 4c 41 59 45 44 2d 31 0d 0a"
    assert data(b"ls\n").hex(" ") == "00 00 00 0c 5e 00 00 00 00 00 00 00 03 6c 73 0a"


class TestMessages:
    @pytest.mark.parametrize("number", sorted(ssh.LAYOUTS))
    def test_written_and_read(self, number: int) -> None:
        values = {
            "text": "größe", "string": b"\0\xff", "boolean": True, "uint32": 7, "uint64": 1 << 40, "rest": b"rest",
            "more": b"more", "strings": [b"a", b""], "prompts": [("Code: ", True)],
        }  # fmt: skip
        chooser, variants = ssh.VARIANTS.get(number, ("", {"": ()}))
        for variant in [*variants, "unknown@example.com"] if chooser else [""]:
            chosen = {chooser: variant} if chooser else {}
            layout = ssh.layout(number, chosen)
            if layout is None:
                layout = (*ssh.LAYOUTS[number], ("data", "rest"))
            fields = {name: values[kind] for name, kind in layout} | chosen
            payload = ssh.encode(number, **fields)
            assert ssh.parse(payload)[:2] == (number, fields)
            if not layout or layout[-1][1] not in ("rest", "more"):
                with pytest.raises(ValueError, match="behind"):
                    ssh.parse(payload + b"x")
            for end in range(1, len(payload)):
                try:
                    ssh.parse(payload[:end])
                except ValueError:
                    continue
                assert layout[-1][1] in ("rest", "more"), f"cut at {end}"

    def test_places(self) -> None:
        parsed = ssh.parse(ssh.encode(ssh.DATA, recipient=1, data=b"abc"))
        start, end = parsed.places["data"]
        assert ssh.encode(ssh.DATA, recipient=1, data=b"abc")[start:end] == b"abc"

    def test_unknown_number(self) -> None:
        with pytest.raises(ValueError, match="unknown"):
            ssh.parse(b"\xc7")


class TestSessions:
    @pytest.mark.parametrize("name", ALL)
    def test_any_cut(self, name: str) -> None:
        played = assert_any_cut(SshRelayed, ALL[name], step=5)
        assert "malformed" not in played.kinds()
        assert_truncated(SshRelayed, ALL[name], step=7)

    def test_terminal(self) -> None:
        played = play(SshRelayed, TERMINAL)
        assert texts(played, "authentication-failed", "authenticated") == ["alice password", "alice password"]
        assert texts(played, "environment", "terminal", "shell", "resize", "signal", "exit") == [
            "LANG=C.UTF-8", "xterm-256color 80x24", "", "120x40", "INT", "exit status 3",
        ]  # fmt: skip
        assert texts(played, "input") == ["ls\n", "sudo id\n", "(redacted)\n"]
        assert "".join(texts(played, "output")) == (
            "$ ls\ndir  größe\n$ sudo id\n[sudo] password for alice: \nuid=0(root)\n"
        )
        assert texts(played, "success") == ["pty-req accepted", "shell accepted"]
        assert b"".join(played.secrets()) == b"geheim!"
        assert played.dissector.attrs == {"user": "alice", "method": "password", "authenticated": True}
        typed = next(message for message in played.messages if message.kind == "input")
        assert played.bytes_of(typed) == data(b"l", 7) + data(b"x\x7fs", 7) + data(b"\r", 7)

    def test_secret_that_is_typed_ends_anywhere(self) -> None:
        assert_truncated(SshRelayed, TERMINAL, secrets=[b"geheim!"], step=1)

    def test_lines_that_are_pasted(self) -> None:
        turns: list[Turn] = [
            *OPEN,
            (C, request("pty-req", term="x")),
            (C, data(b"one\rtwo\rth", 7)),
            (C, data(b"ree\r", 7)),
        ]
        played = assert_any_cut(SshRelayed, turns)
        assert texts(played, "input") == ["one\n", "two\n", "three\n"]
        ranges = [played.bytes_of(message) for message in played.messages if message.kind == "input"]
        assert ranges[1] == b"two\r"
        assert b"".join(ranges) == data(b"one\rtwo\rth", 7) + data(b"ree\r", 7)

    def test_command(self) -> None:
        turns: list[Turn] = [
            *OPEN, (C, request("exec", command="make -C /src test", want_reply=True)), (C, data(b"stdin", 7)),
            (S, data(b"out 1\n") + said(ssh.EXTENDED_DATA, recipient=0, type=STDERR, data=b"warning\n")),
            (S, data(b"out 2\n") + data(b"out 3\n") + request("exit-signal", direction="server", signal="TERM")),
        ]  # fmt: skip
        played = assert_any_cut(SshRelayed, turns)
        assert texts(played, "exec") == ["make -C /src test"]
        assert texts(played, "input", "error-output") == ["stdin", "warning\n"]
        assert texts(played, "output") == ["out 1\n", "out 2\nout 3\n"]
        assert texts(played, "exit") == ["exit signal TERM"]

    def test_much_output(self) -> None:
        turns: list[Turn] = [*OPEN, (C, request("exec", command="cat big")), *[(S, data(b"x" * 30_000))] * 20]
        relayed = SshRelayed()
        for direction, what in turns:
            assert isinstance(what, bytes)
            relayed.receive(direction, what, 1)
            assert relayed.held < 2 * MAX_RUN
        played = play(SshRelayed, turns)
        assert sum(message.attrs["bytes"] for message in played.messages if message.kind == "output") == 600_000
        assert all(message.attrs["bytes"] <= MAX_RUN for message in played.messages if message.kind == "output")

    def test_refused(self) -> None:
        played = play(SshRelayed, FORWARDS)
        asked, refused, wanted, denied, _, odd = played.messages[4:]
        assert (asked.kind, asked.text, asked.attrs["address"]) == ("open", "direct-tcpip 10.0.0.1 5432", "10.0.0.1")
        assert refused.text == "direct-tcpip refused: administratively prohibited: port forwarding is not allowed"
        assert refused.reply_to == asked.start
        assert (wanted.text, denied.text) == ("tcpip-forward 0.0.0.0 80", "tcpip-forward refused")
        assert denied.reply_to == wanted.start
        assert odd.attrs["reason"] == "unknown channel type"

    def test_answers_that_are_no_asterisks(self) -> None:
        played = assert_any_cut(SshRelayed, QUESTIONS)
        assert played.secrets() == [b"geheim-1", b"geheim-2"]
        assert_truncated(SshRelayed, QUESTIONS, secrets=[b"geheim-1", b"geheim-2"])
        assert played.dissector.attrs["method"] == "password"

    def test_two_channels_at_once(self) -> None:
        turns: list[Turn] = [
            *OPEN,
            (C, said(ssh.CHANNEL_OPEN, type="session", sender=1, window=9, maximum=9)),
            (S, said(ssh.OPEN_CONFIRMATION, recipient=1, sender=8, window=9, maximum=9)),
            (S, data(b"a") + data(b"b", 1) + data(b"c")),
        ]
        played = assert_any_cut(SshRelayed, turns)
        assert [(m.attrs["channel"], m.text) for m in played.messages[-3:]] == [(0, "a"), (1, "b"), (0, "c")]


class TestFiles:
    def test_sftp(self) -> None:
        played = play(SshRelayed, FILES)
        assert texts(played, "sftp", "sftp-write") == [
            "init", "open /tmp/a write create truncate", "write /tmp/a 11 bytes at 0", "close /tmp/a", "opendir /tmp",
            "readdir /tmp", "posix-rename /tmp/a /tmp/b", "mkdir /tmp/d", "remove /tmp/b", "stat /tmp/b", "statvfs /",
        ]  # fmt: skip
        assert texts(played, "sftp-reply", "sftp-read") == [
            "version 3", "handle", "read /tmp/a 11 bytes at 0", "OK", "handle", "-rw-r--r-- 1 a",
            "permission denied: Permission denied", "OK", "no such file: No such file", "size=99", "statvfs reply",
        ]  # fmt: skip
        closed = next(message for message in played.messages if message.text == "close /tmp/a")
        assert (closed.attrs["read"], closed.attrs["written"]) == (11, 11)
        (file,) = (message for message in played.messages if message.kind == "file")
        assert file.attrs == {"path": "/tmp/a", "direction": "upload", "bytes": 11, "sha256": "ab" * 32}
        failed = next(message for message in played.messages if message.attrs.get("code") == 3)
        asked = next(message for message in played.messages if message.attrs.get("operation") == "posix-rename")
        assert failed.reply_to == asked.start
        written = next(message for message in played.messages if message.kind == "sftp-write")
        assert b"hello " in played.bytes_of(written)
        assert played.bytes_of(written).endswith(b"world")

    def test_large_packets_wait_nowhere(self) -> None:
        relayed = SshRelayed()
        opening = sftp(6, 1, ssh.string("H"), bytes(8), u32(200_000_000))
        packet = u32(200_000_021) + opening[4:]
        for direction, what in [*OPEN, (C, request("subsystem", name="sftp")), (C, data(packet, 7))]:
            assert isinstance(what, bytes)
            relayed.receive(direction, what, 1)
        for _ in range(50):
            relayed.receive(C, data(bytes(30_000), 7), 1)
            assert relayed.held < 20_000

    def test_no_sftp(self) -> None:
        turns: list[Turn] = [
            *OPEN,
            (C, request("subsystem", name="sftp")),
            (C, data(b"\xff" * 40, 7)),
            (S, data(sftp(101, 1))),
        ]
        played = assert_any_cut(SshRelayed, turns)
        assert [(m.kind, m.flags) for m in played.messages[-2:]] == [("malformed", ("malformed",))] * 2

    def test_scp(self) -> None:
        played = play(SshRelayed, COPY)
        assert texts(played, "exec", "folder", "copy", "error") == [
            "scp -r -p -t /tmp", "folder", "folder/a file.txt 11 bytes", "b 3 bytes", "scp: /tmp/b: Permission denied",
        ]  # fmt: skip
        copied = next(message for message in played.messages if message.kind == "copy")
        assert copied.attrs == {
            "channel": 0, "name": "a file.txt", "path": "folder/a file.txt", "mode": "0644", "size": 11,
        }  # fmt: skip
        assert played.bytes_of(copied).startswith(b"C0644 11 a file.txt\nhello")

    def test_scp_that_is_cut(self) -> None:
        played = play(SshRelayed, [*COPY[:11], (C, said(ssh.CLOSE, recipient=7))])
        assert [(m.text, m.flags) for m in played.messages if m.kind == "copy"] == [
            ("folder/a file.txt 11 bytes", ("truncated",))
        ]

    @pytest.mark.parametrize(
        ("command", "source"),
        [
            ("scp -t /tmp", C), ("scp -r -d -t -- /tmp", C), ("/usr/bin/scp -v -f file", S), ("scp -rpt x", C),
            ("cd /x && scp -f y", S), ("scp a b", None), ("myscp -t x", None), ("scp-wrapper -t x", None),
        ],
    )  # fmt: skip
    def test_commands_of_scp(self, command: str, source: Direction | None) -> None:
        assert source_of(command) is source


class TestBroken:
    @pytest.mark.parametrize("bad", [b"\0\0\0\0", u32(MAX_MESSAGE + 1), b"\xff\xff\xff\xff"])
    def test_lengths(self, bad: bytes) -> None:
        played = assert_any_cut(SshRelayed, [(C, START + bad + data(b"x"))])
        assert played.kinds() == ["malformed", "undissected"]

    def test_another_start(self) -> None:
        assert assert_any_cut(SshRelayed, [(S, b"SSH-RELAYED-2\r\n" + data(b"x"))]).kinds() == [
            "malformed",
            "undissected",
        ]

    def test_messages_that_do_not_fit(self) -> None:
        turns: list[Turn] = [(C, START + u32(2) + b"\x5a\0" + u32(1) + b"\xc8" + data(b"x"))]
        played = assert_any_cut(SshRelayed, turns)
        assert [(m.kind, m.flags) for m in played.messages] == [
            ("malformed", ("malformed",)), ("undissected", ("undecoded",)), ("input", ()),
        ]  # fmt: skip

    def test_gap(self) -> None:
        first = data(b"one " * 10, 7)
        turns: list[Turn] = [*OPEN, (C, first[:20]), (C, Gap(10)), (C, first[30:]), (C, data(b"two", 7))]
        played = play(SshRelayed, turns)
        assert [(m.kind, m.text, m.flags) for m in played.messages[-3:]] == [
            ("malformed", "", ("truncated",)), ("undissected", "", ("undecoded",)), ("input", "two", ()),
        ]  # fmt: skip

    def test_wrong_direction(self) -> None:
        for turns in ALL.values():
            assert_survives(SshRelayed, [(direction.other, what) for direction, what in turns], split=11)

    def test_too_many_channels(self) -> None:
        relayed = SshRelayed()
        relayed.receive(C, START, 1)
        relayed.receive(S, START, 1)
        for number in range(5 * MAX_CHANNELS):
            relayed.receive(C, said(ssh.CHANNEL_OPEN, type="session", sender=number, window=1, maximum=1), 1)
            relayed.receive(S, data(b"x", number), 1)
        assert relayed.held < 5_000_000


def test_detection() -> None:
    assert SshRelayed.detect(START, b"") is SshRelayed.detect(b"", START) is Match.YES
    assert SshRelayed.detect(START[:5], b"") is Match.MORE
    assert SshRelayed.detect(b"SSH-2.0-x", b"") is SshRelayed.detect(b"", b"") is Match.NO
    played = assert_any_cut(Conversation, LOGIN, step=3)
    assert played.dissector.protocol == "ssh"
    assert not played.dissector.opaque


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (b"plain", "plain"),
        (b"a\x1b[1;31mb\x1b[0mc", "abc"),
        (b"\x1b]0;title\x07x\x1b]8;;url\x1b\\y", "xy"),
        (b"\x1b(B\x1b=\x1b[?2004hok\x1b[", "ok"),
        (b"ab\x7fcd\x08\x08e", "ae"),
        (b"\x08\x7fx\n\x7fy", "x\ny"),
        (b"a\r\nb\r\r\nc\rd", "a\nb\nc\nd"),
        ("größe\x07".encode(), "größe"),
        (b"\x1bPq" + b"x" * 100, ""),
    ],
)
def test_readable(typed: bytes, text: str) -> None:
    assert readable(typed) == text


class TestHandover:
    def test_it_is_what_a_relay_means_by_ssh(self) -> None:
        conversation = Conversation()
        conversation.adopt("ssh")
        played = play(lambda: conversation, TERMINAL)
        assert conversation.protocol == "ssh"
        assert texts(played, "authenticated") == ["alice password"]

    def test_no_secret_behind_one_that_was_given_up(self) -> None:
        """Wherever it was, the one that goes on with its bytes reads the next message, and hides what is typed."""
        size = sum(len(what) for _, what in TERMINAL[: -len(ENDED)] if isinstance(what, bytes))
        for place in range(1, size):
            first, second = Conversation(), Conversation()
            for direction in (C, S):
                second.unseen(direction)
            played, fed = Played(second), 0
            for direction, what in TERMINAL:
                assert isinstance(what, bytes)
                before, behind = what[: max(place - fed, 0)], what[max(place - fed, 0) :]
                if before:
                    first.receive(direction, before, START_NS)
                if before and place <= fed + len(what):
                    handover = first.handover()
                    if handover is not None:  # enough was there to know what it is
                        second.succeed(handover)
                if behind:
                    feed(played, direction, behind, START_NS)
                fed += len(what)
            if not first.protocol:
                continue
            assert second.protocol == "ssh", place
            kept = played.stored(C)
            assert not any(part in kept for part in (b"gehe", b"heim", b"im!")), place
            assert texts(played, "exit") == ["exit status 3"], place
            assert "malformed" not in played.kinds(), place
