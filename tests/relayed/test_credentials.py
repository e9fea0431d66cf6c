"""HTTP clients with an access token in the place of a key: the gateway's own key is used, and nobody sees it."""

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.task import Task
from tests.lab.wait import until
from tests.relayed.conftest import MODEL, MODEL_KEY, PROXY_PORT
from tests.relayed.test_clients import REQUESTS, exchanges, http_calls, says_as_told, talks

pytestmark = pytest.mark.usefixtures("credentials")

Session = dict[str, Any]


def under_the_leases(task: Task, appliance: Appliance) -> Session:
    """The only session that began while the agent had these leases; the token's identity has no run."""
    leases = {lease["lease_id"] for lease in task.leases}

    def look() -> list[Session]:
        return [
            one
            for one in appliance.sessions()
            if one["identity"]["lease_id"] in leases and one["lane"] == "relay" and one["ending"] != "open"
        ]

    (session,) = until(look, "a session under the leases")
    return session


def is_by_token(session: Session, token: str, method: str) -> None:
    identity = session["identity"]
    assert identity["method"] == method
    assert identity["subject"] == "agent-one"
    assert identity["token_sha256"] == hashlib.sha256(token.encode()).hexdigest()
    assert session["coverage"] == "complete"
    assert "redacted" in session["findings"]


@pytest.mark.parametrize("library", REQUESTS)
def test_language_models_by_token(task: Task, lab: Lab, appliance: Appliance, library: str) -> None:
    """What is a key to the package is the agent's own token; the API gets the key that it knows."""
    told = task.client("llm", library=library, url=f"https://{MODEL}", key=task.token, bearer=True)
    sessions, messages = talks(task, appliance, REQUESTS[library])
    says_as_told(library, told, messages)
    for session in sessions:
        is_by_token(session, task.token, "http-authorization")
        said = appliance.stream(session, "client") + appliance.stream(session, "server")
        assert task.token.encode() not in said
        assert lab.llm.key.encode() not in said
    assert "token-refused" in sessions[-1]["findings"], "the last request has no token that is one"
    events = [event for event in appliance.events() if MODEL_KEY in event["text"]]
    assert "secret-set" in {event["kind"] for event in events}


def test_curl_by_token_over_http2(task: Task, lab: Lab, appliance: Appliance) -> None:
    body = '{"model": "lab-1", "messages": [{"role": "user", "content": "hi"}]}'
    header = f"Authorization: Bearer {task.token}\n"
    command = ["--http2", "-H", "@-", "-H", "Content-Type: application/json", "-d", body]
    printed = task.curl(*command, f"https://{MODEL}/v1/chat/completions", input=header).output
    assert "You said: hi" in printed
    session = under_the_leases(task, appliance)
    assert session["protocol"] == "http2"
    is_by_token(session, task.token, "http-authorization")
    ((request, response),) = exchanges(appliance.messages(session))
    assert "hi" in request["text"]
    assert printed in response["text"]
    assert task.token.encode() not in appliance.stream(session, "client")


# -- the explicit proxy ------------------------------------------------------------------------------------------------


def proxy(userinfo: str = "") -> str:
    return f"http://{userinfo}gateway.lab.test:{PROXY_PORT}"


Ask = Callable[[Task, str], dict[str, Any]]


def _requests(task: Task, url: str) -> dict[str, Any]:
    """As `https_proxy` holds it: any user, with the token as its password."""
    return task.client("http", library="requests", url=url, proxy=proxy(f"any:{task.token}@"))


def _httpx(task: Task, url: str) -> dict[str, Any]:
    return task.client("http", library="httpx-http2", url=url, proxy=proxy(), token=task.token)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("ask", [_requests, _httpx], ids=["requests", "httpx"])
def test_libraries_through_the_proxy(task: Task, lab: Lab, appliance: Appliance, ask: Ask, scheme: str) -> None:
    told = ask(task, f"{scheme}://{lab.web.fqdn}")
    session = under_the_leases(task, appliance)
    is_by_token(session, task.token, "http-proxy")
    http_calls(told, appliance, session)
    assert session["server"]["port"] == PROXY_PORT
    connects = [one for one in appliance.messages(session) if one["attrs"].get("method") == "CONNECT"]
    assert [one["attrs"]["target"] for one in connects] == ([f"{lab.web.fqdn}:443"] if scheme == "https" else [])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_curl_through_the_proxy(task: Task, lab: Lab, appliance: Appliance, scheme: str) -> None:
    trust = ["--cacert", str(appliance.trust)]
    printed = task.run(
        ["curl", "-sS", *trust, f"{scheme}://{lab.web.fqdn}/download.bin"],
        env={f"{scheme}_proxy": proxy(f"any:{task.token}@")},
    ).stdout
    assert printed == lab.web.download
    session = under_the_leases(task, appliance)
    is_by_token(session, task.token, "http-proxy")
    assert task.token.encode() not in appliance.stream(session, "client")


@pytest.mark.usefixtures("appliance")
def test_an_agent_without_lease_and_token_is_asked_for_one(lab: Lab) -> None:
    told = ["-o", "/dev/null", "-w", "%{http_code} %{http_connect}"]
    for scheme in ("http", "https"):
        command = ["curl", "-sS", "-m", "10", "-x", proxy(), *told, f"{scheme}://{lab.web.fqdn}/"]
        assert "407" in lab.agent(2).run(command, check=False).output


def test_the_proxy_opens_what_rules_open(task: Task, lab: Lab, appliance: Appliance) -> None:
    """No rule is about the appliance's own API, and one refuses the language models by their address."""
    for url in (f"https://{lab.agent(2).nic.addresses[0]}/", f"http://{lab.llm.addresses[0]}/"):
        done = task.run(
            ["curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code} %{http_connect}", url],
            env=dict.fromkeys(("http_proxy", "https_proxy"), proxy(f"any:{task.token}@")),
            check=False,
        )
        assert "403" in done.output
