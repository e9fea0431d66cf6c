"""Redis against bytes written by hand: commands, replies, who answers what, credentials, and what is none of it."""

import time

import pytest

from appliance.dissect import Match, Torn
from appliance.dissect.conversation import Conversation
from appliance.dissect.redis import MAX_PENDING, Redis
from appliance.dissect.redis_commands import MAX_CREDENTIAL, MAX_INLINE
from appliance.dissect.redis_printed import MAX_DEPTH, MAX_TEXT
from appliance.dissect.redis_replies import MAX_LINE
from appliance.dissect.redis_words import quoted, split, typed
from appliance.model import Message
from tests.dissect.harness import (
    C,
    Gap,
    Played,
    S,
    Turn,
    assert_any_cut,
    assert_survives,
    assert_truncated,
    play,
)
from tests.dissect.redis_bytes import LOGINS, OK, SECRETS, array, bulk, command, push


def pairs(played: Played) -> list[tuple[str, str]]:
    """What was asked and what was answered, by `reply_to`."""
    asked = {message.start: message.text for message in played.messages if message.direction is C}
    return [
        (asked.get(message.reply_to, "") if message.reply_to is not None else "", message.text)
        for message in played.messages
        if message.direction is S
    ]


def said(played: Played) -> list[tuple[str, str]]:
    return [(message.kind, message.text) for message in played.messages]


def reply(data: bytes, *asked: str) -> Message:
    """The one message that the server's bytes become."""
    played = assert_any_cut(Redis, [(C, command(*(asked or ("X",)))), (S, data)])
    (message,) = (one for one in played.messages if one.direction is S)
    assert (message.start, message.end) == (0, len(data))
    return message


class TestCommands:
    def test_as_typed(self) -> None:
        turns: list[Turn] = [
            (C, command("SET", "k", 'a "b"\\\n') + command("GET", "") + command("get", b"\xff\xc3\xa9"))
        ]
        played = assert_any_cut(Redis, turns)
        assert [message.text for message in played.messages] == [
            'SET k "a \\"b\\"\\\\\\n"', 'GET ""', 'get "\\xffé"',
        ]  # fmt: skip
        assert played.messages[2].attrs == {"command": "GET", "arguments": 1}
        assert b"".join(map(played.bytes_of, played.messages)) == played.streams[C]

    def test_inline(self) -> None:
        data = b"PING\r\n\r\n  set  k 'a \\'b'  \"\\x41\\n\"\nset \"open\r\n"
        played = assert_any_cut(Redis, [(C, data)])
        assert [(message.text, message.flags) for message in played.messages] == [
            ("PING", ()), ("set k \"a 'b\" \"A\\n\"", ()), ("set open", ("malformed",)),
        ]  # fmt: skip
        assert all(message.attrs["inline"] for message in played.messages)

    def test_script_is_searchable(self) -> None:
        script = "local user = redis.call('HGET', KEYS[1], 'name')\nreturn user"
        played = play(Redis, [(C, command("EVAL", script, "1", "k"))])
        assert "redis.call('HGET', KEYS[1], 'name')" in played.messages[0].text

    def test_large_value(self) -> None:
        data = command("SET", "k", b"x" * 300_000, "EX", "10")
        played = play(Redis, [(C, data), (S, OK)], split=4096)
        message = played.messages[0]
        assert (message.start, message.end, message.flags) == (0, len(data), ("truncated",))
        assert len(message.text) <= MAX_TEXT
        assert played.messages[1].reply_to == 0

    def test_large_value_waits_nowhere(self) -> None:
        redis = Redis()
        opening = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$400000000\r\n"
        redis.receive(C, opening, 1)
        for _ in range(100):
            redis.receive(C, bytes(65536), 2)
            assert redis.held < 200_000
        assert redis.settled(C) == len(opening) + 100 * 65536

    def test_many_arguments(self) -> None:
        words = [b"%d" % number for number in range(20_000)]
        played = play(
            Redis, [(C, command(b"RPUSH", *words) + command("PING")), (S, b":20000\r\n+PONG\r\n")], split=1000
        )
        assert [message.attrs["arguments"] for message in played.messages[:2]] == [20_000, 0]
        assert played.messages[0].flags == ("truncated",)
        assert pairs(played)[1] == ("PING", "PONG")

    @pytest.mark.parametrize(
        "bad", [b"*x\r\n", b"*1\r\n:1\r\n", b"*99999999999\r\n", b"*1\r\n$-5\r\n", b"*1\r\n$1_0\r\n"]
    )
    def test_no_resp(self, bad: bytes) -> None:
        played = assert_any_cut(Redis, [(C, command("PING") + bad + command("AUTH", "x"))])
        assert played.kinds() == ["command", "malformed"]

    def test_endless_line(self) -> None:
        played = play(Redis, [(C, b"a" * (MAX_INLINE + 10))], split=1000)
        assert played.kinds() == ["malformed"]


