"""One lab with one appliance whose rules send what agents say to real servers through relays."""

from collections.abc import Iterator

import pytest

from tests.lab import Lab
from tests.lab.appliance import Appliance, Rule, literal, relayed
from tests.lab.fixtures import family, run_id, task
from tests.lab.services import Grpc, Llm, MariaDb, Postgres, Redis, Ssh, Tls, TlsPostgres, Web, WebSocket, tls

__all__ = ["family", "run_id", "task"]  # fixtures

PROXY_PORT = 3128
HANDSHAKE, IDLE = 6.0, 12.0  # seconds, of the settings of that name
CONNECTIONS = 40  # of a lease, at one time
MODEL = "model.lab.test"  # the language models, where agents show an access token
MODEL_KEY, CLIENT = "model-key", "lab-client"  # names of secrets
SHOP, SHOP_NATIVE, SHOP_ED25519, CACHE = "shop", "shop-native", "shop-ed25519", "cache"
SHELL, SHELL_CERTIFICATE = "shell", "shell-certificate"
NAMED_PORT = 8090  # open on the wire to those who looked the name up
LAB = "*.lab.test"


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def appliance(lab: Lab) -> Iterator[Appliance]:
    rules = [
        *relayed(lab, Web, 443),
        *relayed(lab, Web, 80),
        *relayed(lab, Web, 8080),
        *relayed(lab, Postgres, 5432, source="agent"),
        *_databases(lab),
        *_shells(lab),
        *relayed(lab, Llm, 443),
        *relayed(lab, Llm, 443, host=MODEL, application="http", mode="mediate", identify="token", secret=MODEL_KEY),
        *relayed(lab, WebSocket, 80),
        *relayed(lab, WebSocket, 443),
        *relayed(lab, Grpc, Grpc.port),
        *relayed(lab, Grpc, Grpc.clear_port),
        *_kinds_of_tls(lab),
        *_by_name_only(lab, Llm, 80),
        {"host": f"tls.{LAB[2:]}", "port": NAMED_PORT, "protocol": "tcp", "lane": "tap"},
    ]
    proxy = [f"{literal(address)}:{PROXY_PORT}" for number in (1, 2) for address in lab.gateway_nic(number).addresses]
    limits = {"handshake_timeout": HANDSHAKE, "idle_timeout": IDLE, "max_connections_per_lease": CONNECTIONS}
    changes = {"relay": {"proxy": proxy, **limits}}
    with Appliance(lab, lab.folder / "data", changes, rules) as appliance:
        yield appliance


def _databases(lab: Lab) -> list[Rule]:
    """An access token opens them. MariaDB's user is another one by IPv6, of another kind of password."""
    by_token = {"mode": "mediate", "identify": "token"}
    native, ed25519 = (
        relayed(lab, MariaDb, 3306, application="mysql", secret=secret, **by_token)[number]
        for number, secret in enumerate((SHOP_NATIVE, SHOP_ED25519))
    )
    return [
        *relayed(lab, TlsPostgres, 5432, application="postgres", secret=SHOP, **by_token),
        native,
        ed25519,
        *relayed(lab, Redis, Redis.tls_port, application="redis", secret=CACHE, **by_token),
        *relayed(lab, Redis, Redis.port, application="redis", mode="mediate", secret=CACHE),
    ]


def _shells(lab: Lab) -> list[Rule]:
    """By IPv4 an access token opens them, and the server gets a key; by IPv6 a lease, and it gets a certificate."""
    how = {"application": "ssh", "mode": "mediate"}
    return [
        relayed(lab, Ssh, 22, identify="token", secret=SHELL, **how)[0],
        relayed(lab, Ssh, 22, secret=SHELL_CERTIFICATE, host_key=lab.ssh.host_key, **how)[1],
    ]


def _kinds_of_tls(lab: Lab) -> list[Rule]:
    """Bad certificates are refused where the server's address is of IPv4; otherwise they are passed, or accepted."""
    refused: dict[str, str] = {}
    passed, accepted = {"opaque": "pass"}, {"verify": False}
    found = [*_by_name_only(lab, Tls, tls.TLS13), *relayed(lab, Tls, tls.TLS12)]
    for port, otherwise in ((tls.EXPIRED, accepted), (tls.MISNAMED, passed), (tls.UNTRUSTED, passed)):
        found += [relayed(lab, Tls, port, **refused)[0], relayed(lab, Tls, port, **otherwise)[1]]
    return [*found, *relayed(lab, Tls, tls.CLIENT_CERTIFICATE, client_certificate=CLIENT)]


def _by_name_only(lab: Lab, kind: type[Llm | Tls], port: int) -> list[Rule]:
    """Open to agents that name a host of the lab, by SNI or in HTTP."""
    named = relayed(lab, kind, port, host=LAB)
    return [*named, *({"to": rule["to"], "port": port, "protocol": "tcp", "lane": "refuse"} for rule in named)]


@pytest.fixture(scope="session")
def credentials(lab: Lab, appliance: Appliance) -> None:
    """The secrets that the rules name."""
    appliance.verbatim("secret", "set", MODEL_KEY, "--kind", "token", input=lab.llm.key)
    certificate, key = lab.tls.client
    appliance.verbatim(
        "secret", "set", CLIENT, "--kind", "tls-client", "--file", str(key), "--certificate", str(certificate)
    )


@pytest.fixture(scope="session")
def passwords(lab: Lab, appliance: Appliance) -> None:
    """The databases' passwords, which agents do not get."""
    for name, user, password in (
        (SHOP, lab.tls_db.user, lab.tls_db.password),
        (SHOP_NATIVE, lab.mariadb.user, lab.mariadb.password),
        (SHOP_ED25519, lab.mariadb.ed25519_user, lab.mariadb.password),
        (CACHE, lab.redis.user, lab.redis.password),
    ):
        appliance.verbatim("secret", "set", name, "--kind", "password", "--user", user, input=password)


@pytest.fixture(scope="session")
def shell_keys(lab: Lab, appliance: Appliance) -> None:
    """What opens the SSH server: the account's key, and another one with a certificate."""
    other = lab.folder / "gateway_key"
    lab.gateway.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other])
    certificate = lab.ssh.sign(other.with_suffix(".pub"))
    kept = ["--kind", "ssh-key", "--user", lab.ssh.user, "--file"]
    appliance.verbatim("secret", "set", SHELL, *kept, str(lab.ssh.key))
    appliance.verbatim("secret", "set", SHELL_CERTIFICATE, *kept, str(other), "--certificate", str(certificate))
