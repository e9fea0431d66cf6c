"""Memory of a relay with 2,000 TLS sessions that say nothing: after a small request each, and after 1 MiB each.

Each is two TLS connections, one to the client and one to the server. What a session once needed must not stay with it.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.bench import Figure, load
from tests.bench.load import MIB
from tests.bench.peers import Place, pinned
from tests.bench.stand import ENDS, HERE, Stand
from tests.lab.net import PYTHON
from tests.lab.wait import until

TITLE = "memory of a relay with 2,000 idle TLS sessions"
SESSIONS = 2000
SECONDS = 120.0
USES = {"/small": "after a small request each", "/bulk": "after 1 MiB each"}


def memory(pid: int) -> tuple[float, float]:
    """RSS and PSS, MiB: proc(5), smaps_rollup."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    found = {fields[0]: int(fields[1]) / 1024 for fields in lines}
    return found["Rss:"], found["Pss:"]


def run(say: Callable[[str], None]) -> list[Figure]:
    figures = []
    with Stand() as stand:
        certificate, key = stand.server_pair
        server = Place(HERE, 8000)
        load.origin(stand.host, stand.folder / "origin", server, certificate, key, ENDS, bulk=MIB)
        relay = stand.relay("relay", server, {"ca": str(stand.pki.certificate)})
        assert relay.process
        before, _ = memory(relay.process.pid)
        say(f"without sessions: {before:.0f} MiB")
        where = [relay.place.address, str(relay.place.port), str(SESSIONS)]
        command = pinned([PYTHON, "-m", "tests.bench.idlers", *where], ENDS)
        clients = stand.host.popen(command, stdin=subprocess.PIPE)
        asking = clients.popen.stdin
        assert asking
        for path, what in USES.items():
            asking.write(f"{path}\n".encode())
            asking.flush()

            def answered(path: str = path) -> bool:
                clients.check()
                return path in clients.output()

            until(answered, f"{SESSIONS} sessions have their {path}", SECONDS, 0.2)
            rss, pss = memory(relay.process.pid)
            say(f"{what}: RSS {rss:.0f} MiB, PSS {pss:.0f} MiB")
            subject = f"{SESSIONS:,} idle TLS sessions, {what}"
            figures.append(Figure("m", f"{subject}: RSS", "without", rss, before, "MiB", "figure < 400"))
            figures.append(Figure("m", f"{subject}: PSS", "", pss, None, "MiB", "figure < 400"))
        asking.close()
    return figures