class TestReplies:
    @pytest.mark.parametrize(
        ("data", "text"),
        [
            (b"+OK\r\n", "OK"),
            (b":-5\r\n", "(integer) -5"),
            (b"$-1\r\n", "(nil)"),
            (b"$0\r\n\r\n", '""'),
            (b"$5\r\na\r\nb\x00\r\n", '"a\\r\\nb\\x00"'),
            (b"*-1\r\n", "(nil)"),
            (b"*0\r\n", "(empty array)"),
            (b"_\r\n", "(nil)"),
            (b"#t\r\n", "(true)"),
            (b",1.5e3\r\n", "(double) 1.5e3"),
            (b"(3492890328409238509324850943850943825024385\r\n", "3492890328409238509324850943850943825024385"),
            (b"=7\r\ntxt:a\nb\r\n", "a\nb"),
            (b"~2\r\n+a\r\n+b\r\n", "1~ a\n2~ b"),
            (b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n:2\r\n", "1# a => (integer) 1\n2# b =>\n   1) (integer) 2"),
            (b"*2\r\n*2\r\n:1\r\n:2\r\n$-1\r\n", "1) 1) (integer) 1\n   2) (integer) 2\n2) (nil)"),
            (b"*10\r\n" + b":1\r\n" * 10, "\n".join(f"{n:2}) (integer) 1" for n in range(1, 11))),
            (b"$?\r\n;4\r\nHell\r\n;1\r\no\r\n;0\r\n", '"Hello"'),
            (b"*?\r\n:1\r\n%?\r\n+a\r\n+b\r\n.\r\n.\r\n", "1) (integer) 1\n2) 1# a => b"),
            (b"*2\r\n:1\r\n|1\r\n+ttl\r\n:36\r\n:2\r\n", "1) (integer) 1\n2) 1| ttl => (integer) 36\n2) (integer) 2"),
        ],
    )
    def test_as_printed(self, data: bytes, text: str) -> None:
        message = reply(data)
        assert (message.kind, message.text.split("\n"), message.reply_to) == ("reply", text.split("\n"), 0)

    @pytest.mark.parametrize("data", [b"-WRONGTYPE no\r\n", b"!12\r\nWRONGTYPE no\r\n"])
    def test_errors(self, data: bytes) -> None:
        message = reply(data)
        assert (message.kind, message.text, message.attrs["code"]) == ("error", "(error) WRONGTYPE no", "WRONGTYPE")

    def test_attributes_belong_to_the_reply(self) -> None:
        message = reply(b"|1\r\n+a\r\n:1\r\n*1\r\n:7\r\n")
        assert message.text == "1| a => (integer) 1\n1) (integer) 7"
        assert message.flags == ("attributes",)

    def test_info_is_text(self) -> None:
        assert reply(bulk(b"# Server\r\nredis_version:7\r\n"), "INFO", "server").text == "# Server\nredis_version:7\n"
        assert reply(bulk(b"id=3\n"), "CLIENT", "LIST").text == "id=3\n"

    @pytest.mark.parametrize(
        "bad",
        [b"?\r\n", b"*x\r\n", b":\r\n", b"$5x\r\n", b"#x\r\n", b".\r\n", b"*1\r\n" * (MAX_DEPTH + 1), b"$?\r\n+a\r\n"],
    )
    def test_no_resp(self, bad: bytes) -> None:
        played = assert_any_cut(Redis, [(C, command("X")), (S, OK + bad + OK)])
        assert played.kinds()[:3] == ["command", "reply", "malformed"]
        assert len(played.messages) == 3

    def test_bombs(self) -> None:
        bomb = b"*4294967295\r\n" + b"*1000000000\r\n" * 40
        redis = Redis()
        redis.receive(S, bomb, 1)
        for _ in range(200):
            redis.receive(S, b":1\r\n" * 1000, 1)
        assert redis.held < 400_000

    def test_long_error_line(self) -> None:
        data = b"-ERR " + b"x" * 200_000 + b"\r\n" + OK
        played = play(Redis, [(C, command("X") * 2), (S, data)], split=777)
        assert [message.flags for message in played.messages[2:]] == [("truncated",), ()]
        assert len(played.messages[2].text) <= MAX_LINE + 20
        assert (played.messages[2].start, played.messages[2].end) == (0, len(data) - len(OK))


class TestOrder:
    def test_pipeline(self) -> None:
        asked = b"".join(command("GET", f"k{number}") for number in range(50))
        answers = b"".join(bulk(b"v%d" % number) for number in range(50))
        played = assert_any_cut(Redis, [(C, asked), (S, answers)], step=31)
        assert pairs(played) == [(f"GET k{number}", f'"v{number}"') for number in range(50)]

    def test_subscriptions_in_resp2(self) -> None:
        played = assert_any_cut(
            Redis,
            [
                (C, command("SUBSCRIBE", "a", "b")),
                (
                    S,
                    array(bulk(b"subscribe"), bulk(b"a"), b":1\r\n") + array(bulk(b"message"), bulk(b"a"), bulk(b"hi")),
                ),
                (S, array(bulk(b"subscribe"), bulk(b"b"), b":2\r\n")),
                (C, command("PING") + command("UNSUBSCRIBE") + command("GET", "k")),
                (S, array(bulk(b"pong"), bulk(b"")) + array(bulk(b"unsubscribe"), bulk(b"a"), b":1\r\n")),
                (S, array(bulk(b"unsubscribe"), bulk(b"b"), b":0\r\n") + bulk(b"v")),
            ],
        )
        server = [message for message in played.messages if message.direction is S]
        assert [message.kind for message in server] == ["reply", "push", "reply", "reply", "reply", "reply", "reply"]
        assert [asked.split(" ")[0] for asked, _ in pairs(played)] == [
            "SUBSCRIBE", "", "SUBSCRIBE", "PING", "UNSUBSCRIBE", "UNSUBSCRIBE", "GET",
        ]  # fmt: skip
        assert server[1].attrs == {"push": "message", "channel": "a"}

    def test_pushes_in_resp3(self) -> None:
        played = assert_any_cut(
            Redis,
            [
                (C, command("SUBSCRIBE", "a") + command("GET", "k")),
                (S, push(bulk(b"subscribe"), bulk(b"a"), b":1\r\n") + push(bulk(b"invalidate"), array(bulk(b"k")))),
                (S, bulk(b"v") + push(bulk(b"pmessage"), bulk(b"*"), bulk(b"a"), bulk(b"hi"))),
            ],
        )
        assert [kind for kind, _ in said(played)[2:]] == ["push", "push", "reply", "push"]
        assert [asked for asked, _ in pairs(played)] == ["SUBSCRIBE a", "", "GET k", ""]
        assert played.messages[-1].attrs == {"push": "pmessage", "pattern": "*", "channel": "a"}

    def test_no_replies_wanted(self) -> None:
        words = ("CLIENT", "REPLY")
        asked = command(*words, "SKIP") + command("SET", "a", "1") + command("GET", "a") + command(*words, "OFF")
        asked += command("SET", "b", "1") + command(*words, "ON") + command("GET", "b")
        played = assert_any_cut(Redis, [(C, asked), (S, bulk(b"1") + OK + bulk(b"2"))])
        assert pairs(played) == [("GET a", '"1"'), ("CLIENT REPLY ON", "OK"), ("GET b", '"2"')]
        assert [message.text for message in played.messages if "unanswered" in message.attrs] == [
            "CLIENT REPLY SKIP", "SET a 1", "CLIENT REPLY OFF", "SET b 1",
        ]  # fmt: skip

    def test_monitor(self) -> None:
        line = b'1339518083.107412 [0 127.0.0.1:60866] "auth" "geheim"'
        played = assert_any_cut(
            Redis, [(C, command("MONITOR")), (S, OK + b"+" + line + b"\r\n"), (C, command("QUIT")), (S, OK)]
        )
        assert said(played)[2] == ("event", '1339518083.107412 [0 127.0.0.1:60866] "auth" (redacted)')
        assert played.secrets() == [b'"geheim"']
        assert pairs(played)[-1] == ("QUIT", "OK")

    def test_replication_is_not_read(self) -> None:
        played = assert_any_cut(
            Redis,
            [
                (C, command("PSYNC", "?", "-1")),
                (S, b"\n\n+FULLRESYNC 8de1787ba490483314a4d30f1c628bc5025eb761 0\r\n$9\r\nREDIS0011+OK\r\n"),
                (C, command("REPLCONF", "ACK", "1")),
            ],
        )
        replication = played.messages[-1]
        assert (replication.kind, replication.flags) == ("replication", ("undecoded",))
        assert played.bytes_of(replication) == b"$9\r\nREDIS0011+OK\r\n"
        assert played.dissector.attrs["replication"] is True

    def test_sync(self) -> None:
        played = assert_any_cut(Redis, [(C, command("SYNC")), (S, b"\n$9\r\nREDIS0011*1\r\n$4\r\nPING\r\n")])
        assert played.kinds() == ["command", "replication"]

    def test_too_many_commands_wait(self) -> None:
        redis = Redis()
        for _ in range(MAX_PENDING // 1000 + 2):
            redis.receive(C, command("PING") * 1000, 1)
        assert redis.held < 20_000_000
        out = redis.receive(S, b"+PONG\r\n" * (MAX_PENDING + 1), 1)
        assert [item.reply_to is None for item in out if isinstance(item, Message)][-2:] == [False, True]

    def test_a_reply_that_comes_first(self) -> None:
        played = play(Redis, [(S, OK), (C, command("SET", "a", "1") + command("GET", "a")), (S, bulk(b"1"))])
        assert pairs(played) == [("", "OK"), ("GET a", '"1"')]


class TestCredentials:
    def test_redacted(self) -> None:
        played = assert_any_cut(Redis, LOGINS, step=3)
        assert [secret.strip(b'"') for secret in played.secrets()] == list(SECRETS)
        texts = "\n".join(message.text for message in played.messages)
        assert "HELLO 3 AUTH bob (redacted) SETNAME me" in texts
        assert "ACL SETUSER carol on >(redacted) +@all ~*" in texts
        assert "AUTH2 dave (redacted) KEYS auth x" in texts
        assert played.dissector.attrs == {"user": "default", "resp": 3}
        assert {message.flags for message in played.messages if "(redacted)" in message.text} == {("redacted",)}

    def test_ended_anywhere(self) -> None:
        assert_truncated(Redis, LOGINS, secrets=SECRETS)

    def test_log_in_in_the_session(self) -> None:
        played = play(Redis, LOGINS[:2])
        assert played.dissector.attrs == {"user": "default"}

    def test_wrong_number_of_arguments(self) -> None:
        played = play(Redis, [(C, command("AUTH", "geheim", "geheim", "geheim"))])
        assert played.secrets() == [b"geheim"] * 3

    def test_configuration_that_is_told(self) -> None:
        answer = array(
            bulk(b"maxmemory"), bulk(b"0"), bulk(b"requirepass"), bulk(b"geheim"), bulk(b"masterauth"), bulk(b"")
        )
        played = assert_any_cut(Redis, [(C, command("CONFIG", "GET", "*")), (S, answer)])
        assert played.secrets() == [b"geheim"]
        assert '4) "(redacted)"' in played.messages[1].text

    def test_endless_password(self) -> None:
        data = b"*2\r\n$4\r\nAUTH\r\n$1000000\r\n" + b"x" * 1_000_000 + b"\r\n"
        played = play(Redis, [(C, data)], split=10_000)
        assert sum(one.end - one.start for one in played.redactions) == MAX_CREDENTIAL

    def test_behind_a_gap_the_rest_of_a_password(self) -> None:
        whole = command("AUTH", "alice", "geheim-und-lang")
        for lost in range(1, len(whole)):
            played = play(Redis, [(C, Gap(lost)), (C, whole[lost:] + command("PING"))])
            kept = played.stored(C)
            assert played.kinds()[-1] == "command", lost
            if lost < len(whole) - 6:
                assert b"lang" not in kept, lost

    def test_gap_within(self) -> None:
        whole = command("CONFIG", "SET", "requirepass", "geheim-und-lang")
        for place in range(1, len(whole) - 6):
            for size in (1, 3, 9):
                rest = whole[place + size :]
                played = play(Redis, [(C, whole[:place]), (C, Gap(size)), (C, rest + command("PING"))])
                assert not any(secret in played.stored(C) for secret in (b"geheim", b"-lang")), (place, size)

    def test_what_a_session_leaves_to_the_next(self) -> None:
        redis = Redis()
        redis.receive(C, b"*2\r\n$4\r\nAUTH\r\n$20\r\nabc", 1)
        torn = redis.torn(C)
        following = Redis()
        following.resume(C, torn)
        following.resume(S, redis.torn(S))
        out = following.receive(C, b"defghijk\r\n" + command("PING"), 1)
        assert any(getattr(one, "what", "") == "password" and one.start == 0 for one in out)
        assert redis.torn(S) == Torn()
        assert following.attrs["midstream"] is True


class TestGaps:
    def test_within_a_value(self) -> None:
        whole = command("SET", "k", b"x" * 100)
        played = play(
            Redis, [(C, whole[:50]), (C, Gap(20)), (C, whole[70:] + command("GET", "k")), (S, OK + bulk(b"v"))]
        )
        assert [(m.kind, m.flags) for m in played.messages[:2]] == [("command", ("truncated",)), ("command", ())]
        assert (played.messages[0].start, played.messages[0].end) == (0, len(whole))
        assert [asked.split(" ")[0] for asked, _ in pairs(played)] == ["SET", "GET"]

    def test_commands_are_found_again(self) -> None:
        asked = command("SET", "k", "v") * 3
        played = play(Redis, [(C, asked[:30]), (C, Gap(20)), (C, asked[50:])])
        assert [(m.kind, m.flags) for m in played.messages] == [
            ("command", ()), ("command", ("truncated",)), ("undissected", ("undecoded",)), ("command", ()),
        ]  # fmt: skip

    def test_replies_are_found_again_and_matched_later(self) -> None:
        played = play(
            Redis,
            [
                (C, command("LRANGE", "a", "0", "-1") + command("GET", "b")),
                (S, array(bulk(b"one"), bulk(b"two"))[:12]),
                (S, Gap(6)),
                (S, b"wo\r\n" + bulk(b"b")),
                (C, command("GET", "c")),
                (S, bulk(b"c")),
            ],
        )
        assert pairs(played)[-1] == ("GET c", '"c"')
        assert [asked for asked, _ in pairs(played)][:-1] == ["LRANGE a 0 -1", "", ""]

    def test_within_a_bulk_reply(self) -> None:
        data = bulk(b"x" * 100)
        played = play(Redis, [(C, command("GET", "k") * 2), (S, data[:20]), (S, Gap(50)), (S, data[70:] + bulk(b"v"))])
        assert [asked for asked, _ in pairs(played)] == ["GET k", "GET k"]


class TestDetection:
    @pytest.mark.parametrize(
        ("client", "server", "match"),
        [
            (b"*1\r\n$4\r\nPING\r\n", b"", Match.YES),
            (b"*", b"", Match.MORE),
            (b"*12\r\n$", b"", Match.MORE),
            (b"*1\r\n:4", b"", Match.NO),
            (b"* OK IMAP\r\n", b"", Match.NO),
            (b"AUTH geheim\r\n", b"", Match.YES),
            (b"AUTH g", b"", Match.YES),
            (b"hello 3 auth ", b"", Match.YES),
            (b"AUTH LOGIN\r\n", b"220 mail\r\n", Match.NO),
            (b"QUIT\r\n", b"+OK POP3 ready\r\n", Match.NO),
            (b"PING\r\n", b"", Match.MORE),
            (b"PING\r\n", b"+PONG\r\n", Match.YES),
            (b"PIN", b"", Match.MORE),
            (b"GET / HTTP/1.1\r\n", b"HTTP/1.1 200 OK\r\n", Match.NO),
            (b"", b"-ERR max number of clients reached\r\n", Match.YES),
            (b"", b"+OK\r\n", Match.NO),
            (b"", b"", Match.NO),
        ],
    )
    def test_by_its_first_bytes(self, client: bytes, server: bytes, match: Match) -> None:
        assert Redis.detect(client, server) is match

    def test_in_a_conversation(self) -> None:
        played = assert_any_cut(Conversation, LOGINS, step=5)
        assert played.dissector.protocol == "redis"
        assert not any(secret in played.stored(C) for secret in SECRETS)

    @pytest.mark.parametrize("line", [b"AUTH geheim-9\r\n", b"hello 3 auth bob geheim-9\r\n"])
    def test_inline_log_in_ends_anywhere(self, line: bytes) -> None:
        turns: list[Turn] = [(C, line), (S, OK)]
        assert assert_any_cut(Conversation, turns).secrets() == [b"geheim-9"]
        assert_truncated(Conversation, turns, secrets=[b"geheim-9"])

    def test_picked_up_in_the_middle(self) -> None:
        conversation = Conversation()
        for direction in (C, S):
            conversation.unseen(direction)
        played = play(
            lambda: conversation, [(C, command("AUTH", "geheim") + command("GET", "k")), (S, OK + bulk(b"v"))]
        )
        assert played.secrets() == [b"geheim"]
        assert played.dissector.attrs["midstream"] is True

    def test_picked_up_behind_a_reply(self) -> None:
        conversation = Conversation()
        for direction in (C, S):
            conversation.unseen(direction)
        turns: list[Turn] = [(S, bulk(b"v")), (C, b"rest\r\n"), (S, OK), (C, command("AUTH", "geheim")), (S, OK)]
        played = play(lambda: conversation, turns)
        assert played.dissector.protocol == "redis"
        assert b"geheim" not in played.stored(C)
        assert played.kinds()[-2:] == ["command", "reply"]

    def test_late_bytes_are_hidden(self) -> None:
        conversation = Conversation()
        conversation.receive(C, command("PING"), 1)
        conversation.gap(C, 50, 2)
        assert conversation.aside(C, 20, b"x" * 10, late=True) != []


def test_speed() -> None:
    """30,000 messages in a second of one core, about a tenth of what an idle machine does."""
    redis = Redis()
    asked, answered = command("SET", "key:000000012345", "xxx") * 16, OK * 16
    begun, count = time.process_time(), 0
    for _ in range(500):
        count += len(redis.receive(C, asked, 1)) + len(redis.receive(S, answered, 2))
    assert count == 16_000
    assert count / (time.process_time() - begun) > 30_000


def test_wrong_direction() -> None:
    turns: list[Turn] = [(S, command("AUTH", "geheim")), (C, OK + b"-ERR\r\n")]
    assert_survives(Redis, turns)
    assert_survives(Redis, [(direction.other, what) for direction, what in LOGINS], split=3)


def test_words() -> None:
    assert quoted(b"\x85\x07\xc2\x85") == '"\\x85\\a\\xc2\\x85"'
    assert typed([b"a", b"", b"b c"]) == 'a "" "b c"'
    words, balanced = split(b"'a\\'b' \"\\x41\\q\" c")
    assert ([word.value for word in words], balanced) == ([b"a'b", b"Aq", b"c"], True)
    assert split(b'"a"b')[1] is False
