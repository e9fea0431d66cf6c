"""The settings that the lab writes are what the appliance reads."""

import tomllib
from pathlib import Path

from appliance import config
from tests.lab import Lab
from tests.lab.appliance import relayed, settings, toml
from tests.lab.services import TlsPostgres


def test_toml_round_trip() -> None:
    values = {
        "text": 'quote " backslash \\ newline \n umlaut ü',
        "number": 3,
        "yes": True,
        "list": ["a", "b"],
        "empty": [],
        "table": {"inner": 1.5, "deeper": {"x": "y"}},
        "tables": [{"a": 1}, {"a": 2, "b": {"c": 3}}],
    }
    assert tomllib.loads("\n".join(toml(values))) == values


def test_settings_are_valid(lab: Lab, tmp_path: Path) -> None:
    written = tmp_path / "verbatim.toml"
    written.write_text("\n".join(toml(settings(lab, tmp_path / "data", {"leases": {"max_seconds": 5}}))))
    read = config.load(written)
    assert read.data == tmp_path / "data"
    assert read.leases.max_seconds == 5
    assert read.wire.agents == ("agent1", "agent2")
    assert read.wire.upstream == ("upstream",)
    assert read.issuers[0].issuer == lab.idp.issuer
    assert f"{lab.gateway_nic(1).addresses[0]}:8443" in read.api.listen
    # Without a lease an agent reaches the provider of its tokens, and nothing else.
    opened = {str(to.network_address) for rule in read.rules if rule.unbound for to in rule.networks()}
    assert opened == set(lab.idp.addresses)


def test_rules_of_a_test_replace_those_of_the_lab(lab: Lab, tmp_path: Path) -> None:
    own = relayed(lab, TlsPostgres, 5432, application="postgres", mode="mediate", identify="token")
    written = tmp_path / "verbatim.toml"
    written.write_text("\n".join(toml(settings(lab, tmp_path / "data", rules=own))))
    found = [
        rule
        for rule in config.load(written).rules
        if {str(to.network_address) for to in rule.networks()} & set(lab.addresses(TlsPostgres))
    ]
    assert [rule.lane for rule in found] == ["relay", "relay"]
    assert {rule.relay.ca for rule in found} == {lab.pki.certificate}
    assert {(rule.relay.mode, rule.relay.identify) for rule in found} == {("mediate", "token")}
