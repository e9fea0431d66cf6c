"""Kinds of TLS, names that rules are about, and the limits of relays: each end is on record with its reason."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance import status
from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.net import PYTHON
from tests.lab.services import tls
from tests.lab.task import Task
from tests.lab.wait import until
from tests.relayed.conftest import CONNECTIONS, HANDSHAKE, IDLE, NAMED_PORT

pytestmark = pytest.mark.usefixtures("credentials")

MiB = 2**20
DENIED = "alert access denied"


def reason(session: dict[str, Any]) -> str:
    """Why the relay ended it, "" where it did not."""
    found: str = session["attrs"]["relay"]["reason"]
    return found


# -- servers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "version", "printed"),
    [
        (tls.TLS13, "TLSv1.3", "TLSv1.3"),
        (tls.TLS12, "TLSv1.2", "TLSv1.2"),
        (tls.CLIENT_CERTIFICATE, "TLSv1.2", "CN=lab-client"),
    ],
)
def test_what_the_server_wants_is_the_relays_affair(
    task: Task, lab: Lab, family: int, port: int, version: str, printed: str
) -> None:
    done = task.curl("-6" if family else "-4", f"https://{lab.tls.fqdn}:{port}/")
    assert printed in done.output
    session = task.session(lane="relay")
    assert session["coverage"] == "complete"
    assert session["protocol"] == "http1"
    relay = session["attrs"]["relay"]
    assert relay["upstream"]["tls"]["version"] == version
    assert relay["upstream"]["tls"]["certificate"]["subject"] == f"CN={lab.tls.fqdn}"
    assert relay["tls"]["version"] == "TLSv1.3"
    assert relay["tls"]["sni"] == lab.tls.fqdn


@pytest.mark.parametrize("port", [tls.EXPIRED, tls.MISNAMED, tls.UNTRUSTED])
def test_a_bad_certificate_is_refused(task: Task, lab: Lab, port: int) -> None:
    done = task.curl("-4", f"https://{lab.tls.fqdn}:{port}/", check=False)
    assert done.code == 35
    assert DENIED in done.errors
    session = task.session(lane="relay")
    assert reason(session) == "certificate"
    assert {"refused", "upstream-tls"} <= set(session["findings"])


@pytest.mark.parametrize(
    ("port", "told"), [(tls.MISNAMED, "no alternative certificate subject name"), (tls.UNTRUSTED, "local issuer")]
)
def test_a_bad_certificate_is_passed_to_the_agent(
    task: Task, lab: Lab, appliance: Appliance, port: int, told: str
) -> None:
    """Where the rule says so the agent sees what the server shows, and decides itself."""
    done = task.curl("-6", f"https://{lab.tls.fqdn}:{port}/", check=False)
    assert done.code == 60
    assert told in done.errors
    session = task.session(lane="relay")
    assert session["protocol"] == "tls"
    assert {"opaque", "upstream-tls"} <= set(session["findings"])
    assert session["attrs"]["sni"] == lab.tls.fqdn
    assert appliance.stream(session, "client")[:2] == b"\x16\x03"


def test_a_bad_certificate_is_accepted(task: Task, lab: Lab) -> None:
    assert task.curl("-6", f"https://{lab.tls.fqdn}:{tls.EXPIRED}/").code == 0
    session = task.session(lane="relay")
    assert session["coverage"] == "complete"
    assert session["attrs"]["relay"]["upstream"]["tls"]["certificate"]["not_after"] < session["started"]


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_name_by_sni(task: Task, lab: Lab) -> None:
    assert task.curl("-4", f"https://{lab.tls.fqdn}/").code == 0
    address = lab.tls.addresses[0]
    nameless = task.curl("-k", f"https://{address}/", check=False)
    other = task.curl("-k", "--connect-to", f"::{address}:", "https://www.example.com/", check=False)
    for refused in (nameless, other):
        assert refused.code == 35
        assert DENIED in refused.errors
    sessions = task.sessions(3, lane="relay")
    assert [reason(session) for session in sessions] == ["", "refused-by-rule", "refused-by-rule"]


def test_a_name_by_http(task: Task, lab: Lab) -> None:
    code = ["-o", "/dev/null", "-w", "%{http_code}", "--connect-to", f"::{lab.llm.addresses[0]}:"]
    told = [task.curl(*code, f"http://{host}/").output for host in (lab.llm.fqdn, lab.llm.addresses[0], "example.com")]
    assert told == ["404", "403", "403"]
    sessions = task.sessions(3, lane="relay")
    assert [reason(session) for session in sessions] == ["", "refused-by-rule", "refused-by-rule"]


def test_a_name_on_the_wire(task: Task, lab: Lab, appliance: Appliance) -> None:
    """Its addresses are open once its name was looked up; the end of that is told by tests/wire/test_names.py."""
    address, name = lab.tls.addresses[0], lab.tls.fqdn
    server = lab.tls.host.popen([PYTHON, "-m", "http.server", "-b", address, str(NAMED_PORT)])
    try:
        until(lambda: lab.tls.host.call(lambda: _connects(address, NAMED_PORT)), "the server listens")
        task.curl("-4", f"http://{name}:{NAMED_PORT}/")
    finally:
        server.stop()
    session = task.session(port=NAMED_PORT)
    assert (session["lane"], session["protocol"], session["coverage"]) == ("tap", "http1", "complete")
    learnt = [event for event in appliance.events(kind="name-learnt") if event["address"] == address]
    assert learnt[0]["attrs"]["name"] == name


def _connects(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 2).close()
    except OSError:
        return False
    return True


# -- limits ------------------------------------------------------------------------------------------------------------


def _worker_pids(appliance: Appliance) -> list[int]:
    said = status.read(appliance.data)
    return [
        one.pid for name, one in said.items() if name.startswith("relay-") and one.live and one.values.get("taking")
    ]


def _files(appliance: Appliance) -> int:
    """Open files of all relays."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in _worker_pids(appliance))


