"""What agents may not do over SSH, and agents that do not speak it."""

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import paramiko
import pytest

from tests.lab.wait import until
from tests.relay.running import Running
from tests.relay.ssh_play import messages, options, over, running, said, ssh
from tests.relay.sshd import Sshd


@pytest.fixture(scope="module")
def sshd() -> Iterator[Sshd]:
    with Sshd() as sshd:
        yield sshd


@pytest.mark.parametrize(
    ("flags", "request_", "told"),
    [
        (["-W", "127.0.0.1:22"], "direct-tcpip", b"administratively prohibited"),
        (["-N", "-o", "ExitOnForwardFailure=yes", "-R", "8080:localhost:80"], "tcpip-forward", b"forwarding failed"),
        (
            ["-N", "-o", "ExitOnForwardFailure=yes", "-R", "/tmp/sock:localhost:80"],
            "streamlocal-forward@openssh.com",
            b"forwarding failed",
        ),
    ],
)
def test_forwarding_of_ports_and_sockets_is_refused(
    tmp_path: Path, sshd: Sshd, flags: list[str], request_: str, told: bytes
) -> None:
    with running(tmp_path, sshd) as relay:
        done = ssh(relay, flags=flags)
        assert done.returncode == 255
        assert told in done.stderr
        flow = over(relay)
    (note,) = flow.notes_of("forwarding")
    assert note["attrs"]["request"] == request_
    assert flow.closed["ending"] == "fin"


def test_forwarding_of_x11_and_of_keys_is_refused_and_the_session_goes_on(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd) as relay:
        with paramiko.Transport(relay.address) as transport:
            transport.start_client(timeout=15)
            transport.auth_none("me")
            channel = transport.open_session(timeout=15)
            with pytest.raises(paramiko.SSHException):
                channel.request_x11()
            channel = transport.open_session(timeout=15)
            transport._send_user_message(_agent_request(channel))  # type: ignore[attr-defined]
            channel.exec_command("echo $SSH_AUTH_SOCK$DISPLAY.")
            assert channel.makefile("rb").read() == b".\n"
        flow = over(relay)
    assert {note["attrs"]["request"] for note in flow.notes_of("forwarding")} == {
        "x11-req",
        "auth-agent-req@openssh.com",
    }


def _agent_request(channel: paramiko.Channel) -> paramiko.Message:
    message = paramiko.Message()
    message.add_byte(bytes([98]))
    message.add_int(channel.remote_chanid)
    message.add_string("auth-agent-req@openssh.com")
    message.add_boolean(False)
    return message


def test_many_channels_signals_and_new_keys_in_one_connection(tmp_path: Path, sshd: Sshd) -> None:
    content = os.urandom(700_000)

    async def play(relay: Running) -> None:
        options(relay)
        known = str(relay.settings.data / "known_hosts")
        async with asyncssh.connect(
            "127.0.0.1",
            relay.port,
            username="me",
            known_hosts=known,
            config=None,
            client_keys=None,
            rekey_bytes=200_000,
        ) as client:

            async def one(number: int) -> None:
                process = await client.create_process(f"cat; exit {number}", encoding=None)
                output, _ = await process.communicate(content)
                assert output == content
                assert process.exit_status == number

            await asyncio.gather(*(one(number) for number in range(6)))
            process = await client.create_process("echo on; exec sleep 60")
            assert await process.stdout.readline() == "on\n"
            process.send_signal("TERM")
            await process.wait()
            assert process.exit_signal
            assert process.exit_signal[0] == "TERM"

    with running(tmp_path, sshd) as relay:
        asyncio.run(asyncio.wait_for(play(relay), 60))
        flow = over(relay)
    assert said(flow, "signal") == ["TERM"]
    assert said(flow, "exit")[-1] == "exit signal TERM"
    assert sorted(said(flow, "exit"))[-6:] == [f"exit status {number}" for number in range(6)]
    read = [one for one in messages(flow) if one.kind == "output"]
    assert sum(one.attrs["bytes"] for one in read) == 6 * len(content) + 3


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-1.5-old\r\n",
        b"SSH-2.0-" + b"x" * 100_000,
        b"no line that ends" * 100_000,
        b"SSH-2.0-x\r\n" + os.urandom(100_000),
        b"SSH-2.0-x\r\n" + bytes(100_000),
        b"SSH-2.0-x\r\n\0\0\0\x0c\x0a\x5a" + bytes(10),
        b"SSH-2.0-x\r\n\0\0\0\x0c\x0a\x32" + bytes(10),
    ],
    ids=["http", "version 1", "long version", "no line", "random", "zeros", "a channel", "a log-in"],
)
def test_what_is_not_ssh_ends_with_its_reason(tmp_path: Path, sshd: Sshd, noise: bytes) -> None:
    with running(tmp_path, sshd) as relay:
        with socket.create_connection(relay.address, 20) as client:
            client.settimeout(20)
            try:
                client.sendall(noise)
                while client.recv(65536):
                    pass
            except ConnectionError:
                pass
        flow = over(relay)
        assert relay.exit_code == 0
    assert flow.closed["reason"] in ("protocol", "agent-reset")
    assert flow.refused == ["protocol"]
    assert flow.notes_of("upstream") == []


def test_who_says_nothing_is_let_go_and_others_never_notice(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd, section={"handshake_timeout": 3.0}) as relay:
        with socket.create_connection(relay.address, 20) as client:
            assert ssh(relay, "echo fine").stdout == b"fine\n"
            client.settimeout(20)
            heard = b""
            while data := client.recv(65536):
                heard += data
        assert heard.startswith(b"SSH-2.0-Verbatim\r\n")
        assert b"log-in took longer" in heard
        relay.idle()
        relay.stop()
        quiet, other = relay.flows()
    assert quiet.closed["reason"] == "time-out"
    assert other.closed["ending"] == "fin"


def test_no_log_in_is_tried_for_ever(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd, identify="token") as relay:
        with paramiko.Transport(relay.address) as transport:
            transport.start_client(timeout=15)
            with contextlib.suppress(paramiko.SSHException, EOFError):
                while True:
                    with contextlib.suppress(paramiko.BadAuthenticationType):
                        transport.auth_none("me")
        flow = over(relay)
    assert flow.closed["reason"] == "protocol"
    assert flow.notes_of("upstream") == []


def test_an_agent_that_is_gone_ends_its_session(tmp_path: Path, sshd: Sshd) -> None:
    with running(tmp_path, sshd) as relay:
        line = ["ssh", *options(relay), "-p", str(relay.port), "me@127.0.0.1", "echo on; cat; touch gone"]
        client = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert client.stdout
        assert client.stdout.readline() == b"on\n"
        client.kill()
        client.communicate()
        flow = over(relay)
        until(lambda: (sshd.home / "gone").exists(), "the server to notice")
    assert flow.ended == [True, True]
    assert flow.closed["legs"]["upstream"] is not None


def test_more_connections_than_allowed_are_told_so(tmp_path: Path, sshd: Sshd) -> None:
    with (
        running(tmp_path, sshd, section={"max_connections_per_lease": 1}) as relay,
        socket.create_connection(relay.address) as first,
    ):
        assert first.recv(100)
        done = ssh(relay, "true")
        assert done.returncode == 255
        assert b"more than 1 connections of one lease at one time" in done.stderr
