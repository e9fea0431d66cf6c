"""One target under libFuzzer, in this process: `python -m tests.fuzz.engine TARGET [libFuzzer's arguments]`.

Only the appliance is instrumented: the oracles would lead the search astray and cost time. libFuzzer ends the process
itself; what it found lies where `-artifact_prefix` says.
"""

import shlex
import sys

import atheris

INSTRUMENTED = ["appliance"]


def main(arguments: list[str]) -> None:
    from tests.fuzz.targets import load

    with atheris.instrument_imports(include=INSTRUMENTED):
        target = load(arguments[0])
    command = shlex.join([sys.executable, "-m", "tests.fuzz.engine", arguments[0]])  # libFuzzer runs it again to merge
    atheris.Setup([command, *arguments[1:]], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
