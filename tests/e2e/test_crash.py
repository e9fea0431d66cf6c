"""Whatever dies when: connections survive, each stream is what was sent, and the rows are those of a quiet run.

The same for long, with a seed of one's choice: `make chaos SEED=… SECONDS=…`.
"""

import os
import signal
from pathlib import Path

from appliance import status
from tests.e2e import chaos
from tests.lab import Lab
from tests.lab.appliance import PARTS, Appliance
from tests.lab.task import Task
from tests.lab.wait import until

SEED = int(os.environ.get("SEED", "7"))
SECONDS = 9.0


def test_killed_at_drawn_moments(lab: Lab, appliance: Appliance, run_id: str) -> None:
    print(f"SEED={SEED}")  # shown when it fails
    with Task(appliance, 1, lab.token("agent-one"), run_id) as task:
        outputs = chaos.run(appliance, task, SEED, SECONDS)
        chaos.check_streams(appliance, task, outputs)
    assert appliance.stop() == 0
    try:
        counts = chaos.check_rows(appliance)
    finally:
        appliance.start()
    assert min(counts["sessions"], counts["messages"], counts["chunks"], counts["events"]) > 0


def test_a_killed_supervisor_leaves_nothing_behind_and_the_next_takes_over(
    lab: Lab, appliance: Appliance, run_id: str
) -> None:
    """`verbatim up` dies without a word; its processes end, and those of the next start are the only ones."""
    with Task(appliance, 1, lab.token("agent-one"), run_id) as task:
        task.curl(f"http://{lab.web.addresses[0]}/app/echo", "--data-binary", "before")
        former = {part: appliance.pid(part) for part in PARTS}
        appliance.kill_supervisor()
        appliance.start()
        assert not {pid for pid in former.values() if Path(f"/proc/{pid}").exists()}
        assert set(status.read(appliance.data)) >= set(PARTS)
        task.curl(f"http://{lab.web.addresses[0]}/app/echo", "--data-binary", "after")
        sessions = task.sessions(2, protocol="http1")
    streams = [appliance.stream(session, "client").rpartition(b"\r\n\r\n")[2] for session in sessions]
    assert streams == [b"before", b"after"]


def test_a_second_start_beside_the_first_is_refused_and_changes_nothing(appliance: Appliance) -> None:
    before = {part: appliance.pid(part) for part in PARTS}
    for verb in ("up", "wire", "record", "store"):
        done = appliance.verbatim(verb, check=False)
        assert done.code, verb
        assert "stop" in done.errors, (verb, done.errors)
    assert {part: appliance.pid(part) for part in PARTS} == before


def test_a_store_that_stands_still_while_the_recorder_is_killed_doubles_nothing(
    lab: Lab, appliance: Appliance, run_id: str
) -> None:
    """An insert of the dead recorder is still on its way when the next one asks what is there."""
    with Task(appliance, 1, lab.token("agent-one"), run_id) as task:
        store = appliance.pid("store")
        os.kill(store, signal.SIGSTOP)
        try:
            for number in range(20):
                task.curl(f"http://{lab.web.addresses[0]}/app/echo", "--data-binary", f"request {number}")
            until(lambda: appliance.values("record").get("rows") is not None, "the recorder runs")
            former = appliance.pid("record")
            os.kill(former, signal.SIGKILL)
            lock = appliance.data / "run" / "record.lock"
            until(lambda: lock.read_text().strip() not in ("", str(former)), "the next recorder runs", 30)
        finally:
            os.kill(store, signal.SIGCONT)
        appliance.wait()
        sessions = task.sessions(20, protocol="http1", seconds=60)
        assert len(sessions) == 20
        for session in sessions:
            kinds = [message["kind"] for message in appliance.messages(session)]
            assert kinds == ["request", "response"]
