"""Real HTTP clients through relays: what they printed is what the record gives back."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.clients.grpc import LONG
from tests.lab.clients.http import REPORT
from tests.lab.clients.llm import ASKED
from tests.lab.clients.websocket import BINARY, TEXTS
from tests.lab.task import Task
from tests.lab.wait import until

DATA = 0  # type of HTTP/2 frames with the bytes of a body (RFC 9113 section 6.1)
PADDED = 0x08
FRAME = 9  # bytes of a frame's header
Session = dict[str, Any]
Message = dict[str, Any]


def of_kind(messages: list[Message], kind: str, direction: str = "") -> list[Message]:
    return [one for one in messages if one["kind"] == kind and direction in ("", one["direction"])]


def exchanges(messages: list[Message]) -> list[tuple[Message, Message]]:
    """Requests, each with its response."""
    answers = {one["reply_to"]: one for one in of_kind(messages, "response")}
    return [(one, answers[one["start"]]) for one in of_kind(messages, "request")]


def text_body(message: Message) -> str:
    """What the record shows of a body, decoded."""
    text: str = message["text"]
    return text.partition("\n\n")[2]


def body_of(appliance: Appliance, session: Session, response: Message, tunnel: int = 0) -> bytes:
    """The bytes of a response's body as they were sent, as recorded. `tunnel`: where HTTP/2 began."""
    stream = appliance.stream(session, "server")
    if session["protocol"] != "http2":
        return stream[response["end"] - response["attrs"]["body_bytes"] : response["end"]]
    return b"".join(_data_frames(stream[tunnel:], response["attrs"]["stream"]))


def _data_frames(stream: bytes, number: int) -> Iterator[bytes]:
    """What the frames of an HTTP/2 stream carry (RFC 9113 section 4.1)."""
    at = 0
    while at < len(stream):
        length, kind, flags = int.from_bytes(stream[at : at + 3]), stream[at + 3], stream[at + 4]
        if kind == DATA and int.from_bytes(stream[at + 5 : at + FRAME]) == number:
            assert not flags & PADDED
            yield stream[at + FRAME : at + FRAME + length]
        at += FRAME + length


def is_whole(session: Session, *findings: str) -> None:
    """Everything that was said is on record. Clients that leave without reading TLS's last words end with an RST."""
    assert session["coverage"] == "complete"
    assert set(session["findings"]) == set(findings)
    assert session["ending"] in ("fin", "rst")
    assert session["bytes"]["client"] > 0 < session["bytes"]["server"]


# -- HTTP --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "url", "protocol"),
    [
        (["--http1.1", "-4"], "http://web.lab.test", "http1"),
        (["--http1.1", "-6"], "https://web.lab.test", "http1"),
        (["--http2", "-4"], "https://web.lab.test", "http2"),
        (["--http2-prior-knowledge", "-6"], "http://web.lab.test:8080", "http2"),
    ],
)
def test_curl(task: Task, lab: Lab, appliance: Appliance, options: list[str], url: str, protocol: str) -> None:
    printed = task.curl(*options, f"{url}/download.bin").stdout
    assert printed == lab.web.download
    session = task.session(lane="relay")
    is_whole(session)
    assert session["protocol"] == protocol
    ((request, response),) = exchanges(appliance.messages(session))
    assert (request["attrs"]["method"], request["attrs"]["target"]) == ("GET", "/download.bin")
    assert response["attrs"]["status"] == 200
    assert body_of(appliance, session, response) == printed


def http_calls(told: Mapping[str, Any], appliance: Appliance, session: Session) -> None:
    """The record of `tests/lab/clients/http.py` says what it printed."""
    assert session["protocol"] == ("http2" if told["version"] == "HTTP/2" else "http1")
    found = exchanges(appliance.messages(session))
    tunnel = found.pop(0)[1]["end"] if found[0][0]["attrs"]["method"] == "CONNECT" else 0
    paths = [urlsplit(request["attrs"]["target"]).path for request, _ in found]
    assert paths == ["/api/items", "/app/echo", "/download.bin"]
    (_, items), (report, echo), (_, download) = found
    assert items["attrs"]["encoding"] == "gzip"
    assert len(json.loads(text_body(items))["items"]) == told["items"] == 200
    assert json.loads(text_body(report)) == json.loads(text_body(echo)) == told["echo"] == REPORT
    assert hashlib.sha256(body_of(appliance, session, download, tunnel)).hexdigest() == told["download"]


@pytest.mark.parametrize("library", ["requests", "httpx", "httpx-http2"])
def test_http_libraries(task: Task, lab: Lab, appliance: Appliance, library: str) -> None:
    told = task.client("http", library=library, url=f"https://{lab.web.fqdn}")
    session = task.session(lane="relay")
    is_whole(session)
    http_calls(told, appliance, session)


# -- WebSocket, gRPC ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "compression"), [("ws", False), ("wss", True)])
def test_websocket(task: Task, lab: Lab, appliance: Appliance, scheme: str, compression: bool) -> None:
    url = f"{scheme}://{lab.websocket.fqdn}"
    told = task.client("websocket", library="websockets", url=url, compression=compression)
    assert told["same"] == [True] * 5
    session = task.session(lane="relay")
    is_whole(session)
    assert session["protocol"] == "websocket"
    messages = appliance.messages(session)
    for direction, last in (("client", ["close 4001 enough of it"]), ("server", [])):
        texts = of_kind(messages, "text", direction)
        assert [one["text"] for one in texts] == [*TEXTS, *last]
        assert all(one["attrs"].get("compressed", False) is compression for one in texts)
        whole, parts = of_kind(messages, "binary", direction)
        assert whole["attrs"].get("inflated_bytes", whole["attrs"]["bytes"]) == len(BINARY)
        assert parts["text"] == "in three fragments"
        (closing,) = of_kind(messages, "close", direction)
        assert [closing["attrs"]["code"], closing["attrs"]["reason"]] == told["closed"]
    assert told["ponged"] is True
    assert of_kind(messages, "pong", "server")
    hits = appliance.search(f'"hello Ω" AND run:"{task.run_id}"')
    assert {hit["session_id"] for hit in hits} == {session["session_id"]}


