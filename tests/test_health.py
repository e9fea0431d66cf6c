"""What is judged from what processes say of themselves."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import MalformedInput
from appliance.health import State, judge, part, parts
from appliance.status import Status, check_readable, publish, read


def said(values: dict[str, Any], age: float = 0.0, pid: int | None = None) -> Status:
    return Status("wire", os.getpid() if pid is None else pid, age, values, time.time() - age)


def test_a_process_without_faults_is_fine() -> None:
    found = part("wire", said({"interlock": True, "journal": {"stalled": False}, "repairs": {"gate-restored": 1}}))
    assert (found.state, found.verdict, found.repairs) == (State.OK, "ok", {"gate-restored": 1})


@pytest.mark.parametrize(
    ("name", "values", "fault"),
    [
        ("wire", {"journal": {"stalled": True}}, "journal-stalled"),
        ("wire", {"interlock": False}, "interlock-missing"),
        ("wire", {"faults": {"interface-down": "interface eth1: is down; ip link set it up"}}, "interface-down"),
        ("record", {"store": "store at 127.0.0.1:1 does not answer; check it"}, "store-refuses"),
        ("record", {"store": "ok", "lag_seconds": 61.0}, "store-behind"),
    ],
)
def test_faults_have_a_name_and_a_remedy(name: str, values: dict[str, Any], fault: str) -> None:
    found = part(name, said(values))
    assert (found.state, list(found.faults)) == (State.FAILING, [fault])
    assert "; " in found.verdict or ", see" in found.verdict


def test_a_process_names_its_own_fault_better() -> None:
    found = part("wire", said({"interlock": False, "faults": {"interlock-missing": "nft: no such thing; install it"}}))
    assert dict(found.faults) == {"interlock-missing": "nft: no such thing; install it"}


def test_a_process_that_died_or_hangs_is_silent(tmp_path: Path) -> None:
    assert part("record", said({}, age=11.0)).state is State.SILENT
    assert part("record", said({}, pid=2**22 + 1)).state is State.SILENT
    assert part("record", None).state is State.STOPPED
    assert judge(tmp_path, embedded=True)["store"].startswith("not running; start it with 'verbatim store'")
    assert "store" not in judge(tmp_path, embedded=False)


def test_a_clock_that_was_set_back_under_a_running_process() -> None:
    assert list(part("wire", said({}, age=-60.0)).faults) == ["clock-set-back"]
    assert part("wire", said({}, age=-1.0)).state is State.OK


def test_what_a_process_publishes_wrongly_is_no_fault_of_the_judge() -> None:
    values: dict[str, Any] = {
        "faults": ["x"],
        "repairs": {"gate-restored": None},
        "journal": None,
        "lag_seconds": "much",
        "interlock": True,
    }
    assert parts({"wire": said(values)}, embedded=True, names=("wire",))["wire"].state is State.OK


def test_published_and_read(tmp_path: Path) -> None:
    publish(tmp_path, "wire", {"faults": {"a": "b"}})
    (tmp_path / "run" / "record.status.json").write_text("{")
    found = read(tmp_path)
    assert list(found) == ["wire"]
    assert found["wire"].faults == {"a": "b"}
    assert found["wire"].time == json.loads((tmp_path / "run" / "wire.status.json").read_text())["time"]


def test_what_is_no_status_file_is_not_waited_for(tmp_path: Path) -> None:
    publish(tmp_path, "wire", {})
    os.mkfifo(tmp_path / "run" / "api.status.json")
    (tmp_path / "run" / "store.status.json").mkdir()
    assert list(read(tmp_path)) == ["wire"]


def test_another_file_in_the_folders_place_is_named(tmp_path: Path) -> None:
    check_readable(tmp_path)
    check_readable(tmp_path / "not made yet")
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "run").touch()
    for data in (file, tmp_path):
        with pytest.raises(MalformedInput, match="not a folder; name"):
            check_readable(data)
        assert read(data) == {}


def test_relays_count_once_they_have_spoken() -> None:
    assert "relay" not in parts({"wire": said({})}, embedded=False)
    found = parts({"relay": said({"faults": {"not-steered": "no program"}})}, embedded=False)
    assert found["relay"].faults == {"not-steered": "no program"}
