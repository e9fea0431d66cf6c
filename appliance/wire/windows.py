"""Windows that the program shut, opened again when the ring has drained.

While the ring is too full the program forwards acknowledgements that open nothing (`bpf/clamp.h`). Then the sender may
not send, so the receiver has nothing to acknowledge, and both would wait for a probe, which comes ever more rarely. So
each flow's last acknowledgement is kept in the map `held`, and is sent once more from here, as it was but for a window
of a few segments. What that lets in brings the next acknowledgement, and the program decides again.

These packets bear the receiver's address and carry no payload; they are recorded as they first came, not again. One
that comes too late says nothing new, and is ignored.
"""

import random
import socket
import struct
from collections import deque
from collections.abc import Callable

from appliance.wire.abi import FlowKey, Held, Pressure
from appliance.wire.bpf import Map
from appliance.wire.resets import TCP, Packet, checksum

ACK = 0x10
STEP = 256  # windows opened in one go


def reopening(key: FlowKey, held: Held) -> Packet:
    """The acknowledgement again, with the window that it may have now, as a router on its way would forward it."""
    header = bytearray(held.header[: held.length])
    if key.family == 4:
        struct.pack_into("!H", header, 2, len(header))
        header[8] -= 1
        source, target = key.source[12:], key.destination[12:]
        pseudo = source + target + struct.pack("!HH", TCP, len(header) - held.transport)
        address = socket.inet_ntop(socket.AF_INET, target)
    else:
        struct.pack_into("!H", header, 4, len(header) - 40)
        header[7] -= 1
        source, target = key.source, key.destination
        pseudo = source + target + struct.pack("!II", len(header) - held.transport, TCP)
        address = socket.inet_ntop(socket.AF_INET6, target)
    ports, offset = header[held.transport : held.transport + 4], header[held.transport + 12]
    ack = header[held.transport + 8 : held.transport + 12]
    struct.pack_into(
        "!4sI4sBBHHH", header, held.transport, bytes(ports), held.seq, bytes(ack), offset, ACK, held.window, 0, 0
    )
    struct.pack_into("!H", header, held.transport + 16, checksum(pseudo + header[held.transport :]))
    return address, bytes(header)


class Reopener:
    """Opens what map `held` has. `level`: fill of the ring below which windows open again; `send`: `Sender.send`."""

    def __init__(self, held: Map, pressure: Map, level: int, send: Callable[[Packet], bool]) -> None:
        self._held = held
        self._pressure = pressure
        self._level = level
        self._send = send
        self._seen = 0
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self.reopened = 0

    def step(self, fill: int) -> None:
        """Open what waits, `STEP` windows at most, if the ring holds little enough."""
        if fill >= self._level:
            return
        if not self._waiting:
            held = Pressure.unpack(self._pressure.lookup(bytes(4)) or bytes(Pressure.LAYOUT.size)).held
            if held == self._seen:
                return
            self._seen = held
            self._waiting.extend(self._held.take())
            random.shuffle(self._waiting)  # whoever is first has the most of it, and the map's order never changes
        for _ in range(min(STEP, len(self._waiting))):
            key, value = self._waiting.popleft()
            # Where no route leads any more, the sender's probes remain.
            self.reopened += self._send(reopening(FlowKey.unpack(key), Held.unpack(value)))
