"""Known traffic over several connections, processes that are killed at drawn moments, and what has to hold then.

    python -m tests.e2e.chaos --seed N --seconds S

runs it for long, on a lab of its own (`make chaos SEED=… SECONDS=…`); `test_crash.py` runs it for a moment.
"""

import argparse
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance import status
from tests.lab import Lab
from tests.lab.appliance import PARTS, Appliance, literal
from tests.lab.net import PYTHON, ROOT
from tests.lab.process import Process
from tests.lab.task import Task

KEPT = 1 << 30  # bytes of journal that are kept: the whole of a run
PGBENCH = "/usr/lib/postgresql/15/bin/pgbench"
SCALE_ROWS = 1000
RATE = 400_000  # bytes a second of each bulk connection
TABLES = ("sessions", "messages", "chunks", "findings", "events")

# An agent's program: HTTP requests of random bytes to the echo, one after the other on one connection, for some
# seconds. The body must come back. Prints the digest of all that it sent and the number of requests.
TALKER = """
import hashlib, http.client, os, random, sys, time
address, seconds, seed, most, pause = sys.argv[1], float(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
draw, total, count = random.Random(seed), hashlib.sha256(), 0
connection = http.client.HTTPConnection(address, 80, timeout=120)
end = time.monotonic() + seconds
while time.monotonic() < end:
    body = draw.randbytes(draw.randint(1, most))
    connection.request("POST", "/app/echo", body)
    assert connection.getresponse().read() == body, "the echo is another"
    total.update(body)
    count += 1
    time.sleep(pause)
print(total.hexdigest(), count)
"""

SCRIPT = "SELECT aid, abalance, filler FROM numbers WHERE aid = :n;\n"
SETUP = (
    "CREATE TABLE IF NOT EXISTS numbers AS SELECT n AS aid, n * 7 AS abalance, md5(n::text) AS filler "
    f"FROM generate_series(1, {SCALE_ROWS}) AS n;"
)


@dataclass
class Traffic:
    """What the agent's programs do in `seconds`, and how it ended."""

    task: Task
    seed: int
    seconds: float
    programs: dict[str, Process] = field(default_factory=dict)

    def start(self) -> None:
        lab, task = self.task.appliance.lab, self.task
        task.psql(SETUP)
        script = task.agent.home / "numbers.sql"
        script.write_text(f"\\set n random(1, {SCALE_ROWS})\n{SCRIPT}")
        for family, address in enumerate(lab.web.addresses):
            limit = ["--limit-rate", str(min(RATE, int(len(lab.web.download) / self.seconds)))]
            down = ["curl", "-sS", *limit, "-o", f"down{family}.bin", f"http://{literal(address)}/download.bin"]
            self.programs[f"download{family}"] = task.start(down)
            draw = f"{self.seed}-{family}"
            talk: list[str | Path] = [PYTHON, "-c", TALKER, address, str(self.seconds), draw]
            self.programs[f"small{family}"] = task.start([*talk, "200", "0.005"])
            self.programs[f"bulk{family}"] = task.start([*talk, "300000", "0.2"])
        db = lab.db
        bench = [PGBENCH, "-n", "-c", "2", "-R", "100", "-T", str(int(self.seconds)), "--random-seed", str(self.seed)]
        self.programs["pgbench"] = task.start(
            [*bench, "-f", script, "-h", db.addresses[0], "-U", db.user, db.database], env=task.password()
        )

    def finish(self) -> dict[str, str]:
        """Wait for all; each must have ended well. Their outputs."""
        for name, program in self.programs.items():
            code = program.popen.wait(self.seconds + 120)
            assert code == 0, f"{name} ended with {code}: {program.output()}"
        for family in (0, 1):
            got = (self.task.agent.home / f"down{family}.bin").read_bytes()
            assert got == self.task.appliance.lab.web.download, f"download {family} is another"
        return {name: program.output() for name, program in self.programs.items()}


