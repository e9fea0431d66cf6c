"""Where inputs are kept.

corpus/TARGET/      inputs that together reach what is known to be reachable; in the repository, minimised
vectors/fuzz/TARGET one JSON file for each input that ever failed: `why`, and `input` in hexadecimal
build/fuzz/TARGET/  this machine's: `corpus` (new inputs), `found` (failing ones)
"""

import hashlib
import json
from pathlib import Path
from typing import Final, NamedTuple

HERE: Final = Path(__file__).parent
CORPUS: Final = HERE / "corpus"
VECTORS: Final = HERE.parent / "vectors" / "fuzz"
BUILD: Final = HERE.parents[1] / "build" / "fuzz"


class Vector(NamedTuple):
    name: str
    why: str
    data: bytes


def kept(target: str) -> list[Path]:
    """Files of the target's corpus."""
    return sorted(path for path in (CORPUS / target).glob("*") if path.is_file())


def vectors(target: str) -> list[Vector]:
    """Inputs that failed once."""
    found = []
    for path in sorted((VECTORS / target).glob("*.json")):
        said = json.loads(path.read_text("utf-8"))
        found.append(Vector(path.stem, said["why"], bytes.fromhex(said["input"])))
    return found


def write_vector(target: str, name: str, why: str, data: bytes) -> Path:
    path = VECTORS / target / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"why": why, "input": data.hex()}, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path


def name_of(data: bytes) -> str:
    """As libFuzzer names its files."""
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def write_inputs(folder: Path, inputs: list[bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for data in inputs:
        (folder / name_of(data)).write_bytes(data)
