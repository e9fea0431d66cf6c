"""`python -m tests.bench.slow_writer BYTES_PER_SECOND STOP --config FILE`: `verbatim wire` with a slow journal.

The journal takes as much as a disk of that speed would (0: as much as it can), and nothing while the file STOP exists.
"""

import sys
import time
from pathlib import Path
from typing import Any

from appliance import config, journal
from appliance.wire import daemon

AHEAD = 0.005  # seconds by which a write may begin late and still be made up for: sleeping is not exact


class SlowWriter(journal.Writer):
    rate = 0.0
    stop = Path("/nonexistent")
    _done = 0.0  # when the disk has written what it was given

    def append(self, kind: journal.FrameKind, payload: Any, **more: Any) -> int:
        while self.stop.exists():
            time.sleep(0.01)
        number = super().append(kind, payload, **more)
        if self.rate:
            size = payload.nbytes if isinstance(payload, memoryview) else len(payload)
            self._done = max(self._done, time.monotonic() - AHEAD) + size / self.rate
            time.sleep(max(0.0, self._done - time.monotonic()))
        return number


def main(rate: str, stop: str, _: str, path: str) -> None:
    SlowWriter.rate, SlowWriter.stop = float(rate), Path(stop)
    setattr(daemon, "Writer", SlowWriter)  # noqa: B010  where the process looks for its class
    daemon.run(config.load(Path(path)))


if __name__ == "__main__":
    main(*sys.argv[1:])
