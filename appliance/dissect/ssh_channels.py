"""What is said on one SSH channel: a terminal, a command's input and output, files.

Bytes of a channel become runs, one message each: `input`, `output`, `error-output`. A run ends with a turn of
direction, a pause, at `MAX_RUN`, or where anything else is said in its direction. On a terminal input is cut into
lines instead, and their echo does not end them. Its text is what a person could read; attrs: channel, bytes, dense
(see `Raw`).

What is typed behind a prompt for a password is redacted up to the end of the line, at most `MAX_SECRET` bytes.
"""

import re
from typing import Any, Final

import msgspec

from appliance.dissect import Output
from appliance.dissect.raw import is_dense
from appliance.dissect.ssh_scp import Scp, source_of
from appliance.dissect.ssh_sftp import Sftp
from appliance.dissect.ssh_terminal import readable
from appliance.model import Direction, Message, Redaction

MAX_RUN: Final = 65536  # bytes of one message
MAX_TYPED: Final = 4096  # bytes of a line that is typed
PAUSE_NS: Final = 1_000_000_000  # a longer silence ends a run
MAX_SECRET: Final = 1024
MAX_TAIL: Final = 200  # last bytes of the output, which may be a prompt

_PROMPT: Final = re.compile(
    r"(?:passw(?:or)?d|passphrase|passcode|\bPIN\b|token|secret)[^\n]{0,120}[:?>] ?\Z", re.IGNORECASE
)
_LINE: Final = re.compile(rb"[\r\n\x03\x04]")
_SECRET: Final = b"(redacted)"


class Run(msgspec.Struct):
    """Bytes of one direction that become a message."""

    kind: str
    channel: int
    start: int
    end: int
    ts_ns: int
    end_ns: int
    typed: bool  # cut into lines
    data: bytearray
    bytes: int = 0
    redacted: bool = False

    def message(self, direction: Direction) -> Message:
        attrs: dict[str, Any] = {"channel": self.channel, "bytes": self.bytes}
        data = bytes(self.data)
        if is_dense(data):
            attrs["dense"] = True
        text = "" if "dense" in attrs else readable(data)
        flags = ("redacted",) if self.redacted else ()
        return Message(direction, self.kind, self.ts_ns, self.start, self.end, text, attrs, None, flags, self.end_ns)


class Channel:
    """One channel. `number` is its opener's; `start` where that opened it, -1 if that was not seen."""

    def __init__(self, number: int, kind: str, start: int, opener: Direction) -> None:
        self.number = number
        self.kind = kind
        self.start = start
        self.opener = opener
        self.terminal = False
        self.closed: set[Direction] = set()
        self.waiting: list[tuple[str, int]] = []  # requests without an answer: what and where
        self._sftp: Sftp | None = None
        self._scp: Scp | None = None
        self._tail = b""
        self._hiding = 0  # bytes of a secret that may still come

    @property
    def held(self) -> int:
        inner = (self._sftp.held if self._sftp is not None else 0) + (self._scp.held if self._scp is not None else 0)
        return 800 + len(self._tail) + 100 * len(self.waiting) + inner

    @property
    def prompted(self) -> bool:
        """Whether what its opener says next may be a secret, or the rest of one."""
        return bool(self._hiding or _PROMPT.search(readable(self._tail)))

    def expect_secret(self) -> None:
        self._hiding = MAX_SECRET

    def started(self, kind: str, said: str) -> None:
        """A shell, a command or a subsystem was asked for."""
        if kind == "subsystem" and said == "sftp":
            self._sftp = Sftp(self.number)
        elif kind == "exec":
            source = source_of(said)
            if source is not None:
                self._scp = Scp(self.number, source)
            elif said.rstrip().endswith("sftp-server"):
                self._sftp = Sftp(self.number)

    def shed(self) -> None:
        """Memory is short: requests that wait are forgotten."""
        self.waiting = []
        if self._sftp is not None:
            self._sftp.shed()

    def end(self, direction: Direction, at: int, ts_ns: int) -> Output:
        """A direction says nothing more."""
        if self._scp is not None:
            return self._scp.end(direction, at, ts_ns)
        return self._sftp.end() if self._sftp is not None else []


class Talk:
    """The bytes of all channels, in order. `frame`: the range of the message that brings them, `at` where they lie."""

    def __init__(self) -> None:
        self._runs: dict[Direction, Run] = {}  # at most one of each direction

    @property
    def held(self) -> int:
        return sum(300 + len(run.data) for run in self._runs.values())

    def flush(self, direction: Direction) -> Output:
        run = self._runs.pop(direction, None)
        return [] if run is None else [run.message(direction)]

    def say(
        self,
        channel: Channel,
        direction: Direction,
        kind: str,
        data: bytes,
        frame: tuple[int, int],
        at: int,
        times: tuple[int, int],
    ) -> Output:
        """`times`: when the message's first and last byte came."""
        inner = channel._sftp or channel._scp
        if inner is not None and kind != "error-output":
            return self.flush(direction) + inner.receive(direction, data, at, times[1])
        out: Output = []
        if direction is channel.opener:
            self._input(channel, direction, data, frame, at, times, out)
        else:
            channel._tail = (channel._tail + data)[-MAX_TAIL:]
            channel._hiding = 0
            other = self._runs.get(direction.other)
            if other is not None and not other.typed and other.channel == channel.number:
                out += self.flush(direction.other)
            self._add(channel, direction, kind, data, frame, times, out)
        return out

    def _input(
        self, channel: Channel, direction: Direction, data: bytes, frame: tuple[int, int], at: int,
        times: tuple[int, int], out: Output,
    ) -> None:  # fmt: skip
        if channel._tail:
            if channel.prompted:
                channel.expect_secret()
            channel._tail = b""
        if not channel.terminal and not channel._hiding:
            out += self.flush(direction.other)
            self._add(channel, direction, "input", data, frame, times, out)
            return
        place, size = 0, len(data)
        while place < size:
            line = _LINE.search(data, place)
            end = size if line is None else line.end()
            part = data[place:end]
            # a message's header belongs to its first line, and what is behind its bytes to the last one
            first = frame[0] if not place else at + place
            last = frame[1] if end == size else at + end
            hidden = min(len(part.rstrip(b"\r\n\x03\x04")), channel._hiding)
            if hidden:
                out.append(Redaction(direction, at + place, at + place + hidden, "password"))
                channel._hiding -= hidden
            self._add(channel, direction, "input", part, (first, last), times, out, hidden)
            if line is not None:
                out += self.flush(direction.other)
                out += self.flush(direction)
                channel._hiding = 0
            place = end

    def _add(
        self, channel: Channel, direction: Direction, kind: str, data: bytes, frame: tuple[int, int],
        times: tuple[int, int], out: Output, hidden: int = 0,
    ) -> None:  # fmt: skip
        typed = channel.terminal and kind == "input"
        run = self._runs.get(direction)
        limit = MAX_TYPED if typed else MAX_RUN
        if run is not None and (
            run.kind != kind
            or run.channel != channel.number
            or run.bytes + len(data) > limit
            or (not typed and times[0] - run.end_ns > PAUSE_NS)
        ):
            out += self.flush(direction)
            run = None
        if run is None:
            run = Run(kind, channel.number, frame[0], frame[1], times[0], times[1], typed, bytearray())
            self._runs[direction] = run
        if hidden:
            if not run.redacted:
                run.data += _SECRET
            run.redacted = True
            run.data += data[hidden:]
        else:
            run.data += data
        run.bytes += len(data)
        run.end, run.end_ns = frame[1], times[1]
