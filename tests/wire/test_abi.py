"""The Python mirror of bpf/wire.h is what the C compiler makes of the header: names, values, offsets, sizes."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from enum import IntEnum
from pathlib import Path

import pytest

from appliance.wire import abi, program

STRUCTS: dict[str, type[abi.Packed]] = {
    "record": abi.Record,
    "side_state": abi.SideState,
    "flow_key": abi.FlowKey,
    "lease": abi.LeaseValue,
    "rule_key": abi.RuleKey,
    "rule": abi.RuleValue,
    "refusal_key": abi.RefusalKey,
    "refusal": abi.RefusalValue,
    "meta": abi.Meta,
    "owner": abi.Owner,
    "quota": abi.Quota,
    "budget": abi.Budget,
    "network_key": abi.NetworkKey,
    "window": abi.Window,
    "held": abi.Held,
    "pressure": abi.Pressure,
    "relay": abi.RelayValue,
    "settings": abi.SettingsValue,
}
ENUMS: dict[str, tuple[type[IntEnum], str]] = {
    "record_kind": (abi.Kind, "RECORD_"),
    "lane": (abi.Lane, "LANE_"),
    "side": (abi.Side, "SIDE_"),
    "role": (abi.Role, "ROLE_"),
    "reason": (abi.Reason, "REASON_"),
    "counter": (abi.Counter, "COUNTER_"),
    "map": (abi.MapIndex, "MAP_"),
    "flow_end": (abi.FlowEnd, "FLOW_"),
}
BOUNDS = {"REASON_COUNT", "REASON_LAST_SILENT", "COUNTER_COUNT", "MAP_COUNT"}
HEADER = program.source_folder() / "wire.h"


def _uncommented() -> str:
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text("utf-8"), flags=re.DOTALL)


def _bodies(word: str) -> Iterator[tuple[str, str]]:
    yield from re.findall(rf"^{word} (\w+) \{{(.*?)\}};", _uncommented(), re.MULTILINE | re.DOTALL)


def _c_structs() -> dict[str, list[str]]:
    return {name: re.findall(r"(\w+)(?:\[\w+\])?;", body) for name, body in _bodies("struct")}


def _c_enums() -> dict[str, list[str]]:
    return {name: re.findall(r"(\w+) = ", body) for name, body in _bodies("enum")}


def _c_constants() -> list[str]:
    return re.findall(r"^#define (\w+) \S", _uncommented(), re.MULTILINE)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Every size, offset, enumerator and constant of the header, by its C expression, as the compiler computes it."""
    if shutil.which("gcc") is None:
        raise AssertionError("gcc not found; `make setup` installs what the tests need")
    wanted = [f"sizeof(struct {name})" for name in _c_structs()]
    wanted += [f"offsetof(struct {name}, {field})" for name, names in _c_structs().items() for field in names]
    wanted += [f"sizeof(((struct {name} *)0)->{field})" for name, names in _c_structs().items() for field in names]
    wanted += [enumerator for names in _c_enums().values() for enumerator in names] + _c_constants()
    folder: Path = tmp_path_factory.mktemp("abi")
    source = folder / "print.c"
    lines = "\n".join(f'\tprintf("%llu\\n", (unsigned long long)({expression}));' for expression in wanted)
    source.write_text(
        f'#include <linux/types.h>\n#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\n'
        f"int main(void)\n{{\n{lines}\n}}\n"
    )
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", str(folder / "print"), str(source)], check=True)
    values = subprocess.run([str(folder / "print")], check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(wanted, map(int, values), strict=True))


def test_every_struct_has_a_mirror() -> None:
    assert set(_c_structs()) == {*STRUCTS, "flow", "tracked", "leg", "answer"}


@pytest.mark.parametrize("name", STRUCTS)
def test_layout_of_struct(compiled: dict[str, int], name: str) -> None:
    mirror = STRUCTS[name]
    names = [field.name for field in fields(mirror)]
    assert names == _c_structs()[name]
    assert mirror.LAYOUT.size == compiled[f"sizeof(struct {name})"]
    formats = re.findall(
        r"\d+s|[A-Za-z]", re.sub(r"(\d+)([A-Zac-rt-z])", lambda m: m[2] * int(m[1]), mirror.LAYOUT.format)
    )
    at = 0
    for field, form in zip(names, formats, strict=True):
        size = int(form[:-1]) if form.endswith("s") else {"B": 1, "H": 2, "I": 4, "Q": 8}[form]
        assert compiled[f"offsetof(struct {name}, {field})"] == at, field
        assert compiled[f"sizeof(((struct {name} *)0)->{field})"] == size, field
        at += size
    assert at == compiled[f"sizeof(struct {name})"], "no padding at the end"


