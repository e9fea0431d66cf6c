"""The coverage statement: what was recorded, against what the peers acknowledged and what the kernel forwarded."""

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
