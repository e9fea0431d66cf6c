"""Real peers, recorded by a relay: grpcio, nginx with httpx's h2 client and curl, a `websockets` server and client."""

import asyncio
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import pytest
import websockets.asyncio.client
import websockets.asyncio.server
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from appliance.dissect.conversation import Conversation
from tests.dissect.harness import C, Played, Turn, assert_truncated, outcome, play
from tests.dissect.postgres_lab import Recording, Relay
from tests.lab.wait import until

SECRET = "s3same-open-very-long-token-0123456789"


@contextmanager
def relayed(port: int) -> Iterator[Relay]:
    relay = Relay(port)
    try:
        yield relay
    finally:
        relay.close()


def dissected(recording: Recording) -> Played:
    """Whole, cut in many places and pickled it is the same."""
    played = play(Conversation, recording.turns)
    total = sum(len(what) for _, what in recording.turns if isinstance(what, bytes))
    for split in (1, 7, 1448):
        assert outcome(play(Conversation, recording.turns, split=split)) == outcome(played), f"split {split}"
    for place in range(1, total, max(1, total // 40)):
        assert outcome(play(Conversation, recording.turns, pickled=place)) == outcome(played), f"pickled at {place}"
    return played


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture(scope="module")
def grpc_port() -> Iterator[int]:
    def find(request: bytes, context: Any) -> bytes:
        if request == b"\x0a\x07missing":
            context.abort(grpc.StatusCode.NOT_FOUND, "nothing of that name")
        return b"\x0a\x05found"

    def chat(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for number, _ in enumerate(requests):
            yield b"\x08" + bytes([number])

    server = grpc.server(ThreadPoolExecutor(4))
    methods = {
        "Find": grpc.unary_unary_rpc_method_handler(find),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.Shop", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


class TestGrpc:
    @pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
    def test_calls(self, grpc_port: int, compression: grpc.Compression) -> None:
        secret = [("authorization", f"Bearer {SECRET}")]
        with relayed(grpc_port) as relay:
            with grpc.insecure_channel(f"127.0.0.1:{relay.port}", compression=compression) as channel:
                found = channel.unary_unary("/lab.Shop/Find")
                assert found(b"\x0a\x06teapot", metadata=secret) == b"\x0a\x05found"
                with pytest.raises(grpc.RpcError):
                    found(b"\x0a\x07missing", metadata=secret)
                chat = channel.stream_stream("/lab.Shop/Chat")
                assert [*chat(iter([b"\x0a\x01" + b"%d" % n for n in range(5)]))] == [
                    b"\x08" + bytes([n]) for n in range(5)
                ]
            (recording,) = relay.ended()
        played = dissected(recording)
        said = [
            (m.direction, m.text) for m in played.messages if m.kind == "grpc-message" and "Find" in m.attrs["path"]
        ]
        assert said[0] == (C, '1: "teapot"')
        assert {text for _, text in said} == {'1: "teapot"', '1: "missing"', '1: "found"'}
        chatted = [m.text for m in played.messages if m.kind == "grpc-message" and "Chat" in m.attrs["path"]]
        assert sorted(chatted) == sorted([f'1: "{n}"' for n in range(5)] + [f"1: {n}" for n in range(5)])
        statuses = [m.attrs["grpc_status"] for m in played.messages if m.kind == "response"]
        assert statuses == ["OK", "NOT_FOUND", "OK"]
        assert not any({"malformed", "undecoded"} & set(m.flags) for m in played.messages)
        assert SECRET.encode() not in played.stored(C)
        assert SECRET not in repr(played.messages)
        assert ["authorization", "Bearer " + "*" * len(SECRET)] in next(
            m for m in played.messages if m.kind == "request"
        ).attrs["headers"]
        assert_truncated(Conversation, recording.turns, secrets=[SECRET.encode()], step=13)


@pytest.fixture(scope="module")
def nginx_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("nginx")
    port = free_port()
    (folder / "www").mkdir()
    (folder / "www" / "index.html").write_text("<p>hello from nginx</p>" * 100)
    (folder / "www" / "big.txt").write_text("a line of text\n" * 20_000)
    (folder / "conf").write_text(
        f"daemon off; user root; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
        "events { worker_connections 64; }\n"
        "http { access_log off; gzip on; gzip_types text/plain; default_type text/html;\n"
        f"types {{ text/plain txt; }} client_body_temp_path {folder}/body; proxy_temp_path {folder}/p;\n"
        f"fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
        f"server {{ listen 127.0.0.1:{port} http2; root {folder}/www; }} }}\n"
    )
    process = subprocess.Popen(["nginx", "-p", folder, "-c", folder / "conf"], stderr=subprocess.DEVNULL)
    try:
        until(lambda: _listens(port), "nginx", 20.0)
        yield port
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")
class TestNginx:
    def test_many_streams_at_once(self, nginx_port: int) -> None:
        """The `h2` package as the client: nginx interleaves what it answers."""
        with relayed(nginx_port) as relay:
            self._fetch(relay.port, ["/big.txt", "/", "/nothing", "/big.txt"])
            (recording,) = relay.ended()
        played = dissected(recording)
        requests = {m.start: m for m in played.messages if m.kind == "request"}
        responses = [m for m in played.messages if m.kind == "response"]
        assert [m.attrs["target"] for m in requests.values()] == ["/big.txt", "/", "/nothing", "/big.txt"]
        found = {(requests[m.reply_to].attrs["stream"], m.attrs["status"]) for m in responses if m.reply_to is not None}
        assert found == {(1, 200), (3, 200), (5, 404), (7, 200)}
        big = [m for m in responses if m.attrs["body_bytes"] == 300_000]
        assert len(big) == 2
        assert all(m.text.endswith("a line of text\n") and m.text.count("a line of text") == 20_000 for m in big)
        assert all(m.flags == () for m in responses)
        assert SECRET.encode() not in played.stored(C)

    @pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
    def test_curl(self, nginx_port: int) -> None:
        responses = []
        for target in ("", "big.txt"):
            with relayed(nginx_port) as relay:
                url = f"http://127.0.0.1:{relay.port}/{target}"
                command = ["curl", "-sS", "--http2-prior-knowledge", "--compressed", "-u", f"me:{SECRET}", url]
                assert subprocess.run(command, check=True, capture_output=True).stdout
                (recording,) = relay.ended()
            played = dissected(recording)
            request, response = played.messages[:2]
            assert (request.flags, response.reply_to) == (("redacted",), request.start)
            assert played.dissector.attrs["user_agent"].startswith("curl/")
            responses.append(response)
            assert_truncated(Conversation, recording.turns[:4], secrets=[SECRET.encode()], step=7)
        page, big = responses
        assert "hello from nginx" in page.text
        assert (big.attrs["encoding"], big.text.count("a line of text")) == ("gzip", 20_000)

    @staticmethod
    def _fetch(port: int, targets: list[str]) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        with socket.create_connection(("127.0.0.1", port)) as sock:
            connection.initiate_connection()
            for number, target in enumerate(targets):
                fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a.example"), (":path", target)]
                connection.send_headers(
                    1 + 2 * number, [*fields, ("authorization", f"Bearer {SECRET}")], end_stream=True
                )
            sock.sendall(connection.data_to_send())
            left = len(targets)
            while left:
                for event in connection.receive_data(sock.recv(65536)):
                    if isinstance(event, h2.events.DataReceived):
                        connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    left -= isinstance(event, h2.events.StreamEnded)
                sock.sendall(connection.data_to_send())
            connection.close_connection()
            sock.sendall(connection.data_to_send())


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def websocket_port() -> Iterator[int]:
    ready, ports = threading.Event(), []
    loop = asyncio.new_event_loop()
    stop = loop.create_future()

    async def echo(connection: websockets.asyncio.server.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async def serve() -> None:
        async with websockets.asyncio.server.serve(echo, "127.0.0.1", 0) as server:
            ports.append(next(iter(server.sockets)).getsockname()[1])
            ready.set()
            await stop

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    yield ports[0]
    loop.call_soon_threadsafe(stop.set_result, None)
    thread.join(20)
    loop.close()


class TestWebSocket:
    @pytest.mark.parametrize("context", [True, False, None], ids=["context", "no context", "no deflate"])
    def test_messages(self, websocket_port: int, context: bool | None) -> None:
        texts = ["hello", "größer ☃", "the same words again and again " * 40, "the same words again", ""]
        factories = [
            ClientPerMessageDeflateFactory(
                client_no_context_takeover=not context, server_no_context_takeover=not context
            )
        ]

        async def talk(port: int) -> None:
            url = f"ws://127.0.0.1:{port}/chat"
            options: dict[str, Any] = {"compression": None, "proxy": None}
            options["extensions"] = None if context is None else factories
            async with websockets.asyncio.client.connect(url, **options) as client:
                for text in texts:
                    await client.send(text)
                    assert await client.recv() == text
                await client.send(iter(["in ", "many ", "pieces"]))
                assert await client.recv() == "in many pieces"
                await client.send(bytes(200_000))
                assert await client.recv() == bytes(200_000)
                await (await client.ping(b"ping"))

        with relayed(websocket_port) as relay:
            asyncio.run(talk(relay.port))
            (recording,) = relay.ended()
        played = dissected(recording)
        assert played.dissector.protocol == "websocket"
        for whose in (C, C.other):
            said = [m.text for m in played.messages if m.kind == "text" and m.direction is whose]
            assert said == [*texts, "in many pieces"]
        assert {m.kind for m in played.messages} == {
            "request", "response", "text", "binary", "ping", "pong", "close",
        }  # fmt: skip
        assert not any(m.flags for m in played.messages)
        turns: list[Turn] = recording.turns[:6]
        assert_truncated(Conversation, turns, step=3)
