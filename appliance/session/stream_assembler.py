"""What the recorder needs of whoever makes rows of one journal stream's frames."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from appliance import config
from appliance.journal import Damage, Frame, FrameKind
from appliance.model import Row
from appliance.session import events


class StreamAssembler(ABC):
    """`feed` takes frames in order and gives back rows in order; a row's `seq` is gapless in its table and session.

    `FORM` names the pickled state with its version: another form can't be read.
    """

    FORM: ClassVar[str]

    def __init__(self, stream: bytes) -> None:
        self.stream = stream
        self.rows = 0
        self.damaged = 0  # journal gaps and ring losses so far
        self._name = stream.hex()

    # -- what the recorder asks ------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def settings(self) -> config.Record: ...

    @abstractmethod
    def use(self, settings: config.Record) -> None:
        """Go on within these limits: the state may come from a time when others were set."""

    @property
    @abstractmethod
    def source(self) -> str:
        """As in `SessionRow.source`: only sessions of this source are the stream's."""

    @property
    @abstractmethod
    def sessions_open(self) -> int: ...

    @property
    @abstractmethod
    def weight(self) -> int:
        """Bytes of the sessions' state in memory, about."""

    @property
    @abstractmethod
    def relieved(self) -> int:
        """Times that memory had to be given up."""

    @property
    @abstractmethod
    def held_bytes(self) -> int:
        """Captured bytes held in memory outside of dissectors; walks over all sessions."""

    @property
    @abstractmethod
    def wall_ns(self) -> int:
        """Wall time of the last record."""

    # -- frames ----------------------------------------------------------------------------------------------------

    def feed(self, frame: Frame | Damage) -> list[Row]:
        """Take the next frame, or the news that frames are missing."""
        return [row for part in self.parts(frame) for row in part]

    def parts(self, frame: Frame | Damage) -> Iterator[list[Row]]:
        """The same in parts: a span can hold far more in compressed bodies than its own size. Go on to the end."""
        out: list[Row] = []
        if isinstance(frame, Frame) and frame.kind is FrameKind.SPAN:
            for _ in self._span(frame, out):
                self.rows += len(out)
                yield out[:]
                out.clear()
        else:
            self._told(frame, out)
        self.rows += len(out)
        if out:
            yield out

    @abstractmethod
    def _span(self, frame: Frame, out: list[Row]) -> Iterator[None]:
        """Take a span's records. Yields from time to time."""

    @abstractmethod
    def _told(self, frame: Frame | Damage, out: list[Row]) -> None:
        """Everything but spans."""

    # -- what is missing -------------------------------------------------------------------------------------------

    def _damage(self, damage: Damage, out: list[Row], position: int | None = None) -> None:
        out.append(events.journal_gap(self._name, damage, self.wall_ns, position))
        attrs: dict[str, Any] = {"first_frame": damage.first_frame, "frames": damage.frames}
        self.damaged += 1
        self._blame("journal-gap", "a part of the journal can't be read", attrs, out)

    @abstractmethod
    def _blame(self, kind: str, text: str, attrs: dict[str, Any], out: list[Row]) -> None:
        """Something was lost while these sessions were open."""
