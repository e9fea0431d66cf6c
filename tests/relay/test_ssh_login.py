"""Who speaks, and to whom: tokens and passwords from agents, keys and passwords for servers, keys of hosts."""

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest

from appliance.identity import secrets
from appliance.identity.credential import Kind, parse
from tests.relay.running import Running
from tests.relay.servers import Server
from tests.relay.ssh_play import ALICE, TOKEN, messages, over, running, said, ssh, verifying
from tests.relay.sshd import Sshd, keygen, public


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    with Sshd() as sshd:
        yield sshd


def _askpass(tmp_path: Path, *answers: str) -> dict[str, str]:
    """Environment by which OpenSSH's client gets `answers`, one after the other, the last one again."""
    for number, answer in enumerate(answers):
        (tmp_path / f"answer.{number}").write_text(answer)
    program = tmp_path / "askpass"
    program.write_text(
        f"#!/bin/sh\ncd {tmp_path}; n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) > n\n"
        f"[ -e answer.$n ] || n={len(answers) - 1}\ncat answer.$n\nexit 0\n"
    )
    program.chmod(0o755)
    return {"SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force"}


def _paramiko(relay: Running, password: str) -> bytes:
    with paramiko.Transport(relay.address) as transport:
        transport.start_client(timeout=15)
        transport.auth_password("someone", password)
        channel = transport.open_session(timeout=15)
        channel.exec_command("id -un")
        return channel.makefile("rb").read()


def _journal(relay: Running) -> bytes:
    return b"".join(bytes(data) for flow in relay.flows() for data in flow.data)


def test_a_token_is_a_password(tmp_path: Path, sshd: Sshd) -> None:
    """However long, and not kept."""
    with running(tmp_path, sshd, verifying, identify="token") as relay:
        assert _paramiko(relay, TOKEN) == b"worker\n"
        flow = over(relay)
        assert TOKEN.encode() not in _journal(relay)
    (identified,) = flow.notes_of("identified")
    assert identified["attrs"]["identity"]["subject"] == ALICE.subject
    assert identified["attrs"]["identity"]["method"] == "ssh-password"
    (redacted,) = flow.notes_of("redacted")
    assert flow.data[0][redacted["start"] : redacted["end"]] == b"*" * len(TOKEN)
    assert said(flow, "authenticated") == ["someone password"]


def test_a_token_is_the_answer_to_a_prompt(tmp_path: Path, sshd: Sshd) -> None:
    """OpenSSH's client takes 1023 bytes of an answer: the rest is asked for."""
    parts = [TOKEN[at : at + 1023] for at in range(0, len(TOKEN), 1023)]
    with running(tmp_path, sshd, verifying, identify="token") as relay:
        done = ssh(relay, "id -un", more=["BatchMode=no"], env=_askpass(tmp_path, *parts))
        assert done.stdout == b"worker\n", done.stderr
        flow = over(relay)
        assert parts[0].encode() not in _journal(relay)
    (identified,) = flow.notes_of("identified")
    assert identified["attrs"]["identity"]["method"] == "ssh-keyboard-interactive"
    assert len(flow.notes_of("redacted")) == len(parts)
    asked = [one.attrs["prompts"] for one in messages(flow) if "prompts" in one.attrs]
    assert asked[0] == ["Access token: "]
    assert len(asked) == len(parts)


def test_a_wrong_token_is_refused_three_times(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd, verifying, identify="token") as relay:
        done = ssh(relay, "true", more=["BatchMode=no"], env=_askpass(tmp_path, "wrong"))
        assert done.returncode == 255
        assert b"3 log-ins were not accepted" in done.stderr
        flow = over(relay)
    assert len(flow.notes_of("token-refused")) == 3
    assert flow.notes_of("upstream") == []
    assert flow.closed["reason"] == "token-refused"
    assert flow.closed["legs"]["upstream"] is None


def test_without_a_token_nobody_is_let_in(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd, verifying, identify="token") as relay:
        done = ssh(relay, "true", more=[f"IdentityFile={sshd.key}"])
        assert done.returncode == 255
        assert b"Permission denied (" in done.stderr
        flow = over(relay)
    assert flow.notes_of("upstream") == []


def test_without_a_credential_the_agent_brings_its_password(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd, secret="") as relay:
        answers = _askpass(tmp_path, "wrong", sshd.password)
        done = ssh(relay, "id -un", more=["BatchMode=no"], env=answers, flags=["-l", "worker"])
        assert done.stdout == b"worker\n", done.stderr
        flow = over(relay)
        assert sshd.password.encode() not in _journal(relay)
    assert len(flow.notes_of("login-refused")) == 1
    assert len(flow.notes_of("upstream")) == 1
    assert flow.closed["ending"] == "fin"


