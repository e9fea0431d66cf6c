"""Name lookups are recorded like everything else."""

from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.task import Task


def test_lookup_of_both_kinds(task: Task, lab: Lab, appliance: Appliance, family: int) -> None:
    asked = ["dig", "+short", f"@{lab.services['dns'].addresses[family]}", f"shop.{'lab.test'}"]
    for kind, address in zip(("A", "AAAA"), lab.web.addresses, strict=True):
        assert task.run([*asked, kind]).output.splitlines() == [lab.web.fqdn + ".", address]
    texts = {}
    for session in task.sessions(2, protocol="dns", seconds=90):
        query, response = appliance.messages(session)
        assert (query["kind"], response["kind"]) == ("query", "response")
        assert session["transport"] == "udp"
        assert session["identity"]["subject"] == "agent-one"
        texts[response["text"]] = query["text"]
    for address in lab.web.addresses:
        assert any(address in answer and "shop.lab.test" in asked for answer, asked in texts.items())


def test_resolver_of_programs(task: Task, lab: Lab, appliance: Appliance) -> None:
    """curl asks by name, and both its lookup and its request are there."""
    task.curl(f"http://{lab.web.fqdn}/")
    task.session(protocol="http1")
    hits = appliance.search(f'"{lab.web.fqdn}" AND protocol:dns AND run:"{task.run_id}"')
    assert hits
