"""Compares what was recorded with what the programs saw, byte for byte and value for value."""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.lab.appliance import Appliance
from tests.lab.demo.steps import STEPS, Step
from tests.lab.demo.work import REPORT, RUN, SECOND_RUN, Work
from tests.lab.lab import Lab
from tests.lab.wait import NeverHappened, until

RECORDED_SECONDS = 60.0
LOOK = 0.2
BOUND = "profile->>'tier'"  # in the statement that the Python client binds values to


@dataclass(frozen=True)
class Check:
    """One thing that was compared. `detail`: what was found."""

    what: str
    good: bool
    detail: str = ""


@dataclass
class Recorded:
    """What the appliance gives back of the demo: sessions oldest first, messages by session id."""

    sessions: list[dict[str, Any]]
    messages: dict[str, list[dict[str, Any]]]
    refusals: list[dict[str, Any]]

    def of(self, protocol: str, run: str = RUN) -> list[dict[str, Any]]:
        return [s for s in self.sessions if s["protocol"] == protocol and s["identity"]["run_id"] == run]

    def kinds(self, session: dict[str, Any], kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages[session["session_id"]] if message["kind"] == kind]


def read_back(appliance: Appliance, work: Work) -> Recorded:
    """Wait until everything is in the store, then read it."""

    def all_there() -> list[dict[str, Any]] | None:
        leases = {lease["lease_id"] for task in (work.first, work.second) for lease in task.leases}
        sessions = [s for s in appliance.sessions() if s["identity"]["lease_id"] in leases]
        count = {name: sum(s["protocol"] == name for s in sessions) for name in ("postgres", "http1", "tls", "dns")}
        enough = count["postgres"] >= 3 and count["http1"] >= 3 and count["tls"] >= 1 and count["dns"] >= 1
        enough = enough and all(of_step(appliance.lab, sessions, step) for step in STEPS)
        enough = enough and all(s["ending"] != "open" for s in sessions)
        return sorted(sessions, key=lambda s: str(s["started"])) if enough and _refusals(appliance, work) else None

    sessions = until(all_there, "everything is in the store", RECORDED_SECONDS, LOOK)
    messages = {session["session_id"]: appliance.messages(session) for session in sessions}
    return Recorded(sessions, messages, _refusals(appliance, work) or [])


def _refusals(appliance: Appliance, work: Work) -> list[dict[str, Any]] | None:
    found = appliance.events(kind="refusal")
    reasons = {event["attrs"]["reason"] for event in found}
    return found if {"no-lease", "quic"} <= reasons else None


