"""The wire process's control socket: one JSON object a line each way, over `DATA/run/wire.sock` (mode 0600).

    {"do": "grant", "address": "192.0.2.7", "identity": {...}, "expires_ns": 1795420800000000000}  →  {"lease": {...}}
    {"do": "renew", "id": "<16 hex>", "expires_ns": ..., "identity": {...} (optional)}             →  {"lease": {...}}
    {"do": "revoke", "id": "<16 hex>"}                                                             →  {"lease": {...}}
    {"do": "list"}                                                                                 →  {"leases": [...]}
    {"do": "identity", "id": "<16 hex>"}                                                        →  {"identity": {...}}
    {"do": "status"}                                                                               →  {"status": {...}}
    {"do": "note", "kind": "issuer-keys-changed", "text": "...", "attrs": {...}}                   →  {"noted": true}

A note is what another process of the appliance has to put on record: only the wire process writes the journal.

A request that cannot be carried out is answered {"error": {"code": ..., "message": ...}} and the connection goes on; a
line longer than `MAX_LINE` ends it. `Server` never blocks: it lives in the wire process's loop, behind the ring.
"""

import contextlib
import selectors
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from appliance.errors import MalformedInput, Refused, Unavailable, VerbatimError
from appliance.identity.leases import Lease, LeaseHeld, LeaseUnknown, identity_from_json, identity_to_json
from appliance.model import Identity

MAX_LINE = 64 * 1024  # bytes of one request
MAX_ANSWER = 32 * 2**20  # bytes of one answer that a client takes: a full table's list
MAX_CLIENTS = 64
SOCKET = "wire.sock"
NOTES = frozenset(
    {
        "issuer-keys-changed",
        *("ca-made", "ca-rotated", "certificate-issued"),
        *("secret-set", "secret-rotated", "secret-removed", "secrets-resealed"),
    }
)

CODES: tuple[tuple[str, type[VerbatimError]], ...] = (  # the first that fits names an error; the client raises it again
    ("held", LeaseHeld),
    ("unknown", LeaseUnknown),
    ("malformed", MalformedInput),
    ("refused", Refused),
    ("unavailable", Unavailable),
)

Json = dict[str, Any]
Answer = Callable[[Json], Json]
log = structlog.get_logger()


