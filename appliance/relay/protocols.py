"""Which mediator serves which application."""

from collections.abc import Mapping
from typing import Final

from appliance.relay.http import HttpMediator
from appliance.relay.mediator import Mediator
from appliance.relay.mysql import MysqlMediator
from appliance.relay.mysql_upgrade import MysqlUpgrade
from appliance.relay.postgres import PostgresMediator
from appliance.relay.postgres_upgrade import PostgresUpgrade
from appliance.relay.redis import RedisMediator

MEDIATORS: Final[Mapping[str, type[Mediator]]] = {
    "http": HttpMediator,
    "mysql": MysqlMediator,
    "postgres": PostgresMediator,
    "redis": RedisMediator,
}
UPGRADES: Final[Mapping[str, type[Mediator]]] = {
    "mysql": MysqlUpgrade,
    "postgres": PostgresUpgrade,
}  # of spliced flows that may go over to TLS
