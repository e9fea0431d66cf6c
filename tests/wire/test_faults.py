"""Faults are on record when they begin, change and end; repairs count; other processes' faults are recorded too."""

import os
from typing import Any

import pytest

from appliance.errors import MalformedInput
from appliance.identity.leases import Now
from appliance.status import Status
from appliance.wire.faults import Faults

NOW = Now(10**18, 10**9, "boot")


class Told(list[tuple[str, str, dict[str, Any]]]):
    def __call__(self, kind: str, text: str, now: Now, **attrs: Any) -> None:
        self.append((kind, text, attrs))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def faults(told: Told) -> Faults:
    return Faults(told)


def said(name: str, *, age: float = 0.0, **faults: str) -> dict[str, Status]:
    return {name: Status(name, os.getpid(), age, {"faults": faults})}


def test_a_fault_is_told_when_it_begins_changes_and_ends(faults: Faults, told: Told) -> None:
    for found in ({}, {"a": "one"}, {"a": "one"}, {"a": "two"}, {}, {}):
        faults.settle(found, NOW)
        assert faults.present == found
    assert told == [("a", "one", {}), ("a", "two", {}), ("a", "over: two", {"over": True})]


def test_repairs_count(faults: Faults, told: Told) -> None:
    for _ in range(2):
        faults.repaired("gate-restored", "it was gone", NOW, interface="eth0")
    assert faults.repairs == {"gate-restored": 2}
    assert told == [("gate-restored", "it was gone", {"interface": "eth0"})] * 2


def test_what_other_processes_say_is_told_once_however_its_numbers_change(faults: Faults, told: Told) -> None:
    for text in ("3 s behind", "4 s behind"):
        faults.watch(said("record", age=0.0, **{"store-refuses": text}), NOW)
    faults.watch(said("record"), NOW)
    assert told == [
        ("store-refuses", "3 s behind", {"process": "record"}),
        ("store-refuses", "over: 3 s behind", {"process": "record", "over": True}),
    ]


def test_a_process_that_falls_silent_is_told_and_one_that_ends_on_purpose_is_not(faults: Faults, told: Told) -> None:
    faults.watch(said("store") | said("api"), NOW)
    faults.watch(said("store", age=60.0), NOW)
    faults.watch(said("store"), NOW)
    assert [(kind, attrs) for kind, _, attrs in told] == [
        ("silent", {"process": "store"}),
        ("silent", {"process": "store", "over": True}),
    ]


def test_a_status_that_was_not_withdrawn_tells_of_a_death(faults: Faults, told: Told) -> None:
    faults.inherit(None, NOW)
    faults.inherit(Status("wire", 1, 5.0, {}, 1234.5), NOW)
    ((kind, _, attrs),) = told
    assert (kind, attrs) == ("silent", {"process": "wire", "last_ns": 1_234_500_000_000})


def test_notes_of_other_processes(faults: Faults, told: Told) -> None:
    faults.noted({"kind": "issuer-keys-changed", "text": "other keys", "attrs": {"issuer": "x"}}, NOW)
    assert told == [("issuer-keys-changed", "other keys", {"issuer": "x"})]
    for wrong in (
        {},
        {"kind": "lease-granted", "text": "x", "attrs": {}},
        {"kind": "issuer-keys-changed", "text": 7, "attrs": {}},
        {"kind": "issuer-keys-changed", "text": "x", "attrs": []},
        {"kind": "issuer-keys-changed", "text": "x", "attrs": {"kind": "y"}},
    ):
        with pytest.raises(MalformedInput):
            faults.noted(wrong, NOW)
