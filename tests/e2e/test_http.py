"""What curl downloaded equals what was recorded, byte for byte."""

import json
import os

from tests.e2e.conftest import ONE_FAMILY, Url
from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.task import Task


def body(stream: bytes) -> bytes:
    """Body of the only response in a stream."""
    return stream.partition(b"\r\n\r\n")[2]


def test_download(task: Task, lab: Lab, appliance: Appliance, url: Url, family: int) -> None:
    printed = task.curl("-D", "headers", url("/download.bin")).stdout
    assert printed == lab.web.download
    session = task.session(protocol="http1")
    headers = (task.agent.home / "headers").read_bytes()
    assert appliance.stream(session, "server") == headers + printed
    assert session["bytes"]["server"] == len(headers) + len(printed)
    assert session["coverage"] == "complete"
    assert session["findings"] == []
    assert session["server"] == {"address": lab.web.addresses[family], "port": 80}
    assert session["client"]["address"] == task.agent.nic.addresses[family]
    request = appliance.stream(session, "client")
    assert request.startswith(b"GET /download.bin HTTP/1.1\r\nHost: ")
    assert body(request) == b""


def test_parts_of_a_stream(task: Task, lab: Lab, appliance: Appliance) -> None:
    task.curl(f"http://{lab.web.addresses[0]}/download.bin")
    session = task.session(protocol="http1")
    path = f"/v1/sessions/{session['session_id']}/stream"
    size = session["bytes"]["server"]
    part = appliance.get(path, {"Range": f"bytes={size - 1000}-"}, direction="server")
    assert part.status_code == 206
    assert part.content == lab.web.download[-1000:]


def test_request_and_response_are_messages(task: Task, appliance: Appliance, url: Url) -> None:
    sent = json.dumps({"note": "käse 🧀", "n": list(range(50))}).encode()
    answer = task.curl("-H", "Content-Type: application/json", "--data-binary", "@-", url("/app/echo"), input=sent)
    assert answer.stdout == sent
    messages = appliance.messages(task.session(protocol="http1"))
    assert [message["kind"] for message in messages] == ["request", "response"]
    request, response = messages
    assert (request["attrs"]["method"], request["attrs"]["target"]) == ("POST", "/app/echo")
    assert response["attrs"]["status"] == 200
    assert response["reply_to"] == request["start"]
    for message in messages:
        assert sent.decode() in message["text"]


@ONE_FAMILY
def test_decoded_bodies_are_searchable(task: Task, lab: Lab, appliance: Appliance, url: Url) -> None:
    plain = task.curl("--compressed", url("/api/items")).output
    session = task.session(protocol="http1")
    packed = body(appliance.stream(session, "server"))
    assert b"\x1f\x8b" in packed[:20]  # it went over the wire as gzip
    response = appliance.messages(session)[-1]
    assert plain in response["text"]
    hits = appliance.search(f'"item 199" AND run:"{task.run_id}"')
    assert [hit["session_id"] for hit in hits] == [session["session_id"]]


@ONE_FAMILY
def test_chunked(task: Task, appliance: Appliance, url: Url) -> None:
    printed = task.curl(url("/app/chunks?n=3000")).output
    session = task.session(protocol="http1")
    assert b"Transfer-Encoding: chunked\r\n" in appliance.stream(session, "server")
    assert printed in appliance.messages(session)[-1]["text"]


@ONE_FAMILY
def test_upload(task: Task, appliance: Appliance, url: Url) -> None:
    sent = os.urandom(1_500_000)
    assert task.curl("--data-binary", "@-", url("/app/echo"), input=sent).stdout == sent
    session = task.session(protocol="http1")
    assert appliance.stream(session, "client").endswith(sent)
    assert appliance.stream(session, "server").endswith(sent)


@ONE_FAMILY
def test_several_requests_on_one_connection(task: Task, appliance: Appliance, url: Url) -> None:
    task.curl(url("/index.html"), url("/old"), url("/nowhere"), url("/plain.txt"))
    messages = appliance.messages(task.session(protocol="http1"))
    assert [message["attrs"]["status"] for message in messages if message["kind"] == "response"] == [200, 301, 404, 200]


def test_https_is_opaque_and_says_where_to(task: Task, lab: Lab, appliance: Appliance) -> None:
    printed = task.curl(f"https://{lab.web.fqdn}/download.bin").stdout
    assert printed == lab.web.download
    session = task.session(protocol="tls")
    assert session["coverage"] == "opaque"
    assert session["attrs"]["sni"] == lab.web.fqdn
    assert session["bytes"]["server"] > len(printed)
    stream = appliance.stream(session, "server")
    assert len(stream) == session["bytes"]["server"]
    assert stream[:2] == b"\x16\x03"  # a handshake record (RFC 8446 section 5.1)