def claims(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return decoded


def actors(act: dict[str, Any] | None) -> list[str]:
    return [act["sub"], *actors(act.get("act"))] if act else []


def table(rows: list[dict[str, Any]]) -> str:
    """Result messages as psql prints them with tabs."""
    text = ""
    before = None
    for message in rows:
        if message["reply_to"] != before or not message["attrs"]["row_offset"]:
            text += "\t".join(column["name"] for column in message["attrs"]["columns"]) + "\n"
        before = message["reply_to"]
        for row in message["attrs"]["rows"]:
            text += "\t".join("\\N" if cell is None else cell for cell in row) + "\n"
    return text


def checks(lab: Lab, appliance: Appliance, work: Work, recorded: Recorded) -> list[Check]:
    """Every comparison; one that breaks is a failed check, not the end of the demo."""
    found = []
    for what, compare in _comparisons(lab, appliance, work, recorded):
        try:
            good, detail = compare()
        except (AssertionError, KeyError, IndexError, ValueError, NeverHappened, RuntimeError) as error:
            good, detail = False, f"{type(error).__name__}: {error}"
        found.append(Check(what, good, detail))
    return found


Compare = Callable[[], tuple[bool, str]]


def _comparisons(lab: Lab, appliance: Appliance, work: Work, recorded: Recorded) -> Iterator[tuple[str, Compare]]:
    def who(run: str, token: str, sessions: list[dict[str, Any]]) -> Compare:
        def compare() -> tuple[bool, str]:
            said = claims(token)
            expected = {
                "issuer": said["iss"],
                "subject": said["sub"],
                "client": said["client_id"],
                "act": actors(said.get("act")),
                "groups": said["groups"],
                "run_id": run,
                "token_sha256": hashlib.sha256(token.encode()).hexdigest(),
            }
            different = [s for s in sessions if {name: s["identity"][name] for name in expected} != expected]
            chain = " ← ".join([*expected["act"], said["sub"]])
            ways = Counter(s["identity"]["method"] for s in sessions)
            told = ", ".join(f"{count} by {way}" for way, count in sorted(ways.items()))
            return ways["lease"] > 0 and not different, f"sessions of {chain}: {told}"

        return compare

    yield "who did it is what the first token says", who(RUN, work.token, _runs(recorded, RUN))
    yield (
        "and the second, whose agent acts for the first",
        who(SECOND_RUN, work.second_token, _runs(recorded, SECOND_RUN)),
    )

    def by_psql() -> tuple[bool, str]:
        session = _only(s for s in recorded.of("postgres") if _asked(recorded, s, "card_number"))
        printed = table(recorded.kinds(session, "rows"))
        return printed == work.psql, f"{printed.count(chr(10))} lines"

    yield "rows: what psql printed", by_psql

    def error() -> tuple[bool, str]:
        errors = [m for s in recorded.of("postgres") for m in recorded.kinds(s, "error")]
        told = [m["attrs"]["message"] for m in errors]
        wanted = 'column "card_number" does not exist'
        return wanted in told and wanted in work.psql_errors, wanted

    yield "and the error that it printed", error

    def second() -> tuple[bool, str]:
        session = _only(recorded.of("postgres", SECOND_RUN))
        return table(recorded.kinds(session, "rows")) == work.second_psql, work.second_psql.replace("\n", " ").strip()

    yield "the other agent's psql", second

    def program() -> tuple[bool, str]:
        session = _only(s for s in recorded.of("postgres") if _asked(recorded, s, BOUND))
        queries = _asked(recorded, session, BOUND)
        bound = [[str(value) for value in query["attrs"]["parameters"]] for query in queries]
        answers = [[m for m in recorded.kinds(session, "rows") if m["reply_to"] == q["start"]] for q in queries]
        rows = [[row for m in answer for row in m["attrs"]["rows"]] for answer in answers]
        told = work.program["select"]
        good = bound == [t["parameters"] for t in told] and rows == [t["rows"] for t in told]
        return good, f"{len(bound)} executions with bind values, IPv6"

    yield "what the Python client bound and fetched", program

    def download() -> tuple[bool, str]:
        session, response = _http(recorded, "/download.bin")
        stream = appliance.stream(session, "server")
        body = stream[response["end"] - response["attrs"]["body_bytes"] : response["end"]]
        same = body == work.download == lab.web.download
        return same, f"{len(body):,} bytes, sha256 {hashlib.sha256(body).hexdigest()[:16]}…"

    yield "what curl downloaded", download

    def items() -> tuple[bool, str]:
        _, response = _http(recorded, "/api/items")
        good = work.items.decode() in response["text"] and response["attrs"]["encoding"] == "gzip"
        return good, f"{response['attrs']['body_bytes']} bytes gzip, {len(work.items)} decoded"

    yield "the JSON that came compressed", items

    def echo() -> tuple[bool, str]:
        session, response = _http(recorded, "/app/echo")
        sent = json.dumps(REPORT, ensure_ascii=False).encode()
        both = [appliance.stream(session, side) for side in ("client", "server")]
        return work.echo == sent and all(
            stream.endswith(sent) for stream in both
        ), f"status {response['attrs']['status']}"

    yield "the report that curl sent", echo

    for step in STEPS:
        yield step.what, _compared(lab, recorded, step, work)

    def opaque() -> tuple[bool, str]:
        session = _only(recorded.of("tls"))
        good = session["coverage"] == "opaque" and session["attrs"].get("sni") == lab.web.fqdn
        return good, f"{session['attrs'].get('sni')} {session['attrs'].get('version')}, {session['coverage']}"

    yield "HTTPS is recorded as what it is", opaque

    def whole() -> tuple[bool, str]:
        clear = [s for s in recorded.sessions if s["transport"] == "tcp" and s["protocol"] != "tls"]
        flawed = [s for s in clear if s["coverage"] != "complete" or "gap" in s["findings"]]
        return bool(clear) and not flawed, f"{len(clear)} TCP sessions in clear text, all complete"

    yield "every byte that was acknowledged is there", whole

    def refusals() -> tuple[bool, str]:
        told = ", ".join(sorted({event["attrs"]["reason"] for event in recorded.refusals}))
        slowest = max(work.refused.values())
        return slowest < 2.0, f"{told}; the slowest client knew after {slowest:.2f} s"

    yield "what was refused is recorded, and failed at once", refusals


def of_step(lab: Lab, sessions: list[dict[str, Any]], step: Step) -> list[dict[str, Any]]:
    servers = lab.addresses(step.service)
    return [s for s in sessions if s["protocol"] == step.protocol and s["server"]["address"] in servers]


def _compared(lab: Lab, recorded: Recorded, step: Step, work: Work) -> Compare:
    def compare() -> tuple[bool, str]:
        session = _only(of_step(lab, recorded.sessions, step))
        return step.compare(recorded.messages[session["session_id"]], work.told[step.what])

    return compare


def _runs(recorded: Recorded, run: str) -> list[dict[str, Any]]:
    return [s for s in recorded.sessions if s["identity"]["run_id"] == run]


def _only(sessions: Any) -> dict[str, Any]:
    (session,) = sessions
    found: dict[str, Any] = session
    return found


def _asked(recorded: Recorded, session: dict[str, Any], sql: str) -> list[dict[str, Any]]:
    """The session's queries with these words."""
    return [m for m in recorded.kinds(session, "query") if sql in m["attrs"]["sql"]]


def _http(recorded: Recorded, target: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The session of a request, and its response."""
    for session in recorded.of("http1"):
        for request in recorded.kinds(session, "request"):
            if request["attrs"]["target"] == target:
                return session, next(
                    m for m in recorded.kinds(session, "response") if m["reply_to"] == request["start"]
                )
    raise AssertionError(f"no recorded request for {target}")
