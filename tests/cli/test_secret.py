"""`verbatim secret` as people run it; no value shows anywhere but sealed."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.config import Settings
from appliance.identity.secrets import Secrets
from appliance.journal import spool
from tests.cli.conftest import InProcess, objects
from tests.lab.wait import until

COMMAND = [sys.executable, "-m", "appliance", "secret"]


def secret(data: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[bytes]:
    command = [*COMMAND, *arguments, "--data", str(data)]
    return subprocess.run(command, input=given.encode(), capture_output=True, timeout=60, check=False)


def kept(data: Path, name: str) -> str:
    return Secrets.open(Settings(data=data)).get(name).value.reveal()


def test_set_rotated_listed_and_removed_and_each_change_is_on_its_way_to_the_journal(tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "token"
    values = ["hunter2-first", "hunter2-second", "sk-hunter2"]
    said = [secret(data, "set", "orders", "--kind", "password", "--user", "app", given=values[0] + "\n")]
    file.write_text(values[2])
    said.append(secret(data, "set", "llm", "--kind", "token", "--header", "x-api-key", "--file", str(file), "--json"))
    file.unlink()
    said.append(secret(data, "rotate", "orders", "--keep-former", "1h", given=values[1]))
    said.append(secret(data, "rotate", "--key"))
    assert (kept(data, "orders"), kept(data, "llm")) == (values[1], values[2])
    listed = secret(data, "list", "--json")
    said += [listed, secret(data, "list")]
    rows = {row["name"]: row for row in objects(listed)}
    assert [rows["orders"][name] for name in ("kind", "user", "generation", "former")] == ["password", "app", 2, "kept"]
    assert [rows["llm"][name] for name in ("kind", "header", "generation", "fingerprint")] == [
        "token",
        "x-api-key",
        1,
        "",
    ]
    said.append(secret(data, "remove", "llm"))
    assert [each.returncode for each in said] == [0] * len(said), said
    notes = [spool.read(path) for path in spool.left(data, 99)]
    kinds = ["secret-set", "secret-set", "secret-rotated", "secrets-resealed", "secret-removed"]
    assert [note["kind"] for note in notes] == kinds
    assert notes[2]["attrs"] | {"at_ns": 0, "uid": 0} == {
        "at_ns": 0,
        "uid": 0,
        "name": "orders",
        "secret_kind": "password",
        "generation": 2,
        "former_seconds": 3600,
    }
    shown = b"".join(each.stdout + each.stderr for each in said)
    shown += b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert [value for value in values if value.encode() in shown] == []


def test_typed_at_a_prompt_it_is_not_echoed_and_in_no_process_list(tmp_path: Path) -> None:
    value = b"hunter2-typed"
    pid, terminal = pty.fork()
    if pid == 0:
        arguments = ["set", "orders", "--kind", "password", "--user", "app", "--data", str(tmp_path)]
        os.execv(sys.executable, [*COMMAND, *arguments])
    shown = b""
    for prompt in (b"password orders: ", b"again: "):

        def asked(prompt: bytes = prompt) -> bool:
            nonlocal shown
            shown += os.read(terminal, 4096)
            return prompt in shown

        until(asked, "it asks")
        os.write(terminal, value + b"\n")
    process = Path(f"/proc/{pid}")
    assert value not in process.joinpath("cmdline").read_bytes() + process.joinpath("environ").read_bytes()
    try:
        while more := os.read(terminal, 4096):
            shown += more
    except OSError:  # it ended, and its terminal with it
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert value not in shown
    assert kept(tmp_path, "orders") == value.decode()


@pytest.mark.parametrize(
    ("arguments", "given", "code", "reason"),
    [
        (("set", "a/b", "--kind", "token"), "hush", 2, "a name has up to 64 of a-z"),
        (("set", "orders", "--kind", "token"), "", 2, "its value is empty"),
        (("set", "orders", "--kind", "token"), "hu\0sh", 2, "has a NUL byte"),
        (("set", "orders", "--kind", "password"), "hush", 2, "needs its user"),
        (("set", "orders", "--kind", "token", "--file", "/no/such/file"), "", 2, "/no/such/file: No such file"),
        (("set", "orders", "--kind", "token", "hush"), "", 2, "unexpected extra argument"),
        (("rotate", "orders"), "hush", 3, "secret orders: there is none; make it with 'verbatim secret set orders'"),
        (("rotate", "orders", "--keep-former", "soon"), "hush", 2, "--keep-former: 'soon' is not a span of time"),
        (("rotate", "orders", "--key"), "hush", 2, "name one secret, or give --key alone"),
        (("rotate",), "hush", 2, "name one secret, or give --key alone"),
        (("rotate", "--key", "--keep-former", "1h"), "", 2, "name one secret, or give --key alone"),
        (("rotate", "--key", "--user", "app"), "", 2, "name one secret, or give --key alone"),
        (("rotate", "--user", "app"), "hush", 2, "name one secret, or give --key alone"),
        (("remove", "orders"), "", 3, "there is none"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], given: str, code: int, reason: str, tmp_path: Path, in_process: InProcess
) -> None:
    said = in_process("secret", *arguments, "--data", str(tmp_path), given=given)
    assert (said[0], reason in said[1]) == (code, True), said
    assert spool.left(tmp_path, 9) == []


def test_one_that_is_not_readable_is_named_and_the_others_are_listed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert secret(tmp_path, "set", name, "--kind", "token", given=name).returncode == 0
    (tmp_path / "secrets" / "one.sealed").write_bytes(b"torn")
    said = secret(tmp_path, "list")
    assert (said.returncode, b"two" in said.stdout) == (1, True)
    assert b"secret one: not a sealed secret; restore its file" in said.stderr