def kills(seed: int) -> Iterator[tuple[float, tuple[str, ...]]]:
    """Without end: seconds to wait, and the parts to kill then."""
    draw = random.Random(seed)
    while True:
        count = draw.choices((1, 2, 3, 4), (6, 3, 1, 2))[0]
        yield draw.uniform(0.2, 3.0), tuple(sorted(draw.sample(PARTS, count)))


def kill(appliance: Appliance, parts: Sequence[str]) -> list[str]:
    """SIGKILL to those that run now; they are not waited for."""
    said, done = status.read(appliance.data), []
    for part in parts:
        if part in said:
            with suppress(ProcessLookupError):
                os.kill(said[part].pid, signal.SIGKILL)
                done.append(part)
    return done


def run(appliance: Appliance, task: Task, seed: int, seconds: float) -> dict[str, str]:
    """Traffic for so long, and kills meanwhile. What the programs printed."""
    traffic = Traffic(task, seed, seconds)
    traffic.start()
    end = time.monotonic() + seconds
    count = 0
    for pause, parts in kills(seed):
        if time.monotonic() + pause > end:
            break
        time.sleep(pause)  # the drawn moment is what is tested
        count += len(kill(appliance, parts))
    outputs = traffic.finish()
    appliance.wait()
    assert count >= seconds / 5, "too few were killed to show anything"
    return outputs


# -- what is recorded --------------------------------------------------------------------------------------------------


def check_streams(appliance: Appliance, task: Task, outputs: dict[str, str]) -> None:
    """Each connection is one session, whole, and its stream is what the programs sent and got."""
    lab = appliance.lab
    web = task.sessions(6, protocol="http1", seconds=60)
    assert len(web) == 6, [(session["session_id"], session["findings"]) for session in web]
    assert {session["coverage"] for session in web} == {"complete"}
    assert [session["findings"] for session in web] == [[]] * 6
    for family in (0, 1):
        mine = [one for one in web if one["client"]["address"] == task.agent.nic.addresses[family]]
        streams = [(appliance.stream(one, "client"), appliance.stream(one, "server"), one) for one in mine]
        (down,) = [server for client, server, _ in streams if client.startswith(b"GET ")]
        assert down.endswith(b"\r\n\r\n" + lab.web.download)
        posted = {digest(client): (server, one) for client, server, one in streams if not client.startswith(b"GET ")}
        for name in (f"small{family}", f"bulk{family}"):
            sent, count = outputs[name].split()[-2:]
            server, session = posted[sent]
            assert digest(server) == sent, f"{name}: the recorded answers are not the requests"
            kinds = [message["kind"] for message in appliance.messages(session)]
            assert (kinds.count("request"), kinds.count("response")) == (int(count), int(count))
    check_bench(appliance, task, outputs["pgbench"])


def digest(stream: bytes) -> str:
    """SHA-256 of all HTTP bodies of one direction, by their Content-Length."""
    total, at = hashlib.sha256(), 0
    while at < len(stream):
        end = stream.index(b"\r\n\r\n", at) + 4
        head = stream[at:end].lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
        total.update(stream[end : end + length])
        at = end + length
    return total.hexdigest()


def check_bench(appliance: Appliance, task: Task, printed: str) -> None:
    """As many queries as pgbench counted, and each got the row that the table has."""
    wanted = int(
        next(line for line in printed.splitlines() if "actually processed" in line).split(":")[1].split("/")[0]
    )
    ours = [
        one
        for one in task.sessions(3, protocol="postgres", seconds=60)
        if one["attrs"].get("application_name") == "pgbench"
    ]
    assert {session["coverage"] for session in ours} == {"complete"}
    total = 0
    for session in ours:
        asked: dict[int, int] = {}
        for message in appliance.messages(session):
            if message["kind"] == "query" and "FROM numbers" in message["text"]:
                asked[message["start"]] = int(message["text"].rpartition("= ")[2].rstrip(";\n "))
            elif message["kind"] == "rows" and message["reply_to"] in asked:
                number = asked.pop(message["reply_to"])
                (row,) = message["attrs"]["rows"]
                assert row == [str(number), str(number * 7), hashlib.md5(str(number).encode()).hexdigest()]
                total += 1
        assert not asked, "a query without its rows"
    assert total == wanted


