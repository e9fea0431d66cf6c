"""Every input that is kept, through its target: what held once still holds. `make fuzz` looks for new ones."""

import time

import pytest

from tests.fuzz import corpus
from tests.fuzz.targets import MODULES, load

MAX_BYTES = 2 << 20  # of the whole corpus, in the repository


@pytest.mark.parametrize("target", MODULES)
def test_inputs_that_are_kept(target: str) -> None:
    check = load(target).check
    files = corpus.kept(target)
    assert files, f"{target} has no corpus; make one with python -m tests.fuzz seed {target}"
    for path in files:
        try:
            check(path.read_bytes())
        except Exception as error:
            error.add_note(f"again: python -m tests.fuzz repeat {target} {path}")
            raise


VECTORS = [(target, vector) for target in MODULES for vector in corpus.vectors(target)]


@pytest.mark.parametrize(("target", "vector"), VECTORS, ids=[f"{target}-{vector.name}" for target, vector in VECTORS])
def test_inputs_that_failed_once(target: str, vector: corpus.Vector) -> None:
    assert vector.why
    begun = time.thread_time()
    load(target).check(vector.data)
    assert time.thread_time() - begun < 5, "takes long"


def test_the_corpus_is_small_and_named_by_its_content() -> None:
    files = [path for target in MODULES for path in corpus.kept(target)]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    assert all(path.name == corpus.name_of(path.read_bytes()) for path in files)
    assert {path.name for path in corpus.CORPUS.iterdir()} <= set(MODULES)
    assert {path.name for path in corpus.VECTORS.iterdir()} <= set(MODULES)
