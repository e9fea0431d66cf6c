"""What Verbatim costs and how fast it is, measured against a peer in the same run: `make bench [ONLY=case]`.

Each module `<letter>_<name>.py` is a case: `TITLE` says what is measured, `run(say)` measures it. A case brings up what
it needs, removes it again, and tells the truth about what it found; figures are not asserted by any test.
"""

import operator
import re
from dataclasses import dataclass
from typing import Any

COMPARE = {">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt, "==": operator.eq}
REACH = re.compile(r"(ratio|figure|added) (>=|<=|==|<|>) ([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    `case`: letter of the case; `subject`: what was measured; `peer`: what it is compared with, in the same run ("":
    nothing); both figures in `unit`. `reach`: what is wanted of "ratio" (figure by peer's), "added" (figure less
    peer's) or "figure", such as "ratio >= 0.75"; "": told for information.
    """

    case: str
    subject: str
    peer: str
    figure: float
    peer_figure: float | None
    unit: str
    reach: str = ""

    def __post_init__(self) -> None:
        if self.reach and not REACH.fullmatch(self.reach):
            raise ValueError(f"reach {self.reach!r}: write it as 'ratio >= 0.75'; ratio, added or figure")

    @property
    def ratio(self) -> float | None:
        return self.figure / self.peer_figure if self.peer_figure else None

    @property
    def ok(self) -> bool | None:
        """Whether the figure is within reach; None when nothing is wanted of it."""
        if not self.reach:
            return None
        found = REACH.fullmatch(self.reach)
        assert found
        of, compare, bound = found.groups()
        if of == "figure":
            value: float | None = self.figure
        elif of == "ratio":
            value = self.ratio
        else:
            value = None if self.peer_figure is None else self.figure - self.peer_figure
        return value is not None and bool(COMPARE[compare](value, float(bound)))

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "subject": self.subject,
            "peer": self.peer,
            "figure": round(self.figure, 3),
            "peer_figure": None if self.peer_figure is None else round(self.peer_figure, 3),
            "unit": self.unit,
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "reach": self.reach,
            "ok": self.ok,
        }
