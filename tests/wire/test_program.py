import shutil
from pathlib import Path

import pytest

from appliance.errors import Unavailable
from appliance.wire import abi, bpf, program


def test_every_map_that_the_program_names_exists() -> None:
    """All but `meta`, which is user space's own."""
    instructions = program.compiled(program.source_folder())
    named = {
        abi.MapIndex(int.from_bytes(instructions[at + 4 : at + 8], "little"))
        for at in range(0, len(instructions), 8)
        if instructions[at] == bpf.LD_IMM64 and instructions[at + 1] >> 4 == bpf.PSEUDO_MAP_FD
    }
    assert named == set(abi.MapIndex) - {abi.MapIndex.META}


def test_the_digest_names_the_sources(tmp_path: Path) -> None:
    folder = tmp_path / "bpf"
    shutil.copytree(program.source_folder(), folder)
    first = program.digest(folder)
    assert first == program.digest(program.source_folder())
    with (folder / "parse.h").open("a") as header:
        header.write("\n")
    assert program.digest(folder) != first


def test_a_source_that_does_not_compile_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wire.c").write_text("int wire(struct __sk_buff *skb) { return nothing; }\n")
    with pytest.raises(Unavailable, match="does not compile"):
        program.compiled(tmp_path)
    assert "nothing" in capfd.readouterr().err