def test_the_gateways_password_is_used_and_a_former_one_while_it_may_be(tmp_path: Path, sshd: Sshd) -> None:
    data = tmp_path / "data"
    for number, password in enumerate((sshd.password, "not yet the server's")):
        given = parse("deploy", Kind.PASSWORD, password.encode(), user="worker")
        if number:
            secrets.renew(data, given, 0, 0, 10**20)
        else:
            secrets.add(data, given, 0, 0)
    with running(tmp_path, sshd) as relay:
        assert ssh(relay, "id -un").stdout == b"worker\n"
        assert over(relay).refused == []


def test_a_credential_that_is_not_accepted_is_told(tmp_path: Path, sshd: Sshd) -> None:
    data = tmp_path / "data"
    secrets.add(data, parse("deploy", Kind.PASSWORD, b"wrong", user="worker"), 0, 0)
    with running(tmp_path, sshd) as relay:
        done = ssh(relay, "true")
        assert (done.returncode, done.stdout) == (255, b"")
        assert b"the server does not accept the gateway's credential for worker" in done.stderr
        flow = over(relay)
    assert flow.closed["reason"] == "login-refused"


def test_the_servers_key_is_pinned_by_the_rule(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd, host_key=public(sshd.host)) as relay:
        assert ssh(relay, "true").returncode == 0
        assert over(relay).notes_of("host-key") == []
    assert not (tmp_path / "data" / "state" / "ssh_known_hosts").exists()


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_another_key_than_the_pinned_one_is_refused(tmp_path: Path, sshd: Sshd, kind: str) -> None:
    other = keygen(tmp_path / "other", kind)
    with running(tmp_path, sshd, host_key=public(other)) as relay:
        done = ssh(relay, "true")
        assert done.returncode == 255
        assert b"127.0.0.1 port" in done.stderr
        flow = over(relay)
    assert flow.closed["reason"] == "host-key"
    assert flow.refused == ["host-key"]
    assert flow.notes_of("upstream") == []


def test_a_servers_first_key_is_remembered_and_a_change_refused(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd) as relay:
        for _ in range(2):
            assert ssh(relay, "true").returncode == 0
        known = tmp_path / "data" / "state" / "ssh_known_hosts"
        address = f"[127.0.0.1]:{sshd.address[1]}"
        assert known.read_text() == f"{address} {public(sshd.host)}\n"
        known.write_text(f"{address} {public(keygen(tmp_path / 'other'))}\n")
        done = ssh(relay, "true")
        assert done.returncode == 255
        assert b"remembered from before" in done.stderr
        relay.idle()
        relay.stop()
        first, second, third = relay.flows()
    assert [len(flow.notes_of("host-key")) for flow in (first, second, third)] == [1, 0, 0]
    assert third.closed["reason"] == "host-key"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n" + os.urandom(200),
        b"a line\r\n" * 3000,
        b"x" * 20000,
        b"SSH-2.0-no\r\n" + bytes(2**20),
    ],
    ids=["nothing", "another protocol", "many lines", "a long line", "packets that are none"],
)
def test_a_server_that_is_none_is_told(tmp_path: Path, sshd: Sshd, answer: bytes) -> None:
    with Server(lambda sock: sock.sendall(answer)) as server, running(tmp_path, sshd) as relay:
        relay.server = server.address
        done = ssh(relay, "true")
        assert done.returncode == 255
        assert re.search(rb"Received disconnect from 127.0.0.1 port \d+:\d+: the server 127.0.0.1 port", done.stderr)
        flow = over(relay)
    assert flow.closed["reason"] in ("server-gone", "protocol")


def test_a_server_that_is_not_there_is_told(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd) as relay:
        relay.server = ("127.0.0.1", 1)
        done = ssh(relay, "true")
        assert b"127.0.0.1 port 1: Connection refused" in done.stderr
        assert over(relay).closed["reason"] == "unreachable"


def test_a_log_in_takes_so_long_and_no_longer(tmp_path: Path, sshd: Sshd) -> None:
    def silent(sock: socket.socket) -> None:
        while sock.recv(1000):
            pass

    with Server(silent) as server, running(tmp_path, sshd, section={"handshake_timeout": 3.0}) as relay:
        relay.server = server.address
        done = ssh(relay, "true")
        assert done.returncode == 255
        assert b"took longer than 3 s" in done.stderr
        assert over(relay).closed["reason"] == "time-out"


def test_what_a_server_says_before_its_log_in_is_passed_on(tmp_path: Path) -> None:
    notice = tmp_path / "notice"
    notice.write_text("Authorised use only.\n")
    with Sshd(f"Banner {notice}") as sshd, running(tmp_path, sshd) as relay:
        notice.parent.chmod(0o755)
        done = ssh(relay, "true")
        assert done.stderr == b"Authorised use only.\n"
        assert said(over(relay), "banner") == ["Authorised use only.\n"]
