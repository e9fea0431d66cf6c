"""`verbatim up`: runs store, wire, relay, record and api on one machine, and starts again what dies.

In production each is a systemd unit of its own; this is the same for one terminal. Processes are executed anew, never
forked (the store's engine does not survive a fork), and end with their supervisor, also when that is killed: a new one
waits until those of the former one are gone.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import structlog

from appliance import log, status
from appliance.cli.output import emit, errors
from appliance.config import Settings
from appliance.health import judge
from appliance.lock import only

PR_SET_PDEATHSIG = 1
START_SECONDS = 60.0
STOP_SECONDS = 20.0
STOP_ORDER = ("api", "relay", "wire", "record", "store")  # so that the last that was recorded is stored
BACKOFF = (0.2, 0.5, 1.0, 2.0, 5.0)
FORMER_SECONDS = STOP_SECONDS + 10  # for processes of a supervisor that was killed to end
FORMER_RUNNING = "they are waited for; stop them, unless they are of a 'verbatim up' that was killed and end anyway"
WELL_AFTER = 30.0  # seconds of life after which a process counts as well again
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class Child:
    """One process, and when it was started."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    due: float = 0.0

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, preexec_fn=_end_with(os.getpid()))
        self.started = time.monotonic()

    def stop(self) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@dataclass(slots=True)
class Supervisor:
    """Starts in order, watches, stops in `STOP_ORDER`."""

    settings: Settings
    children: list[Child]
    stopping: bool = False
    exit_code: int = 0
    log: structlog.stdlib.BoundLogger = field(default_factory=structlog.get_logger)

    def run(self, *, as_json: bool) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            self._await_former()
            for child in self.children:
                if self.stopping:
                    break
                child.start()
                self._await(child)
                if self.stopping:
                    break
            else:
                self._announce(as_json)
            while not self.stopping:
                self._watch()
                time.sleep(0.1)
        finally:
            for child in sorted(self.children, key=lambda child: STOP_ORDER.index(child.name)):
                child.stop()
        return self.exit_code

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def _await_former(self) -> None:
        """Processes of a supervisor that was killed are ending: two at once would refuse each other."""
        former = {name: said.pid for name, said in status.read(self.settings.data).items() if _is_part(said.pid, name)}
        if former:
            self.log.warning("former-running", processes=former, seconds=FORMER_SECONDS, reason=FORMER_RUNNING)
        deadline = time.monotonic() + FORMER_SECONDS
        while not self.stopping and (left := {name: pid for name, pid in former.items() if _is_part(pid, name)}):
            if time.monotonic() > deadline:
                self.log.error("former-alive", processes=left)
                self.stopping, self.exit_code = True, 1
            time.sleep(0.05)

    def _await(self, child: Child) -> None:
        """Wait until the process publishes its status: what starts next may need it."""
        deadline = time.monotonic() + START_SECONDS
        while not self.stopping and time.monotonic() < deadline:
            said = status.read(self.settings.data).get(child.name)
            if said and child.process and said.pid == child.process.pid:
                return
            if child.process and (code := child.process.poll()) is not None:
                self.log.error("start-failed", process=child.name, exit_code=code)
                self.stopping, self.exit_code = True, code or 1
                return
            time.sleep(0.05)
        if not self.stopping:
            self.log.error("start-silent", process=child.name, seconds=START_SECONDS)
            self.stopping, self.exit_code = True, 3

    def _watch(self) -> None:
        now = time.monotonic()
        for child in self.children:
            if child.process is None or (code := child.process.poll()) is None:
                continue
            if not child.due:
                child.failures = 0 if now - child.started > WELL_AFTER else child.failures + 1
                child.due = now + BACKOFF[min(child.failures, len(BACKOFF) - 1)]
                self.log.error("process-died", process=child.name, exit_code=code)
            if now >= child.due and not self.stopping:
                child.due = 0.0
                child.start()

    def _announce(self, as_json: bool) -> None:
        urls = [f"https://{address}" for address in self.settings.api.listen]
        if as_json:
            emit({"api": urls, "data": str(self.settings.data), "health": judge_all(self.settings)})
            sys.stdout.flush()
        else:
            errors.print(f"verbatim is up: {', '.join(urls)}; records in {self.settings.data}; Ctrl-C ends it")


def judge_all(settings: Settings) -> dict[str, str]:
    return judge(settings.data, embedded=not settings.store.url)


def up(settings: Settings, config_file: Path | None, *, as_json: bool) -> int:
    """Run everything until SIGTERM or SIGINT. Returns the exit code."""
    log.configure(settings.log_level, "up")
    options = ["--data", str(settings.data)] + (["--config", str(config_file)] if config_file else [])
    relayed = ("relay",) if settings.relayed else ()
    names = (*(() if settings.store.url else ("store",)), "wire", *relayed, "record", "api")
    children = [Child(name, [sys.executable, "-m", "appliance", name, *options]) for name in names]
    with only(settings.data, "up"):
        return Supervisor(settings, children).run(as_json=as_json)


def _end_with(parent: int) -> Callable[[], None]:
    """For the child to call: it gets SIGTERM when `parent` dies, or ends here if that has happened already."""

    def follow() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return follow


def _is_part(pid: int, name: str) -> bool:
    """Is this process `verbatim NAME`? Numbers are used again."""
    try:
        return f"\0{name}\0" in Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return False
