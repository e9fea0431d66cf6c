"""`python -m tests.bench.keystrokes COUNT COMMAND ...`: how long a key takes to be echoed, one at a time.

COMMAND opens a terminal session on a server, such as `ssh -tt host`, in which `cat` is started. Prints a list of
seconds as JSON; the first tenth of the keys is left out of it.
"""

import json
import os
import subprocess
import sys
import time

READY = b"ready for keys"


def echoed(output: int, wanted: bytes) -> None:
    """Read until it comes."""
    seen = b""
    while wanted not in seen:
        more = os.read(output, 65536)
        if not more:
            raise ConnectionError("the session ended")
        seen = seen[-len(wanted) :] + more


def main(count: int, command: list[str]) -> None:
    session = subprocess.Popen(
        [*command, "printf 'ready %s\\n' 'for keys'; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert session.stdin
    assert session.stdout
    keys, output = session.stdin.fileno(), session.stdout.fileno()
    echoed(output, READY)
    found = []
    for _ in range(count):
        began = time.perf_counter()
        os.write(keys, b"k")
        echoed(output, b"k")
        found.append(time.perf_counter() - began)
    os.write(keys, b"\x03")  # ^C ends cat
    session.stdin.close()
    session.wait(60)
    print(json.dumps(found[count // 10 :]))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
