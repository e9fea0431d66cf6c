import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import status
from appliance.config import Settings
from appliance.config import Store as StoreSettings
from appliance.errors import MalformedInput, Refused
from appliance.store import engine, service
from appliance.store.client import open_store
from appliance.store.link import SERVICE_FILE, Service, live_service
from tests.lab.wait import until
from tests.store import samples
from tests.store.conftest import PATIENCE, serving


def test_files_are_for_this_user_only(served: Settings) -> None:
    assert (served.data / "run" / SERVICE_FILE).stat().st_mode & 0o777 == 0o600
    assert engine.store_path(served.data).stat().st_mode & 0o777 == 0o700
    assert (served.data / "run").stat().st_mode & 0o777 == 0o700


def test_status_tells_what_is_stored(served: Settings) -> None:
    until(lambda: "store" in status.read(served.data), "status of the store", PATIENCE)
    said = status.read(served.data)["store"]
    assert said.live
    assert said.values["rows"]["schema_version"] == 1
    assert said.values["parts"] >= 1
    assert said.values["bytes"] > 0
    assert said.values["uptime"] >= 0


def test_it_ends_cleanly_and_starts_again_with_its_rows(tmp_path: Path) -> None:
    """A store that is open meanwhile finds the new process with its new port and tokens."""
    settings = Settings(data=tmp_path)
    with serving(tmp_path) as process:
        store = open_store(settings, "writer")
        store.insert([samples.event("kept", 9)])
        process.terminate()
        assert process.wait(30) == 0
    assert list((tmp_path / "run").iterdir()) == []
    with serving(tmp_path):
        for attempt in range(2):
            try:
                assert store.last_position("kept") == 9
            except Exception:
                assert attempt == 0
                continue
            break
        store.close()


def test_a_second_service_of_the_folder_is_refused(served: Settings) -> None:
    command = [sys.executable, "-m", "appliance", "store", "--data", str(served.data)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    owner = live_service(served.data)
    assert owner is not None
    assert f"is in use by process {owner.pid}" in answer.stderr + answer.stdout
    assert "Traceback" not in answer.stderr


def test_a_file_of_a_dead_service_is_not_believed(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    service.announce(tmp_path, Service("http://127.0.0.1:1", "w", "r", gone.pid))
    assert live_service(tmp_path) is None
    service.announce(tmp_path, Service("http://127.0.0.1:1", "w", "r", os.getpid()))
    assert live_service(tmp_path) is not None


@pytest.mark.parametrize(
    ("listen", "expected"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:9000", ("::1", 9000)), ("127.8.0.1:1", ("127.8.0.1", 1))],
)
def test_loopback(listen: str, expected: tuple[str, int]) -> None:
    assert service.loopback(listen) == expected


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "127.0.0.1:70000"])
def test_other_addresses_are_refused(listen: str) -> None:
    with pytest.raises(Refused, match="not a loopback address"):
        service.loopback(listen)


@pytest.mark.parametrize("listen", ["", "x", "localhost:1", "127.0.0.1", "127.0.0.1:x"])
def test_what_is_no_address_is_malformed(listen: str) -> None:
    with pytest.raises(MalformedInput, match="is not address:port"):
        service.loopback(listen)


def test_it_is_not_for_a_server(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"store\.url names a ClickHouse server"):
        service.run(Settings(data=tmp_path, store=StoreSettings(url="http://u:p@host/db")))


def test_a_search_that_needs_too_much_memory_is_refused_and_the_store_goes_on(served: Settings) -> None:
    with open_store(served, "writer") as store:
        store.insert([samples.message(900, seq, "word " * 200_000) for seq in range(16)])
        greedy = ", ".join(["search_text"] * 64)
        mine = {"id": str(samples.number(900))}
        with pytest.raises(Refused, match="exceeds the store's limits; narrow"):
            store.select(
                f"SELECT length(groupArray(concat({greedy}))) AS n FROM messages WHERE session_id = {{id:UUID}}", mine
            )
        found = store.select("SELECT count() AS n FROM messages WHERE session_id = {id:UUID}", mine)
    assert found[0]["n"] == 16


def test_the_engines_memory_is_bounded_as_configured(tmp_path: Path) -> None:
    """Asked in a process of its own: what an engine's first handle says holds for the whole process."""
    script = (
        "import sys; from pathlib import Path; from appliance.store import engine\n"
        "handle = engine.create(Path(sys.argv[1]), 600 * 2**20)\n"
        "names = ', '.join(repr(name) for name in ('max_server_memory_usage', *engine.CACHES))\n"
        "print(handle.run(f'SELECT name, value FROM system.server_settings WHERE name IN ({names})').decode())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    found = dict(line.split("\t") for line in said.split("\n") if line)
    assert found == {"max_server_memory_usage": str(600 * 2**20)} | {
        name: str(size) for name, size in engine.CACHES.items()
    }
