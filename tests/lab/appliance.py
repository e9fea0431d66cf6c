"""The appliance on the lab's gateway: its settings, its processes, and its API as seen from the lab.

Runs what `verbatim up` runs in production, as a program of the gateway's namespace. Reads go through the HTTPS API
with an auditor's token, or through the command line, as a person would.
"""

import json
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2 as httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from appliance import status
from tests.lab.lab import Lab
from tests.lab.net import PYTHON, Done, Host
from tests.lab.process import Process
from tests.lab.services.base import DOMAIN, Service
from tests.lab.services.idp import AUDIENCE
from tests.lab.wait import until

API_PORT = 8443
START_SECONDS = 90.0
DATAGRAM_IDLE = 3.0  # seconds after which a lookup counts as over
PARTS = ("store", "wire", "record", "api")

Rule = Mapping[str, Any]  # an entry of `rules` in the settings


def literal(address: str) -> str:
    """An address as URLs and `address:port` want it."""
    return f"[{address}]" if ":" in address else address


def mount_bpffs() -> None:
    """Debian's systemd mounts it; a container or a fresh root may not have it."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    if not any(line.split()[1:3] == ["/sys/fs/bpf", "bpf"] for line in mounts):
        subprocess.run(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"], check=True)


def _fingerprint(pem: bytes) -> str:
    return x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()


def _unless_unavailable(answer: httpx.Response) -> httpx.Response | None:
    """None for an answer that says to try again: a part of the appliance is just being restarted."""
    return None if answer.status_code == 503 else answer


def toml(values: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """Lines of TOML for strings, numbers, booleans, lists, tables and lists of tables."""
    tables = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    arrays = {key: value for key, value in values.items() if _is_tables(value)}
    for key, value in values.items():
        if key not in tables and key not in arrays:
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in tables.items():
        yield f"[{name}{key}]"
        yield from toml(value, f"{name}{key}.")
    for key, several in arrays.items():
        for value in several:
            yield f"[[{name}{key}]]"
            yield from toml(value, f"{name}{key}.")


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def relayed(lab: Lab, kind: type[Service], port: int, *, host: str = "", **relay: Any) -> list[Rule]:
    """Rules that send what agents say to a port of a service through a relay; `relay` is the rules' `[rules.relay]`.

    With `host` only what they say to that name.
    The server's certificate is verified with the lab's authority unless `relay` says otherwise.
    """
    how = {"ca": str(lab.pki.certificate)} | relay
    named = {"host": host} if host else {}
    return [_rule(address, port, "tcp", **named, lane="relay", relay=how) for address in lab.addresses(kind)]


def _rule(address: str, port: int, protocol: str, **more: Any) -> Rule:
    return {"to": f"{address}/{128 if ':' in address else 32}", "port": port, "protocol": protocol, **more}


def settings(
    lab: Lab, data: Path, changes: Mapping[str, Mapping[str, Any]] | None = None, rules: Sequence[Rule] = ()
) -> dict[str, Any]:
    """Settings for the lab's gateway. `changes` are laid over them, section by section; `rules` replace those of the
    same network, port and protocol, and come before the others."""
    facing = lab.gateway.nics[: len(lab.agents)]
    listen = [f"{literal(address)}:{API_PORT}" for nic in (*facing, *lab.extra_nics) for address in nic.addresses]
    own = [
        _rule(address, opening.port, opening.protocol, lane="tap", unbound=opening.unbound)
        for kind in lab.kinds
        for opening in kind.openings
        for address in lab.addresses(kind)
    ]
    taken = {_target(rule) for rule in rules}
    values: dict[str, Any] = {
        "data": str(data),
        "node": "lab-gateway",
        "wire": {
            "agents": [nic.name for nic in facing],
            "upstream": [lab.upstream_nic.name],
            "other": [nic.name for nic in lab.extra_nics],
            "bpffs": str(lab.pins),
            "datagram_idle": DATAGRAM_IDLE,
        },
        "journal": {"segment_bytes": 8 * 2**20, "max_bytes": 768 * 2**20, "keep_bytes": 256 * 2**20},
        "record": {"snapshot": 1.0, "datagram_idle": DATAGRAM_IDLE},
        "api": {"listen": listen, "names": [f"gateway.{DOMAIN}"]},
        "issuers": [{"issuer": lab.idp.issuer, "audience": [AUDIENCE], "ca": str(lab.pki.certificate)}],
        "rules": [*rules, *(rule for rule in own if _target(rule) not in taken)],
    }
    for section, more in (changes or {}).items():
        values[section] = {**values.get(section, {}), **more}
    return values


def _target(rule: Rule) -> tuple[Any, ...]:
    """What a rule is for."""
    return rule.get("to"), rule.get("host"), rule.get("port", 0), rule.get("protocol", "any")


class Appliance:
    """Context manager: `verbatim up` on the gateway of `lab`, with `data` as its folder."""

    def __init__(
        self,
        lab: Lab,
        data: Path,
        changes: Mapping[str, Mapping[str, Any]] | None = None,
        rules: Sequence[Rule] = (),
    ) -> None:
        """`changes` and `rules`: see `settings`."""
        self.lab = lab
        self.data = data
        self.config = lab.folder / "verbatim.toml"
        self.config.write_text("\n".join(toml(settings(lab, data, changes, rules))) + "\n")
        self.ca = lab.folder / "verbatim-ca.crt"  # as the agents fetched it
        self.trust = lab.folder / "trust.crt"  # that, and the lab's authority
        self.fingerprint = ""  # SHA-256 of that certificate
        self._process: Process | None = None
        self._auditor = ""

    # -- processes ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        mount_bpffs()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and wait until it says of itself that every part works."""
        command = [str(PYTHON), "-m", "appliance", "up", "--config", str(self.config)]
        before = self._api()
        self._process = self.lab.gateway.popen(command)
        process = self._process

        def tells() -> bool:
            process.check()
            return self._api() != before

        until(tells, f"its own API, and no former one, is there; {self.output()}", START_SECONDS)
        self.wait()
        fetched = self.lab.agent(1).run(["curl", "-sSk", f"{self.url()}/v1/ca.crt"])
        told = json.loads(self.verbatim("ca", "--json").output)
        self.fingerprint = _fingerprint(fetched.stdout)
        if told["fingerprint_sha256"].replace(":", "").lower() != self.fingerprint:
            raise AssertionError("the certificate that the agents fetched is not the appliance's")
        self.ca.write_text(fetched.output)
        self.trust.write_text(fetched.output + self.lab.pki.certificate.read_text())

    def _api(self) -> int:
        """Process id of the API that published itself last; 0: none did."""
        found = status.read(self.data).get("api")
        return found.pid if found else 0

    def wait(self) -> None:
        """Until /healthz is fine."""

        def healthy() -> bool:
            assert self._process
            self._process.check()
            return self.lab.gateway.call(self._healthy)

        until(healthy, f"the appliance is healthy; {self.output()}", START_SECONDS)

    def _healthy(self) -> bool:
        try:
            with httpx.Client(verify=False, trust_env=False, timeout=5) as client:
                return client.get(f"{self.url()}/healthz").status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> int:
        """Its exit code after SIGTERM."""
        process, self._process = self._process, None
        return process.stop(seconds=60) if process else 0

    def kill_supervisor(self) -> None:
        """Kill `verbatim up` alone, without warning."""
        process, self._process = self._process, None
        assert process
        process.popen.kill()
        process.popen.wait()

    def output(self) -> str:
        """The end of its log."""
        return self._process.output() if self._process else ""

    def log(self) -> str:
        """All that it wrote since its last start."""
        return self._process.log.read_text("utf-8", "replace") if self._process else ""

    def pid(self, part: str) -> int:
        """Process id of `wire`, `record`, `store` or `api`, as it published it."""
        return status.read(self.data)[part].pid

    def values(self, part: str) -> dict[str, Any]:
        """What a part says of itself."""
        said = status.read(self.data).get(part)
        return said.values if said else {}

    # -- what an agent does with it ----------------------------------------------------------------------------------

    def url(self, agent: int = 1, family: int = 0) -> str:
        """The API's base URL on an agent's network. `family`: 0 for IPv4, 1 for IPv6."""
        return f"https://{literal(self.lab.gateway_nic(agent).addresses[family])}:{API_PORT}"

    def curl(
        self, agent: int, method: str, path: str, token: str, body: Any = None, family: int = 0
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON of an API call by curl from an agent's shell. The token goes through standard input."""
        data = ["--data", json.dumps(body), "-H", "Content-Type: application/json"] if body is not None else []
        command = ["curl", "-sS", "--cacert", str(self.ca), "-X", method, "-H", "@-", "-w", "\n%{http_code}", *data]
        done = self._agent(agent).run(
            [*command, self.url(agent, family) + path], input=f"Authorization: Bearer {token}\n"
        )
        text, _, code = done.output.rpartition("\n")
        return int(code), json.loads(text) if text else {}

    def lease(
        self, agent: int, token: str, *, run_id: str = "", seconds: float | None = None, family: int = 0
    ) -> dict[str, Any]:
        """Take a lease for the agent's address of this family."""
        body = {"run_id": run_id} | ({"seconds": seconds} if seconds else {})
        code, answer = self.curl(agent, "POST", "/v1/leases", token, body, family)
        if code != 201:
            raise RuntimeError(f"no lease: HTTP status {code}: {answer}")
        return answer

    def revoke(self, agent: int, token: str, lease: Mapping[str, Any]) -> None:
        code, answer = self.curl(agent, "DELETE", f"/v1/leases/{lease['lease_id']}", token)
        if code != 204:
            raise RuntimeError(f"not revoked: HTTP status {code}: {answer}")

    def _agent(self, number: int) -> Host:
        return self.lab.agent(number)

    # -- what was recorded -------------------------------------------------------------------------------------------

    def verbatim(
        self, *args: str, check: bool = True, env: Mapping[str, str] | None = None, input: str | None = None
    ) -> Done:
        """The command line on the gateway: `verbatim ARGS --config …`."""
        command = [str(PYTHON), "-m", "appliance", *args, "--config", str(self.config)]
        return self.lab.gateway.run(command, check=check, env=env, timeout=60, input=input)

    def get(self, path: str, headers: Mapping[str, str] | None = None, **query: Any) -> httpx.Response:
        """GET from the API as an auditor."""
        self._auditor = self._auditor or self.lab.token("auditor")
        bearer = {"Authorization": f"Bearer {self._auditor}"}
        trust = ssl.create_default_context(cafile=str(self.ca))

        def ask() -> httpx.Response:
            with httpx.Client(verify=trust, trust_env=False, timeout=30) as client:
                return client.get(self.url() + path, params=query, headers=bearer | dict(headers or {}))

        answer = until(lambda: _unless_unavailable(self.lab.gateway.call(ask)), f"an answer to GET {path}", 30, 0.1)
        answer.raise_for_status()
        return answer

    def sessions(self, **filters: Any) -> list[dict[str, Any]]:
        """Sessions that match, newest first."""
        found: list[dict[str, Any]] = self.get("/v1/sessions", limit=1000, **filters).json()["sessions"]
        return found

    def messages(self, session: Mapping[str, Any]) -> list[dict[str, Any]]:
        """All messages of a session, in order."""
        found: list[dict[str, Any]] = []
        after: int | None = -1
        while after is not None:
            path = f"/v1/sessions/{session['session_id']}/messages"
            page = self.get(path, after=after, limit=1000).json()
            found += page["messages"]
            after = page["next"]
        return found

    def stream(self, session: Mapping[str, Any], direction: str) -> bytes:
        """Exactly the bytes that one side of a session sent."""
        return self.get(f"/v1/sessions/{session['session_id']}/stream", direction=direction).content

    def search(self, query: str) -> list[dict[str, Any]]:
        hits: list[dict[str, Any]] = self.get("/v1/search", q=query, limit=1000).json()["hits"]
        return hits

    def events(self, **filters: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/v1/events", limit=1000, **filters).json()["events"]
        return found
