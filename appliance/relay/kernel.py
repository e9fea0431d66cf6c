"""The program's view of relayed flows: which lease they are of, and what it counted on both legs."""

from typing import Final

from appliance.config import Settings
from appliance.relay.surroundings import AgentLeg, Counts
from appliance.wire.abi import SIDE_F_FIN, SIDE_F_SEEN, SideState
from appliance.wire.steering import Steering, flow_key

WRAP: Final = 2**32


class ProgramView:
    """Over the pinned maps. Raises `Unavailable` while the wire process has not made them."""

    def __init__(self, settings: Settings) -> None:
        self._steering = Steering.open(settings)

    def register(self, port: int) -> None:
        """From now on, new flows are steered to this port. Raises `Unavailable` when all places are taken."""
        self._steering.register(port)

    def unregister(self) -> None:
        self._steering.unregister()

    def agent_leg(self, client: str, client_port: int, server: str, server_port: int) -> AgentLeg | None:
        flow = self._steering.flow(client, client_port, server, server_port)
        if flow is None:
            return None
        return AgentLeg(flow.start, f"{flow.lease:016x}" if flow.lease else "", counts(flow.client))

    def put_leg(
        self, client: str, client_port: int, server: str, server_port: int, *, transparent: bool, unbound: bool
    ) -> None:
        key = flow_key(client, client_port, server, server_port)
        self._steering.put_leg(key, transparent=transparent, unbound=unbound)

    def take_leg(self, client: str, client_port: int, server: str, server_port: int) -> Counts | None:
        """What was counted of a leg, which is forgotten by that."""
        leg = self._steering.take_leg(flow_key(client, client_port, server, server_port))
        return None if leg is None else counts(leg.server)

    def lease(self, address: str) -> str | None:
        """The lease in force for an agent's address, as 16 hex digits."""
        number = self._steering.lease(address)
        return None if number is None else f"{number:016x}"

    def tend(self) -> None:
        """Once a second. Raises `Unavailable` while the maps are gone."""
        self._steering.tend()

    def close(self) -> None:
        self._steering.close()


def counts(side: SideState) -> Counts:
    """What a peer sent: bytes, each once, from its sequence numbers (those wrap; all payload counted is a bound)."""
    if not side.flags & SIDE_F_SEEN:
        return {"sent": 0, "packets": side.packets}
    sent = (side.next - side.isn - 1 - bool(side.flags & SIDE_F_FIN)) % WRAP
    sent += max(0, side.bytes - sent) // WRAP * WRAP
    return {"sent": sent, "packets": side.packets}