def _memory(appliance: Appliance) -> int:
    """Resident bytes of all relays."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in _worker_pids(appliance))


def _flows(appliance: Appliance) -> int:
    said = status.read(appliance.data)
    return sum(one.values.get("flows", 0) for name, one in said.items() if name.startswith("relay-") and one.live)


@contextmanager
def connections(task: Task, address: str, port: int, count: int) -> Iterator[list[socket.socket]]:
    """Of the agent's host, established."""
    with ExitStack() as opened:

        def connect() -> list[socket.socket]:
            return [opened.enter_context(socket.create_connection((address, port), 10)) for _ in range(count)]

        yield task.agent.call(connect)


def _ended(sock: socket.socket, seconds: float) -> bool:
    """Whether the other side ends the connection within so many seconds, saying nothing more than a TLS alert."""
    sock.settimeout(seconds)
    try:
        return len(sock.recv(100)) <= 7
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_who_says_nothing_is_not_waited_for(task: Task, lab: Lab, appliance: Appliance) -> None:
    """Nothing at all where a name is needed, half a ClientHello, nothing behind the handshake's beginning, and silence
    where anything may come."""
    before = _files(appliance)
    hello = _client_hello(lab.tls.fqdn)
    with (
        connections(task, lab.tls.addresses[0], tls.TLS13, 2) as (silent, half),
        connections(task, lab.tls.addresses[0], tls.TLS12, 1) as (begun,),
        connections(task, lab.web.addresses[0], 80, 1) as (idle,),
    ):
        half.sendall(hello[: len(hello) // 2])
        begun.sendall(hello)
        idle.sendall(b"GET /half")
        assert _ended(silent, HANDSHAKE + 5)
        assert _ended(half, 5)
        assert begun.recv(5)[:2] == b"\x16\x03", "the server's part of the handshake"
        assert _ended(idle, IDLE + 5)
        found = sorted(reason(session) for session in task.sessions(4, lane="relay"))
    assert found == ["idle", "time-out", "time-out", "time-out"]
    until(lambda: _files(appliance) <= before, "the relays to let go of everything")


def _client_hello(name: str) -> bytes:
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_connections_of_a_lease(task: Task, lab: Lab, appliance: Appliance) -> None:
    """They are counted by each relay; what is beyond is ended at once, and what is within is served."""
    workers, before = len(_worker_pids(appliance)), _files(appliance)
    asked = workers * CONNECTIONS + 4
    with connections(task, lab.web.addresses[0], 80, asked) as opened:
        for sock in opened:
            sock.sendall(b"HEAD /plain.txt HTTP/1.1\r\nHost: web.lab.test\r\n\r\n")
        answered = 0
        for sock in opened:
            sock.settimeout(10)
            try:
                answered += sock.recv(15) == b"HTTP/1.1 200 OK"
            except ConnectionResetError:
                continue
        assert 0 < answered <= workers * CONNECTIONS
    served = task.sessions(answered, lane="relay")
    assert {session["coverage"] for session in served} == {"complete"}

    def beyond() -> bool:
        ended = [one for one in appliance.sessions() if one["lane"] == "relay" and one["ending"] == "rst"]
        return [reason(one) for one in ended].count("too-many-connections") == asked - answered

    until(beyond, "the rest to be on record with its reason")
    until(lambda: _files(appliance) <= before, "the relays to let go of everything")


def test_a_reader_that_stops_costs_no_memory(task: Task, lab: Lab, appliance: Appliance) -> None:
    """Its server is held back: of 300 MiB that were asked for, the relay takes no more than buffers hold."""
    request = b"GET /download.bin HTTP/1.1\r\nHost: web.lab.test\r\n\r\n"
    before = _memory(appliance)
    with connections(task, lab.web.addresses[0], 80, 1) as (stopped,):
        stopped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        stopped.sendall(request * 100)
        taken: list[int] = []

        def at_rest() -> bool:
            """Nothing more was taken since the relays last said what they did."""
            said = status.read(appliance.data)
            taken.append(sum(one.values.get("bytes", 0) for name, one in said.items() if name.startswith("relay-")))
            return len(taken) > 3 and len(set(taken[-3:])) == 1

        until(at_rest, "the relay to stop taking", 20, 1.0)
        assert _memory(appliance) - before < 16 * MiB
        assert task.curl("-4", f"https://{lab.web.fqdn}/index.html").code == 0, "others go on"
    sessions = task.sessions(2, lane="relay")
    (held,) = [session for session in sessions if session["server"]["port"] == 80]
    assert held["bytes"]["server"] < 32 * MiB
    assert held["coverage"] in ("complete", "partial")  # it left what was on its way
