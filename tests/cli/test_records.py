"""The command line on a data folder by itself, without services or root."""

import base64
import subprocess
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap

from tests.cli.conftest import REQUEST, RESPONSE, Verbatim, objects, run


@pytest.fixture(scope="module")
def session(data: Path) -> str:
    (found,) = objects(run("sessions", "--json", "--data", str(data)))
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


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("ingest", "CAPTURE", "--data", "FILE"), 2, "Not a directory"),
        (("ingest", "CAPTURE", "--data", "FILE/data"), 2, "Not a directory"),
        (("sessions", "--data", "FILE"), 2, "no such folder"),
        (("ingest", "FOLDER", "--data", "FOLDER/data"), 2, "a folder"),
        (("ingest", "-", "--data", "FOLDER/data"), 2, "no such file"),
    ],
)
def test_wrong_paths_are_named(capture: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    places = {"CAPTURE": str(capture), "FILE": str(file), "FOLDER": str(tmp_path)}
    for name, place in places.items():
        arguments = tuple(argument.replace(name, place) for argument in arguments)
    said = run(*arguments)
    assert (said.returncode, said.stdout) == (code, b"")
    assert says in said.stderr.decode()
    assert "Traceback" not in said.stderr.decode()


def test_names_of_files_do_not_drive_the_terminal(capture: Path, tmp_path: Path) -> None:
    file = tmp_path / "a\x1b[31m.pcap"
    file.write_bytes(capture.read_bytes())
    for said in (run("ingest", str(file), "--data", str(tmp_path / "data")), run("ingest", f"{file}\x1b[2J")):
        assert b"\x1b" not in said.stdout + said.stderr
        assert b"\\x1b[31m" in said.stderr


def test_export_into_a_folder_that_is_not_there(verbatim: Verbatim, session: str, tmp_path: Path) -> None:
    said = verbatim("export", session, "--pcapng", str(tmp_path / "none" / "out.pcapng"))
    assert (said.returncode, b"No such file" in said.stderr, b"Traceback" in said.stderr) == (2, True, False)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    said = run("sessions", "--data", str(tmp_path))
    assert (said.returncode, b"nothing is recorded there" in said.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_programs_get_every_session_and_people_a_screenful(tmp_path: Path) -> None:
    file, data = tmp_path / "many.pcap", tmp_path / "with a space"
    link = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    datagram = link / IP(src="10.0.0.5", dst="192.0.2.7")
    datagrams = [datagram / UDP(sport=port, dport=9) / b"hello" for port in range(2000, 2130)]
    wrpcap(str(file), datagrams)
    assert run("ingest", str(file), "--data", str(data)).returncode == 0
    assert len(objects(run("sessions", "--data", str(data), "--json"))) == 130
    assert len(objects(run("sessions", "--data", str(data), "--json", "--limit", "7"))) == 7
    shown = run("sessions", "--data", str(data))
    assert (len(shown.stdout.splitlines()), shown.stderr) == (101, b"the first 100 sessions; --limit shows more\n")
    assert len(objects(run("search", "hello", "--data", str(data), "--json"))) == 130


def test_missing_folder_is_not_made(tmp_path: Path) -> None:
    said = run("sessions", "--data", str(tmp_path / "none"))
    assert (said.returncode, b"no such folder" in said.stderr) == (2, True)
    assert not (tmp_path / "none").exists()


def test_audit_of_a_folder_that_no_api_served(verbatim: Verbatim) -> None:
    assert objects(verbatim("audit", "--json")) == []
    assert verbatim("audit").stderr == b"no audit records\n"
