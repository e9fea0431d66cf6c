"""MySQL and MariaDB: the client/server protocol, version 10 (MySQL 4.1 to 9, MariaDB 5.1 to 12).

    client                                         server
                                   ◄──────── greeting, or an error
    SSLRequest ───────────────────────────────►    what follows is TLS: both directions go to the successor `tls`;
                                                   or, where TLS was taken off on the way, goes on in plain
    handshake response ───────────────────────►    authentication, see mysql_client and mysql_server
                                   ◄──────── OK, or an error
    commands ─────────────────────────────────►    answers, in order
    any ── compression agreed on ── OK ───────►    nothing is read any more; one message `undissected` a direction
    any ── `MAX_FLAWS` packets that don't fit ►    this direction is not read any more
    any ── gap ───────────────────────────────►    goes on behind the packet it fell into, or at the next plausible one

Kinds of the client's messages: `negotiate` `startup` `change-user` `authentication` `query` `prepare` `bind` `command`
`replication` `copy` `copy-done` `terminate`; of the server's: `greeting` `authentication` `authenticated` `prepared`
`rows` `result` `copy-start` `copy` `error` `notice`; of both: `malformed` (does not fit its layout; flag `truncated`
alone: the end is missing) and `undissected` (compressed, or between a gap and the place where dissection goes on).

Redacted: `password`, which is every authentication response of the client, in clear, encrypted or as a hash, of any
method; at most `MAX_REDACTED` bytes. Known by where they are: in the first packets, in COM_CHANGE_USER, and in packets
whose sequence number goes on with the server's.
"""

import struct
from typing import Any, Final

from appliance.dissect import Match, Output, Torn, mysql_fields
from appliance.dissect import mysql_session as session
from appliance.dissect.mysql_client import ClientSide
from appliance.dissect.mysql_frames import HEADER, is_turn
from appliance.dissect.mysql_half import MAX_CREDENTIAL, Half, Mode, before_user
from appliance.dissect.mysql_server import ServerSide
from appliance.dissect.mysql_session import Shared
from appliance.dissect.sql_frames import LOST, Frame
from appliance.model import Direction, Message, Redaction

MAX_FLAWS = 16  # packets in a row that don't fit
END: Final = 1 << 62  # behind every offset
_RECORD: Final = (b"\x15\x03", b"\x16\x03")  # TLS: an alert, a handshake


