"""Judges the processes by what they published: which part works, and what is wrong with the others."""

from pathlib import Path

from appliance.status import Status, read

PARTS = ("wire", "record", "store")
MAX_LAG = 60.0  # seconds from packet to store before search counts as behind


def judge(data: Path, *, embedded: bool) -> dict[str, str]:
    """Part → "ok", or what is wrong and what to do. `embedded`: the store is ours to watch."""
    said = read(data)
    names = PARTS if embedded else tuple(part for part in PARTS if part != "store")
    return {name: _judge(name, said.get(name)) for name in names}


def _judge(name: str, status: Status | None) -> str:
    if status is None:
        return f"not running; start it with 'verbatim {name}' or 'verbatim up'"
    if not status.live:
        return f"silent for {status.age:.0f} s; look at its log and restart it"
    if name == "wire":
        if status.values.get("journal", {}).get("stalled"):
            return "the journal is full, agents' traffic is stalled; free disk space or see why 'record' lags"
        if not status.values.get("interlock", True):
            return "the nftables interlock is missing; it is being restored, see the log"
    if name == "record" and (fault := status.values.get("store", "ok")) != "ok":
        return str(fault)
    if name == "record" and float(status.values.get("lag_seconds", 0.0)) > MAX_LAG:
        return f"{status.values['lag_seconds']:.0f} s behind the wire; search does not show the newest traffic yet"
    return "ok"
