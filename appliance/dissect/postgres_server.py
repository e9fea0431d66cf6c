"""What a PostgreSQL server says.

Rows come in batches (`rows`), each result ends with a `result`: the command tag, the number of rows that came with it,
and the number that the tag names. Both answer the `query`, by `reply_to`. `ready` is told when the transaction status
changes, not after every query.
"""

import struct
from collections.abc import Callable
from typing import Any, ClassVar, Final

import msgspec

from appliance.dissect import postgres_fields as fields
from appliance.dissect.postgres_columns import NOTHING, columns
from appliance.dissect.postgres_requests import Step
from appliance.dissect.postgres_rows import Result
from appliance.dissect.postgres_session import Shared
from appliance.dissect.sql_copy import Copy
from appliance.dissect.sql_frames import Frame, of_server
from appliance.dissect.sql_text import Repeats, hexadecimal, text
from appliance.dissect.table import within
from appliance.model import Direction, Message

_ROW = 0x44
_PARAMETER = 0x53
_COPY_DATA = 0x64
_ANY_TIME: Final = b"NSA"  # types that may come within a COPY
_BEFORE_LOGIN: Final = b"RENv"  # types that a server sends before it has accepted the client
_ASKS: Final = {2: "kerberos", 3: "password", 5: "md5", 6: "scm", 7: "gss", 9: "sspi", 10: "sasl"}
_GOES_ON: Final = {8: "gss", 11: "sasl", 12: "sasl"}
_STATUS: Final = {b"I": "idle", b"T": "transaction", b"E": "failed"}
_EXECUTED: Final = (Step.QUERY, Step.EXECUTE)