# -- an undisturbed run of the same journal ----------------------------------------------------------------------------

REPLAY = """
import sys
from pathlib import Path
from appliance import config, record
from appliance.store.client import open_store
settings = config.load(Path(sys.argv[1]), data=Path(sys.argv[2]))
with open_store(settings, "writer") as store:
    for folder in sorted((settings.data / "journal").iterdir()):
        recorder = record.Recorder(settings, folder, store, lambda *names: [], keep=True)
        quiet = 0
        while quiet < 3:
            quiet = 0 if recorder.step() else quiet + 1
            assert not recorder.fault, recorder.fault
        assert recorder.finish(snapshot=False)
        recorder.close()
"""

DUMP = """
import hashlib, json, sys
from pathlib import Path
from appliance import config
from appliance.store.client import open_store
settings = config.load(Path(sys.argv[1]), data=Path(sys.argv[2]))
with open_store(settings, "reader") as store:
    for table, key in (("sessions", "session_id, seq"), ("messages", "session_id, seq"), ("chunks", "session_id, seq"),
                       ("findings", "session_id, seq"), ("events", "stream, position")):
        names = key.split(", ")
        for row in store.select(f"SELECT * FROM {table} ORDER BY {key}", binary=["data"] if table == "chunks" else []):
            row.pop("recorded", None)
            text = repr(sorted(row.items())).encode()
            print(json.dumps([table, str(row[names[0]]), int(row[names[1]]), hashlib.sha256(text).hexdigest()]))
"""


def _python(program: str, appliance: Appliance, data: Path) -> str:
    """The output of a program over a data folder that nothing else has open."""
    done = subprocess.run(
        [str(PYTHON), "-c", program, str(appliance.config), str(data)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _rows(appliance: Appliance, data: Path) -> list[tuple[str, str, int, str]]:
    return [tuple(json.loads(line)) for line in _python(DUMP, appliance, data).splitlines()]


def check_rows(appliance: Appliance) -> dict[str, int]:
    """All rows of all tables are those that a recorder makes that nobody disturbed. The appliance must be stopped.

    Rows per table.
    """
    with tempfile.TemporaryDirectory(prefix="vb-chaos-") as name:
        fresh = Path(name)
        shutil.copytree(appliance.data / "keys", fresh / "keys")
        shutil.copytree(appliance.data / "journal", fresh / "journal")
        assert (fresh / "journal/wire/0000000000000001.seg").exists(), "the journal is not whole; keep more of it"
        _python(REPLAY, appliance, fresh)
        _python(REPLAY, appliance, appliance.data)  # what was journaled after the recorder had stopped
        expected, found = _rows(appliance, fresh), _rows(appliance, appliance.data)
    names = [row[:3] for row in found]
    assert len(set(names)) == len(names), f"doubled: {sorted(one for one in names if names.count(one) > 1)[:5]}"
    missing, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    assert (missing[:5], more[:5]) == ([], []), f"{len(missing)} rows are missing or other, {len(more)} should not be"
    return {table: sum(row[0] == table for row in found) for table in TABLES}


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill parts of the appliance at drawn moments while data flows.")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=300.0)
    args = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if args.seed is None else args.seed
    print(f"chaos: SEED={seed} SECONDS={args.seconds:g}", flush=True)
    with Lab() as lab:
        changes: dict[str, dict[str, Any]] = {"journal": {"keep_bytes": 16 * KEPT, "max_bytes": 20 * KEPT}}
        with Appliance(lab, lab.folder / "data", changes) as appliance:
            with Task(appliance, 1, lab.token("agent-one"), "chaos") as task:
                outputs = run(appliance, task, seed, args.seconds)
                check_streams(appliance, task, outputs)
            assert appliance.stop() == 0
            print(f"chaos: as undisturbed, SEED={seed}: {check_rows(appliance)}", flush=True)


if __name__ == "__main__":
    main()
