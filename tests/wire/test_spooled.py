"""What other processes leave for the journal, until the journal has it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from appliance.errors import MalformedInput
from appliance.identity.leases import Now
from appliance.journal import spool
from appliance.wire.spooled import AT_ONCE, Spooled

NOW = Now(1, 1, "boot")


class Journal:
    def __init__(self, data: Path) -> None:
        self.full = False
        self.noted: list[str] = []
        self.spooled = Spooled(data, self.note, lambda: not self.full)

    def note(self, request: Mapping[str, Any], now: Now) -> None:
        if request["kind"] == "lease-granted":
            raise MalformedInput("not a known kind")
        self.noted.append(request["text"])


def test_each_is_noted_once_and_removed_when_the_journal_has_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    spool.leave(tmp_path, "secret-set", "one", 1)
    journal.full = True
    for _ in range(3):
        journal.spooled.step(NOW)
    assert (journal.noted, len(spool.left(tmp_path, 9))) == (["one"], 1)
    spool.leave(tmp_path, "secret-set", "two", 2)
    journal.full = False
    journal.spooled.step(NOW)
    assert (journal.noted, spool.left(tmp_path, 9)) == (["one", "two"], [])


def test_what_is_refused_is_set_aside(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    spool.leave(tmp_path, "lease-granted", "a lie", 1)
    (tmp_path / "state" / "notes" / "2.note").write_text("rubbish")
    spool.leave(tmp_path, "secret-set", "one", 3)
    journal.spooled.step(NOW)
    assert (journal.noted, spool.left(tmp_path, 9)) == (["one"], [])
    assert len(list((tmp_path / "state" / "notes").glob("*.refused"))) == 2


def test_a_turn_is_bounded(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for number in range(AT_ONCE + 1):
        spool.leave(tmp_path, "secret-set", str(number), number)
    journal.spooled.step(NOW)
    assert len(journal.noted) == AT_ONCE
    journal.spooled.step(NOW)
    assert len(journal.noted) == AT_ONCE + 1
