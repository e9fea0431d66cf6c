"""SFTP on a channel: draft-ietf-secsh-filexfer-02 (version 3), and the extensions of OpenSSH's PROTOCOL file.

One message for each operation (`sftp`) and its answer (`sftp-reply`), but for reads and writes: those of one handle
that follow each other become one message (`sftp-read`, of the server; `sftp-write`, of the client), at most `MAX_RUN`
bytes of a file. At most `MAX_HEAD` bytes of a packet are looked at: that is all but the contents of files.

Attrs: operation, path (of a handle: what it was opened as), target (rename, symlink, link), flags (open), mode, size,
uid, gid, atime, mtime; status and code (of an answer); names (of a folder); bytes, offset (of a run), read and written
(of a close: bytes in all).
"""

from collections.abc import Hashable
from typing import Any, Final, TypeVar

import msgspec

from appliance.dissect import Output
from appliance.dissect.ssh_messages import Reader
from appliance.model import Direction, Message

MAX_PACKET: Final = 1 << 28  # bytes that a packet may say it has
MAX_HEAD: Final = 65536
MAX_RUN: Final = 1 << 20
MAX_WAITING: Final = 1024  # requests without an answer
MAX_HANDLES: Final = 1024
MAX_PATH: Final = 4096  # characters of a path that are kept
MAX_NAMES: Final = 256  # of one answer

OPEN, CLOSE, READ, WRITE, OPENDIR, EXTENDED = 3, 4, 5, 6, 11, 200
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED_REPLY = 101, 102, 103, 104, 105, 201
_OPERATIONS: Final = {
    1: ("init", ""), OPEN: ("open", "pfa"), CLOSE: ("close", "h"), READ: ("read", "h"), WRITE: ("write", "h"),
    7: ("lstat", "p"), 8: ("fstat", "h"), 9: ("setstat", "pa"), 10: ("fsetstat", "ha"), OPENDIR: ("opendir", "p"),
    12: ("readdir", "h"), 13: ("remove", "p"), 14: ("mkdir", "pa"), 15: ("rmdir", "p"), 16: ("realpath", "p"),
    17: ("stat", "p"), 18: ("rename", "pt"), 19: ("readlink", "p"), 20: ("symlink", "pt"),
}  # fmt: skip
_EXTENSIONS: Final = {
    "posix-rename@openssh.com": "pt", "hardlink@openssh.com": "pt", "statvfs@openssh.com": "p",
    "fstatvfs@openssh.com": "h", "fsync@openssh.com": "h", "lsetstat@openssh.com": "pa", "limits@openssh.com": "",
    "expand-path@openssh.com": "p",
}  # fmt: skip
_FLAGS: Final = ((1, "read"), (2, "write"), (4, "append"), (8, "create"), (16, "truncate"), (32, "exclusive"))
_STATUS: Final = (
    "OK", "end of file", "no such file", "permission denied", "failure", "bad message", "no connection",
    "connection lost", "operation unsupported",
)  # fmt: skip


class _Request(msgspec.Struct, gc=False):
    operation: str
    start: int
    path: str
    handle: bytes = b""
    offset: int = 0


class _Open(msgspec.Struct, gc=False):
    path: str
    read: int = 0
    written: int = 0


class _Run(msgspec.Struct):
    """Reads, or writes, of one handle."""

    path: str
    offset: int
    start: int
    end: int
    ts_ns: int
    end_ns: int
    reply_to: int | None
    bytes: int = 0


class _Packets:
    """One direction, cut into packets."""

    def __init__(self) -> None:
        self.head = bytearray()
        self.skip = 0
        self.start = 0
        self.ts_ns = 0
        self.lost = False


