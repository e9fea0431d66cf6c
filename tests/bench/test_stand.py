"""A relay on the stand works, is held to its core and records; so do the clients that only the cases have."""

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from appliance.journal import FrameKind, JournalKey, Reader
from tests.bench import load, m_idle
from tests.bench.peers import Place
from tests.bench.stand import ENDS, HERE, SUBJECT, Stand, Subject, compared, in_turns
from tests.lab.net import PYTHON


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with Stand() as one:
        certificate, key = one.server_pair
        load.origin(one.host, one.folder / "origin", Place(HERE, 8000), certificate, key, ENDS, bulk=2**16)
        yield one


@pytest.fixture(scope="module")
def relay(stand: Stand) -> Subject:
    return stand.relay("relay", Place(HERE, 8000), {"ca": str(stand.pki.certificate)})


def test_a_relay_is_measured_beside_the_server(stand: Stand, relay: Subject) -> None:
    assert relay.process
    assert os.sched_getaffinity(relay.process.pid) == {SUBJECT}
    direct = Subject("direct", Place(HERE, 8000))

    def small(one: Subject) -> tuple[float, float]:
        said = load.wrk(stand.host, f"https://{one.place}/small", seconds=1, connections=2, core=ENDS)
        assert not said.failed
        return said.requests_per_second, 1

    told: list[str] = []
    found = in_turns([relay, direct], small, rounds=1, unit="requests", say=told.append)
    assert all(found[name].rate > 10 for name in ("relay", "direct"))
    assert "of its core" in told[0]
    (rate,) = compared("i", "small", found, "relay", "direct", "requests")
    assert (rate.figure, rate.peer_figure) == (found["relay"].rate, found["direct"].rate)
    whole, by_cpu = compared("i", "small", found, "relay", "relay", "requests", "ratio >= 1.0")
    assert whole.ok
    assert by_cpu.figure == found["relay"].by_cpu > 10
    data = stand.folder / "relay" / "data"
    with Reader(data / "journal" / "relay-0", JournalKey.load_or_create(data), None) as reader:
        kinds = {getattr(reader.read(), "kind", None) for _ in range(3)}
    assert FrameKind.SPAN in kinds


def test_idle_sessions_are_asked_and_stay(stand: Stand, relay: Subject) -> None:
    assert relay.process
    command: list[str] = [str(PYTHON), "-m", "tests.bench.idlers", relay.place.address, str(relay.place.port), "3"]
    clients = stand.host.popen(command, stdin=subprocess.PIPE)
    assert clients.popen.stdin
    clients.popen.stdin.write(b"/small\n/bulk\n")
    clients.popen.stdin.close()
    assert clients.popen.wait(20) == 0
    assert clients.output() == "/small\n/bulk\n"
    rss, pss = m_idle.memory(relay.process.pid)
    assert 0 < pss <= rss < 400


def test_keys_are_timed(stand: Stand) -> None:
    command = [str(PYTHON), "-m", "tests.bench.keystrokes", "20", "script", "-q", "/dev/null", "-c"]
    assert len(json.loads(stand.host.run(command).output)) == 18
