"""What both sides of a PostgreSQL connection have to know of it."""

from typing import Any

from appliance.dissect.postgres_charsets import CODECS
from appliance.dissect.postgres_requests import Bound, Names, Requests, Statement


class Shared:
    """State of one connection."""

    def __init__(self) -> None:
        self.attrs: dict[str, Any] = {}
        self.codec = "utf-8"
        self.requests = Requests()
        self.portals: Names[Bound] = Names()
        self.authenticated = False
        self.released: int | None = None  # offset from which on the client's bytes are no password
        self.ready = False  # the server was, once
        self.method: str | None = None  # of authentication, that the server asked for
        self.asked: int | None = None  # start of the server's message that asked for it
        self.copy_in: str | None = None  # format of the COPY that the server waits for
        self.copy_start: int | None = None  # start of the server's message that began it

    @property
    def statements(self) -> Names[Statement]:
        return self.requests.statements

    def started(self, version: str, parameters: dict[str, str]) -> None:
        """The client's StartupMessage."""
        self.attrs["version"] = version
        user = parameters.get("user", "")
        self.attrs["user"] = user
        self.attrs["database"] = parameters.get("database") or user
        for name in ("application_name", "replication"):
            if parameters.get(name):
                self.attrs[name] = parameters[name]

    def parameter(self, name: str, value: str) -> None:
        """The server's ParameterStatus."""
        if name in ("application_name", "server_version", "client_encoding"):
            self.attrs[name] = value
        if name == "client_encoding":
            self.codec = CODECS.get(value.upper(), "utf-8")