def test_layout_of_flow(compiled: dict[str, int]) -> None:
    head = ["start", "last", "lease", "rule", "lane", "end", "flags", "reported"]
    assert _c_structs()["flow"] == [*head, "sides"]
    assert compiled["sizeof(struct flow)"] == abi.Flow.SIZE == 128
    assert compiled["offsetof(struct flow, sides)"] == abi.Flow.HEAD.size
    numbers = iter(range(1, 200))
    sides = [abi.SideState(*(next(numbers) for _ in fields(abi.SideState))) for _ in range(2)]
    first_half = {name: next(numbers) for name in head}
    flow = abi.Flow(client=sides[0], server=sides[1], **first_half)
    packed = flow.pack()
    for index, field in enumerate(head):
        at = compiled[f"offsetof(struct flow, {field})"]
        size = compiled[f"sizeof(((struct flow *)0)->{field})"]
        assert int.from_bytes(packed[at : at + size], "little") == getattr(flow, field), index
    assert compiled["sizeof(struct tracked)"] == abi.TRACKED_BYTES
    assert compiled["offsetof(struct tracked, windows)"] == abi.Flow.SIZE
    first, each = compiled["offsetof(struct flow, sides)"], compiled["sizeof(struct side_state)"]
    assert packed[first : first + each] == flow.client.pack()
    assert packed[first + each :] == flow.server.pack()
    assert abi.Flow.unpack(b"xxx" + packed, 3) == flow


def test_layout_of_leg(compiled: dict[str, int]) -> None:
    head = ["start", "last", "worker", "flags"]
    assert _c_structs()["leg"] == [*head, "reserved", "sides"]
    assert compiled["sizeof(struct leg)"] == abi.Leg.SIZE
    assert compiled["offsetof(struct leg, sides)"] == abi.Leg.HEAD.size
    numbers = iter(range(1, 200))
    sides = [abi.SideState(*(next(numbers) for _ in fields(abi.SideState))) for _ in range(2)]
    leg = abi.Leg(**{name: next(numbers) for name in head}, client=sides[0], server=sides[1])
    packed = leg.pack()
    for field in head:
        at, size = compiled[f"offsetof(struct leg, {field})"], compiled[f"sizeof(((struct leg *)0)->{field})"]
        assert int.from_bytes(packed[at : at + size], "little") == getattr(leg, field)
    assert abi.Leg.unpack(b"xxx" + packed, 3) == leg


@pytest.mark.parametrize("name", ENUMS)
def test_values_of_enum(compiled: dict[str, int], name: str) -> None:
    mirror, prefix = ENUMS[name]
    in_c = {
        enumerator.removeprefix(prefix): compiled[enumerator]
        for enumerator in _c_enums()[name]
        if enumerator not in BOUNDS
    }
    assert in_c == {member.name: member.value for member in mirror}


def test_every_enum_has_a_mirror() -> None:
    assert set(_c_enums()) == set(ENUMS)


def test_values_of_constants(compiled: dict[str, int]) -> None:
    mirrored = {
        name: getattr(abi, name)
        for name in _c_constants()
        if name.startswith(("RECORD_F_", "SIDE_F_", "LEG_F_", "MARK_"))
    }
    assert mirrored
    assert mirrored == {name: compiled[name] for name in mirrored}
    assert compiled["WIRE_ABI"] == abi.ABI
    assert compiled["RELAYS_MAX"] == abi.RELAYS_MAX
    assert compiled["ANSWER_BYTES"] == abi.ANSWER_BYTES == compiled["sizeof(struct answer)"] - abi.Record.LAYOUT.size
    assert compiled["COUNTER_COUNT"] == abi.COUNTER_COUNT
    assert compiled["REASON_COUNT"] == max(abi.Reason) + 1 <= min(abi.Counter)
    assert compiled["MAP_COUNT"] == len(abi.MapIndex)


@pytest.mark.parametrize(
    ("text", "packed"),
    [
        ("192.0.2.1", bytes(10) + b"\xff\xff\xc0\x00\x02\x01"),
        ("2001:db8::1", bytes.fromhex("20010db8000000000000000000000001")),
        ("::1", bytes(15) + b"\1"),
    ],
)
def test_addresses(text: str, packed: bytes) -> None:
    assert abi.pack_address(text) == packed
    assert abi.unpack_address(packed) == text


def test_records_survive_packing() -> None:
    record = abi.Record.unpack(bytes(range(1, 1 + abi.Record.LAYOUT.size)))
    assert (record.version, record.vlan, record.spare) == (1, 0x6C6B, 0x706F6E6D)
    assert abi.Record.unpack(b"\0" + record.pack(), 1) == record
