"""What a PostgreSQL server still has to answer, and the statements and portals that requests name.

The server answers in order. Each request has one answer that ends it (PostgreSQL 18 documentation, 54.2.2 to 54.2.4):

    START     everything up to the first ReadyForQuery
    QUERY     results, errors, COPY; ReadyForQuery            simple query
    FUNCTION  FunctionCallResponse or error; ReadyForQuery
    PARSE     ParseComplete              BIND   BindComplete        CLOSE  CloseComplete
    DESCRIBE  RowDescription or NoData   SYNC   ReadyForQuery
    EXECUTE   rows or COPY; CommandComplete, EmptyQueryResponse or PortalSuspended

An error ends PARSE, BIND, DESCRIBE, EXECUTE and CLOSE, and the server then discards every request up to the next SYNC,
which may still have to come. So an answer that does not fit the oldest request means that this one was passed over.

Everything is bounded: past `MAX_PENDING` requests or `MAX_PENDING_BYTES`, new ones are only counted until the server
has answered all of them, and their answers stay without a request; the oldest names are forgotten past `MAX_NAMES` or
`MAX_NAMED_BYTES`.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Generic, TypeVar

import msgspec

from appliance.dissect.postgres_columns import Columns

MAX_PENDING = 16384  # requests of one session without an answer
MAX_PENDING_BYTES = 8 << 20  # of the messages that made them
MAX_NAMES = 1024  # statements, and portals, of one session
MAX_NAMED_BYTES = 4 << 20  # of the messages that defined them


class Step(Enum):
    START = 0
    QUERY = 1
    FUNCTION = 2
    PARSE = 3
    BIND = 4
    DESCRIBE = 5
    EXECUTE = 6
    CLOSE = 7
    SYNC = 8
    __hash__ = object.__hash__  # it is looked up for every message; that of an enum is many times slower


READY: Final = frozenset({Step.START, Step.QUERY, Step.FUNCTION, Step.SYNC})  # those that ReadyForQuery ends


class Shape(msgspec.Struct):
    """What is known of a statement's parameters and result."""

    types: tuple[int, ...] = ()
    columns: Columns | None = None

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        return 40 * len(self.types) + (self.columns.held if self.columns is not None else 0)


class Portal(msgspec.Struct):
    """A bound statement: how its result is to be read, how many rows of it were fetched."""

    shape: Shape
    formats: tuple[int, ...] = ()
    fetched: int = 0


class Statement(msgspec.Struct):
    sql: str
    shape: Shape
    weight: int


class Bound(msgspec.Struct):
    """What an Execute of a portal says."""

    portal: Portal
    sql: str
    prepared: str
    parameters: list[str | None]
    flags: tuple[str, ...]
    start: int  # of its Bind
    end: int
    ts_ns: int
    end_ns: int
    weight: int
    executed: bool = False


Named = TypeVar("Named", Statement, Bound)


@dataclass(slots=True)
class Names(Generic[Named]):
    """Bounded names; the oldest are forgotten first."""

    items: dict[str, Named] = field(default_factory=dict)
    weight: int = 0

    def get(self, name: str) -> Named | None:
        return self.items.get(name)

    def clear(self) -> None:
        self.items.clear()
        self.weight = 0

    def put(self, name: str, item: Named | None) -> Named | None:
        """Define, or with None remove; returns what the name meant before."""
        before = self.items.pop(name, None)
        if before is not None:
            self.weight -= before.weight
        if item is not None:
            self.items[name] = item
            self.weight += item.weight
        while len(self.items) > MAX_NAMES or self.weight > MAX_NAMED_BYTES:
            self.weight -= self.items.pop(next(iter(self.items))).weight
        return before


class Request(msgspec.Struct):
    step: Step
    start: int | None  # of the message that was made of it; None: none was
    weight: int
    portal: Portal | None = None  # of EXECUTE, of FUNCTION, and of DESCRIBE of a portal
    shape: Shape | None = None  # of DESCRIBE of a statement
    undo: tuple[str, Statement | None] | None = None  # what the statement's name meant before


class Requests:
    """The queue. The client's side pushes, the server's side takes."""

    def __init__(self) -> None:
        self.statements: Names[Statement] = Names()
        self._queue: deque[Request] = deque()
        self._weight = 0
        self._discarding = False  # the server passes over everything up to the next SYNC
        self._counting = False  # the queue is full: requests are only counted
        self._uncounted = False  # the last request that was only counted is not one that ReadyForQuery ends
        self._counted = 0
        self._lost = False  # bytes were lost: nothing is known until the next ReadyForQuery
        self._last: int | None = None

    def push(self, request: Request) -> None:
        if self._lost:
            return
        if self._discarding:
            if request.step is not Step.SYNC:
                self._undo(request)
                return
            self._discarding = False
        if self._counting or len(self._queue) >= MAX_PENDING or self._weight > MAX_PENDING_BYTES:
            self._counting = True
            self._uncounted = request.step not in READY
            self._counted += not self._uncounted
            return
        self._queue.append(request)
        self._weight += request.weight

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        described = sum(statement.shape.held for statement in self.statements.items.values())
        return self._weight + 256 * len(self._queue) + described

    def head(self) -> Request | None:
        return self._queue[0] if self._queue else None

    def expect(self, *steps: Step) -> Request | None:
        """The oldest request, which must be one of `steps`: older ones were passed over. It stays in the queue."""
        queue = self._queue
        while queue:
            if queue[0].step in steps:
                return queue[0]
            self._pop()
        return None

    def done(self, *steps: Step) -> Request | None:
        """The same; an answer that ends it, unless only ReadyForQuery does."""
        request = self.expect(*steps)
        if request is not None and request.step not in READY:
            self._pop()
        return request

    def failed(self) -> int | None:
        """The server reports an error; returns what it is about."""
        if not self._queue:
            return self._last
        head = self._queue[0]
        if head.step is Step.SYNC:
            return self._last
        if head.step in READY:
            return head.start
        passed = []
        while self._queue and self._queue[0].step is not Step.SYNC:
            passed.append(self._pop())
        self._discarding = not self._queue and not self._counting
        for request in reversed(passed):
            self._undo(request)
        return head.start

    def ready(self) -> None:
        """ReadyForQuery."""
        if self._lost:
            self._lost = False
        elif self._queue:
            while self._queue and self._pop().step not in READY:
                pass
        elif self._counting:
            self._counted -= self._counted > 0
            self._counting = self._counted > 0 or self._uncounted
        self._discarding = False
        self._last = None

    def only_head(self) -> None:
        """The server is within a COPY that the oldest request began: a SYNC that came with it does not count."""
        head = self._queue[0]
        self._queue.clear()
        self._queue.append(head)
        self._weight = head.weight

    def crowded(self) -> bool:
        return len(self._queue) > 1 and self._queue[0].step is Step.EXECUTE

    def lose(self) -> None:
        """Requests or answers are missing: nothing is matched before the next ReadyForQuery."""
        self._queue.clear()
        self._weight = 0
        self._discarding = self._counting = self._uncounted = False
        self._counted = 0
        self._lost = True
        self._last = None

    def _pop(self) -> Request:
        request = self._queue.popleft()
        self._weight -= request.weight
        if request.start is not None:
            self._last = request.start
        return request

    def _undo(self, request: Request) -> None:
        if request.undo is not None:
            self.statements.put(*request.undo)
