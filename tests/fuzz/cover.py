"""Which lines of the appliance a set of inputs reaches: a plain line trace, so it is exact and slow."""

import dis
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.fuzz.targets import load

ROOT = Path(__file__).parents[2]


def covered(name: str, inputs: Sequence[bytes]) -> dict[str, tuple[int, int]]:
    """Lines reached within functions, and how many there are, by file; only files that were entered."""
    check = load(name).check
    reached: dict[str, set[int]] = {}
    prefix = str(ROOT / "appliance")

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(prefix):
            return None
        lines = reached.setdefault(file, set())
        lines.add(frame.f_lineno)

        def line(inner: FrameType, event: str, argument: object) -> Any:
            lines.add(inner.f_lineno)
            return line

        return line

    sys.settrace(trace)
    try:
        for data in inputs:
            check(data)
    finally:
        sys.settrace(None)
    return {
        str(Path(file).relative_to(ROOT)): (len(lines & known), len(known))
        for file, lines in sorted(reached.items())
        if (known := _lines(file))
    }


def _lines(file: str) -> set[int]:
    """Lines of the bodies of functions."""
    whole = compile(Path(file).read_text("utf-8"), file, "exec")
    found: set[int] = set()
    waiting = [constant for constant in whole.co_consts if isinstance(constant, CodeType)]
    while waiting:
        code = waiting.pop()
        if code.co_name != "<module>" and code.co_flags & 2:  # optimised locals: a function, no class body
            found.update(line for _, line in dis.findlinestarts(code) if line)
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found