def field(text: str) -> str:
    """How the record shows a message with one text, field 1."""
    return f"1: {json.dumps(text, ensure_ascii=False)}"


@pytest.mark.parametrize("tls", [False, True], ids=["clear", "TLS"])
def test_grpc(task: Task, lab: Lab, appliance: Appliance, tls: bool) -> None:
    target = f"{lab.grpc.fqdn}:{lab.grpc.port if tls else lab.grpc.clear_port}"
    told = task.client("grpc", library="grpcio", target=target, **({} if tls else {"ca": ""}))
    session = task.session(lane="relay")
    is_whole(session)
    assert session["protocol"] == "http2"
    messages = appliance.messages(session)
    said = {
        (path, direction): [
            one["text"]
            for one in of_kind(messages, "grpc-message", direction)
            if one["attrs"]["path"] == f"/lab.Shop/{path}" and one["attrs"]["length"] < len(LONG)
        ]
        for path in ("Find", "List", "Gather", "Chat")
        for direction in ("client", "server")
    }
    assert said == {
        ("Find", "client"): [field("abacus"), field("missing")],
        ("Find", "server"): [field(told["find"])],
        ("List", "client"): [field("3")],
        ("List", "server"): [field(item) for item in told["list"]],
        ("Gather", "client"): [field("one"), field("two"), field("three")],
        ("Gather", "server"): [field(told["gather"])],
        ("Chat", "client"): [field("hello"), field("bye")],
        ("Chat", "server"): [field(reply) for reply in told["chat"]],
    }
    long = [one["direction"] for one in of_kind(messages, "grpc-message") if one["attrs"]["length"] > len(LONG)]
    assert long == ["client", "server"]
    *_, (_, last) = exchanges(messages)
    assert [last["attrs"]["grpc_status"], last["attrs"]["grpc_message"]] == told["error"]


# -- language models ---------------------------------------------------------------------------------------------------

SAID = f"You said: {ASKED}"
CALLED = ["weather", {"city": ASKED}]
REQUESTS = {"openai": 8, "anthropic": 5}  # of the client's run


def talks(task: Task, appliance: Appliance, requests: int) -> tuple[list[Session], list[Message]]:
    """The task's relayed sessions and all that was said in them, once so many requests are on record."""
    leases = {lease["lease_id"] for lease in task.leases}

    def look() -> tuple[list[Session], list[Message]] | None:
        found = [
            one
            for one in appliance.sessions(protocol="http1")[::-1]
            if one["identity"]["lease_id"] in leases and one["lane"] == "relay" and one["ending"] != "open"
        ]
        messages = [message for session in found for message in appliance.messages(session)]
        return (found, messages) if len(of_kind(messages, "request")) >= requests else None

    return until(look, f"{requests} requests on record")


def streamed(messages: list[Message]) -> dict[str, str]:
    """What the server-sent events on record come to, by the API that streamed them."""
    texts = {"chat": "", "responses": "", "anthropic": ""}
    for event in of_kind(messages, "event", "server"):
        data = event["text"].partition("data: ")[2]
        if data == "[DONE]":
            continue
        said = json.loads(data)
        if said.get("object") == "chat.completion.chunk":
            texts["chat"] += "".join(choice["delta"].get("content") or "" for choice in said["choices"])
        elif said["type"] == "response.output_text.delta":
            texts["responses"] += said["delta"]
        elif said["type"] == "content_block_delta":
            texts["anthropic"] += said["delta"].get("text", "")
    return texts


def says_as_told(library: str, told: Mapping[str, Any], messages: list[Message]) -> None:
    """The record of `tests/lab/clients/llm.py` says what it printed."""
    found = streamed(messages)
    answers = "".join(one["text"] for one in of_kind(messages, "response"))
    if library == "openai":
        assert told["chat"]["streamed"] == found["chat"] == SAID
        assert told["responses"]["streamed"] == found["responses"] == SAID
        assert told["chat"]["tool"] == told["responses"]["tool"] == CALLED
        assert answers.count(told["chat"]["whole"]) == 2  # by either API
        after = told["chat"]["after"]
    else:
        assert told["streamed"] == found["anthropic"] == SAID
        assert told["tool"] == CALLED
        assert told["whole"] in answers
        after = told["after"]
    assert after == "The tool said: sunny ☀"
    assert after in answers
    assert told["error"] == 401
    statuses = [one["attrs"]["status"] for one in of_kind(messages, "response")]
    assert statuses == [200] * (REQUESTS[library] - 1) + [401]


@pytest.mark.parametrize("library", REQUESTS)
def test_language_models(task: Task, lab: Lab, appliance: Appliance, library: str) -> None:
    told = task.client("llm", library=library, url=f"https://{lab.llm.fqdn}", key=lab.llm.key)
    sessions, messages = talks(task, appliance, REQUESTS[library])
    for session in sessions:
        is_whole(session, "redacted")
        assert session["identity"]["method"] == "lease"
        assert lab.llm.key.encode() not in appliance.stream(session, "client")
    says_as_told(library, told, messages)
    delta = {"openai": "response.output_text.delta", "anthropic": "content_block_delta"}[library]
    hits = appliance.search(f'"{delta}" AND run:"{task.run_id}"')
    assert {hit["kind"] for hit in hits} >= {"event"}
    assert {hit["session_id"] for hit in hits} <= {session["session_id"] for session in sessions}
