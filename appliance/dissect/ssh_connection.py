"""What the messages of an SSH connection say (RFC 4252, RFC 4254, RFC 4256): log-in, channels, requests and answers.

In: messages, whole and in order. Out: what `ssh_relayed` lists. What is said on channels is `ssh_channels`' matter.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Final

from appliance.dissect import Output
from appliance.dissect import ssh_messages as ssh
from appliance.dissect.ssh_channels import Channel, Talk
from appliance.dissect.ssh_messages import Parsed
from appliance.model import Direction, Message, Redaction

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


class Connection:
    """The messages of both directions."""

    def __init__(self) -> None:
        self.attrs: dict[str, Any] = {}
        self._unpaired_prompt = False  # one for a password may have been on channels whose opening was not seen
        self._channels: dict[tuple[Direction, int], Channel] = {}  # by who says it, and the number that it says
        self._opening: dict[tuple[Direction, int], Channel] = {}
        self._waiting: list[tuple[str, int]] = []  # global requests
        self._login: tuple[str, str, int] = ("", "", 0)  # user, method and place of the last request
        self._talk = Talk()

    @property
    def held(self) -> int:
        channels = {id(one): one.held for one in (*self._channels.values(), *self._opening.values())}
        return sum(channels.values()) + self._talk.held

    @property
    def prompted(self) -> bool:
        """Whether what is typed next may be a secret."""
        return any(channel.prompted for channel in self._channels.values())

    def resume(self, prompted: bool) -> None:
        """Channels were opened before this began, and a prompt for a password may have been on one of them."""
        self._unpaired_prompt |= prompted

    def shed(self) -> Output:
        """Runs end here. Answers to what waits have no `reply_to`."""
        for channel in self._channels.values():
            channel.shed()
        return [item for direction in Direction for item in self._talk.flush(direction)]

    def flush(self, direction: Direction) -> Output:
        """The run of this direction ends."""
        return self._talk.flush(direction)

    def end(self, direction: Direction, at: int, ts_ns: int) -> Output:
        """A direction says nothing more, on any channel."""
        return [item for channel in list(self._channels.values()) for item in channel.end(direction, at, ts_ns)]

    # -- messages --------------------------------------------------------------------------------------------------

    def take(
        self, direction: Direction, payload: bytes, start: int, end: int, times: tuple[int, int], out: Output
    ) -> None:
        """`start` and `end`: its place in the stream, with its length. `times`: when its first and last byte came."""
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
            if kind != "input" and channel.start < 0 and channel.prompted:
                self._expect_secret()
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
            if self._unpaired_prompt or any(one.start < 0 and one.prompted for one in self._channels.values()):
                channel.expect_secret()
            self._know_channel(direction, number, channel)
        return channel

    def _expect_secret(self) -> None:
        """Of a channel whose opening was not seen nobody knows which number the other side gives it."""
        for channel in self._channels.values():
            if channel.start < 0:
                channel.expect_secret()

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
