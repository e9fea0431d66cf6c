"""What relays need: processes, secrets and CA files that rules name, addresses of the proxy, open files."""

import socket
import subprocess
from pathlib import Path

import pytest

from appliance.config import Rule, Settings
from appliance.doctor import Check, Level, relays, services
from appliance.doctor.network import Nic
from appliance.identity import ca, credential, secrets
from appliance.identity.credential import Kind
from appliance.status import Status, publish, read
from tests.doctor.conftest import gateway, worst

SEEN = {
    name: Nic(name, index, True, True, True, None, False, (address,))
    for index, (name, address) in enumerate((("eth0", "198.51.100.1"), ("eth1", "10.20.1.1")), 1)
}


def relayed(data: Path, **relay: object) -> Settings:
    """A gateway whose only rule relays PostgreSQL in the way of `relay`."""
    rule = Rule.model_validate({"to": "10.0.5.0/24", "lane": "relay", "relay": relay})
    return gateway(data, rules=(rule,))


def keep(data: Path, name: str, kind: Kind, value: bytes = b"opensesame") -> None:
    user = "app" if kind is Kind.PASSWORD else ""
    secrets.add(data, credential.parse(name, kind, value, user=user), 1, 0)


def test_relays_that_rules_need_count_as_missing(tmp_path: Path) -> None:
    publish(tmp_path, "wire", {})
    said = read(tmp_path)
    assert worst(services.processes(relayed(tmp_path), said, 0.0), "relay").level is Level.FAIL
    assert worst(services.processes(gateway(tmp_path, relay={"proxy": ["10.20.1.1:3128"]}), said, 0.0), "relay")
    assert {one.about for one in services.processes(gateway(tmp_path), said, 0.0)} & {"relay"} == set()


@pytest.mark.parametrize(
    ("address", "level"),
    [
        ("10.20.1.1:3128", Level.OK),
        ("0.0.0.0:3128", Level.WARN),
        ("198.51.100.1:3128", Level.FAIL),
        ("127.0.0.1:3128", Level.FAIL),
        ("192.0.2.200:3128", Level.FAIL),
    ],
)
def test_where_the_proxy_listens(address: str, level: Level) -> None:
    found = worst(relays.proxy(gateway(relay={"proxy": [address]}), SEEN))
    assert (found.about, found.level, "eth1" in (found.remedy or "eth1")) == (address, level, True)


def test_a_proxy_whose_port_another_program_holds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        settings = gateway(tmp_path, relay={"proxy": [address]})
        assert worst(services.ports(settings, {}), "relay").level is Level.FAIL
        publish(tmp_path, "relay", {})
        assert worst(services.ports(settings, read(tmp_path)), "relay").level is Level.OK


def test_a_ca_file_that_rules_name(tmp_path: Path) -> None:
    path = tmp_path / "servers.pem"
    settings = relayed(tmp_path, ca=str(path))
    gone = worst(relays.authorities(settings))
    assert (gone.about, gone.level, str(path) in gone.found) == ("rule 1", Level.FAIL, True)
    path.write_text("no certificate")
    assert worst(relays.authorities(settings)).level is Level.FAIL
    path.write_bytes(ca.load_or_create(tmp_path / "data", "node").pem)
    assert worst(relays.authorities(settings)).level is Level.OK


POSTGRES = {"application": "postgres", "mode": "mediate", "secret": "orders"}


def test_a_secret_that_a_rule_names(tmp_path: Path) -> None:
    settings = relayed(tmp_path, **POSTGRES)
    assert "verbatim secret set orders" in worst(relays.secrets(settings)).remedy
    keep(tmp_path, "orders", Kind.TOKEN)
    found = worst(relays.secrets(settings))
    assert (found.about, found.level, "needed is password" in found.found) == ("rule 1", Level.FAIL, True)
    assert worst(relays.secrets(relayed(tmp_path, **POSTGRES | {"application": "http"}))).level is Level.OK
    secrets.remove(tmp_path, "orders")
    keep(tmp_path, "orders", Kind.PASSWORD)
    assert worst(relays.secrets(settings)).level is Level.OK


def test_a_client_certificate_that_is_none(tmp_path: Path) -> None:
    keep(tmp_path, "client", Kind.PASSWORD)
    found = worst(relays.secrets(relayed(tmp_path, client_certificate="client")))
    assert (found.level, "needed is tls-client" in found.found) == (Level.FAIL, True)


def test_a_key_of_secrets_that_others_may_read_or_that_is_gone(tmp_path: Path) -> None:
    keep(tmp_path, "orders", Kind.PASSWORD)
    key = tmp_path / "keys" / secrets.KEY
    key.chmod(0o640)
    found = worst(relays.secrets(gateway(tmp_path)))
    assert (found.about, found.level, found.remedy) == ("key", Level.FAIL, f"chmod 600 {key}")
    key.unlink()
    assert worst(relays.secrets(relayed(tmp_path, **POSTGRES))).level is Level.UNKNOWN


def test_before_the_first_start_nothing_is_made(tmp_path: Path) -> None:
    settings = relayed(tmp_path / "data", **POSTGRES)
    assert [one.level for look in (relays.secrets, relays.authorities) for one in look(settings)] == [Level.FAIL]
    assert list(tmp_path.iterdir()) == []


def test_open_files_of_a_relay_that_runs(tmp_path: Path) -> None:
    with subprocess.Popen(["sh", "-c", "ulimit -n 1000 && echo && exec sleep 100"], stdout=subprocess.PIPE) as relay:
        try:
            assert relay.stdout is not None
            relay.stdout.readline()
            said = {"relay": Status("relay", relay.pid, 0.0, {})}
            found = worst(relays.open_files(relayed(tmp_path), said), "relay")
            assert (found.check, found.level, "LimitNOFILE=33024" in found.remedy) == (Check.LIMITS, Level.WARN, True)
            few = gateway(tmp_path, relay={"max_connections": 372})
            assert worst(relays.open_files(few, said)).level is Level.OK
        finally:
            relay.kill()
