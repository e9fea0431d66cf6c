"""The data folder, its disk and its keys; real keys as the processes make them."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.config import Journal
from appliance.doctor import data
from appliance.doctor.finding import Check, Finding, Level
from appliance.identity import ca
from appliance.journal import JournalKey, Writer, set_damage_aside, set_foreign_aside
from appliance.status import publish, read
from tests.doctor.conftest import gateway, worst


def test_before_the_first_start_nothing_is_made(tmp_path: Path) -> None:
    settings = gateway(tmp_path / "data")
    for look in (data.folder, data.journal_key, data.authority):
        assert worst(look(settings)).level is Level.WARN
    assert worst(data.disk(settings)).level in (Level.OK, Level.WARN)
    assert worst(data.journal(settings, {})).level is Level.WARN
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_may_read(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    found = worst(data.folder(gateway(tmp_path)))
    assert (found.level, found.remedy) == (Level.WARN, f"chmod 700 {tmp_path}")
    tmp_path.chmod(0o700)
    assert worst(data.folder(gateway(tmp_path))).level is Level.OK


@pytest.mark.parametrize(("least", "level"), [(1, Level.OK), (1 << 60, Level.FAIL)])
def test_room_on_the_disk(least: int, level: Level, tmp_path: Path) -> None:
    settings = gateway(tmp_path, journal=Journal(min_free_bytes=least))
    assert worst(data.disk(settings), "room").level is level


def test_a_journal_that_is_larger_than_its_disk(tmp_path: Path) -> None:
    found = worst(data.disk(gateway(tmp_path, journal=Journal(max_bytes=1 << 60))), "journal")
    assert (found.level, "journal.max_bytes" in found.remedy) == (Level.WARN, True)


def test_a_file_system_in_memory() -> None:
    if not Path("/dev/shm").is_mount():
        pytest.skip("there is no tmpfs at /dev/shm")
    assert worst(data.disk(gateway(Path("/dev/shm/verbatim"))), "file system").level is Level.WARN


@pytest.mark.parametrize(
    ("published", "level"),
    [
        ({"bytes": 10 << 20, "room": 90 << 20, "stalled": False}, Level.OK),
        ({"bytes": 60 << 20, "room": 40 << 20, "stalled": False}, Level.WARN),
        ({"bytes": 99 << 20, "room": 1 << 20, "stalled": True}, Level.FAIL),
    ],
)
def test_room_in_the_journal(published: dict[str, object], level: Level, tmp_path: Path) -> None:
    publish(tmp_path, "wire", {"journal": published})
    found = worst(data.journal(gateway(tmp_path), read(tmp_path)))
    assert (found.level, bool(found.remedy)) == (level, level is not Level.OK)


@pytest.mark.parametrize("limits", [{"max_bytes": 1000}, {"segment_bytes": 4096}, {"keep_bytes": 1 << 40}])
def test_bounds_of_the_journal_that_the_wire_process_refuses(limits: dict[str, int], tmp_path: Path) -> None:
    found = worst(data.journal(gateway(tmp_path, journal=Journal(**limits)), {}), "bounds")
    assert (found.level, "set max_bytes to" in found.remedy) == (Level.FAIL, True)
    assert {one.about for one in data.journal(gateway(tmp_path), {})} == {""}


def test_a_status_that_cannot_be_seen_says_nothing_of_the_journal(tmp_path: Path) -> None:
    found = worst(data.journal(gateway(tmp_path), None))
    assert (found.level, found.remedy) == (Level.UNKNOWN, "run it as root")


def test_what_was_set_aside_is_told_until_it_is_gone(tmp_path: Path) -> None:
    settings, stream = gateway(tmp_path), tmp_path / "journal" / "wire"
    assert list(data.aside(settings)) == []
    Writer(stream, JournalKey.load_or_create(tmp_path), settings=settings.journal).close()
    assert list(data.aside(settings)) == []
    (stream / f"{1:016x}.seg").write_bytes(bytes(4096))
    copy = set_damage_aside(stream, 1, 1000, 3000)
    assert copy is not None
    (found,) = data.aside(settings)
    assert (found.check, found.about, found.level) == (Check.JOURNAL, "damaged", Level.WARN)
    assert found.found == f"1 parts ({copy.stat().st_size} bytes) could not be read and are kept in {copy.parent}"
    copy.unlink()
    name = stream / "stream"
    name.write_text(name.read_text().replace("verbatim-journal 1", "verbatim-journal 0"))
    set_foreign_aside(stream)
    (found,) = data.aside(settings)
    assert (found.about, found.level, bool(found.remedy)) == ("wire.old1", Level.WARN, True)


def test_the_last_word_of_a_wire_process_that_is_dead(tmp_path: Path) -> None:
    publish(tmp_path, "wire", {"journal": {"bytes": 10 << 20, "room": 90 << 20, "stalled": False}})
    path = tmp_path / "run" / "wire.status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": 2**22 + 1, "time": time.time() - 300}))
    found = worst(data.journal(gateway(tmp_path), read(tmp_path)))
    assert (found.level, found.remedy) == (Level.UNKNOWN, "start 'verbatim wire'")
    assert "said 30" in found.found


def test_the_journal_key(tmp_path: Path) -> None:
    settings = gateway(tmp_path)
    key = JournalKey.load_or_create(tmp_path)
    path = tmp_path / "keys" / "journal.key"
    found = worst(data.journal_key(settings))
    assert (found.level, key.key_id.hex() in found.found) == (Level.OK, True)
    assert key.secret.hex() not in found.sentence
    path.chmod(0o644)
    found = worst(data.journal_key(settings))
    assert (found.level, found.remedy) == (Level.FAIL, "chmod 600 it")
    path.chmod(0o600)
    path.write_bytes(b"short")
    assert worst(data.journal_key(settings)).level is Level.FAIL


def test_a_key_that_is_gone_while_its_journal_is_there(tmp_path: Path) -> None:
    settings = gateway(tmp_path)
    Writer(tmp_path / "journal" / "wire", JournalKey.load_or_create(tmp_path), settings=settings.journal).close()
    (tmp_path / "keys" / "journal.key").unlink()
    found = worst(data.journal_key(settings))
    assert (found.level, "restore" in found.remedy) == (Level.FAIL, True)


def test_the_authority(tmp_path: Path) -> None:
    settings = gateway(tmp_path)
    ours = ca.load_or_create(tmp_path, "gateway")
    ca.api_certificate(ours, tmp_path, ["localhost"])
    assert [one.level for one in data.authority(settings)] == [Level.OK, Level.OK]

    def at(days: float) -> Finding:
        return worst(data.authority(settings, datetime.now(UTC) + timedelta(days=days)))

    assert (at(-2).level, at(-2).remedy) == (Level.FAIL, "set the clock")
    assert (at(360).about, at(360).level) == ("API", Level.WARN)
    assert at(3700).level is Level.FAIL
    (tmp_path / "keys" / "ca.key").chmod(0o640)
    found = worst(data.authority(settings))
    assert (found.level, found.about) == (Level.FAIL, "ca.key")


def test_an_authority_whose_halves_do_not_fit(tmp_path: Path) -> None:
    other = tmp_path / "other"
    for folder in (tmp_path, other):
        ca.load_or_create(folder, "gateway")
    key = tmp_path / "keys" / "ca.key"
    (other / "keys" / "ca.key").replace(key)
    assert "not the key of" in worst(data.authority(gateway(tmp_path))).found
    key.write_text("nothing")
    assert "does not read" in worst(data.authority(gateway(tmp_path))).found
    key.unlink()
    assert "only one of" in worst(data.authority(gateway(tmp_path))).found


def test_an_api_certificate_that_does_not_fit(tmp_path: Path) -> None:
    settings, keys, other = gateway(tmp_path), tmp_path / "keys", tmp_path / "other"
    for folder in (tmp_path, other):
        ca.api_certificate(ca.load_or_create(folder, "gateway"), folder, ["localhost"])

    def found() -> tuple[str, Level, str]:
        (one,) = [each for each in data.authority(settings) if each.level is not Level.OK]
        assert one.remedy == "restart 'verbatim api', which makes a new pair"
        return one.about, one.level, one.found

    ours = (keys / "api.key").read_bytes()
    (keys / "api.key").write_bytes((other / "keys" / "api.key").read_bytes())
    assert found() == ("API", Level.FAIL, "api.key is not the key of api.crt")
    (keys / "api.crt").write_bytes((other / "keys" / "api.crt").read_bytes())
    assert found() == ("API", Level.FAIL, "api.crt is not signed by ca.crt: agents will not believe it")
    (keys / "api.crt").write_text("nothing")
    assert "does not read" in found()[2]
    (keys / "api.key").write_bytes(ours)
    assert "does not read" in found()[2]
    (keys / "api.key").unlink()
    (keys / "api.crt").write_bytes((other / "keys" / "api.crt").read_bytes())
    assert found() == ("API", Level.FAIL, "api.key is gone")
    ca.api_certificate(ca.load_or_create(tmp_path, "gateway"), tmp_path, ["localhost"])  # what the remedy does
    assert {one.level for one in data.authority(settings)} == {Level.OK}


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.touch()
    found = worst(data.folder(gateway(file)))
    assert (found.level, found.found) == (Level.FAIL, f"{file} is not a folder")


def test_a_relative_folder_is_another_one_for_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir(mode=0o700)
    found = worst(data.folder(gateway(Path("here"))))
    assert (found.level, found.remedy) == (Level.WARN, "set data to a path that begins with /")


def test_folders_in_the_place_of_keys(tmp_path: Path) -> None:
    for name in ("ca.key", "ca.crt", "journal.key"):
        (tmp_path / "keys" / name).mkdir(mode=0o700, parents=True)
    for look in (data.authority, data.journal_key):
        found = worst(look(gateway(tmp_path)))
        assert (found.level, "irectory" in found.found, bool(found.remedy)) == (Level.FAIL, True, True)
