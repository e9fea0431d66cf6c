"""A session without a stream of its own: UDP, ICMP and other protocols. Datagrams lie at consecutive offsets.

Each datagram is one chunk, so that its bounds are known. ICMP messages are kept from their type on, others from behind
the transport header.
"""

from appliance.model import Ending, Row
from appliance.session import coverage
from appliance.session.chunks import Chunk
from appliance.session.memory import DATAGRAM_BYTES
from appliance.session.pieces import Data
from appliance.session.session import LINGER_NS, Birth, Session
from appliance.wire.abi import Flow


class DatagramSession(Session):
    __slots__ = ("_missing", "_next_offset", "_recorded")

    BYTES = DATAGRAM_BYTES

    def __init__(self, birth: Birth, max_text: int) -> None:
        super().__init__(birth, max_text)
        self._next_offset = [0, 0]
        self._recorded = [0, 0]
        self._missing = [0, 0]

    def packet(self, side: int, data: bytes, payload: int, wall_ns: int, now: int, out: list[Row]) -> None:
        """Take one datagram of `payload` bytes, of which `data` was captured."""
        self._count(side, payload, wall_ns, now)
        chunks: list[Chunk] = []
        if data:
            piece = Data(self._next_offset[side], data, wall_ns)
            self._next_offset[side] += len(data)
            self._recorded[side] += len(data)
            self._data(side, piece, out)
            self.outlets[side].flush(chunks)
            self._chunks(side, chunks, out)
        if payload > len(data):
            start, lost = self._next_offset[side], payload - len(data)
            self._next_offset[side] += lost
            self._missing[side] += lost
            text = f"{lost} bytes are missing"
            self.finding("gap", side, start, start + lost, wall_ns, text, out, {"reason": "snapped"})
            self._lost(side, lost, wall_ns, out)

    def kernel_end(self, flow: Flow, ending: Ending, now: int) -> None:
        """The kernel's last word on the flow."""
        self.flow_end(flow)
        if not self.deadline:
            self.ending, self.deadline = ending, now + LINGER_NS

    def forget(self) -> None:
        """Nothing is kept that silence makes useless."""

    def unblock(self, out: list[Row]) -> bool:
        self.flush(out)
        return False

    def _finish_streams(self, out: list[Row]) -> None:
        """Datagrams don't wait for each other."""

    def _sides(self) -> tuple[coverage.Side, coverage.Side]:
        return self._side(0), self._side(1)

    def _side(self, side: int) -> coverage.Side:
        return coverage.Side(
            self.packets[side], self.carried[side], self._recorded[side], None, self._missing[side], True
        )
