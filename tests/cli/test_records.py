"""The command line on a data folder by itself, without services or root."""

import base64
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import REQUEST, RESPONSE, Verbatim, objects, run


@pytest.fixture
def session(verbatim: Verbatim) -> str:
    (found,) = objects(verbatim("sessions", "--json"))
    return str(found["session_id"])


def test_sessions(verbatim: Verbatim) -> None:
    (found,) = objects(verbatim("sessions", "--json"))
    assert found["client"] == {"address": "10.0.0.5", "port": 40000}
    assert found["server"] == {"address": "192.0.2.7", "port": 80}
    assert found["protocol"] == "http1"
    assert (found["identity"]["subject"], found["identity"]["method"]) == ("alice", "ingest")
    assert (found["coverage"], found["ending"]) == ("complete", "fin")
    assert found["bytes"] == {"client": len(REQUEST), "server": len(RESPONSE)}
    assert found["started"] == "2026-09-21T14:13:20.000000000Z"
    assert found["ended"] == "2026-09-21T14:13:20.070000000Z"
    assert found["findings"] == ["redacted"]
    shown = verbatim("sessions").stdout.decode()
    assert found["session_id"] in shown
    assert "alice" in shown


def test_messages(verbatim: Verbatim, session: str) -> None:
    request, response = objects(verbatim("messages", session, "--json"))
    assert (request["kind"], request["attrs"]["method"], request["attrs"]["target"]) == ("request", "GET", "/customers")
    assert (response["kind"], response["attrs"]["status"], response["reply_to"]) == ("response", 200, 0)
    assert (request["start"], request["end"]) == (0, len(REQUEST))
    assert "GET /customers" in verbatim("messages", session).stdout.decode()


def test_stream_is_exact_but_for_the_credential(verbatim: Verbatim, session: str) -> None:
    said = verbatim("stream", session, "--direction", "client")
    assert said.stdout == REQUEST.replace(b"opensesame", b"**********")
    assert verbatim("stream", session, "--direction", "server").stdout == RESPONSE
    pieces = objects(verbatim("stream", session, "--direction", "server", "--json"))
    assert b"".join(base64.b64decode(piece["base64"]) for piece in pieces) == RESPONSE


def test_search(verbatim: Verbatim, session: str) -> None:
    (hit,) = objects(verbatim("search", "customers method:GET subject:alice", "--json"))
    assert (hit["session_id"], hit["kind"]) == (session, "request")
    assert objects(verbatim("search", "opensesame", "--json")) == []
    none = verbatim("search", "nowhere")
    assert (none.returncode, none.stdout, none.stderr) == (0, b"", b"no messages\n")


def test_replay(verbatim: Verbatim, session: str) -> None:
    shown = verbatim("replay", session).stdout.decode()
    assert shown.index("GET /customers") < shown.index("200 OK")
    assert "0.030000" in shown
    assert "coverage: complete" in shown
    first, second = objects(verbatim("replay", session, "--json"))
    assert (first["at"], second["at"]) == (pytest.approx(0.03), pytest.approx(0.04))


def test_export_carries_the_same_streams(verbatim: Verbatim, session: str, tmp_path: Path) -> None:
    file = tmp_path / "out.pcapng"
    assert objects(verbatim("export", session, "--pcapng", str(file), "--json"))[0]["sessions"] == 1
    command = ["tshark", "-r", str(file), "-q", "-z", "follow,tcp,raw,0"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    answer = "".join(line.strip() for line in lines if line.startswith("\t"))
    assert bytes.fromhex(answer) == RESPONSE
    again = verbatim("export", session, "--pcapng", str(file))
    assert (again.returncode, b"exists already" in again.stderr) == (1, True)


def test_ingesting_again_adds_nothing(verbatim: Verbatim, capture: Path) -> None:
    said = verbatim("ingest", str(capture))
    assert (said.returncode, b"already ingested" in said.stdout) == (0, True)
    assert len(objects(verbatim("sessions", "--json"))) == 1


def test_secret_is_nowhere_in_the_folder(data: Path) -> None:
    files = [path for path in data.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if b"opensesame" in path.read_bytes()]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("messages", "01990000-0000-7000-8000-000000000000"), 1, "not found"),
        (("messages", "frob"), 2, "UUID"),
        (("stream", "01990000-0000-7000-8000-000000000000", "--direction", "up"), 2, "direction"),
        (("search", "frob:1"), 2, "frob"),
        (("search", "("), 2, "query"),
        (("sessions", "--since", "someday"), 2, "not a time"),
        (("sessions", "--address", "everywhere"), 2, "everywhere"),
        (("ingest", "/nonexistent.pcap"), 2, "/nonexistent.pcap"),
        (("ingest", "/etc/passwd"), 2, "/etc/passwd"),
        (("ingest", "/etc/passwd", "--identity", "frob=1"), 2, "frob"),
    ],
)
def test_mistakes_are_named(verbatim: Verbatim, arguments: tuple[str, ...], code: int, says: str) -> None:
    said = verbatim(*arguments)
    assert (said.returncode, said.stdout) == (code, b"")
    assert says in said.stderr.decode()
    assert "Traceback" not in said.stderr.decode()


def test_missing_folder_is_not_made(tmp_path: Path) -> None:
    said = run("sessions", "--data", str(tmp_path / "none"))
    assert (said.returncode, b"no such folder" in said.stderr) == (2, True)
    assert not (tmp_path / "none").exists()
