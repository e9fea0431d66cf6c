"""The servers of the lab's upstream network, real ones. `SERVICES` is all of them; `base` tells how to add one."""

from tests.lab.services.base import DOMAIN, Opening, Service, Site
from tests.lab.services.dns import Dns
from tests.lab.services.idp import Idp
from tests.lab.services.postgres import Postgres
from tests.lab.services.web import Web

SERVICES: tuple[type[Service], ...] = (Dns, Postgres, Web, Idp)

__all__ = ["DOMAIN", "SERVICES", "Dns", "Idp", "Opening", "Postgres", "Service", "Site", "Web"]
