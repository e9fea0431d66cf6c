"""What a PostgreSQL client says, once its messages have types.

One `query` per Query and per Execute. An Execute that follows its Bind (with nothing but Describe and Flush between)
has the byte range from that Bind; any other one has its own range only, and a Bind whose Execute does not follow
becomes a `bind` of its own, so every bind value is in a message. Statements are named by what Parse said: `prepare` has
the whole SQL, a `query` repeats at most `MAX_REPEATED`. Flag `unresolved`: the statement is not known.
"""

import struct
from collections.abc import Callable
from typing import Any, ClassVar

from appliance.dissect import postgres_fields as fields
from appliance.dissect.postgres_frames import HEADER
from appliance.dissect.postgres_requests import Bound, Portal, Request, Shape, Statement, Step
from appliance.dissect.postgres_session import Shared
from appliance.dissect.postgres_types import type_name, value
from appliance.dissect.sql_copy import Copy
from appliance.dissect.sql_frames import Frame, of_client
from appliance.dissect.sql_text import MAX_BRIEF, MAX_REPEATED, Repeats
from appliance.dissect.table import with_values
from appliance.model import Direction, Message


class ClientSide:
    """Takes the frames of the client."""

    def __init__(self, shared: Shared) -> None:
        self.secrets: list[tuple[int, int]] = []  # ranges to redact, for the caller to take
        self._shared = shared
        self._repeats = Repeats()
        self._bound: Bound | None = None  # a Bind that no message tells of yet
        self._copy: Copy | None = None

    def take(self, frame: Frame, out: list[Any]) -> bool:
        """Read one frame; False: it does not fit its layout, or is of no known type."""
        kind = frame.kind
        if self._copy is not None and kind != 0x64:
            out += self._copy.flush(self._shared.codec, last=kind != 0x48 and kind != 0x53)
        if self._bound is not None and kind not in b"DHE":
            self._tell_bound(out)
        reader = self._READERS.get(kind)
        if reader is None or (frame.cut and kind not in b"QPBFdfp"):
            return False
        try:
            reader(self, frame, out)
        except (ValueError, IndexError, struct.error):
            return False
        return True

    def lose(self) -> list[Message]:
        """Bytes are missing: nothing is continued."""
        return self.end()

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        return self._copy.held if self._copy is not None else 0

    def end(self) -> list[Message]:
        """What is still to be told."""
        out: list[Message] = []
        if self._bound is not None:
            self._tell_bound(out)
        if self._copy is not None:
            out += self._copy.flush(self._shared.codec, last=True)
            self._copy = None
        return out

    # -- queries ---------------------------------------------------------------------------------------------------

    def _query(self, frame: Frame, out: list[Any]) -> None:
        sql, _ = fields.cstring(frame.body, 0, self._shared.codec, frame.cut)
        self._push(Step.QUERY, frame)
        out.append(of_client("query", frame, sql, {"sql": sql, "parameters": [], "prepared": None}))

    def _parse(self, frame: Frame, out: list[Any]) -> None:
        codec = self._shared.codec
        name, at = fields.cstring(frame.body, 0, codec, frame.cut)
        sql, at = fields.cstring(frame.body, at, codec, frame.cut)
        types = () if frame.cut else fields.types(frame.body, at)
        before = self._shared.statements.put(name, Statement(sql, Shape(types), len(frame.body)))
        weight = len(frame.body) + (before.weight if before is not None and name else 0)
        undo = (name, before) if name else None  # the unnamed one is replaced by the next Parse in any case
        self._shared.requests.push(Request(Step.PARSE, frame.start, weight, undo=undo))
        attrs = {"name": name, "sql": sql, "types": [type_name(oid) for oid in types]}
        out.append(of_client("prepare", frame, sql, attrs))

    def _bind(self, frame: Frame, out: list[Any]) -> None:
        codec = self._shared.codec
        bind = fields.bind(frame.body, codec, frame.cut)
        statement = self._shared.statements.get(bind.statement)
        shape = statement.shape if statement is not None else Shape()
        parameters, understood = self._values(bind.parameters, bind.formats, shape.types)
        flags: tuple[str, ...] = () if statement is not None else ("unresolved",)
        if not understood:
            flags += ("undecoded",)
        if not bind.complete:
            flags += ("truncated",)
        portal = Portal(shape, bind.results)
        self._bound = Bound(
            portal=portal,
            sql=statement.sql if statement is not None else "",
            prepared=bind.statement,
            parameters=parameters,
            flags=flags,
            start=frame.start,
            end=frame.end,
            ts_ns=frame.ts_ns,
            end_ns=frame.end_ns,
            weight=len(frame.body),
        )
        self._shared.portals.put(bind.portal, self._bound)
        self._push(Step.BIND, frame, portal=portal)

    def _execute(self, frame: Frame, out: list[Any]) -> None:
        name, at = fields.cstring(frame.body, 0, self._shared.codec)
        (limit,) = struct.unpack_from("!i", frame.body, at)
        bound = self._shared.portals.get(name)
        start, ts_ns = frame.start, frame.ts_ns
        if bound is not None and bound is self._bound:
            start, ts_ns = bound.start, bound.ts_ns
            self._bound = None
        elif self._bound is not None:
            self._tell_bound(out)
        portal = bound.portal if bound is not None else Portal(Shape())
        self._shared.requests.push(Request(Step.EXECUTE, start, len(frame.body), portal=portal))
        sql, prepared = "", None
        parameters: list[str | None] = []
        flags: tuple[str, ...] = ("unresolved",)
        if bound is not None:
            prepared, flags = bound.prepared, bound.flags
            sql, parameters = self._again(bound, frame.end), bound.parameters
            known = bound.executed and bound.weight > MAX_BRIEF
            if known and (bound.weight > MAX_REPEATED or not self._repeats.allow(bound.weight, frame.end)):
                parameters = []
            if len(sql) < len(bound.sql) or len(parameters) < len(bound.parameters):
                flags = tuple(dict.fromkeys((*flags, "truncated")))
            bound.executed = True
        attrs: dict[str, Any] = {"sql": sql, "parameters": parameters, "prepared": prepared, "portal": name}
        if limit > 0:
            attrs["limit"] = limit
        text = with_values(sql, parameters)
        out.append(Message(Direction.CLIENT, "query", ts_ns, start, frame.end, text, attrs, None, flags, frame.end_ns))

    def _tell_bound(self, out: list[Any]) -> None:
        """A Bind whose Execute did not follow."""
        bound = self._bound
        assert bound is not None  # the caller checked
        self._bound = None
        sql = self._again(bound, bound.end)
        flags = bound.flags
        if len(sql) < len(bound.sql):
            flags = tuple(dict.fromkeys((*flags, "truncated")))
        attrs = {"sql": sql, "parameters": bound.parameters, "prepared": bound.prepared}
        text = with_values(sql, bound.parameters)
        out.append(
            Message(
                Direction.CLIENT, "bind", bound.ts_ns, bound.start, bound.end, text, attrs, None, flags, bound.end_ns
            )
        )

    def _again(self, bound: Bound, offset: int) -> str:
        """The statement's SQL, or how it begins, for a message that ends at `offset`."""
        sql = bound.sql[:MAX_REPEATED]
        return sql if len(sql) <= MAX_BRIEF or self._repeats.allow(len(sql), offset) else sql[:MAX_BRIEF]

    def _describe(self, frame: Frame, out: list[Any]) -> None:
        what, name = self._target(frame)
        if what == "S":
            statement = self._shared.statements.get(name)
            shape = statement.shape if statement is not None else Shape()
            self._push(Step.DESCRIBE, frame, shape=shape)
        else:
            bound = self._shared.portals.get(name)
            self._push(Step.DESCRIBE, frame, portal=bound.portal if bound is not None else Portal(Shape()))

    def _close(self, frame: Frame, out: list[Any]) -> None:
        what, name = self._target(frame)
        if what == "P":
            self._shared.portals.put(name, None)
            self._push(Step.CLOSE, frame)
            return
        before = self._shared.statements.put(name, None)
        weight = len(frame.body) + (before.weight if before is not None else 0)
        undo = (name, before) if before is not None else None
        self._shared.requests.push(Request(Step.CLOSE, None, weight, undo=undo))

    def _target(self, frame: Frame) -> tuple[str, str]:
        what = chr(frame.body[0])
        if what not in "SP":
            raise ValueError("neither a statement nor a portal")
        return what, fields.cstring(frame.body, 1, self._shared.codec)[0]

    def _sync(self, frame: Frame, out: list[Any]) -> None:
        if self._shared.copy_in is None:  # within a COPY the server passes over it
            self._push(Step.SYNC, frame)

    def _flush(self, frame: Frame, out: list[Any]) -> None:
        """Asks for nothing."""

    def _call(self, frame: Frame, out: list[Any]) -> None:
        call = fields.call(frame.body, frame.cut)
        arguments, understood = self._values(call.arguments, call.formats, ())
        portal = Portal(Shape(), (1,) if call.binary else ())
        self._shared.requests.push(Request(Step.FUNCTION, frame.start, len(frame.body), portal=portal))
        flags: tuple[str, ...] = () if understood else ("undecoded",)
        if not call.complete:
            flags += ("truncated",)
        attrs = {"function": call.function, "arguments": arguments}
        out.append(of_client("call", frame, with_values(f"function {call.function}", arguments), attrs, flags))

    # -- COPY ------------------------------------------------------------------------------------------------------

    def _copy_data(self, frame: Frame, out: list[Any]) -> None:
        copy = self._copying()
        codec = self._shared.codec
        out += copy.add(frame.body, frame.start, frame.end, frame.ts_ns, frame.end_ns, frame.cut, codec)

    def _copy_done(self, frame: Frame, out: list[Any]) -> None:
        copy = self._copying()
        out.append(
            of_client("copy-done", frame, "", {"format": copy.form, "bytes": copy.bytes}, reply_to=copy.reply_to)
        )
        self._copy = self._shared.copy_in = None

    def _copy_fail(self, frame: Frame, out: list[Any]) -> None:
        copy = self._copying()
        reason, _ = fields.cstring(frame.body, 0, self._shared.codec, frame.cut)
        out.append(of_client("copy-fail", frame, reason, {"reason": reason}, reply_to=copy.reply_to))
        self._copy = self._shared.copy_in = None

    def _copying(self) -> Copy:
        shared = self._shared
        if shared.copy_in is not None and shared.requests.crowded():
            shared.requests.only_head()
        stale = shared.copy_in is not None and self._copy is not None and self._copy.reply_to != shared.copy_start
        if self._copy is None or stale:
            self._copy = Copy(Direction.CLIENT, shared.copy_in or "text", shared.copy_start)
        return self._copy

    # -- the rest --------------------------------------------------------------------------------------------------

    def _password(self, frame: Frame, out: list[Any]) -> None:
        """The type p has four meanings; only SCRAM's is harmless."""
        shared = self._shared
        if shared.released is not None and frame.start >= shared.released:
            raise ValueError("a password after log-in")
        mechanism = fields.scram(frame.body) if shared.method not in ("password", "md5") and not frame.cut else None
        flags: tuple[str, ...] = ()
        if mechanism is None:
            if not frame.cut:
                self.secrets.append((frame.start + HEADER, frame.end))
            flags = ("redacted",)
        elif mechanism:
            shared.method = mechanism.lower()
        method = shared.method or "unknown"
        shared.attrs.setdefault("auth", method)
        if mechanism:
            shared.attrs["auth"] = method
        out.append(of_client("authentication", frame, method, {"method": method}, flags, shared.asked))

    def _terminate(self, frame: Frame, out: list[Any]) -> None:
        out.append(of_client("terminate", frame, "", {}))

    def _push(self, step: Step, frame: Frame, portal: Portal | None = None, shape: Shape | None = None) -> None:
        start = frame.start if step in (Step.QUERY, Step.BIND) else None
        self._shared.requests.push(Request(step, start, len(frame.body), portal, shape))

    def _values(
        self, raw: list[bytes | None], formats: tuple[int, ...], types: tuple[int, ...]
    ) -> tuple[list[str | None], bool]:
        """Values as text, and whether all were understood."""
        shown: list[str | None] = []
        understood = True
        for number, item in enumerate(raw):
            if item is None:
                shown.append(None)
                continue
            oid = types[number] if number < len(types) else 0
            one, fine = value(item, oid, fields.is_binary(formats, number), self._shared.codec)
            shown.append(one)
            understood = understood and fine
        return shown, understood

    _READERS: ClassVar[dict[int, Callable[["ClientSide", Frame, list[Any]], None]]] = {
        0x51: _query,
        0x50: _parse,
        0x42: _bind,
        0x45: _execute,
        0x44: _describe,
        0x43: _close,
        0x53: _sync,
        0x48: _flush,
        0x46: _call,
        0x64: _copy_data,
        0x63: _copy_done,
        0x66: _copy_fail,
        0x70: _password,
        0x58: _terminate,
    }
