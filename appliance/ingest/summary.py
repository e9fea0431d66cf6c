"""What came of one capture file: shown to its user, and kept so that the same file is not taken twice."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import msgspec


@dataclass(frozen=True, slots=True)
class Summary:
    """`captured`: bytes, with their link layer. `skipped`: packets by reason. `lost`: dropped by the capturing system.

    `fault`: why the file could not be read to its end, or "". `already`: it was ingested before; nothing was stored.
    """

    file: str
    sha256: str
    stream: str
    packets: int
    captured: int
    skipped: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    fault: str = ""
    already: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Raises `msgspec.DecodeError`."""
        return msgspec.json.decode(data, type=cls)

    def again(self) -> Self:
        return replace(self, already=True)

    def sentence(self) -> str:
        """For people."""
        if self.already:
            return f"{self.file}: already ingested; nothing was stored (sha256 {self.sha256})"
        said = [f"{self.file}: {self.packets} packets, {self.captured} bytes"]
        if self.skipped:
            said.append("not recorded: " + ", ".join(f"{count} {reason}" for reason, count in self.skipped.items()))
        if self.lost:
            said.append(f"{self.lost} packets dropped by the capturing system")
        if self.fault:
            said.append(f"not read to the end of the file: {self.fault}")
        return "; ".join(said)
