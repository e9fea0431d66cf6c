"""Run as a process of its own: ingests a file and kills itself (SIGKILL) at a given moment.

python -m tests.ingest.killed DATA FILE before|after MODULE:NAME COUNT: at the COUNTth call of that function.
"""

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from appliance import config, ingest, record


def main(data: str, capture: str, when: str, where: str, count: int) -> None:
    module, _, name = where.partition(":")
    owner: Any = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    calls = 0

    def replacement(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answer = original(*arguments, **named)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, name, replacement)
    vars(record)["MAX_ROWS"] = 8  # several batches, several snapshots
    settings = config.load(data=Path(data))
    settings = settings.model_copy(update={"record": settings.record.model_copy(update={"snapshot": 1e-9})})
    ingest.ingest(Path(capture), settings, identity=None, progress=lambda done, total: None)


if __name__ == "__main__":
    data, capture, when, where, count = sys.argv[1:]
    main(data, capture, when, where, int(count))
