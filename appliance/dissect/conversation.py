"""One session's dissection: finds the protocol, follows successors, survives a dissector's bug.

In: the bytes, gaps and ends of both directions, in order of arrival. Out: `Message` and `Redaction`.

    detecting ── YES, every detector before it said NO ──────────────► dissecting
    detecting ── all NO, or undecided at MAX_PREFIX or at an end ────► dissecting (the first YES, else raw)
    dissecting ── successor "auto" ──────────────────────────────────► detecting, from the bytes it left
    dissecting ── successor NAME ────────────────────────────────────► dissecting (NAME, else raw)
    dissecting ── exception: a bug; message `undissected` ───────────► dissecting (raw)
    (an evicted session went before) ────────────────────────────────► dissecting (its dissector, looking for a message)

Instead of `Raw` a stream gets `Unframed`, which looks for credentials, where bytes may be the rest of a message: its
start was not seen, bytes before the verdict are missing, or a dissector failed.

The verdict is found in detection.py; what arrived before it is replayed in order of arrival, with its own times.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from appliance.dissect import Dissector, Output, Torn
from appliance.dissect.detection import Detection, Event
from appliance.dissect.http1 import Http1
from appliance.dissect.http2 import Http2
from appliance.dissect.http_lost import stray_ranges
from appliance.dissect.http_secrets import stray_secrets
from appliance.dissect.mysql import Mysql
from appliance.dissect.postgres import Postgres
from appliance.dissect.raw import Raw
from appliance.dissect.redis import Redis
from appliance.dissect.registry import DATAGRAM, REGISTRIES, Registry, form, named
from appliance.dissect.tls import Tls
from appliance.dissect.unframed import Unframed
from appliance.model import Direction, Message, Redaction

MAX_HANDOVERS = 8  # successors followed in one session; then raw
MAX_TORN = 1 << 13  # bytes that are redacted where a dissector's bug may have cut a credential
MAX_GUARDED = 1024  # gaps of one direction; the last ones become one
FAR: Final = 1 << 62
AUTO = "auto"  # successor of a tunnel: detect again


class Handover(NamedTuple):
    """What a session that is given up leaves to the one that goes on with its packets. `form`: of its dissector."""

    form: str
    torn: Mapping[Direction, Torn | None]

    def turned(self) -> "Handover":
        """The same, where the other one is taken for the client."""
        return Handover(self.form, {direction.other: torn for direction, torn in self.torn.items()})


class Conversation(Detection):
    """What the session stage uses: same methods as a dissector, for any protocol.

    `max_text` (characters) cuts the text of every message that comes out; dissectors have their own maximums too.
    """

    def __init__(
        self,
        transport: str = "tcp",
        client_offset: int = 0,
        server_offset: int = 0,
        *,
        max_text: int | None = None,
        registry: Registry | None = None,
    ) -> None:
        super().__init__(registry or REGISTRIES.get(transport, DATAGRAM), datagrams=transport != "tcp")
        self._max_text = max_text
        self._received = {Direction.CLIENT: client_offset, Direction.SERVER: server_offset}
        self._last_ns = {Direction.CLIENT: 0, Direction.SERVER: 0}
        self._base = dict(self._received)  # where the present dissector, or detection, began
        self._dissector: Dissector | None = None
        self._chain: list[tuple[str, int, int]] = []  # name and first offsets of every dissector so far
        self._past_attrs: dict[str, Any] = {}
        self._was_opaque = False
        self._handed: Handover | None = None
        self._guarded: dict[Direction, list[tuple[int, int]]] = {}  # gaps that may have held credentials
        self.protocol = ""  # the last one that was recognised; `raw` if none was; "" while undecided

    # -- what is known of the session ------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Bytes in memory, roughly: of what waits for a verdict, or in the dissector."""
        held = 0 if self._dissector is None else self._dissector.held
        prefixes = sum(map(len, self._prefix.values()))
        return held + prefixes + self._pending_bytes + 128 * len(self._pending)

    def shed(self) -> Output:
        """Memory is short: give up what is kept for text and context only. Bytes and redactions are not touched."""
        try:
            return [] if self._dissector is None else self._cut_all(self._dissector.shed())
        except Exception:  # a bug; the next receive() will say so
            return []

    def retire(self) -> None:
        """Nothing more will come: only what is known of the session is kept."""
        if self._dissector is not None:
            self._was_opaque = self._dissector.opaque
            self._retire(self._dissector)
            self._dissector = None
        self._start_detection()

    @property
    def attrs(self) -> dict[str, Any]:
        """Metadata of every dissector so far; `protocols` lists them when there was more than one."""
        attrs = self._past_attrs.copy()
        if self._dissector is not None:
            attrs.update(self._dissector.attrs)
        if len(self._chain) > 1:
            attrs["protocols"] = [name for name, _, _ in self._chain]
        return attrs

    @property
    def opaque(self) -> bool:
        return self._was_opaque if self._dissector is None else self._dissector.opaque

    def protocol_of(self, message: Message) -> str:
        """The dissector that `message` came from: a session with successors has messages of several."""
        if len(self._chain) == 1:
            return self._chain[0][0]
        for name, client, server in reversed(self._chain):
            if message.start >= (client if message.direction is Direction.CLIENT else server):
                return name
        return "raw"

    def settled(self, direction: Direction) -> int:
        """Offset before which no byte will be redacted any more. Nothing is settled before the protocol is known."""
        if self._dissector is None:
            return self._base[direction]
        try:
            return max(self._base[direction], min(self._dissector.settled(direction), self._received[direction]))
        except Exception:  # a bug; the next receive() will say so
            return self._base[direction]

    # -- where it begins and breaks off ----------------------------------------------------------------------------

    def unseen(self, direction: Direction) -> None:
        """The start of this direction was not seen."""
        self._unseen.add(direction)

    def seen(self, direction: Direction) -> None:
        """It was after all, and so this is a connection of its own."""
        self._unseen.discard(direction)
        self._handed = None

    def succeed(self, handover: Handover) -> None:
        """The bytes, whose start was not seen, go on with those of a session that was given up."""
        self._handed = handover

    def handover(self) -> Handover | None:
        """For the session that will go on with this one's packets; None: nothing is known."""
        if not self._chain:
            return self._handed
        dissector = self._dissector
        if dissector is None or (dissector.opaque and not isinstance(dissector, Tls)):
            return None
        torn = self._torn(dissector)
        return Handover(form(dissector), torn) if torn or isinstance(dissector, Raw) else None

    def _torn(self, dissector: Dissector) -> dict[Direction, Torn]:
        """{}: it does not say, or knows no credentials."""
        asked = getattr(dissector, "torn", None)
        try:
            return {} if asked is None else {direction: asked(direction) for direction in Direction}
        except Exception:  # a bug: anything may follow
            return {direction: Torn(line=True, upto=MAX_TORN) for direction in Direction}

    def aside(self, direction: Direction, start: int, data: bytes, *, late: bool) -> list[tuple[int, int]]:
        """Ranges of `data` to redact: bytes for `start` that came too `late`, or that lost against others."""
        end = start + len(data)
        found = [(max(low, start), min(high, end)) for low, high in self._guarded.get(direction, ())]
        found = [(low - start, high - start) for low, high in found if low < high]
        if isinstance(self._dissector, Raw) or (self._dissector is None and not start):
            found += [(low, high) for low, high, _ in stray_secrets(data)]
        elif self._dissector is None or isinstance(self._dissector, Unframed | Http1):
            unseen = not (late and isinstance(self._dissector, Http1))
            found += [(low, high) for low, high, _ in stray_ranges(data, unseen=unseen)]
        elif isinstance(self._dissector, Http2 | Mysql | Postgres | Redis) and self._guard(direction) < FAR:
            found = [(0, len(data))]
        return found

    def _guard(self, direction: Direction) -> int:
        """Offset from which on bytes of this direction may be a credential's."""
        asked = getattr(self._dissector, "guarded", None)
        try:
            return FAR if asked is None else int(asked(direction))
        except Exception:  # a bug; the next receive() will say so
            return 0

    def _guard_gap(self, direction: Direction, length: int) -> None:
        """`length` bytes will be missing."""
        start = self._received[direction]
        end = start + length
        start = max(start, self._guard(direction))
        if start < end:
            gaps = self._guarded.setdefault(direction, [])
            if len(gaps) >= MAX_GUARDED or (gaps and gaps[-1][1] == start):
                start = gaps.pop()[0]
            gaps.append((start, end))

    # -- input -----------------------------------------------------------------------------------------------------

    def adopt(self, protocol: str) -> Output:
        """A relay, which took part, says what is spoken: nothing is left to detect. A name that is not known changes
        nothing, and neither does one that comes when a dissector is at work.
        """
        chosen = named(self._registry, f"{protocol}-relayed") or named(self._registry, protocol)
        if self._dissector is not None or chosen is None:
            return []
        return self._cut_all(self._follow(reversed(self._begin(chosen))))

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        if self._dissector is None or not data:
            return self._take(("data", direction, data, len(data), ts_ns)) if data else []
        event: Event = ("data", direction, data, len(data), ts_ns)
        out = self._dissect(event)
        if self._dissector.successor is not None:
            out += self._follow(reversed(self._hand_over(self._dissector, event)))
        return self._cut_all(out)

    def gap(self, direction: Direction, length: int, ts_ns: int) -> Output:
        return self._take(("gap", direction, b"", length, ts_ns)) if length > 0 else []

    def close(self, direction: Direction, ts_ns: int) -> Output:
        if direction in self._ended:
            return []
        return self._take(("close", direction, b"", 0, ts_ns))

    def _take(self, event: Event) -> Output:
        return self._cut_all(self._follow((event,)))

    def _follow(self, events: Iterable[Event]) -> Output:
        out: Output = []
        todo = [*events]  # a stack: what a dissector leaves to its successor comes before anything else
        while todo:
            event = todo.pop()
            ready = [event] if self._dissector is not None else self._detect(event)
            for number, one in enumerate(ready):
                out += self._dissect(one)
                if self._dissector is not None and self._dissector.successor is not None:
                    left = self._hand_over(self._dissector, one)
                    todo += reversed(left + ready[number + 1 :])
                    break
        return out

    def _cut_all(self, out: Output) -> Output:
        limit = self._max_text
        if limit is not None:
            for item in out:
                if isinstance(item, Message) and len(item.text) > limit:
                    return [self._cut(one, limit) for one in out]
        return out

    # -- detecting -------------------------------------------------------------------------------------------------

    def _detect(self, event: Event) -> list[Event]:
        """Keep the event; once the protocol is known, every event kept since detection began."""
        if self._handed is not None and self._unseen and not self._chain:
            former = named(self._registry, self._handed.form)
            follows = Unframed if former is None or (former is Raw and self._handed.torn) else former
            return [*self._begin(follows), event]
        chosen = self._keep(event)
        return [] if chosen is None else self._begin(chosen)

    def _begin(self, chosen: type[Dissector]) -> list[Event]:
        client, server = self._base[Direction.CLIENT], self._base[Direction.SERVER]
        dissector = self._dissector = chosen(client, server)
        handed, self._handed = self._handed, None
        resume = getattr(dissector, "resume", None)
        if self._unseen and resume is not None:
            for direction in self._unseen if handed is None else Direction:
                resume(direction, None if handed is None else handed.torn.get(direction))
        self._enter(chosen.protocol, client, server)
        self._received = dict(self._base)
        pending = self._pending
        self._start_detection()
        return pending

    def _enter(self, name: str, client: int, server: int) -> None:
        self._chain.append((name, client, server))
        if name != "raw" or not self.protocol:
            self.protocol = name

    # -- dissecting ------------------------------------------------------------------------------------------------

    def _dissect(self, event: Event) -> Output:
        what, direction, data, length, ts_ns = event
        dissector = self._dissector
        assert dissector is not None  # the caller checked
        self._last_ns[direction] = ts_ns
        if what == "gap":
            self._guard_gap(direction, length)
        try:
            if what == "data":
                out = dissector.receive(direction, data, ts_ns)
            elif what == "gap":
                out = dissector.gap(direction, length, ts_ns)
            else:
                out = dissector.close(direction, ts_ns)
        except Exception as bug:
            out = self._degrade(dissector, event, bug)
        else:
            self._received[direction] += length
        if what == "close":
            self._ended.add(direction)
        return out

    def _degrade(self, broken: Dissector, event: Event, bug: Exception) -> Output:
        """A dissector's bug: say so, without the exception's text (it may quote bytes), and go on as raw."""
        what, direction, data, length, ts_ns = event
        start = self.settled(direction)
        unread = length if what == "data" and self._guard(direction) < FAR else 0  # it may be a credential, or its rest
        out = self._unread()
        torn = self._torn(broken)
        self._retire(broken)
        self._base = dict(self._received)
        last = self._registry[-1]
        raw = (Unframed if last is Raw else last)(self._base[Direction.CLIENT], self._base[Direction.SERVER])
        if isinstance(raw, Unframed):
            for whose in Direction:
                rest = torn.get(whose, Torn())
                if unread and whose is direction:
                    rest = Torn(rest.line, max(rest.size, unread), max(rest.upto, MAX_TORN))
                raw.resume(whose, rest)
        self._dissector = raw
        self._enter(raw.protocol, self._base[Direction.CLIENT], self._base[Direction.SERVER])
        self._received[direction] += length
        attrs = {"dissector": broken.protocol, "exception": type(bug).__name__}
        said = Message(
            direction, "undissected", ts_ns, start, self._received[direction], attrs=attrs, flags=("undecoded",)
        )
        if what == "data":
            return [*out, said, *raw.receive(direction, data, ts_ns)]
        return [*out, said, *(raw.gap(direction, length, ts_ns) if what == "gap" else raw.close(direction, ts_ns))]

    def _unread(self) -> Output:
        """Redact what the dissector held back."""
        ranges = ((whose, self.settled(whose), self._received[whose]) for whose in Direction)
        return [Redaction(whose, start, end, "unread") for whose, start, end in ranges if start < end]

    def _hand_over(self, done: Dissector, event: Event) -> list[Event]:
        """Put the successor in place. Returns what it has to read first, the other direction's bytes before."""
        direction = event[1]
        left: list[Event] = []
        for whose in (direction.other, direction):
            rest = self._rest(done, whose)
            self._received[whose] -= len(rest)
            if rest:
                left.append(("data", whose, rest, len(rest), self._last_ns[whose]))
        left += [("close", whose, b"", 0, self._last_ns[whose]) for whose in self._ended]
        self._ended.clear()
        name = done.successor
        self._unseen.clear()
        if isinstance(done, Unframed):
            self._unseen.update(Direction)
            self._handed = Handover(name or "", done.inside())
        self._retire(done)
        self._base = dict(self._received)
        self._start_detection()
        self._dissector = None
        if name != AUTO or len(self._chain) > MAX_HANDOVERS:
            known = None if len(self._chain) > MAX_HANDOVERS else named(self._registry, name or "")
            self._begin(known or self._registry[-1])
            inherit = getattr(self._dissector, "inherit", None)
            if inherit is not None:
                inherit(getattr(done, "legacy", {}))
        return left

    def _rest(self, done: Dissector, direction: Direction) -> bytes:
        try:
            rest: bytes = done.rest(direction) if hasattr(done, "rest") else b""
        except Exception:  # a bug: the bytes are stored in any case, only not dissected
            return b""
        return rest if len(rest) <= self._received[direction] - self._base[direction] else b""

    def _retire(self, done: Dissector) -> None:
        self._past_attrs.update(done.attrs)

    @staticmethod
    def _cut(item: Message | Redaction, limit: int) -> Message | Redaction:
        if isinstance(item, Message) and len(item.text) > limit:
            flags = item.flags if "truncated" in item.flags else (*item.flags, "truncated")
            return msgspec.structs.replace(item, text=item.text[:limit], flags=flags)
        return item
