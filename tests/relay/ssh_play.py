"""SSH through a worker in a thread: its rules, its clients, and what it recorded as the recorder would read it."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from appliance.dissect.ssh_relayed import SshRelayed
from appliance.errors import Refused
from appliance.identity import secrets
from appliance.identity.credential import Kind, parse
from appliance.identity.staged import write_private
from appliance.model import Direction, Identity, Message
from appliance.relay.ssh_hosts import ED25519, RSA, host_keys, public_keys
from appliance.relay.worker import Worker
from tests.relay.running import Recorded, Running
from tests.relay.sshd import Sshd

TOKEN = "header." + "long" * 1500 + ".signature"
ALICE = Identity(issuer="https://idp.example", subject="alice", run_id="run-7", method="jwt")


def rule(**relay: Any) -> list[dict[str, Any]]:
    return [
        {
            "to": "127.0.0.0/8",
            "lane": "relay",
            "protocol": "tcp",
            "relay": {"mode": "mediate", "application": "ssh"} | relay,
        }
    ]


def keep_key(data: Path, key: Path, certificate: bytes = b"") -> None:
    """The secret `deploy`."""
    secret = parse("deploy", Kind.SSH_KEY, key.read_bytes(), user="worker", certificate=certificate)
    secrets.add(data, secret, 0, 0)


@cache
def _host_keys() -> list[bytes]:
    """The same for all workers here: to make them takes a while."""
    with tempfile.TemporaryDirectory() as folder:
        return host_keys(Path(folder))


def running(tmp_path: Path, sshd: Sshd, prepare: Callable[[Worker], None] | None = None, **relay: Any) -> Running:
    """A worker whose rule has the secret `deploy`, the account's key, unless `relay` says otherwise."""
    data = tmp_path / "data"
    how = {"secret": "deploy"} | relay
    (data / "keys").mkdir(parents=True, exist_ok=True)
    for name, key in zip((ED25519, RSA), _host_keys(), strict=True):
        write_private(data / "keys" / name, key)
    sections = {"relay": how.pop("section")} if "section" in how else {}
    if how["secret"] and not (data / "secrets").exists():
        keep_key(data, sshd.key)
    return Running(data, rule(**how), sshd.address, prepare, **sections)


def verifying(worker: Worker) -> None:
    """`TOKEN` is Alice's."""

    async def verify(token: str) -> Identity:
        if token != TOKEN:
            raise Refused("token: not one of an issuer that is known; take a new one")
        return ALICE

    worker.around.verify = verify


def options(relay: Running, *more: str) -> list[str]:
    """For ssh, scp and sftp: they know the gateway, and nothing of this machine."""
    known = relay.settings.data / "known_hosts"
    keys = public_keys(relay.settings.data)
    known.write_text("".join(f"[127.0.0.1]:{relay.port} {key}\n" for key in keys))
    own = ("BatchMode=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}", "IdentityFile=none")
    return ["-F", "none", *(word for one in (*more, *own) for word in ("-o", one))]


def ssh(
    relay: Running,
    *command: str,
    given: bytes = b"",
    more: Sequence[str] = (),
    flags: Sequence[str] = (),
    env: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    line = ["ssh", *options(relay, *more), *flags, "-p", str(relay.port), "someone@127.0.0.1", *command]
    return subprocess.run(line, input=given, capture_output=True, timeout=60, env=os.environ | (env or {}), check=False)


def copy(relay: Running, *words: str, program: str = "scp") -> subprocess.CompletedProcess[bytes]:
    """`:path` is on the server."""
    named = [f"someone@127.0.0.1{word}" if word.startswith(":") else word for word in words]
    line = [program, *options(relay), "-P", str(relay.port), *named]
    return subprocess.run(line, capture_output=True, timeout=60, check=False)


def over(relay: Running) -> Recorded:
    """The only flow, when it is over."""
    relay.idle()
    relay.stop()
    return relay.flow()


def messages(flow: Recorded) -> list[Message]:
    """As the recorder reads it: the agent's messages, then those to it."""
    conversation = SshRelayed()
    out: list[Any] = []
    for direction in Direction:
        out += conversation.receive(direction, bytes(flow.data[direction is Direction.SERVER]), 1)
    for direction in Direction:
        out += conversation.close(direction, 2)
    found = [one for one in out if isinstance(one, Message)]
    assert [one for one in found if set(one.flags) & {"malformed", "truncated", "undecoded"}] == []
    return found


def said(flow: Recorded, kind: str) -> list[str]:
    return [message.text for message in messages(flow) if message.kind == kind]
