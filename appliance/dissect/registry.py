"""Which dissectors there are, in the order in which they are asked, and what each is called.

Several may be of one protocol, as it is on the wire and as a relay writes it: what one is called is its `form`.
"""

from typing import Final

from appliance.dissect import Dissector
from appliance.dissect.datagrams import RawDatagrams
from appliance.dissect.dns import Dns
from appliance.dissect.dns_tcp import DnsTcp
from appliance.dissect.echo import Echo
from appliance.dissect.http1 import Http1
from appliance.dissect.http2 import Http2
from appliance.dissect.mysql import Mysql
from appliance.dissect.postgres import Postgres
from appliance.dissect.raw import Raw
from appliance.dissect.redis import Redis
from appliance.dissect.ssh import Ssh
from appliance.dissect.ssh_relayed import SshRelayed
from appliance.dissect.tls import Tls
from appliance.dissect.websocket import WebSocket

Registry = tuple[type[Dissector], ...]

STREAM: Final[Registry] = (
    Tls,
    Mysql,
    Postgres,
    Http2,
    Http1,
    WebSocket,
    Redis,
    Ssh,
    SshRelayed,
    DnsTcp,
    Raw,
)
DATAGRAM: Final[Registry] = (Dns, RawDatagrams)
REGISTRIES: Final[dict[str, Registry]] = {"tcp": STREAM, "icmp": (Echo, RawDatagrams)}


def form(dissector: Dissector | type[Dissector]) -> str:
    """Its own name, where it is not the only one of its protocol."""
    return getattr(dissector, "form", dissector.protocol)


def named(registry: Registry, name: str) -> type[Dissector] | None:
    return next((one for one in registry if form(one) == name), None)
