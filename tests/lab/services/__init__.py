"""The servers of the lab's upstream network, real ones; `base` tells how to add one.

`SERVICES` start with a lab, `ON_DEMAND` when something asks for them.
"""

from tests.lab.services.base import DOMAIN, Opening, Service, Site
from tests.lab.services.dns import Dns
from tests.lab.services.grpc import Grpc
from tests.lab.services.idp import Idp
from tests.lab.services.llm import Llm
from tests.lab.services.mariadb import MariaDb
from tests.lab.services.postgres import Postgres, TlsPostgres
from tests.lab.services.redis import Redis
from tests.lab.services.ssh import Ssh
from tests.lab.services.tls import Tls
from tests.lab.services.web import Web
from tests.lab.services.websocket import WebSocket

SERVICES: tuple[type[Service], ...] = (Dns, Postgres, Web, Idp)
ON_DEMAND: tuple[type[Service], ...] = (TlsPostgres, MariaDb, Redis, Ssh, Llm, WebSocket, Grpc, Tls)

__all__ = [
    "DOMAIN",
    "ON_DEMAND",
    "SERVICES",
    "Dns",
    "Grpc",
    "Idp",
    "Llm",
    "MariaDb",
    "Opening",
    "Postgres",
    "Redis",
    "Service",
    "Site",
    "Ssh",
    "Tls",
    "TlsPostgres",
    "Web",
    "WebSocket",
]
