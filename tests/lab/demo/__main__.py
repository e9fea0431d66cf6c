"""The demo: agents work with real servers through the gateway; then it shows what was recorded, and compares.

1. The lab: hosts, servers, an OpenID provider; the appliance on the gateway.
2. A host without a lease tries, and is refused. An agent gets a token that says "agent-one acting for alice", takes a
   lease with curl, and works with psql, curl and a Python client. A second agent acts for the first.
3. What was recorded is read back by the API and by the command line, shown, replayed, and compared with what the
   programs saw.
4. It stays up until Ctrl-C, or ends with ONCE=1. The exit code is 0 only when every comparison holds.

Writes `build/demo.json`: `data`, the appliance's folder, which outlives the demo; `secrets`, what was used; `ok`;
`checks`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.lab.appliance import API_PORT, Appliance, literal
from tests.lab.demo import show, verify
from tests.lab.demo.steps import STEPS, keep_secrets, rules
from tests.lab.demo.verify import Check, Recorded
from tests.lab.demo.work import RUN, Work, work
from tests.lab.lab import Lab
from tests.lab.net import PYTHON, ROOT
from tests.lab.wait import NeverHappened

BUILD = ROOT / "build"
FOLDER = BUILD / "demo"
DATA = FOLDER / "data"
SUMMARY = BUILD / "demo.json"
QUERY = "customers AND protocol:postgres"
WIDTH = 140

console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Show that something is being done, and how long it took."""
    begun = time.monotonic()
    with console.status(f"{what} …"):
        yield
    console.print(Text("✔ ", style="green").append(what, "").append(f"  {time.monotonic() - begun:.1f} s", "dim"))


def say(host: str, command: str) -> None:
    console.print(Text(f"{host} $ ", style="bold cyan").append(command, "not bold"), soft_wrap=True)


def write_summary(lab: Lab, checks: list[Check]) -> None:
    """For whoever wants to look for the secrets in the data, among others."""
    BUILD.mkdir(exist_ok=True)
    SUMMARY.touch(0o600)
    SUMMARY.chmod(0o600)
    told = {
        "data": str(DATA),
        "secrets": sorted(lab.secrets),
        "ok": bool(checks) and all(check.good for check in checks),
        "checks": [{"what": check.what, "good": check.good, "detail": check.detail} for check in checks],
    }
    SUMMARY.write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n")


def names(lab: Lab) -> dict[str, str]:
    """The lab's names by address."""
    hosts = [*lab.agents, *(service.host for service in lab.services.values())]
    return {address: f"{host.name}/v{4 + 2 * (':' in address)}" for host in hosts for address in host.nic.addresses}


def show_all(lab: Lab, appliance: Appliance, recorded: Recorded) -> list[Check]:
    """Print what was recorded; the checks that only the command line can make."""
    show.heading(console, "Who talked to whom")
    show.sessions(console, recorded, names(lab))
    show.heading(console, "Which SQL, and which rows came back")
    show.database(console, recorded)
    show.heading(console, "Which HTTP calls")
    show.web(console, recorded)
    for further in STEPS:
        show.heading(console, further.what[0].upper() + further.what[1:])
        show.step(console, verify.of_step(lab, recorded.sessions, further), recorded)
    show.heading(console, "What was refused")
    show.refusals(console, recorded)

    show.heading(console, "The same on the command line")
    wide = {"COLUMNS": str(console.width)}
    found = appliance.verbatim("search", QUERY, env=wide).output
    show.output(console, f"verbatim search {QUERY!r}", found)
    session = next(
        s for s in recorded.of("postgres") if "query" in {m["kind"] for m in recorded.messages[s["session_id"]]}
    )
    replayed = appliance.verbatim("replay", session["session_id"], env=wide).output
    show.output(console, f"verbatim replay {session['session_id']}", replayed)
    hits = [json.loads(line) for line in appliance.verbatim("search", QUERY, "--json").output.splitlines()]
    ours = {s["session_id"] for s in recorded.sessions if s["protocol"] == "postgres"}
    said = [m["text"].split("\n")[0] for m in recorded.kinds(session, "query")]
    return [
        Check(
            "verbatim search finds it",
            bool(hits) and {hit["session_id"] for hit in hits} <= ours,
            f"{len(hits)} messages",
        ),
        Check(
            "verbatim replay tells it", bool(said) and all(line in replayed for line in said), f"{len(said)} queries"
        ),
    ]


