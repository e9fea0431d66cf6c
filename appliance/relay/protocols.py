"""Which mediator serves which application."""

from collections.abc import Mapping
from typing import Final

from appliance.relay.http import HttpMediator
from appliance.relay.mediator import Mediator
from appliance.relay.postgres import PostgresMediator
from appliance.relay.postgres_upgrade import PostgresUpgrade

MEDIATORS: Final[Mapping[str, type[Mediator]]] = {"http": HttpMediator, "postgres": PostgresMediator}
UPGRADES: Final[Mapping[str, type[Mediator]]] = {
    "postgres": PostgresUpgrade
}  # of spliced flows that may go over to TLS
