"""`python -m tests.bench.relaying CONFIG ADDRESS PORT FILE`: one relay worker for which nothing steers.

Every connection to it is taken for one to ADDRESS and PORT. The port at which it listens is written to FILE when it
does. A process of its own, so that it can be held to one core and its CPU time and memory are its own.
"""

import asyncio
import resource
import signal
import sys
from pathlib import Path

import uvloop

from appliance import config
from appliance.relay.worker import Worker


def main(settings: Path, address: str, port: int, told: Path) -> int:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = Worker(config.load(settings), 0, loop, destination=lambda sock: (address, port), steered=False)
    try:
        listening = worker.listen()
        loop.add_signal_handler(signal.SIGTERM, worker.stop)
        fresh = told.with_suffix(".new")
        fresh.write_text(str(listening))
        fresh.rename(told)
        code: int = loop.run_until_complete(worker.run())
        return code
    finally:
        worker.close()
        loop.close()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
