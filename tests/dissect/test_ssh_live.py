"""A real sshd, real ssh, and a relay that records: what is in the clear is what ssh itself says of it."""

import subprocess
from collections.abc import Iterator

import pytest

from appliance.dissect import Match
from appliance.dissect.conversation import Conversation
from appliance.dissect.ssh import Ssh
from tests.dissect.harness import C, S, Turn, assert_any_cut, assert_truncated, play
from tests.dissect.postgres_lab import Relay
from tests.dissect.ssh_lab import Server, available, server

pytestmark = pytest.mark.skipif(not available(), reason="needs OpenSSH and root, for sshd")


@pytest.fixture(scope="module")
def lab() -> Iterator[Server]:
    with server() as one:
        yield one


def record(lab: Server, *options: str) -> tuple[list[Turn], str]:
    """The turns of one command over ssh, and what `ssh -v` told of the log-in."""
    one = Relay(lab.port)
    try:
        command = [*lab.client(one.port, "-v", *options), "echo", "geheim"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
        assert done.stdout == "geheim\n"
        return one.ended()[0].turns, done.stderr
    finally:
        one.close()


@pytest.mark.parametrize(
    ("kex", "kind"),
    [
        ("sntrup761x25519-sha512@openssh.com", "ed25519"),
        ("curve25519-sha256", "rsa"),
        ("ecdh-sha2-nistp256", "ecdsa"),
        ("diffie-hellman-group14-sha256", "ed25519"),
        ("diffie-hellman-group-exchange-sha256", "ed25519"),
    ],
)
def test_what_is_in_the_clear(lab: Server, kex: str, kind: str) -> None:
    algorithm = {"ed25519": "ssh-ed25519", "rsa": "rsa-sha2-512", "ecdsa": "ecdsa-sha2-nistp256"}[kind]
    turns, _ = record(lab, "-o", f"KexAlgorithms={kex}", "-o", f"HostKeyAlgorithms={algorithm}")
    assert all(isinstance(data, bytes) for _, data in turns)
    streams = {whose: b"".join(data for d, data in turns if d is whose and isinstance(data, bytes)) for whose in (C, S)}
    assert Ssh.detect(streams[C][:4096], streams[S][:4096]) is Match.YES
    played = assert_any_cut(Ssh, turns, step=97)
    assert sorted(played.kinds()) == ["banner", "banner", "host_key", "kexinit", "kexinit", "newkeys", "newkeys"]
    attrs = played.dissector.attrs
    assert attrs["host_key"]["fingerprint"] == lab.fingerprint(kind)
    assert (attrs["kex"], attrs["host_key_algorithm"]) == (kex, algorithm)
    assert attrs["client_version"].startswith("SSH-2.0-OpenSSH_")
    assert attrs["host_key"].get("bits") == (2048 if kind == "rsa" else None)
    assert played.dissector.opaque
    for whose in (C, S):
        sealed_from = max(message.end for message in played.messages if message.direction is whose)
        assert attrs["encrypted"][whose.value] == len(played.streams[whose]) - sealed_from > 0


def test_in_a_conversation(lab: Server) -> None:
    turns, told = record(lab)
    played = play(Conversation, turns)
    assert played.dissector.protocol == "ssh"
    assert played.dissector.opaque
    assert f"Server host key: ssh-ed25519 {played.dissector.attrs['host_key']['fingerprint']}" in told
    assert "geheim" not in "".join(message.text for message in played.messages)
    assert_truncated(Ssh, turns, step=211)
