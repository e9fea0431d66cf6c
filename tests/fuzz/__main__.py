"""The commands; see the package."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import corpus
from tests.fuzz.cover import covered
from tests.fuzz.runner import Outcome, failure, fuzz, merge, shrink
from tests.fuzz.targets import MODULES, load

SECONDS = 30


def run(names: Sequence[str], seconds: int) -> int:
    """Fuzz; a line when a target begins and ends, then a table. 1 if anything was found."""
    outcomes = []
    for number, name in enumerate(names, 1):
        print(f"[fuzz] {number}/{len(names)} {name}: {seconds} s", flush=True)
        outcome = fuzz(name, seconds)
        outcomes.append(outcome)
        what = outcome.fault or (f"FAILED {outcome.found[0]}" if outcome.found else "nothing found")
        print(f"[fuzz]   {outcome.executions} inputs, {outcome.rate}/s, {outcome.covered} edges: {what}", flush=True)
    return report(outcomes)


def report(outcomes: Sequence[Outcome]) -> int:
    print(f"\n{'target':<14}{'inputs':>10}{'per second':>12}{'edges':>8}{'corpus':>8}{'new':>6}  result")
    for one in outcomes:
        result = one.fault or (f"{len(one.found)} FAILED" if one.found else "ok")
        print(
            f"{one.target:<14}{one.executions:>10}{one.rate:>12}{one.covered:>8}{one.inputs:>8}{one.new:>6}  {result}"
        )
    for one in outcomes:
        for path in one.found:
            short = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
            print(f"\n{one.target} fails on {short}; again, with its traceback:")
            print(f"  .venv/bin/python -m tests.fuzz repeat {one.target} {short}")
    if any(one.new for one in outcomes):
        print("\nNew inputs are in build/fuzz; to take what they add into the repository:")
        print("  .venv/bin/python -m tests.fuzz keep")
    return int(any(one.failed for one in outcomes))


def repeat(target: str, file: Path) -> int:
    begun = time.thread_time()
    load(target).check(file.read_bytes())
    print(f"{file}: nothing fails ({time.thread_time() - begun:.2f} s of CPU)")
    return 0


def shrunk(target: str, file: Path) -> int:
    check = load(target).check
    data = file.read_bytes()
    if not failure(check, data):
        print(f"{file}: nothing fails")
        return 1
    small = shrink(check, data)
    path = file.with_name(f"{file.name}.small")
    path.write_bytes(small)
    print(f"{path}: {len(small)} of {len(data)} bytes; {failure(check, small)}")
    return 0


def keep(names: Sequence[str]) -> int:
    """Corpus and what this machine found, minimised, in place of the corpus."""
    for name in names:
        home, old = corpus.BUILD / name, corpus.CORPUS / name
        home.mkdir(parents=True, exist_ok=True)
        fresh = home / "kept"
        for path in fresh.glob("*"):
            path.unlink()
        merge(name, fresh, [old, home / "corpus"])
        before = corpus.kept(name)
        if before and not any(fresh.iterdir()):
            print(f"{name}: nothing came of merging; see {home / 'merge.log'}")
            return 1
        for path in before:
            path.unlink()
        corpus.write_inputs(old, [path.read_bytes() for path in sorted(fresh.iterdir())])
        kept = corpus.kept(name)
        print(f"{name}: {len(before)} inputs before, {len(kept)} now, {sum(p.stat().st_size for p in kept)} bytes")
    return 0


def seed(names: Sequence[str]) -> int:
    """The targets' own seeds into the corpus."""
    for name in names:
        corpus.write_inputs(corpus.CORPUS / name, list(load(name).seeds()))
    return 0


def cover(names: Sequence[str]) -> int:
    """Lines that the corpus reaches, by file."""
    for name in names:
        inputs = [path.read_bytes() for path in corpus.kept(name)] + [one.data for one in corpus.vectors(name)]
        print(f"{name}: {len(inputs)} inputs")
        for file, (reached, lines) in covered(name, inputs).items():
            print(f"  {file:<44}{reached:>5} of {lines:>4} lines  {100 * reached // max(1, lines):>3} %")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    verbs = parser.add_subparsers(dest="verb", required=True)
    fuzzing = verbs.add_parser("run")
    fuzzing.add_argument("--seconds", type=int, default=SECONDS)
    fuzzing.add_argument("--only", default="", help="targets, separated by commas")
    for verb in ("repeat", "shrink", "vector"):
        one = verbs.add_parser(verb)
        one.add_argument("target", choices=MODULES)
        one.add_argument("file", type=Path)
        if verb == "vector":
            one.add_argument("name")
            one.add_argument("why")
    for verb in ("keep", "seed", "cover"):
        verbs.add_parser(verb).add_argument("targets", nargs="*", choices=[*MODULES, []])
    asked = parser.parse_args()
    if asked.verb == "run":
        names = [name for name in asked.only.split(",") if name] or list(MODULES)
        unknown = set(names) - set(MODULES)
        if unknown:
            parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
        return run(names, asked.seconds)
    if asked.verb == "repeat":
        return repeat(asked.target, asked.file)
    if asked.verb == "shrink":
        return shrunk(asked.target, asked.file)
    if asked.verb == "vector":
        print(corpus.write_vector(asked.target, asked.name, asked.why, asked.file.read_bytes()))
        return 0
    return {"keep": keep, "seed": seed, "cover": cover}[asked.verb](asked.targets or list(MODULES))


if __name__ == "__main__":
    sys.exit(main())
