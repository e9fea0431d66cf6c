"""The coverage statement: what was recorded, against what the peers acknowledged and what the kernel forwarded.

A relayed session is recorded as plaintext, by the relay that terminates it, and passes the kernel on two legs: to the
agent and to the server. Its statement joins the three: the bytes of plaintext that were recorded in both directions,
and for each leg what the kernel counted on arrival and what the relay's own socket did, which is ciphertext where the
leg speaks TLS. It is

- `complete` if the relay told of it from its start to its end, no byte in between is missing, and on each leg the
  socket received every byte that the kernel had counted, where the kernel's count is there: what came in on the wire
  was taken by the relay, and a relay passes on nothing that is not in the journal;
- `opaque` if that holds, and what the relay passed is ciphertext;
- `partial` otherwise: the relay died, a part of the journal can't be read, or its session was given up.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from appliance.model import Coverage, Direction


class Side(NamedTuple):
    """One direction of a session; sizes are bytes of the transport's payload."""

    packets: int  # recorded
    carried: int  # payload of recorded packets, repetitions included, and what the capture cut off
    recorded: int  # of the stream, each byte once
    acknowledged: int | None  # by the peer, of the stream; None where the transport has no acknowledgements
    missing: int  # declared gaps
    begun: bool  # the start was seen: the SYN, or nothing but resets was sent


class Kernel(NamedTuple):
    """What the kernel counted for one direction, after recording."""

    packets: int
    bytes: int
    refused: int
    refused_bytes: int


def missing(side: Side) -> int:
    """Bytes of the stream that exist, as far as anybody said, and were not recorded."""
    if side.acknowledged is None:
        return side.missing
    return max(side.missing, side.acknowledged - side.recorded)


def judge(
    sides: tuple[Side, Side],
    kernel: tuple[Kernel, Kernel] | None,
    opaque: bool,
    damaged: bool,
    bypassed: bool = False,
) -> Coverage:
    """The worst that applies. `damaged`: packets may have been lost unseen and nothing proves that none was.

    The kernel's counters outvote an unseen start: it had recorded every packet that it counted. They say nothing of
    what may have been `bypassed`: packets that the program did not get.
    """
    if not all(side.packets for side in sides):
        return Coverage.ONE_SIDED
    agreed = kernel is not None and all(
        counted.packets <= side.packets and counted.bytes <= side.carried
        for side, counted in zip(sides, kernel, strict=True)
    )
    unseen = not all(side.begun for side in sides) or damaged
    if (
        any(missing(side) for side in sides)
        or (kernel is not None and not agreed)
        or (unseen and not agreed)
        or bypassed
    ):
        return Coverage.PARTIAL
    return Coverage.OPAQUE if opaque else Coverage.COMPLETE


def statement(sides: tuple[Side, Side], kernel: tuple[Kernel, Kernel] | None) -> dict[str, Any]:
    """`judge`'s numbers, bytes by direction: recorded, acknowledged, missing; with the kernel's: forwarded, refused.

    `forwarded` counts repetitions, so it is compared with `carried`, not with `recorded`. `refused` is a number of
    packets; the kernel makes their senders send them again.
    """
    both = (Direction.CLIENT.value, Direction.SERVER.value)
    said: dict[str, Any] = {
        "recorded": {name: side.recorded for name, side in zip(both, sides, strict=True)},
        "carried": {name: side.carried for name, side in zip(both, sides, strict=True)},
        "acknowledged": {name: side.acknowledged for name, side in zip(both, sides, strict=True)},
        "missing": {name: missing(side) for name, side in zip(both, sides, strict=True)},
    }
    if kernel is not None:
        said["forwarded"] = {name: counted.bytes for name, counted in zip(both, kernel, strict=True)}
        said["forwarded_packets"] = {name: counted.packets for name, counted in zip(both, kernel, strict=True)}
        said["refused"] = {name: counted.refused for name, counted in zip(both, kernel, strict=True)}
    return said


class Leg(NamedTuple):
    """One leg of a relayed session: a peer's connection with the relay. Bytes; None: nobody counted."""

    sent: int | None  # by the peer, as the kernel counted them on arrival
    acked: int | None  # of ours by the peer, as the kernel saw it
    packets: int | None  # of the peer
    received: int | None  # by the relay's socket
    delivered: int | None  # of ours to the peer, as the relay's socket was told

    @classmethod
    def parse(cls, said: object) -> "Leg | None":
        """From a CLOSE record's JSON; None: there was no such leg."""
        if not isinstance(said, Mapping):
            return None
        kernel, socket = said.get("kernel"), said.get("socket")
        return cls(*(_count(kernel, name) for name in _KERNEL), *(_count(socket, name) for name in _SOCKET))

    @property
    def agrees(self) -> bool:
        """Whether the relay took all that came in, as far as that was counted. The socket is looked at last."""
        return self.sent is None or (self.received is not None and self.sent <= self.received)

    def said(self) -> dict[str, Any]:
        return {
            "kernel": None if self.sent is None else dict(zip(_KERNEL, self[:3], strict=True)),
            "socket": None if self.received is None else dict(zip(_SOCKET, self[3:], strict=True)),
        }


_KERNEL = ("sent", "acked", "packets")
_SOCKET = ("received", "acked")
Legs = tuple[Leg | None, Leg | None]  # the agent's, the server's


def _count(said: object, name: str) -> int | None:
    found = said.get(name) if isinstance(said, Mapping) else None
    return found if isinstance(found, int) else None


def judge_relayed(sides: tuple[Side, Side], legs: Legs | None, opaque: bool, damaged: bool) -> Coverage:
    """The rule above. `legs`: None while, or because, the relay did not tell of the end."""
    whole = legs is not None and all(leg is None or leg.agrees for leg in legs)
    if not whole or damaged or not all(side.begun and not side.missing for side in sides):
        return Coverage.PARTIAL
    return Coverage.OPAQUE if opaque else Coverage.COMPLETE


def statement_relayed(sides: tuple[Side, Side], legs: Legs | None) -> dict[str, Any]:
    """The numbers: plaintext recorded and missing, in bytes by direction; `agent` and `upstream`: the legs' counts, as
    in a CLOSE record of the journal, once they are known.
    """
    both = (Direction.CLIENT.value, Direction.SERVER.value)
    said: dict[str, Any] = {
        "recorded": {name: side.recorded for name, side in zip(both, sides, strict=True)},
        "missing": {name: side.missing for name, side in zip(both, sides, strict=True)},
    }
    if legs is not None:
        said |= {name: leg and leg.said() for name, leg in zip(("agent", "upstream"), legs, strict=True)}
    return said
