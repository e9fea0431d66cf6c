"""A relay worker in a thread of this process, for real clients and servers on loopback; and what it recorded.

Nothing steers here: every connection to the worker's port is taken for one to `server`. One token is good there.
"""

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import uvloop

from appliance import config
from appliance.errors import Refused
from appliance.identity.credential import Kind, Secret
from appliance.identity.secret_text import SecretText
from appliance.journal import FrameKind, JournalKey, Reader
from appliance.journal.relayed import RelayedKind, scan
from appliance.model import Identity
from appliance.relay.worker import Worker
from tests.lab.wait import until

TOKEN: Final = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhZ2VudC03In0.c2lnbmF0dXJl"
AGENT: Final = Identity(issuer="https://login.example.com", subject="agent-7")
Address = tuple[str, int]
Prepare = Callable[[Worker], None]


@dataclass(slots=True)
class Recorded:
    """One flow as the journal has it."""

    opened: dict[str, Any] = field(default_factory=dict)
    data: list[bytearray] = field(default_factory=lambda: [bytearray(), bytearray()])
    notes: list[dict[str, Any]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=lambda: [False, False])
    closed: dict[str, Any] = field(default_factory=dict)

    def notes_of(self, kind: str) -> list[dict[str, Any]]:
        return [note for note in self.notes if note["kind"] == kind]

    @property
    def login(self) -> dict[str, Any]:
        """The gateway's own, upstream."""
        (found,) = [note["attrs"]["login"] for note in self.notes_of("upstream") if "login" in note["attrs"]]
        assert isinstance(found, dict)
        return found

    @property
    def refused(self) -> list[str]:
        return [str(note["attrs"]["reason"]) for note in self.notes_of("refused")]


class Running:
    """`rules` as in the settings file; `relay`: its section."""

    def __init__(
        self,
        data: Path,
        rules: list[dict[str, Any]],
        server: Address,
        prepare: Prepare | None = None,
        **sections: Any,
    ) -> None:
        self.settings = config.Settings(data=data, rules=rules, **sections)
        self.server = server
        self.loop = uvloop.new_event_loop()
        self._ready = threading.Event()
        self._prepare = prepare
        self.port = 0
        self.exit_code: int | None = None
        self.failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="relay")

    @property
    def address(self) -> Address:
        return "127.0.0.1", self.port

    @property
    def ca(self) -> Path:
        return self.settings.data / "keys" / "ca.crt"

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.worker = Worker(self.settings, 0, self.loop, destination=lambda sock: self.server, steered=False)
            if self._prepare is not None:
                self._prepare(self.worker)
            self.port = self.worker.listen()
            self._ready.set()
            self.exit_code = self.loop.run_until_complete(self.worker.run())
        except BaseException as error:
            self.failed = error
            raise
        finally:
            self._ready.set()
            self.worker.close()
            self.loop.close()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(20)
        assert self.failed is None, self.failed
        return self

    def __exit__(self, *unused: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.worker.stop)
            self._thread.join(20)
        assert not self._thread.is_alive()

    def idle(self) -> None:
        """Wait until no flow is open."""
        until(lambda: not self.worker.values()["flows"], "all flows to end")

    def flows(self) -> list[Recorded]:
        """What is on record, in the order in which flows began."""
        found: dict[int, Recorded] = defaultdict(Recorded)
        key = JournalKey.load_or_create(self.settings.data)
        with Reader(self.settings.data / "journal" / self.worker.name, key, None) as reader:
            while (frame := reader.read()) is not None:
                if getattr(frame, "kind", None) is FrameKind.SPAN:
                    for record in scan(frame.payload):  # type: ignore[union-attr]
                        _add(found[record.flow], record)
        return [found[number] for number in sorted(found)]

    def flow(self) -> Recorded:
        """The only one."""
        (only,) = self.flows()
        return only

    def recorded(self, *secrets: str) -> list[Recorded]:
        """Every flow, when all have ended and the relay too. None of these credentials is on any."""
        self.idle()
        self.stop()
        flows = self.flows()
        shown = b"".join(bytes(part) for flow in flows for part in flow.data)
        shown += repr([flow.notes for flow in flows]).encode()
        for secret in secrets:
            assert secret.encode() not in shown
        return flows


Begin = Callable[..., Running]


def trusting(secret: Secret | None = None, token: str = TOKEN) -> Prepare:
    """A worker for which this is the only good token, AGENT's, and every rule's credential is `secret`."""

    async def verify(given: str) -> Identity:
        if given != token:
            raise Refused("token: it has expired; get a new one")
        return AGENT

    def prepare(worker: Worker) -> None:
        worker.around.verify = verify
        worker.around.secret = lambda name: secret  # type: ignore[assignment, return-value]

    return prepare


def password(name: str, user: str, value: str, former: str = "") -> Secret:
    """One that was rotated, if it has a `former` value."""
    before = Secret(name, Kind.PASSWORD, SecretText(former), user) if former else None
    return Secret(name, Kind.PASSWORD, SecretText(value), user, generation=2, former=before)


def _add(flow: Recorded, record: Any) -> None:
    match record.kind:
        case RelayedKind.OPEN:
            assert not flow.opened
            flow.opened = record.said()
        case RelayedKind.DATA:
            assert record.offset == len(flow.data[record.direction]), "offsets have no gaps"
            assert not flow.ended[record.direction], "nothing comes behind the end"
            flow.data[record.direction] += record.body
        case RelayedKind.NOTE:
            flow.notes.append(record.said())
        case RelayedKind.EOF:
            assert record.offset == len(flow.data[record.direction])
            flow.ended[record.direction] = True
        case RelayedKind.CLOSE:
            assert not flow.closed
            flow.closed = record.said()