class ServerSide:
    """Takes the frames of the server."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._repeats = Repeats()
        self._result: Result | None = None
        self._copy: Copy | None = None
        self._parameters: dict[str, str] = {}
        self._parameters_from: Frame | None = None  # first and last of the ParameterStatus messages in a row
        self._parameters_to: Frame | None = None
        self._transaction = ""

    def take(self, frame: Frame, out: list[Any]) -> bool:
        """Read one frame; False: it does not fit its layout, or is of no known type."""
        kind = frame.kind
        if kind == _ROW and self._result is not None and not self._parameters:
            self._result.add(frame, self._shared.codec)
            if self._result.full:
                out += self._result.flush()
            return True
        if self._result is not None or self._copy is not None or self._parameters:
            self._flush(kind, out)
        reader = self._READERS.get(kind)
        if reader is None or (frame.cut and kind not in b"DdENV"):
            return False
        try:
            reader(self, frame, out)
        except (ValueError, IndexError, struct.error):
            return False
        if kind not in _BEFORE_LOGIN:
            self._shared.authenticated = True
        return True

    def lose(self) -> list[Message]:
        """Bytes are missing: nothing is continued."""
        out = self.end()
        self._result = None
        return out

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        rows = self._result.held if self._result is not None else 0
        copied = self._copy.held if self._copy is not None else 0
        return rows + copied + sum(2 * (64 + len(name) + len(value)) for name, value in self._parameters.items())

    def end(self) -> list[Message]:
        """What is still to be told."""
        out: list[Message] = []
        self._flush(0, out)
        self._copy = None
        return out

    def _flush(self, kind: int, out: list[Any]) -> None:
        """End the batches that a message of another kind ends."""
        if self._result is not None:
            out += self._result.flush()
        if self._parameters and kind != _PARAMETER:
            first, last = self._parameters_from, self._parameters_to
            assert first is not None  # set with the first of the parameters
            assert last is not None
            said = "\n".join(f"{name}={value}" for name, value in self._parameters.items())
            whole = msgspec.structs.replace(first, end=last.end, end_ns=last.end_ns)
            out.append(of_server("parameters", whole, said, {"parameters": dict(self._parameters)}))
            self._parameters.clear()
            self._parameters_from = self._parameters_to = None
        if self._copy is not None and kind != _COPY_DATA:
            out += self._copy.flush(self._shared.codec, last=kind not in _ANY_TIME)

    # -- log-in ----------------------------------------------------------------------------------------------------

    def _authentication(self, frame: Frame, out: list[Any]) -> None:
        shared = self._shared
        (code,) = struct.unpack_from("!I", frame.body)
        head = shared.requests.head()
        started = head.start if head is not None and head.step is Step.START else None
        if code == 0:
            shared.authenticated = True
            shared.attrs.setdefault("auth", "none")  # trust, peer, cert: nothing was asked for
            method = shared.attrs["auth"]
            out.append(of_server("authenticated", frame, method, {"method": method}, started))
            return
        method = _ASKS.get(code) or _GOES_ON.get(code) or f"authentication {code}"
        attrs: dict[str, Any] = {"method": method}
        if code == 10:
            attrs["mechanisms"] = fields.strings(frame.body[4:], shared.codec)
        if code not in _GOES_ON:
            shared.method = method
            shared.attrs["auth"] = method
        shared.asked = frame.start
        said = " ".join([method, *attrs.get("mechanisms", [])])
        out.append(of_server("authentication", frame, said, attrs, started))

    def _negotiate_version(self, frame: Frame, out: list[Any]) -> None:
        version, count = struct.unpack_from("!II", frame.body)
        names = fields.strings(frame.body[8:], self._shared.codec)[:count]
        shown = f"{version >> 16}.{version & 0xFFFF}" if version >> 16 else f"3.{version}"
        self._shared.attrs["version"] = shown
        out.append(of_server("negotiate-version", frame, shown, {"version": shown, "unsupported": names}))

    def _parameter(self, frame: Frame, out: list[Any]) -> None:
        codec = self._shared.codec
        name, at = fields.cstring(frame.body, 0, codec)
        setting, _ = fields.cstring(frame.body, at, codec)
        self._shared.parameter(name, setting)
        self._parameters[name] = setting
        self._parameters_from = self._parameters_from or frame
        self._parameters_to = frame
        if frame.end - self._parameters_from.start > 65536:
            self._flush(0, out)

    def _key(self, frame: Frame, out: list[Any]) -> None:
        (pid,) = struct.unpack_from("!I", frame.body)
        self._shared.attrs["pid"] = pid
        out.append(of_server("key", frame, f"pid {pid}", {"pid": pid}))

    def _ready(self, frame: Frame, out: list[Any]) -> None:
        shared = self._shared
        status = _STATUS.get(frame.body)
        if status is None:
            raise ValueError("an unknown transaction status")
        shared.ready = True
        shared.requests.ready()
        shared.copy_in = None
        self._result = self._copy = None
        if status != self._transaction:
            self._transaction = status
            out.append(of_server("ready", frame, status, {"transaction": status}))

    # -- results ---------------------------------------------------------------------------------------------------

    def _columns(self, frame: Frame, out: list[Any]) -> None:
        requests = self._shared.requests
        described, whole = columns(frame.body, self._shared.codec)
        request = requests.expect(Step.DESCRIBE, Step.QUERY)
        if request is not None and request.step is Step.DESCRIBE:
            requests.done(Step.DESCRIBE)
            shape = request.portal.shape if request.portal is not None else request.shape
            if shape is not None:
                shape.columns = described
        else:
            self._result = Result(described, None, request.start if request is not None else None, 0, self._repeats)
        if not whole:
            out.append(of_server("malformed", frame, "", {"type": "T"}, flags=("truncated",)))

    def _no_data(self, frame: Frame, out: list[Any]) -> None:
        self._shared.requests.done(Step.DESCRIBE)

    def _parameter_types(self, frame: Frame, out: list[Any]) -> None:
        request = self._shared.requests.expect(Step.DESCRIBE)
        types = fields.types(frame.body, 0)
        if request is not None and request.shape is not None:
            request.shape.types = types

    def _row(self, frame: Frame, out: list[Any]) -> None:
        self._result = self._begun()
        self._result.add(frame, self._shared.codec)

    def _begun(self) -> Result:
        """The result that rows belong to; begins the one of the oldest request."""
        if self._result is not None:
            return self._result
        request = self._shared.requests.expect(*_EXECUTED)
        if request is None or request.portal is None:
            return Result(None, None, request.start if request is not None else None, 0, self._repeats)
        portal = request.portal
        return Result(portal.shape.columns, portal.formats, request.start, portal.fetched, self._repeats)

    def _complete(self, frame: Frame, out: list[Any]) -> None:
        tag, _ = fields.cstring(frame.body, 0, self._shared.codec)
        self._finish(frame, out, tag, {"tag": tag, "affected": fields.affected(tag)})

    def _empty(self, frame: Frame, out: list[Any]) -> None:
        self._finish(frame, out, "", {"tag": "", "affected": None, "empty": True})

    def _suspended(self, frame: Frame, out: list[Any]) -> None:
        self._finish(frame, out, "", {"tag": "", "affected": None, "suspended": True})

    def _finish(self, frame: Frame, out: list[Any], said: str, attrs: dict[str, Any]) -> None:
        result, self._result = self._result, None
        request = self._shared.requests.done(*_EXECUTED)
        self._copy = self._shared.copy_in = None
        attrs["rows"] = result.count if result is not None else 0
        portal = request.portal if request is not None else None
        described = result.columns if result is not None else portal.shape.columns if portal is not None else None
        attrs["columns"], whole = within(described or NOTHING, self._repeats, frame.end)
        if portal is not None:
            portal.fetched += attrs["rows"]
        start = request.start if request is not None else None
        out.append(of_server("result", frame, said, attrs, start, () if whole else ("truncated",)))

    def _call_result(self, frame: Frame, out: list[Any]) -> None:
        request = self._shared.requests.expect(Step.FUNCTION)
        (value,), _, whole = fields.values(frame.body, 0, 1, frame.cut)
        binary = request is not None and request.portal is not None and request.portal.formats == (1,)
        shown = None if value is None else hexadecimal(value) if binary else text(value, self._shared.codec)
        flags: tuple[str, ...] = ("undecoded",) if binary and value is not None else ()
        if not whole:
            flags += ("truncated",)
        attrs = {"value": shown}
        start = request.start if request is not None else None
        out.append(of_server("result", frame, "NULL" if shown is None else shown, attrs, start, flags))

    def _parsed(self, frame: Frame, out: list[Any]) -> None:
        self._shared.requests.done(Step.PARSE)

    def _bound(self, frame: Frame, out: list[Any]) -> None:
        self._shared.requests.done(Step.BIND)

    def _closed(self, frame: Frame, out: list[Any]) -> None:
        self._shared.requests.done(Step.CLOSE)

    # -- COPY ------------------------------------------------------------------------------------------------------

    def _copy_in(self, frame: Frame, out: list[Any]) -> None:
        self._shared.copy_in = self._copy_start(frame, out, "in")

    def _copy_out(self, frame: Frame, out: list[Any]) -> None:
        self._copy = Copy(Direction.SERVER, self._copy_start(frame, out, "out"), self._answered())

    def _copy_both(self, frame: Frame, out: list[Any]) -> None:
        self._copy_start(frame, out, "both")
        self._copy = Copy(Direction.SERVER, "replication", self._answered())
        self._shared.copy_in = "replication"

    def _copy_start(self, frame: Frame, out: list[Any], way: str) -> str:
        overall, count = struct.unpack_from("!BH", frame.body)
        form = "binary" if overall == 1 else "text"
        self._shared.copy_start = frame.start
        attrs = {"copy": way, "format": form, "columns": count}
        out.append(of_server("copy-start", frame, f"copy {way} {form}", attrs, self._answered()))
        return form

    def _answered(self) -> int | None:
        request = self._shared.requests.expect(*_EXECUTED)
        return request.start if request is not None else None

    def _copy_data(self, frame: Frame, out: list[Any]) -> None:
        if self._copy is None:
            self._copy = Copy(Direction.SERVER, "text", self._answered())
        copy, codec = self._copy, self._shared.codec
        out += copy.add(frame.body, frame.start, frame.end, frame.ts_ns, frame.end_ns, frame.cut, codec)

    def _copy_done(self, frame: Frame, out: list[Any]) -> None:
        copy = self._copy
        if copy is not None:
            attrs = {"format": copy.form, "bytes": copy.bytes}
            out.append(of_server("copy-done", frame, "", attrs, copy.reply_to))
        self._copy = None

    # -- what can come at any time ---------------------------------------------------------------------------------

    def _error(self, frame: Frame, out: list[Any]) -> None:
        said = fields.error_fields(frame.body, self._shared.codec, frame.cut)
        self._result = self._copy = None
        self._shared.copy_in = None
        out.append(of_server("error", frame, _reading(said), dict(said), self._shared.requests.failed()))

    def _notice(self, frame: Frame, out: list[Any]) -> None:
        said = fields.error_fields(frame.body, self._shared.codec, frame.cut)
        head = self._shared.requests.head()
        out.append(of_server("notice", frame, _reading(said), dict(said), head.start if head is not None else None))

    def _notification(self, frame: Frame, out: list[Any]) -> None:
        codec = self._shared.codec
        (pid,) = struct.unpack_from("!I", frame.body)
        channel, at = fields.cstring(frame.body, 4, codec)
        payload, _ = fields.cstring(frame.body, at, codec)
        attrs = {"pid": pid, "channel": channel, "payload": payload}
        out.append(of_server("notification", frame, f"{channel}: {payload}", attrs))

    _READERS: ClassVar[dict[int, Callable[["ServerSide", Frame, list[Any]], None]]] = {
        0x52: _authentication,
        0x76: _negotiate_version,
        0x53: _parameter,
        0x4B: _key,
        0x5A: _ready,
        0x54: _columns,
        0x6E: _no_data,
        0x74: _parameter_types,
        0x44: _row,
        0x43: _complete,
        0x49: _empty,
        0x73: _suspended,
        0x56: _call_result,
        0x31: _parsed,
        0x32: _bound,
        0x33: _closed,
        0x47: _copy_in,
        0x48: _copy_out,
        0x57: _copy_both,
        0x64: _copy_data,
        0x63: _copy_done,
        0x45: _error,
        0x4E: _notice,
        0x41: _notification,
    }


def _reading(said: dict[str, str]) -> str:
    first = f"{said.get('severity', '')} {said.get('sqlstate', '')}: {said.get('message', '')}"
    rest = (name for name in said if name in ("detail", "hint", "where", "internal_query"))
    return "\n".join([first, *(f"{name.upper()}: {said[name]}" for name in rest)])