class _Connection:
    """One client: what came of its next line, and what it has not taken yet of our answers."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()
        self.unsent = bytearray()


class Server:
    """Serves `answer` at `path`, driven by `selector`: the owner calls `key.data(mask)` for every key that is ready."""

    def __init__(self, path: Path, answer: Answer, selector: selectors.BaseSelector) -> None:
        self._path = path
        self._answer = answer
        self._selector = selector
        self._connections: set[_Connection] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fresh = path.with_suffix(".new")
        try:
            fresh.unlink(missing_ok=True)
            self._listener.setblocking(False)
            self._listener.bind(str(fresh))
            fresh.chmod(0o600)
            self._listener.listen(MAX_CLIENTS)
            fresh.replace(path)  # others see it only when it is private and answers
        except OSError as error:
            self._listener.close()
            raise Unavailable(f"{path}: {error.strerror or error}; choose a data folder with a shorter path") from error
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        for connection in list(self._connections):
            self._drop(connection)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self, mask: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return  # it went away again
        if len(self._connections) >= MAX_CLIENTS:
            sock.close()
            log.warning("control-turned-away", reason="too many connections", limit=MAX_CLIENTS)
            return
        sock.setblocking(False)
        connection = _Connection(sock)
        self._connections.add(connection)
        self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._serve(connection, mask))

    def _serve(self, connection: _Connection, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                self._send(connection)
            elif mask & selectors.EVENT_READ:
                data = connection.sock.recv(MAX_LINE)
                if not data:
                    self._drop(connection)
                    return
                connection.received += data
            self._answer_lines(connection)
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)

    def _answer_lines(self, connection: _Connection) -> None:
        """Answer whole lines, one after the other; wait with the next while the client does not take an answer."""
        while not connection.unsent:
            line, newline, rest = connection.received.partition(b"\n")
            if len(line) > MAX_LINE:
                log.warning("control-dropped", reason="line too long", limit=MAX_LINE)
                self._drop(connection)
                return
            if not newline:
                break
            connection.received = rest
            connection.unsent += msgspec.json.encode(self._respond(bytes(line))) + b"\n"
            self._send(connection)
        events = selectors.EVENT_WRITE if connection.unsent else selectors.EVENT_READ
        self._selector.modify(connection.sock, events, lambda mask: self._serve(connection, mask))

    def _send(self, connection: _Connection) -> None:
        with contextlib.suppress(BlockingIOError):
            sent = connection.sock.send(connection.unsent)
            del connection.unsent[:sent]

    def _respond(self, line: bytes) -> Json:
        try:
            try:
                request = msgspec.json.decode(line)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
                raise MalformedInput("control request: not JSON; send one object a line") from None
            if not isinstance(request, dict):
                raise MalformedInput("control request: not an object; send one object a line")
            return self._answer(request)
        except VerbatimError as error:
            code = next((name for name, kind in CODES if isinstance(error, kind)), "unavailable")
            return {"error": {"code": code, "message": str(error)}}
        except Exception:  # a fault of ours must not end the recording
            log.exception("control-failed")
            return {
                "error": {"code": "unavailable", "message": "wire: the request failed; see the log of verbatim wire"}
            }

    def _drop(self, connection: _Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self._selector.unregister(connection.sock)
            connection.sock.close()


class Client:
    """Talks to the wire process of `data`; each call is a connection of its own.

    Raises what the server answered (`LeaseHeld`, `LeaseUnknown`, `MalformedInput`, `Refused`), and `Unavailable` when
    the wire process does not answer within `timeout` seconds.
    """

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        """`path` of the socket: `DATA/run/wire.sock`."""
        self._path = path
        self._timeout = timeout

    def grant(self, address: str, identity: Identity, expires_ns: int) -> Lease:
        """Bind `address` to `identity` until `expires_ns` (Unix time) at the latest."""
        request = {"do": "grant", "address": address, "identity": identity_to_json(identity), "expires_ns": expires_ns}
        return Lease.from_json(self._ask(request)["lease"])

    def renew(self, id: str, expires_ns: int, identity: Identity | None = None) -> Lease:
        """Move the end of a lease; `identity`: of the newer token."""
        request: Json = {"do": "renew", "id": id, "expires_ns": expires_ns}
        if identity is not None:
            request["identity"] = identity_to_json(identity)
        return Lease.from_json(self._ask(request)["lease"])

    def revoke(self, id: str) -> Lease:
        """End a lease; its live flows are cut at their next packet."""
        return Lease.from_json(self._ask({"do": "revoke", "id": id})["lease"])

    def list(self) -> tuple[Lease, ...]:
        """The live leases, oldest first."""
        return tuple(Lease.from_json(lease) for lease in self._ask({"do": "list"})["leases"])

    def identity(self, id: str) -> Identity:
        """Whose lease this is. Raises `LeaseUnknown` for one that is over."""
        return identity_from_json(self._ask({"do": "identity", "id": id})["identity"])

    def status(self) -> Json:
        """What the wire process publishes of itself, fresh."""
        status: Json = self._ask({"do": "status"})["status"]
        return status

    def note(self, kind: str, text: str, **attrs: Any) -> None:
        """Put a fact on record, as an event. `kind` is one of `NOTES`."""
        self._ask({"do": "note", "kind": kind, "text": text, "attrs": attrs})

    def _ask(self, request: Json) -> Json:
        answer = bytearray()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(self._timeout)
                sock.connect(str(self._path))
                sock.sendall(msgspec.json.encode(request) + b"\n")
                while not answer.endswith(b"\n"):
                    data = sock.recv(65536)
                    if not data or len(answer) > MAX_ANSWER:
                        raise Unavailable(f"{self._path}: the wire process broke off its answer; see its log")
                    answer += data
        except OSError as error:
            reason = error.strerror or "no answer in time"
            raise Unavailable(f"{self._path}: {reason}; start verbatim wire and see its log") from error
        said = msgspec.json.decode(answer)
        if "error" in said:
            kinds = dict(CODES)
            raise kinds.get(said["error"]["code"], Unavailable)(said["error"]["message"])
        reply: Json = said
        return reply