class Mysql:
    """One connection."""

    protocol = "mysql"

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self.opaque = False
        self.successor: str | None = None
        self._shared = Shared()
        self._halves = {
            Direction.CLIENT: Half(client_offset, client=True),
            Direction.SERVER: Half(server_offset, client=False),
        }
        self._client = ClientSide(self._shared)
        self._server = ServerSide(self._shared)
        self._flaws = {Direction.CLIENT: 0, Direction.SERVER: 0}
        self._unseen = False  # the client's first byte may lie within a packet
        self._spoke = Direction.SERVER  # last

    @property
    def attrs(self) -> dict[str, Any]:
        return self._shared.attrs

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        return mysql_fields.detect(client, server)

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        if self.successor is not None:
            return []
        half = self._halves[direction]
        out: Output = []
        turned, self._spoke = self._spoke is not direction, direction
        if half.mode is Mode.SEARCHING and direction is Direction.CLIENT and turned and is_turn(data):
            half.begin()
        if self._shared.logged_in and not half.login and not half.unsure:
            self._take_all(direction, half.read(data, ts_ns), out)
        else:
            half.feed(data, ts_ns)
            self._read(direction, out)
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        if self.successor is not None:
            return []
        half = self._halves[direction]
        out: Output = []
        half.gap(length, ts_ns)
        self._read(direction, out)
        if half.mode is Mode.SEARCHING:
            self._lose(out)
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        out: Output = []
        if self.successor is not None:
            return out
        self._take_all(direction, self._halves[direction].close(ts_ns), out)
        out += self._client.end() if direction is Direction.CLIENT else self._server.end()
        return out

    def settled(self, direction: Direction) -> int:
        return self._halves[direction].settled()

    def guarded(self, direction: Direction) -> int:
        """All of the client's bytes until log-in is over, and while its user changes."""
        shared = self._shared
        over = direction is Direction.SERVER or (
            shared.logged_in and not shared.changes and not self._halves[direction].login
        )
        return END if over else self._halves[direction].settled()

    def torn(self, direction: Direction) -> Torn:
        half = self._halves[direction]
        if direction is Direction.SERVER:
            return Torn()
        guarded = half.login or half.inside or not self._shared.logged_in or self._shared.changing
        return Torn(size=MAX_CREDENTIAL if guarded else 0)

    def resume(self, direction: Direction, torn: Torn | None) -> None:
        """A stream that was recognised by a message begins with it; else a place to go on is searched for."""
        if torn is None:
            if direction is Direction.CLIENT:
                self._unseen = self._halves[direction].unsure = True
            return
        self.attrs["midstream"] = True
        self._shared.logged_in = True
        half = self._halves[direction]
        half.login = False
        half.search(torn.size)
        self._shared.lose()
        self._server.lose()

    def rest(self, direction: Direction) -> bytes:
        """Bytes for the successor."""
        return self._halves[direction].rest()

    @property
    def held(self) -> int:
        sides = self._client.held + self._server.held + self._shared.held
        return sides + sum(half.held for half in self._halves.values())

    def shed(self) -> Output:
        """Statements are forgotten: what refers to them is `unresolved`."""
        self._shared.forget()
        return []

    # -- reading ---------------------------------------------------------------------------------------------------

    def _read(self, direction: Direction, out: Output) -> None:
        """One frame after the other: each may change how the next one is to be read."""
        half = self._halves[direction]
        while self.successor is None:
            if half.unsure and not (self._seen(half) if self._unseen and half.login else self._plain(half)):
                break
            frame = half.next()
            if frame is None:
                break
            self._take(direction, frame, out)
        self._told(direction, out)

    def _seen(self, half: Half) -> bool:
        """Whether the client's first bytes are its first packet, or that was missed, as far as can be told."""
        verdict = mysql_fields.detect(half.rest(), b"")
        if verdict is Match.MORE:
            return False
        self._unseen = half.unsure = False
        if verdict is Match.NO:
            self.attrs["midstream"] = True
            half.search(MAX_CREDENTIAL)
            self._shared.lose()
        return True

    def _plain(self, half: Half) -> bool:
        """Whether what follows a request for TLS is not TLS; where it is, it goes to the successor."""
        begun = half.rest()[:3]
        if len(begun) < 3:
            if any(kind.startswith(begun[:2]) for kind in _RECORD):
                return False
        elif begun[:2] in _RECORD and 1 <= begun[2] <= 4:
            self.successor, self.opaque = "tls", True
            return False
        half.unsure = False
        if half is self._halves[Direction.CLIENT]:
            self._halves[Direction.SERVER].unsure = False
        return True

    def _take_all(self, direction: Direction, frames: list[Frame], out: Output) -> None:
        for frame in frames:
            self._take(direction, frame, out)
        self._told(direction, out)

    def _told(self, direction: Direction, out: Output) -> None:
        """What is to be redacted."""
        half = self._halves[direction]
        for start, end in self._client.secrets:
            half.redact(start, end)
        self._client.secrets.clear()
        if half.secrets:
            out += [Redaction(direction, start, end, "password") for start, end in half.secrets]
            half.secrets.clear()

    def _take(self, direction: Direction, frame: Frame, out: Output) -> None:
        if self._flaws[direction] >= MAX_FLAWS:
            return
        if frame.kind < 0:
            out += self._client.end() if direction is Direction.CLIENT else self._server.end()
            lost = frame.kind == LOST
            flags = ("undecoded",) if lost else ("truncated",)
            out.append(_flawed(direction, frame, *flags, kind="undissected" if lost else "malformed"))
            return
        try:
            fits = self._take_client(frame, out) if direction is Direction.CLIENT else self._take_server(frame, out)
        except (ValueError, IndexError, struct.error):
            fits = False
        if fits:
            self._flaws[direction] = 0
            return
        flags = ("truncated",) if frame.cut else ("malformed",)
        out.append(_flawed(direction, frame, *flags, attrs={"length": frame.end - frame.start}))
        self._flaws[direction] += 1
        half = self._halves[direction]
        if self._flaws[direction] >= MAX_FLAWS and half.mode is Mode.PACKETS:
            half.ignore(tainted=direction is Direction.CLIENT and half.login)

    def _take_client(self, frame: Frame, out: Output) -> bool:
        half, shared = self._halves[Direction.CLIENT], self._shared
        if half.login:
            return self._take_start(frame, out)
        if half.content:
            half.content = self._client.content(frame, out)
            return True
        if not frame.kind:
            if shared.lost:
                self._found(out)
            return self._client.take(frame, out)
        self._client.answer(frame, out)
        return True

    def _take_server(self, frame: Frame, out: Output) -> bool:
        shared = self._shared
        before = shared.logged_in
        fits = self._server.take(frame, out)
        if shared.logged_in and not before:
            self._compressed(frame, out)
        if shared.file is not None and not shared.changing:
            self._halves[Direction.CLIENT].content = True
        return fits

    def _take_start(self, frame: Frame, out: Output) -> bool:
        half = self._halves[Direction.CLIENT]
        secrets = len(self._client.secrets)
        try:
            encrypted = self._client.start(frame, out)
        except (ValueError, IndexError, struct.error):
            half.login = False
            if len(self._client.secrets) == secrets and not frame.cut:
                harmless = before_user(bytes(HEADER) + frame.body)
                self._client.secrets.append((min(frame.start + harmless, frame.end), frame.end))
            return False
        if encrypted:
            half.unsure = self._halves[Direction.SERVER].unsure = True
        else:
            half.login = False
        return True

    # -- turns -----------------------------------------------------------------------------------------------------

    def _lose(self, out: Output) -> None:
        self._shared.lose()
        out += self._client.end()
        out += self._server.lose()

    def _found(self, out: Output) -> None:
        """The first command behind a gap: the server's next packet answers it."""
        self._shared.lost = False
        self._shared.logged_in = True
        server = self._halves[Direction.SERVER]
        server.begin()
        out += self._server.asked()
        frames = server.all()
        for frame in frames:
            self._take(Direction.SERVER, frame, out)

    def _compressed(self, frame: Frame, out: Output) -> None:
        """Whether log-in has ended with compression."""
        capabilities = self._shared.capabilities
        if capabilities == session.UNKNOWN or not capabilities & (session.COMPRESS | session.ZSTD):
            return
        method = "zlib" if capabilities & session.COMPRESS else "zstd"
        self.attrs["compression"] = method
        for direction, half in self._halves.items():
            attrs = {"compression": method}
            start = frame.end if direction is Direction.SERVER else half.settled()
            ts_ns = frame.end_ns or frame.ts_ns
            out.append(Message(direction, "undissected", ts_ns, start, start, "", attrs, None, ("undecoded",), ts_ns))
            half.ignore()


def _flawed(
    direction: Direction, frame: Frame, *flags: str, kind: str = "malformed", attrs: dict[str, Any] | None = None
) -> Message:
    return Message(direction, kind, frame.ts_ns, frame.start, frame.end, "", attrs or {}, None, flags, frame.end_ns)
