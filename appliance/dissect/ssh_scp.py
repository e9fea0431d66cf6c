"""The protocol of rcp that `scp -t` and `scp -f` speak on an exec channel (scp.c of OpenSSH; it has no specification).

The source sends lines: `C0644 SIZE NAME` (a file; its bytes follow, and a zero), `D0755 0 NAME` (a folder begins), `E`
(it ends), `T...` (times). The sink answers each with a zero, or with 1 or 2 and a line that says what went wrong, as
the source itself may do too.

Messages: `copy` (a file, with all of its bytes; attrs name, path within the folders, size, mode), `folder` (attrs name,
path, mode), `error`.
"""

import re
from typing import Any, Final

from appliance.dissect import Output
from appliance.dissect.ssh_messages import shown
from appliance.model import Direction, Message

MAX_LINE: Final = 4096
MAX_FOLDERS: Final = 64  # in each other
_COMMAND: Final = re.compile(r"(?:^|[\s/;&|(])scp(?=\s)(?:\s+-\S+)*?\s+-[a-zA-Z]*([tf])(?:\s|$)")
_ENTRY: Final = re.compile(rb"([CD])([0-7]{4,5}) ([0-9]{1,18}) ([^\n]+)\n")


def source_of(command: str) -> Direction | None:
    """Who sends files, if `command` is an scp of the old protocol."""
    found = _COMMAND.search(command[:MAX_LINE])
    if found is None:
        return None
    return Direction.CLIENT if found.group(1) == "t" else Direction.SERVER


class Scp:
    """One copy. `receive` takes what a direction says, and where that lies in its stream."""

    def __init__(self, channel: int, source: Direction) -> None:
        self._channel = channel
        self._source = source
        self._lines = {Direction.CLIENT: bytearray(), Direction.SERVER: bytearray()}
        self._start = {Direction.CLIENT: (0, 0), Direction.SERVER: (0, 0)}  # place and time of the line's first byte
        self._left = 0  # bytes of the file that are to come, with the zero
        self._file: dict[str, Any] = {}
        self._folders: list[str] = []
        self._lost = False

    @property
    def held(self) -> int:
        return sum(map(len, self._lines.values())) + 60 * len(self._folders)

    def receive(self, direction: Direction, data: bytes, at: int, ts_ns: int) -> Output:
        out: Output = []
        place, size = 0, len(data)
        line = self._lines[direction]
        while place < size and not self._lost:
            if direction is self._source and self._left:
                step = min(self._left, size - place)
                self._left -= step
                place += step
                if not self._left:
                    out.append(self._copied(at + place, ts_ns))
                continue
            if not line:
                self._start[direction] = (at + place, ts_ns)
            if not line and data[place] == 0:
                place += 1
                continue
            end = data.find(b"\n", place)
            end = size if end < 0 else end + 1
            line += data[place:end]
            place = end
            if line[-1:] == b"\n":
                self._line(direction, bytes(line), at + place, ts_ns, out)
                line.clear()
            elif len(line) > MAX_LINE:
                self._lost = True
                out.append(self._said(direction, "malformed", at + place, ts_ns, "", {}, ("malformed",)))
        return out

    def end(self, direction: Direction, at: int, ts_ns: int) -> Output:
        """The channel is closed: a file may be cut."""
        if direction is not self._source or not self._left:
            return []
        missing, self._left = self._left, 0
        message = self._copied(at, ts_ns, missing)
        return [message]

    def _line(self, direction: Direction, line: bytes, end: int, ts_ns: int, out: Output) -> None:
        entry = _ENTRY.fullmatch(line)
        if line[0] in b"\1\2":
            out.append(
                self._said(direction, "error", end, ts_ns, shown(line[1:]).rstrip("\n"), {"fatal": line[0] == 2})
            )
        elif direction is not self._source or line[:1] == b"T":
            return
        elif line == b"E\n":
            del self._folders[-1:]
        elif entry is None:
            self._lost = True
            out.append(self._said(direction, "malformed", end, ts_ns, "", {}, ("malformed",)))
        else:
            name = shown(entry.group(4))
            attrs = {"name": name, "path": "/".join([*self._folders, name]), "mode": entry.group(2).decode()}
            if entry.group(1) == b"D":
                if len(self._folders) < MAX_FOLDERS:
                    self._folders.append(name[:255])
                out.append(self._said(direction, "folder", end, ts_ns, attrs["path"], attrs))
            else:
                self._file = {**attrs, "size": int(entry.group(3))}
                self._left = self._file["size"] + 1

    def _copied(self, end: int, ts_ns: int, missing: int = 0) -> Message:
        text = f"{self._file['path']} {self._file['size']} bytes"
        return self._said(self._source, "copy", end, ts_ns, text, self._file, ("truncated",) if missing else ())

    def _said(
        self, direction: Direction, kind: str, end: int, ts_ns: int, text: str, attrs: dict[str, Any],
        flags: tuple[str, ...] = (),
    ) -> Message:  # fmt: skip
        start, begun_ns = self._start[direction]
        attrs = {"channel": self._channel, **attrs}
        return Message(direction, kind, begun_ns, start, end, text, attrs, None, flags, ts_ns)
