"""PostgreSQL: the frontend/backend protocol, versions 3.0 to 3.2 (PostgreSQL 18 documentation, chapter 54).

    client                                       server
    (start) ── SSLRequest, GSSENCRequest ──────► waits for the answer
            ◄───────────────────────────── N ─── (start) again
            ◄───────────────────────────── S ─── what follows is TLS: both directions go to the successor `tls`;
                                                 or, where TLS was taken off on the way, (start) again in plain
            ◄───────────────────────────── G ─── encrypted: nothing is read any more
    (start) ── CancelRequest ──────────────────► nothing is read any more
    (start) ── StartupMessage ─────────────────► typed messages of both sides, see postgres_client and postgres_server
    any     ── impossible length ──────────────► this direction is not read any more; message `malformed`
    any     ── gap ────────────────────────────► goes on behind the message it fell into, or at the next plausible one

Kinds of the client's messages: `negotiate` `startup` `cancel` `authentication` `query` `prepare` `bind` `call` `copy`
`copy-done` `copy-fail` `terminate`; of the server's: `negotiate` `authentication` `authenticated` `negotiate-version`
`parameters` `key` `ready` `rows` `result` `copy-start` `copy` `copy-done` `error` `notice` `notification`; of both:
`malformed` (does not fit its layout; flag `truncated` alone: the end is missing) and `undissected` (bytes between a gap
and the place where dissection goes on).

Redacted: `password` (PasswordMessage in clear and MD5, GSS tokens and every SASL mechanism but SCRAM, whose messages
never hold the password), at most `MAX_REDACTED` bytes: a "password" without end would be a place to hide. The key of
BackendKeyData and CancelRequest stays: it opens nothing, and is worth nothing once the connection has ended.
"""

import struct
from typing import Any, Final

from appliance.dissect import Match, Output, Torn, postgres_fields
from appliance.dissect.postgres_client import ClientSide
from appliance.dissect.postgres_fields import GSS, SSL
from appliance.dissect.postgres_frames import (
    CANCEL,
    CLIENT_TYPES,
    HEADER,
    INSANE,
    MAX_CREDENTIAL,
    SERVER_TYPES,
    STARTUP_PACKET,
    sane,
)
from appliance.dissect.postgres_half import Half, Mode
from appliance.dissect.postgres_requests import Request, Step
from appliance.dissect.postgres_server import ServerSide
from appliance.dissect.postgres_session import Shared
from appliance.dissect.sql_frames import FRAGMENT, LOST, Frame
from appliance.model import Direction, Message, Redaction

END: Final = 1 << 62  # behind every offset
TLS_RECORDS: Final = b"\x15\x16"  # types of the first record: alert, handshake (RFC 8446 section 5.1)


