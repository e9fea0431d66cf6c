"""Who did it, in the record, equals what the token says."""

import base64
import hashlib
import json
from typing import Any

from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.task import LOOK, Task
from tests.lab.wait import until


def claims(token: str) -> dict[str, Any]:
    part = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return decoded


def actors(act: dict[str, Any] | None) -> list[str]:
    """Subjects of an actor chain, current actor first (RFC 8693 section 4.1)."""
    return [act["sub"], *actors(act.get("act"))] if act else []


def recorded_as(task: Task, token: str, session: dict[str, Any]) -> None:
    said = claims(token)
    identity = session["identity"]
    assert identity["issuer"] == said["iss"]
    assert identity["subject"] == said["sub"]
    assert identity["client"] == said["client_id"]
    assert identity["groups"] == said["groups"]
    assert identity["act"] == actors(said.get("act"))
    assert identity["run_id"] == task.run_id
    assert identity["method"] == "lease"
    assert identity["token_sha256"] == hashlib.sha256(token.encode()).hexdigest()
    assert identity["lease_id"] in {lease["lease_id"] for lease in task.leases}


def test_program(task: Task) -> None:
    task.curl(f"http://{task.appliance.lab.web.addresses[0]}/")
    recorded_as(task, task.token, task.session(protocol="http1", ended=False))


def test_agent_for_a_person(lab: Lab, appliance: Appliance, run_id: str) -> None:
    tokens = lab.tokens(1)
    token = tokens.exchange("agent-one", tokens.log_in("alice"), lab.token("agent-one"))
    with Task(appliance, 1, token, run_id) as task:
        task.psql("SELECT 1", host=lab.db.addresses[1])
        session = task.session(protocol="postgres", ended=False)
    recorded_as(task, token, session)
    assert session["identity"]["subject"] == "alice"
    assert session["identity"]["act"] == ["agent-one"]


def test_agent_for_an_agent_for_a_person(lab: Lab, appliance: Appliance, run_id: str) -> None:
    first = lab.tokens(1).exchange("agent-one", lab.tokens(1).log_in("alice"), lab.token("agent-one"))
    token = lab.tokens(2).exchange("agent-two", first, lab.token("agent-two", agent=2))
    with Task(appliance, 2, token, run_id) as task:
        task.curl(f"http://{lab.web.addresses[0]}/")
        session = task.session(protocol="http1", ended=False)
    recorded_as(task, token, session)
    assert session["identity"]["act"] == ["agent-two", "agent-one"]


def test_two_agents_at_once(lab: Lab, appliance: Appliance, run_id: str) -> None:
    one, two = lab.token("agent-one"), lab.token("agent-two", agent=2)
    with Task(appliance, 1, one, f"{run_id}-1") as first, Task(appliance, 2, two, f"{run_id}-2") as second:
        for task in (first, second):
            task.curl(f"http://{lab.web.addresses[0]}/")
        for task, token in ((first, one), (second, two)):
            session = task.session(protocol="http1", ended=False)
            recorded_as(task, token, session)
            assert session["client"]["address"] == task.agent.nic.addresses[0]


def test_tokens_that_do_not_get_a_lease(lab: Lab, appliance: Appliance) -> None:
    token = lab.token("agent-one")
    head, body, signature = token.split(".")
    other = "A" if signature[0] != "A" else "B"
    for bad in ("", "nonsense", f"{head}.{body}.{other}{signature[1:]}", f"{head}.{body}."):
        assert appliance.curl(1, "POST", "/v1/leases", bad, {})[0] == 401


def test_keys_rotate(lab: Lab, appliance: Appliance, run_id: str) -> None:
    """A token signed with a key that the appliance has not seen yet is accepted once it has fetched the keys again.

    It does so when a token names an unknown key, but not more often than every few seconds.
    """
    lab.idp.rotate()
    token = lab.token("agent-one")

    def accepted() -> bool:
        return appliance.curl(1, "GET", "/v1/leases", token)[0] == 200

    until(accepted, "the new key is known", 15, LOOK)
    with Task(appliance, 1, token, run_id) as task:
        assert len(task.leases) == 2


def test_reading_needs_a_role(lab: Lab, appliance: Appliance) -> None:
    for path in ("/v1/sessions", "/v1/search?q=x", "/v1/events"):
        assert appliance.curl(1, "GET", path, lab.token("agent-one"))[0] == 403
        assert appliance.curl(1, "GET", path, lab.token("investigator"))[0] == 200


def test_the_idp_is_open_to_agents_without_a_lease(lab: Lab, appliance: Appliance, run_id: str) -> None:
    lab.token("agent-two", agent=2)
    agent = lab.agent(2).nic.addresses

    def look() -> list[dict[str, Any]]:
        found = appliance.sessions(address=lab.idp.addresses[0]) + appliance.sessions(address=lab.idp.addresses[1])
        return [s for s in found if s["ending"] != "open" and s["client"]["address"] in agent]

    session = until(look, "the token request is recorded", 30, LOOK)[0]
    assert session["identity"]["method"] == "unbound"
    assert session["identity"]["subject"] == ""
    assert session["attrs"]["sni"] == lab.idp.fqdn
