"""A real Redis, real clients, and a relay that records: what they saw is what the messages say."""

import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from appliance.dissect import Match
from appliance.dissect.redis import Redis
from tests.dissect.harness import C, Played, S, assert_truncated, play
from tests.dissect.postgres_lab import relay
from tests.dissect.redis_lab import Server, available, server
from tests.lab.wait import until

pytestmark = pytest.mark.skipif(not available(), reason="needs redis-server and redis-cli")

SCRIPT = "local v = redis.call('GET', KEYS[1])\nreturn {v, ARGV[1]}"


@pytest.fixture(scope="module")
def lab() -> Iterator[Server]:
    with server() as one:
        yield one


def record(lab: Server, use: Callable[[int], None], count: int = 1) -> list[Played]:
    """What a client's connections become: each once in pieces, once whole, with the same outcome."""
    found = []
    with relay(lab.port) as one:
        use(one.port)
        for recording in one.ended(count):
            assert Redis.detect(recording.stream(C)[:4096], recording.stream(S)[:4096]) is Match.YES
            played = play(Redis, recording.turns, split=7)
            whole = play(Redis, recording.turns)
            assert [(m.kind, m.text, m.start, m.end, m.reply_to) for m in played.messages] == [
                (m.kind, m.text, m.start, m.end, m.reply_to) for m in whole.messages
            ]
            assert "malformed" not in played.kinds()
            found.append(played)
    return found


def cli(port: int, *options: str, lines: str = "") -> list[str]:
    command = ["redis-cli", "--no-auth-warning", "-p", str(port), *options]
    done = subprocess.run(command, input=lines.encode(), check=True, capture_output=True, timeout=20)
    return done.stdout.decode().splitlines()


@pytest.mark.parametrize("resp", ["-2", "-3"])
def test_redis_cli_prints_what_the_messages_say(lab: Server, resp: str) -> None:
    lines = (
        "SET greeting \"hello world\"\nGET greeting\nGET nothing\nRPUSH list a b c d e f g h i j\nLRANGE list 0 -1\n"
        "HSET hash f1 v1 f2 \"\\x00\\xff\"\nHGETALL hash\nINCR greeting\nSADD set x\nSMEMBERS set\nZADD z 1.5 m\n"
        "ZSCORE z m\nLRANGE none 0 -1\nEVAL \"return {1,{2,{3,'x'}},'y'}\" 0\nDEL list hash set z\n"
    )  # fmt: skip
    shown: list[str] = []
    (played,) = record(lab, lambda port: shown.extend(cli(port, resp, "--no-raw", lines=lines)))
    asked = [
        message
        for message in played.messages
        if message.direction is C and message.text not in ("HELLO 3", "COMMAND DOCS")
    ]
    assert [message.text for message in asked] == lines.splitlines()
    by_start = {message.start: message for message in asked}
    answers = [message for message in played.messages if message.reply_to in by_start and message.direction is S]
    assert [by_start[message.reply_to].text for message in answers if message.reply_to is not None] == [
        m.text for m in asked
    ]
    said = "\n".join(message.text for message in answers).splitlines()
    assert said == [line.rstrip() for line in shown if line]


def test_redis_py_in_one_session(lab: Server) -> None:
    def use(port: int) -> None:
        with redis.Redis(
            port=port, username="alice", password=lab.password, protocol=3, db=2, client_name="agent"
        ) as client:
            pipeline = client.pipeline(transaction=True)
            pipeline.set("a", "ä ö").get("a").incr("n")
            assert pipeline.execute()[0] is True
            assert client.eval(SCRIPT, 1, "a", "arg") == ["ä ö".encode(), b"arg"]
            client.set("big", b"\0\xff" * 300_000)
            assert len(client.get("big") or b"") == 600_000
            with pytest.raises(redis.ResponseError):
                client.execute_command("LPUSH", "a", "x")
            client.flushdb()

    (played,) = record(lab, use)
    assert b"".join(played.secrets()) == lab.password.encode()
    texts = [message.text for message in played.messages]
    assert any("redis.call('GET', KEYS[1])" in text for text in texts)
    assert any(text.startswith("HELLO 3 AUTH alice (redacted)") for text in texts)
    attrs = played.dissector.attrs
    assert {name: attrs[name] for name in ("user", "resp", "database", "client_name")} == {
        "user": "alice", "resp": 3, "database": 2, "client_name": "agent",
    }  # fmt: skip
    asked = {message.start for message in played.messages if message.direction is C}
    answered = [message.reply_to for message in played.messages if message.direction is S]
    assert sorted(answered, key=lambda start: start or 0) == sorted(asked), "each command has one reply"
    executed = next(
        message for message in played.messages if message.attrs.get("command") == "EXEC" and message.direction is S
    )
    assert executed.text == '1) OK\n2) "ä ö"\n3) (integer) 1'
    big = next(message for message in played.messages if message.text.startswith("SET big"))
    assert played.bytes_of(big).endswith(b"\0\xff\r\n")
    assert big.flags == ("truncated",)
    assert any(message.kind == "error" and message.attrs["code"] == "WRONGTYPE" for message in played.messages)


