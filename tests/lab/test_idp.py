"""Tokens of the lab's provider, checked with its published keys as any relying party would."""

import json
import time
from typing import Any

import pytest
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from tests.lab import Lab
from tests.lab.net import ROOT
from tests.lab.tokens import ACCESS_TOKEN, EXCHANGE


def keys(lab: Lab) -> KeySet:
    discovered = json.loads(lab.tokens().curl(f"{lab.idp.issuer}/.well-known/openid-configuration"))
    assert discovered["issuer"] == lab.idp.issuer
    assert EXCHANGE in discovered["grant_types_supported"]
    return KeySet.import_key_set(json.loads(lab.tokens().curl(discovered["jwks_uri"])))


def claims(lab: Lab, token: str) -> dict[str, Any]:
    decoded = jwt.decode(token, keys(lab), algorithms=["ES256"])
    assert decoded.header["typ"] == "at+jwt"
    rules = jwt.JWTClaimsRegistry(iss={"value": lab.idp.issuer}, aud={"value": "verbatim"}, exp={"essential": True})
    rules.validate(decoded.claims)
    return decoded.claims


def test_client_credentials(lab: Lab) -> None:
    said = claims(lab, lab.token("agent-one"))
    assert (said["sub"], said["client_id"]) == ("agent-one", "agent-one")
    assert said["groups"] == ["agents", "shop-data"]
    assert said["roles"] == []
    assert "act" not in said
    assert claims(lab, lab.token("auditor", agent=2))["roles"] == ["auditor"]


def test_wrong_secret(lab: Lab) -> None:
    form = {"grant_type": "client_credentials", "client_id": "agent-one", "client_secret": "wrong"}
    assert lab.tokens().ask(form)["error"] == "invalid_client"


def test_lifetime(lab: Lab) -> None:
    said = claims(lab, lab.token("agent-one", lifetime=5))
    assert said["exp"] - said["iat"] == 5
    longest = claims(lab, lab.token("agent-one", lifetime=10**6))
    assert longest["exp"] - longest["iat"] == 600


def test_person_logs_in(lab: Lab) -> None:
    said = claims(lab, lab.tokens().log_in("alice"))
    assert (said["sub"], said["client_id"], said["groups"]) == ("alice", "console", ["analysts"])


def test_exchange(lab: Lab) -> None:
    """An agent acts for a person, and a second agent for the first (RFC 8693 section 4.1: newest actor outermost)."""
    person = lab.tokens().log_in("alice")
    first = lab.tokens().exchange("agent-one", person, lab.token("agent-one"))
    said = claims(lab, first)
    assert (said["sub"], said["client_id"], said["groups"]) == ("alice", "agent-one", ["analysts"])
    assert said["act"] == {"sub": "agent-one", "client_id": "agent-one"}
    assert said["exp"] <= claims(lab, person)["exp"]

    second = claims(lab, lab.tokens(2).exchange("agent-two", first, lab.token("agent-two", agent=2)))
    assert second["sub"] == "alice"
    assert second["act"] == {
        "sub": "agent-two",
        "client_id": "agent-two",
        "act": {"sub": "agent-one", "client_id": "agent-one"},
    }


def test_exchange_without_actor(lab: Lab) -> None:
    said = claims(lab, lab.tokens().exchange("agent-one", lab.tokens().log_in("bob"), None))
    assert (said["sub"], said["roles"]) == ("bob", ["auditor"])
    assert "act" not in said


def test_exchange_refuses(lab: Lab) -> None:
    own, other = lab.token("agent-one"), lab.token("agent-two", agent=2)
    head, body, signature = own.split(".")
    forged = ".".join((head, body, signature[:-4] + ("AAAA" if signature[-4:] != "AAAA" else "BBBB")))

    def error(**changes: str) -> str:
        form = {
            "grant_type": EXCHANGE,
            "client_id": "agent-one",
            "client_secret": lab.idp.secrets["agent-one"],
            "subject_token": own,
            "subject_token_type": ACCESS_TOKEN,
        }
        return str(lab.tokens().ask(form | changes).get("error"))

    assert error() == "None"
    assert error(subject_token=forged) == "invalid_request"
    assert error(subject_token="") == "invalid_request"
    assert error(subject_token_type="urn:ietf:params:oauth:token-type:saml2") == "invalid_request"
    assert error(actor_token=own) == "invalid_request"  # its type is missing
    assert error(actor_token=forged, actor_token_type=ACCESS_TOKEN) == "invalid_request"
    assert error(actor_token=other, actor_token_type=ACCESS_TOKEN) == "invalid_request"  # another client's
    assert error(audience="elsewhere") == "invalid_target"
    assert error(scope="everything") == "invalid_scope"


def test_rotation(lab: Lab) -> None:
    before = lab.token("agent-one")
    kid = lab.idp.rotate()
    after = lab.token("agent-one")
    assert jwt.decode(after, keys(lab)).header["kid"] == kid
    assert claims(lab, before)["sub"] == claims(lab, after)["sub"]  # the earlier key is still published
    lab.idp.rotate(drop=True)
    with pytest.raises((JoseError, ValueError)):
        claims(lab, after)
    assert claims(lab, lab.token("agent-one"))["exp"] > time.time()


def test_lock_file_names_no_registry() -> None:
    packages = json.loads((ROOT / "tests/lab/idp/package-lock.json").read_text())["packages"]
    assert len(packages) > 20
    for name, package in packages.items():
        assert "resolved" not in package, name
        assert not name or package["integrity"].startswith("sha512-"), name