class Postgres:
    """One connection."""

    protocol = "postgres"

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self.opaque = False
        self.successor: str | None = None
        self._asked: str | None = None  # encryption that the client asked for and the server did not answer yet
        self._request: int | None = None  # start of that message
        self._agreed = False  # to TLS; what follows tells whether it is still there
        self._unseen = False  # the client's first byte may lie within a message
        self._answering = False  # the client is read on behind an answer: what the server sent behind that is the next
        self._shared = Shared()
        self._halves = {
            Direction.CLIENT: Half(client_offset, Mode.STARTUP, CLIENT_TYPES, {0x70: HEADER}),
            Direction.SERVER: Half(server_offset, Mode.TYPED, SERVER_TYPES, {}),
        }
        self._halves[Direction.SERVER].release()  # a server sends no credential
        self._client = ClientSide(self._shared)
        self._server = ServerSide(self._shared)

    @property
    def attrs(self) -> dict[str, Any]:
        return self._shared.attrs

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        return postgres_fields.detect(client, server)

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        if self.successor is not None:
            return []
        half = self._halves[direction]
        if half.mode is not Mode.TYPED:
            half.feed(data, ts_ns)
            return self._read(direction)
        out: Output = []
        self._take(direction, half.read(data, ts_ns), out)
        self._taken(out)
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        if self.successor is not None:
            return []
        half = self._halves[direction]
        if self._agreed:  # the beginning of TLS is lost
            self._agreed = False
            self._end_clear("lost")
        half.gap(length, ts_ns)
        if direction is Direction.CLIENT:
            self._shared.released = half.released
        out = self._read(direction)
        if half.mode is Mode.SEARCHING:
            self._shared.requests.lose()
            if direction is Direction.SERVER:
                out += self._server.lose()
                if self._asked is not None:  # the answer is lost: the client's next message tells
                    self._asked = None
                    self._read_client(out)
            else:
                out += self._client.lose()
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        out: Output = []
        if self.successor is not None:
            return out
        if self._unseen and self._halves[Direction.CLIENT].mode is Mode.STARTUP:
            self._halves[Direction.CLIENT].mode = Mode.SEARCHING
        self._take(direction, self._halves[direction].close(ts_ns), out)
        out += self._client.end() if direction is Direction.CLIENT else self._server.end()
        self._redactions(out)
        return out

    def settled(self, direction: Direction) -> int:
        half = self._halves[direction]
        if direction is Direction.CLIENT and self._unseen and half.mode is Mode.STARTUP:  # or it is part of a password
            return half.received - half.held
        return half.settled()

    def guarded(self, direction: Direction) -> int:
        """All of the client's bytes until log-in is over, and the first behind it came."""
        half = self._halves[direction]
        over = direction is Direction.SERVER or (half.released is not None and half.received > half.released)
        return END if over else half.settled()

    def torn(self, direction: Direction) -> Torn:
        return Torn(size=MAX_CREDENTIAL if self._halves[direction].released is None else 0)

    def resume(self, direction: Direction, torn: Torn | None) -> None:
        """A stream that was recognised by a message begins with it, if it looks like one; else one is searched for."""
        if torn is None:
            self._unseen = self._unseen or direction is Direction.CLIENT
            return
        self.attrs["midstream"] = True
        half = self._halves[direction]
        half.mode = Mode.SEARCHING
        if not torn.size:
            half.release()
            if direction is Direction.CLIENT:
                self._shared.released = half.released

    def rest(self, direction: Direction) -> bytes:
        """Bytes for the successor."""
        return self._halves[direction].rest()

    @property
    def held(self) -> int:
        shared = self._shared
        named = shared.statements.weight + shared.portals.weight
        sides = self._client.held + self._server.held
        return sum(half.held for half in self._halves.values()) + 2 * named + shared.requests.held + sides

    def shed(self) -> Output:
        """Names are forgotten: what refers to them is `unresolved`. Answers to what waits have no `reply_to`."""
        self._shared.statements.clear()
        self._shared.portals.clear()
        self._shared.requests.lose()
        return []

    # -- reading ---------------------------------------------------------------------------------------------------

    def _read(self, direction: Direction) -> Output:
        out: Output = []
        half = self._halves[direction]
        if half.mode is Mode.STARTUP:
            self._read_start(out)
        else:
            while half.mode is Mode.ANSWER and self.successor is None and self._read_answer(out):
                pass
        if self.successor is None and half.mode is not Mode.STARTUP and half.mode is not Mode.ANSWER:
            self._take(direction, half.typed(), out)
        self._taken(out)
        return out

    def _taken(self, out: Output) -> None:
        """Whether log-in is over may have changed, and what is to be redacted."""
        if self._shared.released is None and self._shared.authenticated:
            self._halves[Direction.CLIENT].release()
            self._shared.released = self._halves[Direction.CLIENT].released
        self._redactions(out)

    def _read_start(self, out: Output) -> None:
        half = self._halves[Direction.CLIENT]
        if self._agreed and not self._goes_on_in_plain():
            return
        while half.mode is Mode.STARTUP and self._asked is None:
            if half.first not in (None, 0):  # no start-up packet is that long: the start was not seen
                begun = half.rest()
                if self._unseen and len(begun) < HEADER:
                    return
                half.mode = Mode.SEARCHING if self._unseen and not sane(begun, 0, CLIENT_TYPES) else Mode.TYPED
                self.attrs["midstream"] = True
                return
            frame = half.startup()
            if frame is None:
                return
            self._take(Direction.CLIENT, [frame], out)

    def _read_answer(self, out: Output) -> bool:
        """Take the answer to a request for encryption, if it is there."""
        half = self._halves[Direction.SERVER]
        if self._agreed:
            return self._goes_on_in_plain()
        frame = half.answer()
        if frame is None and half.mode is Mode.ANSWER:
            return False
        asked, self._asked = self._asked, None
        half.mode = Mode.TYPED
        if frame is not None:
            answer = chr(frame.kind)
            fits = answer in ("S" if asked == "tls" else "G", "N")
            out.append(
                Message(
                    Direction.SERVER,
                    "negotiate",
                    frame.ts_ns,
                    frame.start,
                    frame.end,
                    f"{asked}: {answer}" if fits else "",
                    {"encryption": asked, "answer": answer if fits else ""},
                    self._request,
                    () if fits else ("malformed",),
                    frame.end_ns,
                )
            )
            if answer == "S" and fits:
                self._agreed = True
                half.mode = Mode.ANSWER
                if not self._goes_on_in_plain():
                    return False
            elif answer != "N":
                self._end_clear(asked if fits else None)
                return True
        self._answering = True
        self._read_client(out)
        self._answering = False
        return True

    def _goes_on_in_plain(self) -> bool:
        """Whether what follows the server's S is no TLS; where it is, it goes to the successor."""
        said = self._halves[Direction.CLIENT].first
        if said is None and self._halves[Direction.SERVER].first is None:
            return False
        self._agreed = False
        if said is None or said in TLS_RECORDS:
            self._end_clear("tls")
            return False
        self._halves[Direction.SERVER].mode = Mode.TYPED
        return True

    def _read_client(self, out: Output) -> None:
        """What the client sent without waiting for the answer."""
        self._read_start(out)
        half = self._halves[Direction.CLIENT]
        if half.mode is not Mode.STARTUP:
            self._take(Direction.CLIENT, half.typed(), out)
        self._redactions(out)

    def _end_clear(self, encryption: str | None) -> None:
        """What follows is TLS, which has its own dissector, or something that has none."""
        self.opaque = encryption is not None
        if encryption == "tls":
            self.successor = "tls"
            return
        for half in self._halves.values():
            half.ignore()

    # -- messages --------------------------------------------------------------------------------------------------

    def _take(self, direction: Direction, frames: list[Frame], out: Output) -> None:
        side: ClientSide | ServerSide = self._client if direction is Direction.CLIENT else self._server
        secrets = self._client.secrets
        for frame in frames:
            if frame.kind < 0:
                self._take_odd(direction, side, frame, out)
            elif not side.take(frame, out):
                flags = ("truncated",) if frame.cut else ("malformed",)
                attrs = {"type": chr(frame.kind), "length": frame.end - frame.start - 1}
                out.append(_flawed(direction, frame, *flags, attrs=attrs))
            if secrets:
                for start, end in secrets:
                    self._halves[Direction.CLIENT].redact(start, end)
                secrets.clear()

    def _take_odd(self, direction: Direction, side: ClientSide | ServerSide, frame: Frame, out: Output) -> None:
        """What is no message with a type."""
        if frame.kind == STARTUP_PACKET:
            try:
                self._start_packet(frame, out)
            except (ValueError, struct.error):
                out.append(_flawed(direction, frame, "malformed"))
        elif frame.kind == FRAGMENT:
            out += side.end()
            out.append(_flawed(direction, frame, "truncated"))
        elif frame.kind == INSANE:
            out += side.end()
            out.append(_flawed(direction, frame, "malformed"))
        elif frame.kind == LOST:
            out.append(_flawed(direction, frame, "undecoded", kind="undissected"))

    def _start_packet(self, frame: Frame, out: Output) -> None:
        half = self._halves[Direction.CLIENT]
        code, rest = frame.body[:4], frame.body[4:]
        if code in (SSL, GSS) and not rest:
            encryption = "tls" if code == SSL else "gss"
            server = self._halves[Direction.SERVER]
            asked_before = server.first is None or self._answering  # what it sent unasked is no answer
            if server.mode is Mode.TYPED and asked_before:
                self._asked, self._request = encryption, frame.start
                server.mode = Mode.ANSWER
            out.append(_client_message("negotiate", frame, encryption, {"encryption": encryption}))
        elif code == CANCEL:
            (pid,) = struct.unpack_from("!I", rest)
            out.append(_client_message("cancel", frame, f"cancel {pid}", {"pid": pid}))
            half.ignore()
        elif code[:2] == b"\0\3":
            half.mode = Mode.TYPED
            self._shared.requests.push(Request(Step.START, frame.start, frame.end - frame.start))
            parameters = postgres_fields.startup(rest)
            version = f"3.{int.from_bytes(code[2:], 'big')}"
            self._shared.started(version, parameters)
            said = " ".join(f"{name}={value}" for name, value in parameters.items())
            attrs = {"version": version, "parameters": parameters}
            out.append(_client_message("startup", frame, said, attrs))
        else:
            half.ignore()
            raise ValueError("a start-up packet of another protocol")

    def _redactions(self, out: Output) -> None:
        secrets = self._halves[Direction.CLIENT].secrets
        if secrets:
            out += [Redaction(Direction.CLIENT, start, end, "password") for start, end in secrets]
            secrets.clear()


def _client_message(kind: str, frame: Frame, said: str, attrs: dict[str, Any]) -> Message:
    return Message(Direction.CLIENT, kind, frame.ts_ns, frame.start, frame.end, said, attrs, None, (), frame.end_ns)


def _flawed(
    direction: Direction, frame: Frame, *flags: str, kind: str = "malformed", attrs: dict[str, Any] | None = None
) -> Message:
    return Message(direction, kind, frame.ts_ns, frame.start, frame.end, "", attrs or {}, None, flags, frame.end_ns)