class Sftp:
    """One subsystem. `receive` takes what a direction says, and where that lies in its stream."""

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._sides = {Direction.CLIENT: _Packets(), Direction.SERVER: _Packets()}
        self._waiting: dict[int, _Request] = {}
        self._handles: dict[bytes, _Open] = {}
        self._runs: dict[Direction, _Run] = {}

    @property
    def held(self) -> int:
        heads = sum(len(side.head) for side in self._sides.values())
        waiting = sum(300 + len(one.path) + len(one.handle) for one in self._waiting.values())
        return heads + waiting + sum(300 + len(one.path) for one in self._handles.values())

    def receive(self, direction: Direction, data: bytes, at: int, ts_ns: int) -> Output:
        out: Output = []
        side = self._sides[direction]
        place, size = 0, len(data)
        while place < size and not side.lost:
            if side.skip:
                step = min(side.skip, size - place)
                side.skip -= step
                place += step
                if not side.skip:
                    self._packet(direction, at + place, ts_ns, out)
                continue
            if not side.head:
                side.start, side.ts_ns = at + place, ts_ns
            step = min(self._need(side) - len(side.head), size - place)
            side.head += data[place : place + step]
            place += step
            need = self._need(side)
            if len(side.head) == 4:
                if not 1 <= int.from_bytes(side.head) <= MAX_PACKET:
                    side.lost = True
                    out.append(
                        self._said(direction, "malformed", side, at + place, ts_ns, "", {}, flags=("malformed",))
                    )
                    side.head.clear()
            elif len(side.head) == need:
                side.skip = 4 + int.from_bytes(side.head[:4]) - need
                if not side.skip:
                    self._packet(direction, at + place, ts_ns, out)
        return out

    @staticmethod
    def _need(side: _Packets) -> int:
        head = side.head
        if len(head) < 4:
            return 4
        length = int.from_bytes(head[:4])
        if length > 5 and len(head) < 5:
            return 5
        limit = 64 if len(head) > 4 and head[4] == DATA else MAX_HEAD  # contents are not looked at
        if len(head) > 4 and head[4] == WRITE:
            limit = 512
        return 4 + min(length, max(limit, len(head) - 4))

    def shed(self) -> None:
        """Memory is short: answers to what waits have no `reply_to`."""
        self._waiting.clear()

    def end(self) -> Output:
        """The channel is closed."""
        out: Output = []
        for direction in Direction:
            self._flush(direction, out)
        return out

    # -- packets ---------------------------------------------------------------------------------------------------

    def _packet(self, direction: Direction, end: int, ts_ns: int, out: Output) -> None:
        side = self._sides[direction]
        head = bytes(side.head)
        side.head.clear()
        take = self._request if direction is Direction.CLIENT else self._reply
        try:
            take(side, Reader(head, 4), len(head) - 4 < int.from_bytes(head[:4]), end, ts_ns, out)
        except ValueError:
            self._flush(direction, out)
            flags = ("malformed",)
            out.append(self._said(direction, "malformed", side, end, ts_ns, "", {"type": head[4]}, flags=flags))

    def _request(self, side: _Packets, reader: Reader, cut: bool, end: int, ts_ns: int, out: Output) -> None:
        client = Direction.CLIENT
        kind = reader.byte()
        number = reader.uint32()
        if kind == WRITE:
            self._write(side, reader, number, end, ts_ns, out)
            return
        if kind != READ:
            self._flush(client, out)
        operation, layout = _OPERATIONS.get(kind, ("", ""))
        if kind == EXTENDED:
            operation = reader.text()
            layout = _EXTENSIONS.get(operation, "")
            operation = operation[:64].removesuffix("@openssh.com")
        attrs: dict[str, Any] = {"operation": operation or str(kind)}
        handle = b""
        for part in layout:
            if part == "h":
                handle = reader.string()[:256]
                attrs["path"] = self._path(handle)
            elif part == "p":
                attrs["path"] = reader.text()[:MAX_PATH]
            elif part == "t":
                attrs["target"] = reader.text()[:MAX_PATH]
            elif part == "f":
                flags = reader.uint32()
                attrs["flags"] = [name for bit, name in _FLAGS if flags & bit]
            elif part == "a":
                attrs.update(_attributes(reader))
        path = attrs.get("path", "")
        if kind == 1:
            attrs["version"] = number
        else:
            request = _Request(attrs["operation"], side.start, path, handle, reader.uint64() if kind == READ else 0)
            _keep(self._waiting, number, request, MAX_WAITING)
        if kind == READ:
            return
        if kind == CLOSE:
            opened = self._handles.get(handle)
            if opened is not None:
                self._flush(Direction.SERVER, out)
                attrs["read"], attrs["written"] = opened.read, opened.written
        words = [attrs["operation"], path, attrs.get("target", ""), *attrs.get("flags", ())]
        text = " ".join(word for word in words if word)
        flags_said = ("undecoded",) if not operation else ()
        out.append(self._said(client, "sftp", side, end, ts_ns, text, attrs, flags=flags_said))

    def _write(self, side: _Packets, reader: Reader, number: int, end: int, ts_ns: int, out: Output) -> None:
        handle = reader.string()[:256]
        offset = reader.uint64()
        length = reader.uint32()
        opened = self._handles.get(handle)
        if opened is not None:
            opened.written += length
        path = self._path(handle)
        _keep(self._waiting, number, _Request("write", side.start, path, handle), MAX_WAITING)
        self._run(Direction.CLIENT, path, offset, length, None, side, end, ts_ns, out)

    def _reply(self, side: _Packets, reader: Reader, cut: bool, end: int, ts_ns: int, out: Output) -> None:
        server = Direction.SERVER
        kind = reader.byte()
        number = reader.uint32()
        if kind == 2:
            attrs: dict[str, Any] = {"operation": "version", "version": number}
            out.append(self._said(server, "sftp-reply", side, end, ts_ns, f"version {number}", attrs))
            return
        request = self._waiting.pop(number, None)
        reply_to = None if request is None else request.start
        operation = "" if request is None else request.operation
        path = "" if request is None else request.path
        if kind == DATA:
            length = reader.uint32()
            opened = None if request is None else self._handles.get(request.handle)
            if opened is not None:
                opened.read += length
            offset = 0 if request is None else request.offset
            self._run(server, path, offset, length, reply_to, side, end, ts_ns, out)
            return
        attrs = {"operation": operation, "path": path} if path else {"operation": operation}
        flags: tuple[str, ...] = ()
        if kind == STATUS:
            code = reader.uint32()
            status = _STATUS[code] if code < len(_STATUS) else str(code)
            if (operation == "write" and not code) or (operation == "read" and code == 1):
                return
            attrs["status"], attrs["code"] = status, code
            text = status if reader.left < 4 or not code else f"{status}: {reader.text()[:MAX_PATH]}"
            if operation == "close" and request is not None:
                self._handles.pop(request.handle, None)
        elif kind == HANDLE:
            _keep(self._handles, reader.string()[:256], _Open(path), MAX_HANDLES)
            text = "handle"
        elif kind == NAME:
            text, flags = self._names(reader, attrs, cut)
        elif kind == ATTRS:
            said = _attributes(reader)
            attrs.update(said)
            text = " ".join(f"{name}={value}" for name, value in said.items())
        elif kind == EXTENDED_REPLY:
            text = f"{operation} reply"
        else:
            text, flags = "", ("undecoded",)
        self._flush(server, out)
        out.append(self._said(server, "sftp-reply", side, end, ts_ns, text, attrs, reply_to, flags))

    @staticmethod
    def _names(reader: Reader, attrs: dict[str, Any], cut: bool) -> tuple[str, tuple[str, ...]]:
        count = reader.uint32()
        names: list[str] = []
        lines: list[str] = []
        for _ in range(min(count, MAX_NAMES)):
            if cut and reader.left < 8 + MAX_PATH:
                break
            names.append(reader.text()[:MAX_PATH])
            lines.append(reader.text()[:MAX_PATH])
            _attributes(reader)
        attrs["names"] = names
        return "\n".join(lines), ("truncated",) if len(names) < count else ()

    # -- reads and writes ------------------------------------------------------------------------------------------

    def _run(
        self, direction: Direction, path: str, offset: int, length: int, reply_to: int | None, side: _Packets, end: int,
        ts_ns: int, out: Output,
    ) -> None:  # fmt: skip
        run = self._runs.get(direction)
        if run is not None and (run.path != path or run.bytes + length > MAX_RUN or offset != run.offset + run.bytes):
            self._flush(direction, out)
            run = None
        if run is None:
            run = self._runs[direction] = _Run(path, offset, side.start, end, side.ts_ns, ts_ns, reply_to)
        run.bytes += length
        run.end, run.end_ns = end, ts_ns

    def _flush(self, direction: Direction, out: Output) -> None:
        run = self._runs.pop(direction, None)
        if run is None:
            return
        operation = "write" if direction is Direction.CLIENT else "read"
        attrs = {
            "channel": self._channel,
            "operation": operation,
            "path": run.path,
            "offset": min(run.offset, (1 << 63) - 1),
            "bytes": run.bytes,
        }
        text = f"{operation} {run.path} {run.bytes} bytes at {run.offset}"
        kind = f"sftp-{operation}"
        out.append(Message(direction, kind, run.ts_ns, run.start, run.end, text, attrs, run.reply_to, (), run.end_ns))

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _path(self, handle: bytes) -> str:
        opened = self._handles.get(handle)
        return "" if opened is None else opened.path

    def _said(
        self, direction: Direction, kind: str, side: _Packets, end: int, ts_ns: int, text: str, attrs: dict[str, Any],
        reply_to: int | None = None, flags: tuple[str, ...] = (),
    ) -> Message:  # fmt: skip
        attrs = {"channel": self._channel, **attrs}
        return Message(direction, kind, side.ts_ns, side.start, end, text, attrs, reply_to, flags, ts_ns)


def _attributes(reader: Reader) -> dict[str, Any]:
    """ATTRS of a file: what is there of it."""
    flags = reader.uint32()
    said: dict[str, Any] = {}
    if flags & 1:
        said["size"] = reader.uint64()
    if flags & 2:
        said["uid"], said["gid"] = reader.uint32(), reader.uint32()
    if flags & 4:
        said["mode"] = f"{reader.uint32():o}"
    if flags & 8:
        said["atime"], said["mtime"] = reader.uint32(), reader.uint32()
    if flags & 0x80000000:
        for _ in range(min(reader.uint32(), 64)):
            reader.string()
            reader.string()
    return said


_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


def _keep(kept: dict[_Key, _Value], key: _Key, value: _Value, limit: int) -> None:
    """The oldest goes where there is no room."""
    kept.pop(key, None)
    if len(kept) >= limit:
        del kept[next(iter(kept))]
    kept[key] = value
