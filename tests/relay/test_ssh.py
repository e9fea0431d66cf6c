"""SSH in a relay with OpenSSH's client and server: what people do with it, byte for byte, and on record."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.journal import JournalFull
from appliance.relay.ssh import SshRelay
from appliance.relay.worker import Worker
from tests.lab.clients.ssh import by_paramiko
from tests.lab.wait import until
from tests.relay.ssh_play import copy, keep_key, messages, options, over, running, said, ssh
from tests.relay.sshd import Sshd, keygen, public

CONTENT = os.urandom(3_000_017)
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    with Sshd() as sshd:
        yield sshd


def test_a_command_has_its_input_outputs_and_exit_code(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd) as relay:
        done = ssh(relay, "cat; echo problem >&2; exit 3", given=CONTENT)
        assert (done.returncode, done.stderr) == (3, b"problem\n")
        assert done.stdout == CONTENT
        flow = over(relay)
    assert said(flow, "exec") == ["cat; echo problem >&2; exit 3"]
    assert said(flow, "exit") == ["exit status 3"]
    assert said(flow, "error-output") == ["problem\n"]
    for kind in ("input", "output"):
        assert sum(one.attrs["bytes"] for one in messages(flow) if one.kind == kind) == len(CONTENT)
    assert flow.closed["ending"] == "fin"
    assert flow.ended == [True, True]
    (upstream,) = flow.notes_of("upstream")
    assert upstream["attrs"]["user"] == "worker"
    assert upstream["attrs"]["secret"] == "deploy"
    assert said(flow, "authenticated") == ["someone none"]
    assert CONTENT[:1000] in flow.data[0]
    assert CONTENT[:1000] in flow.data[1]
    legs = flow.closed["legs"]
    assert min(legs[leg]["socket"]["received"] for leg in legs) > len(CONTENT)


def test_paramiko_has_commands_a_terminal_and_sftp(tmp_path: Path, sshd: Sshd) -> None:
    """Whatever password it shows: the lease says who it is, the gateway has the key."""
    with running(tmp_path, sshd) as relay:
        told = by_paramiko(
            {
                "host": "127.0.0.1",
                "port": relay.port,
                "user": "me",
                "password": "hunter-two",
                "host_key": options(relay) and (relay.settings.data / "known_hosts").read_text().partition(" ")[2],
            }
        )
        flow = over(relay)
    assert told["exec"] == {"output": "sent Ω", "errors": "problem\n", "code": 3}
    assert told["shell"] == {"resized": True, "code": 5}
    assert told["sftp"] == {"same": True, "listed": ["made", "moved.bin"], "size": 256_000}
    assert said(flow, "terminal") == ["xterm 80x24"]
    assert said(flow, "resize") == ["100x40"]
    assert {one.attrs["operation"] for one in messages(flow) if one.kind == "sftp"} >= {"open", "rename", "mkdir"}
    assert b"hunter-two" not in flow.data[0]
    assert b"*" * len("hunter-two") in flow.data[0]
    (note,) = flow.notes_of("redacted")
    assert flow.data[0][note["start"] : note["end"]] == b"*" * len("hunter-two")


@pytest.mark.parametrize("how", [[], ["-O"]], ids=["sftp", "legacy"])
def test_scp_copies_both_ways(tmp_path: Path, sshd: Sshd, how: list[str]) -> None:
    mine, back = tmp_path / "mine", tmp_path / "back"
    mine.write_bytes(CONTENT)
    with running(tmp_path, sshd) as relay:
        sent = copy(relay, *how, str(mine), ":sent.bin")
        assert sent.returncode == 0, sent.stderr
        assert (sshd.home / "sent.bin").read_bytes() == CONTENT
        fetched = copy(relay, *how, ":sent.bin", str(back))
        assert fetched.returncode == 0, fetched.stderr
        assert back.read_bytes() == CONTENT
        relay.idle()
        relay.stop()
        flows = relay.flows()
    if not how:
        files = [one.attrs for flow in flows for one in messages(flow) if one.kind == "file"]
        assert [(file["direction"], file["bytes"], file["sha256"]) for file in files] == [
            ("upload", len(CONTENT), HASH),
            ("download", len(CONTENT), HASH),
        ]
        assert {Path(str(file["path"])).name for file in files} == {"sent.bin"}


def test_sftp_in_a_batch(tmp_path: Path, sshd: Sshd) -> None:
    (tmp_path / "mine").write_bytes(b"contents")
    (tmp_path / "batch").write_text(
        f"put {tmp_path}/mine a.txt\nrename a.txt b.txt\nls -l\nget b.txt {tmp_path}/back\nrm b.txt\n"
    )
    with running(tmp_path, sshd) as relay:
        done = copy(relay, "-b", str(tmp_path / "batch"), ":", program="sftp")
        assert done.returncode == 0, done.stderr
        flow = over(relay)
    assert (tmp_path / "back").read_bytes() == b"contents"
    assert [text.split()[-1] for text in said(flow, "file")] == [hashlib.sha256(b"contents").hexdigest()] * 2
    operations = [one.attrs["operation"] for one in messages(flow) if one.kind == "sftp"]
    assert {"remove", "posix-rename", "opendir"} <= set(operations)


def test_environment_is_passed_as_sshd_would_have_it(tmp_path: Path, sshd: Sshd) -> None:
    """The server takes any; the gateway passes the language, and says what it did not pass."""
    with running(tmp_path, sshd) as relay:
        done = ssh(relay, "echo $LANG $LC_TIME $OTHER.", more=["SetEnv=LANG=C.UTF-8 LC_TIME=C OTHER=secret"])
        assert done.stdout == b"C.UTF-8 C .\n"
        flow = over(relay)
    assert [note["attrs"]["request"] for note in flow.notes_of("withheld")] == ["env"]


def test_keys_are_exchanged_anew_in_the_middle(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd) as relay:
        done = ssh(relay, "cat", given=CONTENT, more=["RekeyLimit=256K", "LogLevel=DEBUG1"])
        assert done.stdout == CONTENT
        assert done.stderr.count(b"rekeying in progress") + done.stderr.count(b"SSH2_MSG_KEXINIT sent") > 5
        assert over(relay).closed["ending"] == "fin"


def test_a_certificate_and_a_password_are_used_with_the_server(tmp_path: Path, sshd: Sshd) -> None:
    other = keygen(tmp_path / "other")
    subprocess.run(
        ["ssh-keygen", "-q", "-s", sshd.authority, "-I", "gateway", "-n", "worker", "-V", "-5m:+1h", f"{other}.pub"],
        check=True,
    )
    keep_key(tmp_path / "data", other, certificate=Path(f"{other}-cert.pub").read_bytes())
    with running(tmp_path, sshd) as relay:
        assert ssh(relay, "id -un").stdout == b"worker\n"
        assert over(relay).refused == []


def test_a_stopped_reader_holds_the_server_back(tmp_path: Path, sshd: Sshd) -> None:
    """One that has said that it takes a gigabyte."""
    program = (
        "import sys, time, paramiko; transport = paramiko.Transport(('127.0.0.1', int(sys.argv[1])));"
        "transport.start_client(timeout=20); transport.auth_none('me');"
        "channel = transport.open_session(window_size=2**30, timeout=20); channel.exec_command('cat /dev/zero');"
        "channel.recv(1); print('on', flush=True); time.sleep(60)"
    )
    with running(tmp_path, sshd) as relay:
        client = subprocess.Popen([sys.executable, "-c", program, str(relay.port)], stdout=subprocess.PIPE)
        assert client.stdout
        try:
            assert client.stdout.readline() == b"on\n"
            client.send_signal(signal.SIGSTOP)
            recorded, seen = relay.worker.around.recording, [-1]

            def still() -> bool:
                seen.append(recorded.bytes)
                return len(seen) > 12 and len(set(seen[-6:])) == 1

            until(still, "the relay to stop reading")
            (flow,) = relay.worker._flows
            assert 0 < flow.agent.waiting < 2 * 2**20
            assert recorded.bytes < 200 * 2**20
        finally:
            client.kill()
            client.communicate()
        relay.idle()


def test_an_exchange_of_keys_is_heard_however_much_waits_for_it() -> None:
    """Each peer waits for what it says next; nobody else is heard when much waits already."""
    heard: dict[str, bool] = {}

    def leg(name: str) -> SimpleNamespace:
        return SimpleNamespace(waiting=0, ended=False, watch=partial(heard.__setitem__, name))

    relay: Any = SshRelay.__new__(SshRelay)
    relay._ending, relay._most = False, 1000
    relay._flow = SimpleNamespace(over=False, agent=leg("agent"), upstream=leg("server"))
    relay._agent, relay._server = (SimpleNamespace(keyed=False, deferred=5000, unread=0) for _ in range(2))
    relay.balance()
    assert heard == {"agent": True, "server": True}
    relay._server.keyed, relay._server.deferred = True, 0
    relay.balance()
    assert heard == {"agent": True, "server": False}
    relay._agent.keyed, relay._agent.deferred = True, 0
    relay.balance()
    assert heard == {"agent": True, "server": True}


def test_nothing_is_forwarded_while_the_journal_takes_nothing(tmp_path: Path, sshd: Sshd) -> None:
    full: list[bool] = []

    def prepare(worker: Worker) -> None:
        append = worker._writer.append

        def refuse(*args: object, **named: object) -> int:
            if full:
                raise JournalFull("journal: full, for this test; wait")
            return append(*args, **named)  # type: ignore[arg-type]

        worker._writer.append = refuse  # type: ignore[method-assign]

    arrived = sshd.home / "arrived"
    arrived.unlink(missing_ok=True)
    with running(tmp_path, sshd, prepare) as relay:
        line = ["ssh", *options(relay), "-p", str(relay.port), "me@127.0.0.1", f"cat > {arrived}"]
        client = subprocess.Popen(line, stdin=subprocess.PIPE)
        assert client.stdin
        client.stdin.write(b"before ")
        client.stdin.flush()
        until(lambda: arrived.exists() and arrived.read_bytes() == b"before ", "what was sent before")
        full.append(True)
        client.stdin.write(b"during ")
        client.stdin.flush()
        until(lambda: relay.worker.around.recording.stalled, "the relay to stall")
        direct = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i", sshd.key]
        line = ["ssh", *map(str, direct), "-p", str(sshd.address[1]), "worker@127.0.0.1", f"cat {arrived}"]
        assert subprocess.run(line, capture_output=True, timeout=30, check=True).stdout == b"before "
        full.clear()
        client.communicate(b"after", timeout=20)
        assert arrived.read_bytes() == b"before during after"
        assert b"during" in over(relay).data[0]


def test_an_end_from_outside_is_told_in_its_words(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd) as relay:
        line = ["ssh", *options(relay), "-p", str(relay.port), "me@127.0.0.1", "echo on; sleep 60"]
        client = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert client.stdout
        assert client.stdout.readline() == b"on\n"
        relay.stop()
        _, errors = client.communicate(timeout=20)
        assert client.returncode == 255
        assert b"the relay ends" in errors
        flow = relay.flow()
    assert flow.closed["reason"] == "shutdown"
    assert said(flow, "disconnect") == ["the relay ends"]


def test_a_server_that_goes_is_told(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd) as relay:
        done = ssh(relay, "kill -9 $(ps -o ppid= $PPID | head -1) $PPID; sleep 60")
        assert done.returncode == 255
        flow = over(relay)
    assert flow.closed["reason"] == "server-gone"
    assert b"the server is gone: it closed the connection" in done.stderr


def test_the_gateway_is_known_by_keys_that_last(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd) as relay:
        assert ssh(relay, "true", more=["HostKeyAlgorithms=rsa-sha2-512"]).returncode == 0
        known = (relay.settings.data / "known_hosts").read_text().split()
        relay.idle()
    with running(tmp_path, sshd) as relay:
        assert ssh(relay, "true").returncode == 0
        assert (relay.settings.data / "known_hosts").read_text().split()[1:3] == known[1:3]
    private = relay.settings.data / "keys" / "ssh_host_ed25519_key"
    assert private.stat().st_mode & 0o777 == 0o600
    assert public(sshd.host) not in " ".join(known)