def read_without_services() -> Check:
    """After everything has stopped: the folder alone still tells."""
    command = [str(PYTHON), "-m", "appliance", "sessions", "--run-id", RUN, "--json", "--data", str(DATA)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    count = len(done.stdout.splitlines())
    return Check("and its folder tells it by itself", done.returncode == 0 and count > 0, f"{count} sessions of {RUN}")


def stay(lab: Lab, appliance: Appliance) -> None:
    """Tell how to look around, and wait for Ctrl-C."""
    token = FOLDER / "auditor.header"
    token.touch(0o600)
    token.write_text(f"Authorization: Bearer {lab.token('auditor')}\n")
    authority = FOLDER / "verbatim-ca.crt"
    shutil.copy(appliance.ca, authority)
    api = f"https://{literal(lab.extra_nics[0].addresses[0])}:{API_PORT}"
    within = f"nsenter --net=/run/netns/{lab.gateway.netns}"
    show.heading(console, "It stays up until Ctrl-C")
    for line in (
        f"API      {api}   (for ten minutes with this token)",
        f"         curl --cacert {_short(authority)} -H @{_short(token)} '{api}/v1/search?q=customers'",
        f"gateway  {within} .venv/bin/verbatim sessions --config {appliance.config}",
        f"agent    nsenter --net=/run/netns/{lab.agent(1).netns} bash",
    ):
        console.print(Text(line), soft_wrap=True)
    try:
        with suppress(KeyboardInterrupt):
            signal.pause()
    finally:
        token.unlink()


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run(once: bool) -> list[Check]:
    """Everything. The checks, all of them good or not."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    SUMMARY.unlink(missing_ok=True)
    FOLDER.mkdir(parents=True)
    checks: list[Check] = []
    with ExitStack() as up:
        with step("hosts, servers and the OpenID provider"):
            lab = up.enter_context(Lab(manage=True))
        with step("the appliance on the gateway"):
            appliance = up.enter_context(Appliance(lab, DATA, rules=rules(lab)))
            keep_secrets(lab, appliance)
        done, recorded = _work(lab, appliance)
        checks += show_all(lab, appliance, recorded)
        checks += verify.checks(lab, appliance, done, recorded)
        show.heading(console, "Compared with what the programs saw")
        show.checks(console, checks)
        write_summary(lab, checks)
        if not once:
            stay(lab, appliance)
        with step("the appliance has stopped"):
            appliance.stop()
        checks.append(read_without_services())
        show.checks(console, checks[-1:])
        write_summary(lab, checks)
    return checks


def _work(lab: Lab, appliance: Appliance) -> tuple[Work, Recorded]:
    show.heading(console, "Two agents at work")
    console.print(f"data folder   {DATA}\nAPI           {appliance.url()}\nCA SHA-256    {appliance.fingerprint}")
    done = work(lab, appliance, say)
    with step("recorded, taken apart, stored"):
        recorded = verify.read_back(appliance, done)
    return done, recorded


def main() -> int:
    if os.geteuid() != 0:
        print("the demo needs root (network namespaces, eBPF); run it with sudo", file=sys.stderr)
        return 2
    try:
        checks = run(once=os.environ.get("ONCE", "") not in ("", "0"))
    except KeyboardInterrupt:
        console.print("interrupted; everything is removed")
        return 130
    except (NeverHappened, RuntimeError, AssertionError, OSError) as error:
        console.print(Text(f"the demo failed: {error}", style="bold red"))
        return 1
    bad = [check for check in checks if not check.good]
    told = "everything that was shown is recorded and was read back" if not bad else f"{len(bad)} comparisons failed"
    console.print(Text(told, style="bold green" if not bad else "bold red"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
