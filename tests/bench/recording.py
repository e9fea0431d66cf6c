"""`python -m tests.bench.recording DATA NAME`: record all that is in a journal of DATA, and say what it took, as JSON.

A process of its own, so that its peak of memory is its own and it can be held to one core. With `--nowhere` the rows
are encoded and thrown away.
"""

import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from uuid import UUID

from appliance.config import load
from appliance.model import Row
from appliance.record import Recorder, Sink, service
from appliance.store import rows
from appliance.store.client import open_store


class Counting:
    """Passes batches on and counts their rows."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.counts: Counter[str] = Counter()

    def insert(self, batch: Sequence[Row], /) -> None:
        self._sink.insert(batch)
        self.counts.update(type(row).__name__ for row in batch)

    def last_seqs(self, table: str, ids: Collection[UUID], /) -> dict[UUID, int]:
        return self._sink.last_seqs(table, ids)

    def last_position(self, stream: str, /) -> int | None:
        return self._sink.last_position(stream)


class Nowhere:
    """A store that costs nothing."""

    def insert(self, batch: Sequence[Row], /) -> None:
        for table, members in rows.by_table(batch).items():
            rows.encode(table, members)

    def last_seqs(self, table: str, ids: Collection[UUID], /) -> dict[UUID, int]:
        return {}

    def last_position(self, stream: str, /) -> int | None:
        return None


def main(data: Path, name: str, *, nowhere: bool) -> None:
    settings = load(None, data=data)
    opened: AbstractContextManager[Sink] = (
        nullcontext(Nowhere()) if nowhere else open_store(settings, "writer", embed=False)
    )
    with opened as sink:
        counting = Counting(sink)
        recorder = Recorder(settings, data / "journal" / name, counting, lambda stream, node, source: [])
        service.spare_collector()
        backlog = recorder.backlog()
        began, used = time.monotonic(), time.process_time()
        while recorder.step() or recorder.backlog() or recorder.fault:
            pass
        assert recorder.finish(snapshot=False)
        ended, spent = time.monotonic(), time.process_time()
        recorder.close()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    said = {
        "seconds": ended - began,
        "cpu_seconds": spent - used,
        "bytes": backlog,
        "peak_bytes": usage.ru_maxrss * 1024,
        "rows": dict(counting.counts),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], nowhere="--nowhere" in sys.argv[3:])
