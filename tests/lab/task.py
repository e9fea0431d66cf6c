"""One task of an agent: a lease, what the agent runs under it, and what was recorded of it."""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.appliance import Appliance
from tests.lab.clients import Told, ask
from tests.lab.net import Done, Host
from tests.lab.process import Process
from tests.lab.wait import until

LOOK = 0.1  # seconds between two looks into the store
# How programs are told which authorities to trust: OpenSSL's own, requests, curl, Node, gRPC, libpq.
TRUST = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "PGSSLROOTCERT",
)


class Task:
    """Context manager: leases for both addresses of an agent under the run id `run`, given back at the end."""

    def __init__(self, appliance: Appliance, agent: int, token: str, run: str, *, seconds: float | None = None) -> None:
        self.appliance = appliance
        self.number = agent
        self.token = token
        self.run_id = run
        self.leases: list[dict[str, Any]] = []
        self._started: list[Process] = []
        self._seconds = seconds

    @property
    def agent(self) -> Host:
        return self.appliance.lab.agent(self.number)

    def __enter__(self) -> Self:
        for family in (0, 1):
            lease = self.appliance.lease(
                self.number, self.token, run_id=self.run_id, seconds=self._seconds, family=family
            )
            self.leases.append(lease)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            process.stop(signal.SIGKILL)
        self.revoke()

    def revoke(self) -> None:
        """Give back what is still held."""
        held = {lease["lease_id"] for lease in self.held()}
        for lease in self.leases:
            if lease["lease_id"] in held:
                self.appliance.revoke(self.number, self.token, lease)

    def held(self) -> list[dict[str, Any]]:
        """The live leases of the token's identity. An expired token holds none."""
        code, answer = self.appliance.curl(self.number, "GET", "/v1/leases", self.token)
        return list(answer["leases"]) if code == 200 else []

    # -- what the agent does -----------------------------------------------------------------------------------------

    def run(self, args: Sequence[str | Path], **options: Any) -> Done:
        return self.agent.run(args, **options)

    def psql(self, sql: str, *options: str, host: str = "", check: bool = True, user: str = "") -> Done:
        """psql with `sql` on standard input."""
        return self.agent.run(
            self.psql_command(*options, host=host, user=user), input=sql, env=self.password(), check=check
        )

    def psql_command(self, *options: str, host: str = "", user: str = "") -> list[str]:
        db = self.appliance.lab.db
        return ["psql", "-X", *options, "-h", host or db.fqdn, "-U", user or db.user, "-d", db.database]

    def password(self) -> dict[str, str]:
        return {"PGPASSWORD": self.appliance.lab.db.password, "PGCONNECT_TIMEOUT": "10"}

    def curl(self, *args: str, check: bool = True, input: str | bytes | None = None) -> Done:
        """curl that trusts the appliance's authority and the lab's."""
        trust = ["--cacert", str(self.appliance.trust)]
        return self.agent.run(["curl", "-sS", *trust, *args], check=check, input=input)

    def client(self, name: str, **settings: Any) -> Told:
        """What one of the programs in `tests/lab/clients/` says; it trusts both authorities unless `ca` is given."""
        return ask(self.agent, name, {"ca": str(self.appliance.trust)} | settings, self.trust())

    def trust(self) -> dict[str, str]:
        """Environment by which programs trust the appliance's authority and the lab's."""
        return dict.fromkeys(TRUST, str(self.appliance.trust))

    def start(self, args: Sequence[str | Path], **options: Any) -> Process:
        self._started.append(self.agent.popen(args, **options))
        return self._started[-1]

    # -- what was recorded -------------------------------------------------------------------------------------------

    def sessions(
        self, count: int = 1, *, ended: bool = True, seconds: float = 30.0, **wanted: Any
    ) -> list[dict[str, Any]]:
        """The task's sessions, oldest first, once there are at least `count`. `wanted`: see `matches`.

        With `ended` only those that are over: their rows are the last word on bytes, coverage and findings.
        """

        def look() -> list[dict[str, Any]] | None:
            found = [
                session
                for session in self.appliance.sessions(run_id=self.run_id)
                if not (ended and session["ending"] == "open") and matches(session, wanted)
            ]
            return found[::-1] if len(found) >= count else None

        return until(look, f"{count} recorded sessions of {self.run_id} with {wanted}", seconds, LOOK)

    def session(self, **wanted: Any) -> dict[str, Any]:
        """The task's only session that matches; an error if there are several."""
        found = self.sessions(**wanted)
        assert len(found) == 1, [session["session_id"] for session in found]
        return found[0]


def matches(session: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a session has these values. `server` and `client` are addresses, `port` is the server's."""
    flat = {
        **session,
        "server": session["server"]["address"],
        "client": session["client"]["address"],
        "port": session["server"]["port"],
    }
    return all(flat[name] == value for name, value in wanted.items())
