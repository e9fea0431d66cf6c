r"""SSH as a relay records it: the connection protocol in clear, without packets, key exchange and padding.

# Format, version 1

Each direction's stream begins with the line

    SSH-RELAYED-1\r\n

and goes on with messages: a `uint32` (big-endian) that says how many bytes follow, and the payload of an SSH message as
the RFC has it, its number first. `ssh_messages` writes and reads these. The stream MUST hold, as they were said by
the agent (client) and to it (server):

    50 USERAUTH_REQUEST         RFC 4252 §5; a password is as many asterisks as it has bytes
    51 USERAUTH_FAILURE, 52 USERAUTH_SUCCESS, 53 USERAUTH_BANNER
    60 USERAUTH_INFO_REQUEST, 61 USERAUTH_INFO_RESPONSE   RFC 4256 §3; answers are asterisks too
    80 GLOBAL_REQUEST, 81 REQUEST_SUCCESS, 82 REQUEST_FAILURE
    90 CHANNEL_OPEN, 91 OPEN_CONFIRMATION, 92 OPEN_FAILURE
    94 DATA, 95 EXTENDED_DATA, 96 EOF, 97 CLOSE, 98 CHANNEL_REQUEST, 99 CHANNEL_SUCCESS, 100 CHANNEL_FAILURE
    1 DISCONNECT

It MAY hold 93 WINDOW_ADJUST. It SHOULD hold, behind the last byte of a file, the direction's other messages aside,

    192 FILE                    string path, string direction ("upload" or "download"), uint64 bytes, string sha256

where sha256 is that of the bytes as they passed, in 64 hexadecimal digits; "" where they were not passed in order.
A message MUST NOT be longer than 1 MiB. Channel numbers are those of the agent's leg.

    53 53 48 2d 52 45 4c 41 59 45 44 2d 31 0d 0a    SSH-RELAYED-1
    00 00 00 0c                                     12 bytes
    5e 00 00 00 00 00 00 00 03 6c 73 0a             DATA, channel 0, 3 bytes: ls\n

# Messages

`authentication` (attrs user, method), `authentication-failed` (methods, partial), `authenticated`, `banner`; `open`
(type, address, port), `opened`, `refused` (reason, description); `terminal` (term, columns, rows), `environment`,
`shell`, `exec` (command), `subsystem` (name), `resize`, `signal`, `exit` (status or signal), `request`;
`global-request`; `success` and `failure` of these, by `reply_to`; `eof`, `close`, `disconnect`; `file` (path,
direction, bytes, sha256); `malformed`, `undissected`. What is said on channels: see `ssh_channels`, `ssh_sftp` and
`ssh_scp`.
Session attrs: user, method, authenticated.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Final

from appliance.dissect import Match, Output
from appliance.dissect import ssh_messages as ssh
from appliance.dissect.ssh_channels import Channel, Talk
from appliance.dissect.ssh_messages import Parsed
from appliance.model import Direction, Message, Redaction

START: Final = b"SSH-RELAYED-1\r\n"
MAX_MESSAGE: Final = 1 << 20
MAX_CHANNELS: Final = 1024
MAX_WAITING: Final = 64  # requests without an answer, of a channel or of the connection
MAX_TEXT: Final = 65536
_ASTERISKS: Final = frozenset(b"*")

_REASONS: Final = {
    1: "administratively prohibited",
    2: "connect failed",
    3: "unknown channel type",
    4: "resource shortage",
}
_KINDS: Final = {
    "pty-req": "terminal", "env": "environment", "shell": "shell", "exec": "exec", "subsystem": "subsystem",
    "window-change": "resize", "signal": "signal", "exit-status": "exit", "exit-signal": "exit",
}  # fmt: skip


class _Side:
    """One direction: the message in progress."""

    def __init__(self, offset: int) -> None:
        self.received = offset
        self.buffer = bytearray()
        self.ts_ns = 0
        self.need = len(START)
        self.begun = False  # START was there
        self.broken = False  # it is no such stream: nothing is read any more
        self.lost_from: int | None = None
        self.lost_ns = 0

    @property
    def offset(self) -> int:
        return self.received - len(self.buffer)


def frame(payload: bytes) -> bytes:
    """A message as it lies in the stream."""
    return len(payload).to_bytes(4) + payload


class SshRelayed:
    """One session."""

    protocol = "ssh"
    opaque = False
    successor: str | None = None

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        self.attrs: dict[str, Any] = {}
        self._sides = {Direction.CLIENT: _Side(client_offset), Direction.SERVER: _Side(server_offset)}
        self._channels: dict[tuple[Direction, int], Channel] = {}  # by who says it, and the number that it says
        self._opening: dict[tuple[Direction, int], Channel] = {}
        self._waiting: list[tuple[str, int]] = []  # global requests
        self._login: tuple[str, str, int] = ("", "", 0)  # user, method and place of the last request
        self._talk = Talk()

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        first = client or server
        if first.startswith(START):
            return Match.YES
        return Match.MORE if first and START.startswith(first) else Match.NO

    # -- input -----------------------------------------------------------------------------------------------------

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        side = self._sides[direction]
        side.received += len(data)
        out: Output = []
        if side.lost_from is not None and not self._found(side, data, direction, ts_ns, out):
            return out
        if not side.buffer:
            side.ts_ns = ts_ns
        side.buffer += data
        if len(side.buffer) < side.need:
            return out
        whole = bytes(side.buffer)
        base = side.offset
        at, size = 0, len(whole)
        if not side.begun:
            side.begun = True
            if whole.startswith(START):
                at = len(START)
                side.ts_ns = ts_ns
            else:
                self._malformed(direction, side, base, ts_ns, out)
                return out
        while size - at >= 4:
            length = int.from_bytes(whole[at : at + 4])
            if not 0 < length <= MAX_MESSAGE:
                self._malformed(direction, side, base + at, ts_ns, out)
                return out
            end = at + 4 + length
            if end > size:
                break
            self._take(direction, whole[at + 4 : end], base + at, base + end, (side.ts_ns, ts_ns), out)
            at = end
            side.ts_ns = ts_ns
        side.need = 4 if size - at < 4 else 4 + length
        side.buffer = bytearray(whole[at:])
        return out

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        side = self._sides[direction]
        out = self._cut(direction, side, ts_ns)
        side.received += length
        if side.lost_from is None:
            side.lost_from, side.lost_ns = side.received, ts_ns
        return out

    def close(self, direction: Direction, ts_ns: int) -> Output:
        side = self._sides[direction]
        out = self._cut(direction, side, ts_ns)
        if side.lost_from is not None and side.lost_from < side.received:
            out.append(_lost(direction, side.lost_from, side.received, side.lost_ns, ts_ns))
            side.lost_from = side.received
        for channel in list(self._channels.values()):
            out += channel.end(direction, side.received, ts_ns)
        return out

    def settled(self, direction: Direction) -> int:
        return self._sides[direction].offset

    @property
    def held(self) -> int:
        channels = {id(one): one.held for one in (*self._channels.values(), *self._opening.values())}
        return sum(channels.values()) + self._talk.held + sum(len(side.buffer) for side in self._sides.values())

    def shed(self) -> Output:
        """Runs end here. Answers to what waits have no `reply_to`."""
        for channel in self._channels.values():
            channel.shed()
        return [item for direction in Direction for item in self._talk.flush(direction)]

    # -- what is not whole -----------------------------------------------------------------------------------------

    def _malformed(self, direction: Direction, side: _Side, at: int, ts_ns: int, out: Output) -> None:
        out += self._talk.flush(direction)
        flags = ("malformed",)
        out.append(Message(direction, "malformed", side.ts_ns, at, at + 1, "", {}, None, flags, ts_ns))
        side.buffer.clear()
        side.lost_from, side.lost_ns = at + 1, ts_ns
        side.broken = True

    def _cut(self, direction: Direction, side: _Side, ts_ns: int) -> Output:
        out = self._talk.flush(direction)
        if side.buffer:
            start, flags = side.offset, ("truncated",)
            out += self._hide(direction, side)
            out.append(Message(direction, "malformed", side.ts_ns, start, side.received, "", {}, None, flags, ts_ns))
            side.buffer.clear()
        return out

    @staticmethod
    def _hide(direction: Direction, side: _Side) -> Output:
        """A log-in or what is typed may hold a password: of a part of a message it can't be told."""
        if len(side.buffer) <= 5 or direction is Direction.SERVER:
            return []
        return [Redaction(direction, side.offset + 5, side.received, "unread")]

    def _found(self, side: _Side, data: bytes, direction: Direction, ts_ns: int, out: Output) -> bool:
        """Whether dissection goes on with these bytes: behind a gap, at what looks like a message."""
        start = side.received - len(data)
        length = int.from_bytes(data[:4])
        if side.broken or len(data) < 5 or not 0 < length <= MAX_MESSAGE or data[4] not in ssh.LAYOUTS:
            return False
        if side.lost_from is not None and side.lost_from < start:
            out.append(_lost(direction, side.lost_from, start, side.lost_ns, ts_ns))
        side.lost_from = None
        side.begun, side.need = True, 4
        return True

    # -- messages --------------------------------------------------------------------------------------------------

    def _take(
        self, direction: Direction, payload: bytes, start: int, end: int, times: tuple[int, int], out: Output
    ) -> None:
        number = payload[0]
        if number == ssh.WINDOW_ADJUST:
            return
        try:
            parsed = ssh.parse(payload)
        except ValueError:
            out += self._talk.flush(direction)
            known = number in ssh.LAYOUTS
            flaw = ("malformed",) if known else ("undecoded",)
            kind = "malformed" if known else "undissected"
            out.append(Message(direction, kind, times[0], start, end, "", {"number": number}, None, flaw, times[1]))
            return
        if number in (ssh.DATA, ssh.EXTENDED_DATA):
            channel = self._channel(direction, parsed.fields["recipient"])
            kind = "input" if direction is channel.opener else "output"
            if number == ssh.EXTENDED_DATA:
                kind = "error-output"
            data, at = parsed.fields["data"], start + 4 + parsed.places["data"][0]
            out += self._talk.say(channel, direction, kind, data, (start, end), at, times)
            return
        out += self._talk.flush(direction)
        said = self._READERS[number](self, direction, parsed, start, out)
        if said is None:
            return
        kind, text, attrs, reply_to = said
        flags: tuple[str, ...] = ()
        if len(text) > MAX_TEXT:
            text, flags = text[:MAX_TEXT], ("truncated",)
        out.append(Message(direction, kind, times[0], start, end, text, attrs, reply_to, flags, times[1]))
        if number in (ssh.EOF, ssh.CLOSE):
            channel = self._channel(direction, parsed.fields["recipient"])
            out += channel.end(direction, start, times[1])
        if number == ssh.CLOSE:
            self._closed(direction, parsed.fields["recipient"])

    def _channel(self, direction: Direction, number: int) -> Channel:
        channel = self._channels.get((direction, number))
        if channel is None:  # how it was opened is lost
            channel = Channel(number, "", -1, Direction.CLIENT)
            self._know_channel(direction, number, channel)
        return channel

    def _know_channel(self, direction: Direction, number: int, channel: Channel) -> None:
        if len(self._channels) >= 2 * MAX_CHANNELS:
            del self._channels[next(iter(self._channels))]
        self._channels[direction, number] = channel

    def _closed(self, direction: Direction, number: int) -> None:
        """Forgotten once both sides closed it."""
        channel = self._channels.pop((direction, number), None)
        if channel is not None:
            channel.closed.add(direction)

    # -- log-in ----------------------------------------------------------------------------------------------------

    def _authentication(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        fields = parsed.fields
        user, method = fields["user"][:256], fields["method"][:64]
        attrs: dict[str, Any] = {"user": user, "method": method}
        for name in ("password", "changed"):
            self._secret(direction, parsed, name, start, out)
        if "key" in fields:
            attrs["algorithm"] = fields["algorithm"][:64]
            attrs["signed"] = fields["signed"]
        self._login = (user, method, start)
        return "authentication", f"{user} {method}", attrs, None

    def _responses(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        place = parsed.places["responses"][0]
        for response in parsed.fields["responses"]:
            place += 4
            self._redact(direction, response, start + 4 + place, out)
            place += len(response)
        attrs = {"user": self._login[0], "method": self._login[1], "responses": len(parsed.fields["responses"])}
        return "authentication", f"{self._login[0]} {self._login[1]}", attrs, None

    def _asked(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        fields = parsed.fields
        prompts = [text[:256] for text, _ in fields["prompts"]]
        text = " ".join(one for one in (fields["name"], fields["instruction"], *prompts) if one)
        return "authentication", text, {"prompts": prompts}, self._login[2]

    def _failed(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        fields = parsed.fields
        attrs = {"methods": fields["methods"].split(",")[:64], "partial": fields["partial"]}
        user, method, asked = self._login
        return "authentication-failed", f"{user} {method}", attrs, asked

    def _authenticated(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        user, method, asked = self._login
        self.attrs = {**self.attrs, "user": user, "method": method, "authenticated": True}
        return "authenticated", f"{user} {method}", {"user": user, "method": method}, asked

    def _banner(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        return "banner", parsed.fields["text"], {}, None

    def _secret(self, direction: Direction, parsed: Parsed, name: str, start: int, out: Output) -> None:
        if parsed.fields.get(name):
            self._redact(direction, parsed.fields[name], start + 4 + parsed.places[name][0], out)

    @staticmethod
    def _redact(direction: Direction, value: bytes, at: int, out: Output) -> None:
        """The relay has written asterisks; if it has not, they are put here."""
        if value and not _ASTERISKS.issuperset(value):
            out.append(Redaction(direction, at, at + len(value), "password"))

    # -- connections -----------------------------------------------------------------------------------------------

    def _disconnect(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        fields = parsed.fields
        return "disconnect", fields["description"], {"reason": fields["reason"]}, None

    def _global(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        fields = parsed.fields
        attrs = {name: _json(fields[name]) for name in fields if name not in ("want_reply", "data")}
        if fields["want_reply"]:
            self._waiting = [*self._waiting[1 - MAX_WAITING :], (fields["name"][:64], start)]
        return "global-request", _joined(attrs), attrs, None

    def _global_answer(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        return self._answered(self._waiting, parsed.number == ssh.REQUEST_SUCCESS, {})

    @staticmethod
    def _answered(waiting: list[tuple[str, int]], success: bool, attrs: dict[str, Any]) -> "Said":
        asked, reply_to = waiting.pop(0) if waiting else ("", None)
        kind = "success" if success else "failure"
        return kind, f"{asked} {'accepted' if success else 'refused'}".strip(), {**attrs, "request": asked}, reply_to

    def _open(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        fields = parsed.fields
        number = fields["sender"]
        channel = Channel(number, fields["type"][:64], start, direction)
        if len(self._opening) < MAX_CHANNELS:
            self._opening[direction, number] = channel
        left = ("sender", "window", "maximum", "data", "reserved", "reserved_port")
        attrs = {"channel": number, **{name: _json(fields[name]) for name in fields if name not in left}}
        said = {
            name: value for name, value in attrs.items() if name not in ("channel", "originator", "originator_port")
        }
        return "open", _joined(said), attrs, None

    def _opened(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        fields = parsed.fields
        channel = self._opening.pop((direction.other, fields["recipient"]), None)
        if channel is None:
            return "opened", "", {"channel": fields["recipient"]}, None
        self._know_channel(direction, fields["recipient"], channel)
        self._know_channel(direction.other, fields["sender"], channel)
        return "opened", channel.kind, {"channel": channel.number}, channel.start

    def _refused(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        fields = parsed.fields
        channel = self._opening.pop((direction.other, fields["recipient"]), None)
        reason = _REASONS.get(fields["reason"], str(fields["reason"]))
        kind = "" if channel is None else channel.kind
        text = f"{kind} refused: {reason}: {fields['description'][:1024]}"
        attrs = {"channel": fields["recipient"], "reason": reason, "description": fields["description"][:1024]}
        return "refused", text.strip(), attrs, None if channel is None else channel.start

    def _request(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        fields = parsed.fields
        channel = self._channel(direction, fields["recipient"])
        kind = fields["type"]
        if fields["want_reply"]:
            channel.waiting = [*channel.waiting[1 - MAX_WAITING :], (kind[:64], start)]
        channel.terminal = channel.terminal or kind == "pty-req"
        channel.started(kind, fields.get("command", fields.get("name", "")))
        left = ("recipient", "type", "want_reply", "modes", "data", "cookie")
        said = {name: _json(fields[name]) for name in fields if name not in left}
        attrs = {"channel": channel.number, **said}
        if kind not in _KINDS:
            said = attrs["request"] = kind[:64]
            return "request", kind[:64], attrs, None
        text = f"{said['columns']}x{said['rows']}" if "columns" in said else _joined(said)
        if kind == "pty-req":
            text = f"{said['term']} {text}"
        elif kind == "env":
            text = f"{said['name']}={said['value']}"
        elif kind == "exit-status":
            text = f"exit status {said['status']}"
        elif kind == "exit-signal":
            text = f"exit signal {said['signal']} {said['error']}".strip()
        return _KINDS[kind], text, attrs, channel.start if _KINDS[kind] == "exit" and channel.start >= 0 else None

    def _request_answer(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        channel = self._channel(direction, parsed.fields["recipient"])
        return self._answered(channel.waiting, parsed.number == ssh.CHANNEL_SUCCESS, {"channel": channel.number})

    def _ended(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        channel = self._channel(direction, parsed.fields["recipient"])
        return ("eof" if parsed.number == ssh.EOF else "close"), "", {"channel": channel.number}, None

    def _file(self, direction: Direction, parsed: Parsed, start: int, out: Output) -> "Said":
        fields = parsed.fields
        attrs = {name: _json(fields[name]) for name in ("path", "direction", "bytes", "sha256")}
        return "file", f"{fields['direction']} {fields['path']} {fields['bytes']} bytes {fields['sha256']}", attrs, None

    _READERS: ClassVar[dict[int, Callable[..., "Said"]]] = {
        ssh.DISCONNECT: _disconnect, ssh.USERAUTH_REQUEST: _authentication, ssh.USERAUTH_FAILURE: _failed,
        ssh.USERAUTH_SUCCESS: _authenticated, ssh.USERAUTH_BANNER: _banner, ssh.USERAUTH_INFO_REQUEST: _asked,
        ssh.USERAUTH_INFO_RESPONSE: _responses, ssh.GLOBAL_REQUEST: _global, ssh.REQUEST_SUCCESS: _global_answer,
        ssh.REQUEST_FAILURE: _global_answer, ssh.CHANNEL_OPEN: _open, ssh.OPEN_CONFIRMATION: _opened,
        ssh.OPEN_FAILURE: _refused, ssh.EOF: _ended, ssh.CLOSE: _ended, ssh.CHANNEL_REQUEST: _request,
        ssh.CHANNEL_SUCCESS: _request_answer, ssh.CHANNEL_FAILURE: _request_answer, ssh.FILE: _file,
    }  # fmt: skip


Said = tuple[str, str, dict[str, Any], int | None]  # kind, text, attrs, reply_to


def _joined(said: dict[str, Any]) -> str:
    return " ".join(str(value) for value in said.values() if value != "")


def _json(value: Any) -> Any:
    """A field as an attribute: short, and JSON."""
    if isinstance(value, bytes):
        return ssh.shown(value[:4096])
    if isinstance(value, int) and not isinstance(value, bool):
        return min(value, (1 << 63) - 1)
    return value[:MAX_TEXT] if isinstance(value, str) else value


def _lost(direction: Direction, start: int, end: int, ts_ns: int, end_ns: int) -> Message:
    return Message(direction, "undissected", ts_ns, start, end, "", {}, None, ("undecoded",), end_ns)
