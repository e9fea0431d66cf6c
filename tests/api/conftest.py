"""The API over a real store service and a real lease table; only the network below the leases is not there."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, cast
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from api.app import create
from api.deps import Parts
from appliance import status
from appliance.config import Issuer, Settings
from appliance.errors import Unavailable
from appliance.identity import ca
from appliance.identity.leases import Lease, LeaseTable, Now
from appliance.identity.oidc import Verifier
from appliance.model import (
    ChunkRow,
    Coverage,
    Direction,
    Ending,
    EventRow,
    FindingRow,
    Identity,
    Message,
    MessageRow,
    Row,
    SessionRow,
)
from appliance.store.client import Store, open_store
from appliance.wire.control import Client
from tests.lab.wait import until

ISSUER = "https://idp.example"
KEY = RSAKey.generate_key(2048, {"kid": "one", "use": "sig"})
START = 1_790_000_000_000_000_000
WHOLE = UUID("01990000-0000-7000-8000-000000000001")
GAPPED = UUID("01990000-0000-7000-8000-000000000002")
ANSWER = bytes(range(256)) * 64
ALICE = Identity(
    issuer=ISSUER, subject="alice", client="agent", act=("robot",), method="lease", lease_id="00000000000000aa"
)


def token(subject: str = "alice", *roles: str, seconds: float = 600, **more: Any) -> str:
    now = time.time()
    claims = {"iss": ISSUER, "aud": "verbatim", "sub": subject, "iat": now, "exp": now + seconds, "roles": roles} | more
    return jwt.encode({"alg": "RS256", "kid": "one", "typ": "at+jwt"}, claims, KEY, algorithms=["RS256"])


class Leases:
    """The wire process's lease table without the wire."""

    def __init__(self) -> None:
        self.table = LeaseTable(3600.0, 100)
        self.down = False

    def _now(self) -> Now:
        if self.down:
            raise Unavailable("wire.sock: no answer in time; start verbatim wire and see its log")
        return Now(time.time_ns(), time.monotonic_ns(), "boot")

    def grant(self, address: str, identity: Identity, expires_ns: int) -> Lease:
        self.table, changes = self.table.grant(address, identity, expires_ns, self._now(), secrets.randbits(63) | 1)
        return changes[-1].lease

    def renew(self, lease: str, expires_ns: int, identity: Identity | None = None) -> Lease:
        self.table, change = self.table.renew(lease, expires_ns, self._now(), identity)
        return change.lease

    def revoke(self, lease: str) -> Lease:
        self._now()
        self.table, change = self.table.revoke(lease)
        return change.lease

    def list(self) -> tuple[Lease, ...]:
        self._now()
        return self.table.list()


def session(session_id: UUID, *, number: int, findings: tuple[str, ...] = ()) -> SessionRow:
    return SessionRow(
        session_id=session_id,
        seq=0,
        started_ns=START + number * 10**9,
        ended_ns=START + number * 10**9 + 10**8,
        ending=Ending.FIN,
        node="gate",
        source="wire",
        client_address="10.0.0.5",
        client_port=40000 + number,
        server_address="192.0.2.7",
        server_port=5432,
        transport="tcp",
        protocol="postgres",
        identity=ALICE,
        coverage=Coverage.PARTIAL if findings else Coverage.COMPLETE,
        client_bytes=20,
        server_bytes=len(ANSWER),
        client_packets=5,
        server_packets=5,
        messages=2,
        findings=findings,
        lane="tap",
        attrs={"database": "shop"},
    )


def recorded() -> list[Row]:
    gap = FindingRow(GAPPED, 0, START + 10**9, START + 10**9, "gap", Direction.SERVER, 100, 150, "50 bytes", {})
    ask = Message(Direction.CLIENT, "query", START + 5, 0, 20, "SELECT name FROM customers", {"sql": "SELECT …"})
    reply = Message(Direction.SERVER, "rows", START + 9, 0, 30, "name\nAda Lovelace", {"rows": [["Ada"]]}, reply_to=0)
    return [
        session(WHOLE, number=0),
        session(GAPPED, number=1, findings=("gap",)),
        MessageRow(WHOLE, 0, START, "postgres", ask),
        MessageRow(WHOLE, 1, START, "postgres", reply),
        ChunkRow(WHOLE, 0, START, Direction.CLIENT, 0, START, b"SELECT name FROM cus"),
        ChunkRow(WHOLE, 1, START, Direction.SERVER, 0, START + 1, ANSWER[:5000]),
        ChunkRow(WHOLE, 2, START, Direction.SERVER, 5000, START + 2, ANSWER[5000:]),
        ChunkRow(GAPPED, 0, START + 10**9, Direction.SERVER, 0, START, ANSWER[:100]),
        ChunkRow(GAPPED, 1, START + 10**9, Direction.SERVER, 150, START, ANSWER[100:]),
        gap,
        EventRow("aa" * 16, 7, START, "refusal", "10.0.0.9", "3 packets refused: no-lease", {"count": 3}),
    ]


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        data=tmp_path_factory.mktemp("data"),
        issuers=(Issuer(issuer=ISSUER, audience=("verbatim",), jwks_uri="https://x/jwks"),),
    )


@pytest.fixture(scope="session")
def store(settings: Settings) -> Iterator[Store]:
    """The embedded store's own process, with two sessions in it."""
    command = [sys.executable, "-m", "appliance", "store", "--data", str(settings.data)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VERBATIM_")}
    process = subprocess.Popen(command, env=environment)
    try:
        until(
            lambda: "store" in status.read(settings.data) or process.poll() is not None, "the store says something", 30
        )
        with open_store(settings, "writer") as writer:
            writer.insert(recorded())
        with open_store(settings, "reader") as reader:
            yield reader
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def leases() -> Leases:
    return Leases()


@pytest.fixture
def audit(settings: Settings, store: Store) -> Iterator[Store]:
    with open_store(settings, "writer", embed=False) as writer:
        yield writer


@pytest.fixture
def caller(settings: Settings, store: Store, audit: Store, leases: Leases) -> Callable[..., TestClient]:
    """Makes clients that call from an address, with or without a token."""
    verifier = Verifier(settings.issuers, fetch=lambda issuer, url: KeySet([KEY]).as_dict(private=False))
    authority = ca.Current(settings.data, settings.node)
    app = create(Parts(settings, verifier, authority, store, audit, cast(Client, leases)))

    def make(bearer: str | None = None, address: str = "10.0.0.5") -> TestClient:
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        return TestClient(app, client=(address, 50000), headers=headers, raise_server_exceptions=False)

    return make