def test_log_in_ended_anywhere(lab: Server) -> None:
    def use(port: int) -> None:
        with redis.Redis(port=port, username="alice", password=lab.password, protocol=2) as client:
            client.config_set("masterauth", "geheim-meester")
            client.config_get("masterauth")
            client.acl_setuser("carol", enabled=True, passwords=["+geheim-carol"])

    with relay(lab.port) as one:
        use(one.port)
        turns = one.ended()[0].turns
    secrets = [lab.password.encode(), b"geheim-meester", b"geheim-carol"]
    played = play(Redis, turns)
    assert set(played.secrets()) == set(secrets)
    assert_truncated(Redis, turns, secrets=secrets, step=3)


@pytest.mark.parametrize("resp", [2, 3])
def test_messages_of_channels(lab: Server, resp: int) -> None:
    def use(port: int) -> None:
        with redis.Redis(port=port, protocol=resp) as client, client.pubsub() as listener:
            listener.subscribe("news", "other")
            listener.psubscribe("n*")
            kinds: list[str] = []

            def arrived() -> bool:
                message = listener.get_message(timeout=1)
                kinds.extend([message["type"]] if message else [])
                return kinds.count("pmessage") == 1

            until(lambda: arrived() or len(kinds) == 3, "subscribed")
            with redis.Redis(port=lab.port) as other:
                other.publish("news", "hello")
            until(arrived, "a message")
            listener.unsubscribe()
            listener.punsubscribe()
            until(lambda: (listener.get_message(timeout=1) or {}).get("type") == "punsubscribe", "unsubscribed")

    (played,) = record(lab, use)
    pushed = [m for m in played.messages if m.kind == "push" and m.attrs["push"] in ("message", "pmessage")]
    assert [message.attrs["channel"] for message in pushed] == ["news", "news"]
    assert all(message.reply_to is None for message in pushed)
    starts = {message.start: message.attrs["command"] for message in played.messages if message.direction is C}
    confirmed = [starts[m.reply_to] for m in played.messages if m.direction is S and m.reply_to is not None]
    assert [name for name in confirmed if "SUBSCRIBE" in name] == [
        "SUBSCRIBE", "SUBSCRIBE", "PSUBSCRIBE", "UNSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE",
    ]  # fmt: skip


def test_monitor_and_blocking(lab: Server) -> None:
    def use(port: int) -> None:
        with redis.Redis(port=port) as client, client.monitor() as monitor, redis.Redis(port=lab.port) as other:
            lines = monitor.listen()
            pusher = threading.Timer(0.05, lambda: redis.Redis(port=lab.port).rpush("queue", "job"))
            pusher.start()
            assert other.blpop(["queue"], timeout=10) == (b"queue", b"job")
            pusher.join()
            other.execute_command("AUTH", "alice", lab.password)
            other.get("last")
            while "last" not in str(next(lines)):
                pass

    played = next(one for one in record(lab, use) if "event" in one.kinds())
    events = [message.text for message in played.messages if message.kind == "event"]
    assert any('"BLPOP" "queue" "10"' in text for text in events)
    assert lab.password.encode() not in b"".join(map(played.bytes_of, played.messages))


def test_replica(lab: Server) -> None:
    with server() as follower, relay(lab.port) as one:
        with redis.Redis(port=follower.port) as client:
            client.config_set("masteruser", "alice")
            client.config_set("masterauth", lab.password)
            client.replicaof("127.0.0.1", str(one.port))
            with redis.Redis(port=lab.port) as master:
                master.set("replicated", "yes")
            until(lambda: client.get("replicated") == b"yes", "the replica has it")
            client.replicaof("NO", "ONE")
        (recording,) = one.ended()
    played = play(Redis, recording.turns)
    assert played.secrets() == [lab.password.encode()]
    assert (played.messages[-1].kind, played.messages[-1].flags) == ("replication", ("undecoded",))
    assert played.dissector.attrs["replication"] is True
    assert b"replicated" in played.bytes_of(played.messages[-1])
