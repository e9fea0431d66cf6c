"""Fuzzing: bytes that nobody would send, against everything that reads captured bytes.

    python -m tests.fuzz run [--seconds N] [--only TARGET,...]   fuzz, each target for N seconds (`make fuzz`)
    python -m tests.fuzz repeat TARGET FILE                      run one input again, with its traceback
    python -m tests.fuzz shrink TARGET FILE                      make a failing input smaller
    python -m tests.fuzz vector TARGET FILE NAME "WHY"           keep a failing input for good, as a vector
    python -m tests.fuzz keep [TARGET ...]                       take what build/fuzz found into the corpus, minimised
    python -m tests.fuzz cover [TARGET ...]                      which lines the corpus reaches
    python -m tests.fuzz seed [TARGET ...]                       make the corpus anew from vectors and captures

A target (`targets/`) turns bytes into a case and checks what must hold for every case; it raises `AssertionError` where
it does not. It is a pure function of its bytes, so an input that failed once fails again. atheris (libFuzzer with the
coverage of Python code) makes the inputs; the targets know nothing of it, so `test_corpus.py` replays the corpus and
the vectors, all inputs that ever failed, in `make test` without it.
"""
