"""The capture program loads on the oldest kernel that the appliance promises: Debian 12's own."""

import struct
from pathlib import Path

import pytest

from appliance import config
from appliance.wire import bpf, loader, program
from tests.vm.guest import MapShape, Program, Verdict, boot


def _ours(name: str) -> Program:
    shapes = loader.map_shapes(config.Wire())
    maps = [MapShape(shape.kind, shape.key, shape.value, shape.entries, shape.flags) for shape in shapes.values()]
    return Program(maps, program.compiled(program.source_folder(), name=name))


def _from_a_later_kernel() -> Program:
    """Calls bpf_cgrp_storage_delete, which came with 6.2."""
    call = struct.pack("<BBhi", 0x85, 0, 0, 211)
    leave = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    return Program([], call + leave)


def _unchecked() -> Program:
    """Writes to a reserved record without asking whether there is one."""
    reserve = [(0x18, 0x11, 0, 0), (0, 0, 0, 0), (0xB7, 2, 0, 64), (0xB7, 3, 0, 0), (0x85, 0, 0, 131)]
    use = [(0x7A, 0, 0, 1), (0xBF, 0x01, 0, 0), (0xB7, 2, 0, 0), (0x85, 0, 0, 132), (0xB7, 0, 0, 0), (0x95, 0, 0, 0)]
    return Program(
        [MapShape(bpf.RINGBUF, 0, 0, 4096)],
        b"".join(struct.pack("<BBhi", *instruction) for instruction in reserve + use),
    )


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Verdict]]:
    programs = {
        "wire": _ours(program.WIRE),
        "gate": _ours(program.GATE),
        "later": _from_a_later_kernel(),
        "unchecked": _unchecked(),
    }
    folder: Path = tmp_path_factory.mktemp("guest")
    return boot(folder, programs)


def test_guest_runs_debian_12s_kernel(guest: tuple[str, dict[str, Verdict]]) -> None:
    assert guest[0].startswith("6.1.")


@pytest.mark.parametrize("name", ["wire", "gate"])
def test_the_programs_load(guest: tuple[str, dict[str, Verdict]], name: str) -> None:
    verdict = guest[1][name]
    assert verdict.loaded, verdict.log


@pytest.mark.parametrize(("name", "word"), [("later", "invalid func"), ("unchecked", "mem_or_null")])
def test_refused_programs_show(guest: tuple[str, dict[str, Verdict]], name: str, word: str) -> None:
    """Else the test above would pass with a loader that always says yes."""
    verdict = guest[1][name]
    assert not verdict.loaded
    assert word in verdict.log
