"""A program is compiled once, and what is kept is used only where it is what compiling would give."""

import os
import shutil
from pathlib import Path

import pytest

from appliance.errors import Unavailable
from appliance.wire import built, headers, program

NAME, CONTENT = "0" * 64, b"instructions"


def test_what_was_kept_is_read(tmp_path: Path) -> None:
    built.write(tmp_path / "programs", NAME, CONTENT)
    assert built.read(tmp_path / "programs", NAME) == CONTENT
    assert [path.name for path in (tmp_path / "programs").iterdir()] == [NAME]


@pytest.mark.parametrize("damaged", [b"", b"x", bytes(32), bytes(32) + CONTENT])
def test_damage_is_nothing_kept(tmp_path: Path, damaged: bytes) -> None:
    built.write(tmp_path, NAME, CONTENT)
    (tmp_path / NAME).write_bytes(damaged)
    assert built.read(tmp_path, NAME) is None


def test_a_file_that_others_may_write_is_nothing_kept(tmp_path: Path) -> None:
    built.write(tmp_path, NAME, CONTENT)
    (tmp_path / NAME).chmod(0o666)
    assert built.read(tmp_path, NAME) is None
    (tmp_path / NAME).chmod(0o600)
    assert built.read(tmp_path, NAME) == CONTENT
    os.chown(tmp_path / NAME, 65534, 65534)
    assert built.read(tmp_path, NAME) is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for number in range(built.KEPT + 4):
        built.write(tmp_path, str(number), CONTENT)
        os.utime(tmp_path / str(number), ns=(number, number))
    built.write(tmp_path, NAME, CONTENT)
    assert {path.name for path in tmp_path.iterdir()} == {NAME, *map(str, range(5, built.KEPT + 4))}


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    built.write(tmp_path / "file", NAME, CONTENT)
    assert built.read(tmp_path / "file", NAME) is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sources of a small program."""
    folder = tmp_path / "bpf"
    folder.mkdir()
    (folder / "wire.c").write_text("int wire(struct __sk_buff *skb) { return 7; }\n")
    return folder


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was compiled."""
    done: list[Path] = []
    compile_ = program._compile

    def counted(source: Path, tree: Path) -> bytes:
        done.append(source)
        return compile_(source, tree)

    monkeypatch.setattr(program, "_compile", counted)
    return done


def test_a_program_is_compiled_once(folder: Path, tmp_path: Path, compiler: list[Path]) -> None:
    cache = tmp_path / "cache"
    first = program.compiled(folder, cache)
    assert program.compiled(folder, cache) == first
    assert len(compiler) == 1
    shutil.rmtree(cache / "programs")
    assert program.compiled(folder, cache) == first
    assert len(compiler) == 2


def test_another_source_is_compiled(folder: Path, tmp_path: Path, compiler: list[Path]) -> None:
    first = program.compiled(folder, tmp_path / "cache")
    (folder / "wire.c").write_text("int wire(struct __sk_buff *skb) { return 8; }\n")
    assert program.compiled(folder, tmp_path / "cache") != first
    (folder / "other.h").write_text("\n")
    program.compiled(folder, tmp_path / "cache")
    assert len(compiler) == 3


def test_another_kernel_and_other_headers_are_compiled_for(
    folder: Path, tmp_path: Path, compiler: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    program.compiled(folder, cache)
    monkeypatch.setattr("platform.version", lambda: "#2")
    program.compiled(folder, cache)
    tree = headers.find(cache / headers.CACHE.name)
    (tmp_path / "tree").symlink_to(tree)
    monkeypatch.setattr(headers, "find", lambda _: tmp_path / "tree")
    program.compiled(folder, cache)
    assert len(compiler) == 2, "the same headers"
    (tmp_path / "others").mkdir()
    for each in tree.iterdir():
        (tmp_path / "others" / each.name).symlink_to(each)
    monkeypatch.setattr(headers, "find", lambda _: tmp_path / "others")
    program.compiled(folder, cache)
    assert len(compiler) == 3


def test_what_does_not_compile_is_not_kept(folder: Path, tmp_path: Path, compiler: list[Path]) -> None:
    (folder / "wire.c").write_text("int wire(struct __sk_buff *skb) { return nothing; }\n")
    for _ in range(2):
        with pytest.raises(Unavailable, match="does not compile"):
            program.compiled(folder, tmp_path / "cache")
    assert len(compiler) == 2
