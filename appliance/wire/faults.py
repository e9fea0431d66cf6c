"""What is wrong now, what was put back, and that both are on record.

A fault has a name, and a text that names the thing, the reason and the remedy. It is shown while it lasts (status), and
is an event of its name when it begins, when its text changes, and, with `over`, when it ends. A repair is an event and
counts. The journal being the wire process's, it also records the faults that the other processes publish, and that one
of them fell silent.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from appliance.errors import MalformedInput
from appliance.identity.leases import Now
from appliance.status import Status
from appliance.wire.control import NOTES

Event = Callable[..., None]  # Notes.event
TAKEN = frozenset({"kind", "text", "now"})  # names that an event's own fields have
SILENT = "silent"  # as /healthz calls it (appliance/health.py)


class Faults:
    """`present`: name → text. `repairs`: name → count since the start."""

    def __init__(self, event: Event) -> None:
        self._event = event
        self.present: dict[str, str] = {}
        self.repairs: Counter[str] = Counter()
        self._others: dict[str, dict[str, str]] = {}  # process → its faults

    def inherit(self, former: Status | None, now: Now) -> None:
        """A status that the wire process before this one did not withdraw: it was killed. Nothing was drained since."""
        if former is not None:
            text = "the wire process before this one ended without a word; what came since waited in the ring"
            self._event(SILENT, text, now, process="wire", last_ns=int(former.time * 1e9))

    def settle(self, found: Mapping[str, str], now: Now) -> None:
        """`found` is all that is wrong with this process's own part."""
        _tell(self._event, self.present, found, now)
        self.present = dict(found)

    def repaired(self, name: str, text: str, now: Now, **attrs: Any) -> None:
        self.repairs[name] += 1
        self._event(name, text, now, **attrs)

    def noted(self, request: Mapping[str, Any], now: Now) -> None:
        """What another process asks to put on record (`control.py`). Raises `MalformedInput`."""
        kind, text, attrs = request.get("kind"), request.get("text"), request.get("attrs")
        if kind not in NOTES or not isinstance(text, str) or not isinstance(attrs, dict) or attrs.keys() & TAKEN:
            raise MalformedInput("control request: a note needs a known kind, a text and attributes")
        self._event(kind, text, now, **attrs)

    def watch(self, said: Mapping[str, Status], now: Now) -> None:
        """Record what the other processes say of themselves, and which of those that spoke ended without a word."""
        for process, status in said.items():
            found = status.faults
            if not status.live:
                found = {**found, SILENT: f"{process} is silent: it ended without a word, or hangs; see its log"}
            before = self._others.get(process, {})
            _tell(self._event, before, found, now, process=process, whole=False)
            self._others[process] = {name: before.get(name, text) for name, text in found.items()}
        for process in self._others.keys() - said.keys():  # it ended on purpose
            _tell(self._event, self._others.pop(process), {}, now, process=process)


def _tell(
    event: Event, before: Mapping[str, str], found: Mapping[str, str], now: Now, *, whole: bool = True, **attrs: Any
) -> None:
    """`whole`: another text is news; other processes' texts hold numbers that change."""
    for name, text in found.items():
        if name not in before or (whole and before[name] != text):
            event(name, text, now, **attrs)
    for name, text in before.items():
        if name not in found:
            event(name, f"over: {text}", now, over=True, **attrs)
