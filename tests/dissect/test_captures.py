"""Real traffic: curl to nginx through a relay that writes down who sent what, and when in order."""

import gzip
import json
import os
import random
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from appliance.dissect.conversation import Conversation
from appliance.model import Message
from tests.dissect.harness import C, Played, S, Turn, assert_any_cut, assert_truncated, play
from tests.lab.wait import until

pytestmark = pytest.mark.skipif(
    not (shutil.which("nginx") and shutil.which("curl")), reason="nginx and curl are needed for real traffic"
)

CONFIG = """
daemon off; pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1; {user}
events {{ }}
http {{
  access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
  uwsgi_temp_path {root}/u; scgi_temp_path {root}/s; types {{ text/plain txt; application/octet-stream bin; }}
  server {{
    listen unix:{root}/plain.sock;
    listen unix:{root}/tls.sock ssl;
    ssl_certificate {pem}; ssl_certificate_key {pem}; ssl_protocols TLSv1.2 TLSv1.3;
    root {root}/www;
    location /zip/ {{ alias {root}/www/; gzip on; gzip_min_length 1; gzip_types *; }}
    location /moved {{ return 301 /text.txt; }}
    location /token {{ default_type application/json;
      if ($request_method = POST) {{ return 200 '{{"access_token":"issued-by-nginx","token_type":"Bearer"}}'; }} }}
    location /upload/ {{ alias {root}/www/; dav_methods PUT; create_full_put_path on; }}
  }}
}}
"""
TEXT = "".join(f"line {number} of the file, größer\n" for number in range(3000))


class Tap:
    """Listens on a loopback port, forwards one connection to a Unix socket, and keeps what passes in `turns`."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(20)
        self.port: int = self._listener.getsockname()[1]
        self.turns: list[Turn] = []
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join(20)
        self._listener.close()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(str(self._upstream))
            ways = [(C, client, server), (S, server, client)]
            pumps = [threading.Thread(target=self._pump, args=way) for way in ways]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join(20)

    def _pump(self, whose: object, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                with self._lock:
                    self.turns.append((C if whose is C else S, data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("nginx")
    www = root / "www"
    www.mkdir()
    (www / "text.txt").write_text(TEXT, "utf-8")
    (www / "data.bin").write_bytes(random.Random(1).randbytes(300_000))
    config = root / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(CONFIG.format(root=root, pem=certificate, user=user))
    process = subprocess.Popen(["nginx", "-p", str(root), "-c", str(config), "-e", str(root / "error.log")])
    try:
        until(lambda: (root / "tls.sock").exists() or process.poll() is not None, "nginx listens")
        assert process.poll() is None, (root / "error.log").read_text()
        yield root
    finally:
        process.terminate()
        process.wait(20)


def curl(
    nginx: Path, *arguments: str, socket_name: str = "plain.sock", scheme: str = "http"
) -> tuple[bytes, list[Turn]]:
    """Run curl against a.example; "URL/path" in `arguments` is a path there. Returns its output and who sent what."""
    with Tap(nginx / socket_name) as tap:
        base = f"{scheme}://a.example:{tap.port}"
        usual = ["-sS", "--noproxy", "*", "--resolve", f"a.example:{tap.port}:127.0.0.1"]
        command = ["curl", *usual]
        for argument in arguments:
            command += [argument, *usual] if argument == "--next" else [argument.replace("URL", base, 1)]
        ran = subprocess.run(command, capture_output=True, check=True, timeout=30)
    return ran.stdout, tap.turns


def answers(played: Played) -> list[Message]:
    return [message for message in played.messages if message.kind == "response"]


def test_downloads_over_one_connection(nginx: Path) -> None:
    printed, turns = curl(nginx, "URL/text.txt", "URL/data.bin", "URL/missing", "URL/moved", "-o", "-")
    played = assert_any_cut(Conversation, turns, step=40013)
    assert played.kinds() == ["request", "response"] * 4
    assert [m.attrs["status"] for m in answers(played)] == [200, 200, 404, 301]
    text, binary = answers(played)[:2]
    assert text.text.endswith(f"\n\n{TEXT}")
    assert printed.startswith(TEXT.encode())
    assert played.bytes_of(binary).endswith((nginx / "www" / "data.bin").read_bytes())
    assert "octet-stream" in binary.text
    assert len(binary.text) < 1000
    assert played.dissector.attrs["host"].startswith("a.example:")
    assert played.dissector.attrs["user_agent"].startswith("curl/")
    assert played.dissector.attrs["server"].startswith("nginx/")


def test_compressed_and_chunked(nginx: Path) -> None:
    printed, turns = curl(nginx, "--compressed", "URL/zip/text.txt")
    assert printed.decode() == TEXT
    played = assert_any_cut(Conversation, turns, step=509)
    (answer,) = answers(played)
    assert answer.text.endswith(f"\n\n{TEXT}")
    assert answer.attrs["encoding"] == "gzip"
    assert ["Transfer-Encoding", "chunked"] in answer.attrs["headers"]
    assert answer.flags == ()
    assert_truncated(Conversation, turns, step=509)


def test_head_and_upload(nginx: Path) -> None:
    _, turns = curl(
        nginx,
        *("-I", "URL/text.txt", "--next"),
        *("-H", "Expect: 100-continue", "-T", str(nginx / "www/text.txt"), "URL/upload/new.txt", "--next"),
        "URL/text.txt",
    )
    played = assert_any_cut(Conversation, turns, step=30011)
    assert played.kinds() == ["request", "response", "informational", "request", "response", "request", "response"]
    assert [m.attrs["status"] for m in answers(played)] == [200, 201, 200]
    upload = played.messages[3]
    assert (upload.attrs["method"], upload.attrs["body_bytes"]) == ("PUT", len(TEXT.encode()))
    assert upload.text.endswith(TEXT)


def test_refused_upgrade(nginx: Path) -> None:
    _, turns = curl(nginx, "--http2", "URL/moved", "URL/moved")
    played = assert_any_cut(Conversation, turns, step=13)
    assert played.kinds() == ["request", "response"] * 2
    assert ["Upgrade", "h2c"] in played.messages[0].attrs["headers"]


def test_token_request(nginx: Path) -> None:
    printed, turns = curl(
        nginx,
        *("-u", "agent:basic-secret", "-d", "grant_type=client_credentials&client_secret=form%20secret"),
        "URL/token",
    )
    assert json.loads(printed)["access_token"] == "issued-by-nginx"
    played = assert_any_cut(Conversation, turns, step=3)
    assert played.secrets() == [b"YWdlbnQ6YmFzaWMtc2VjcmV0", b"form%20secret", b"issued-by-nginx"]
    assert_truncated(Conversation, turns, secrets=played.secrets())


def test_https(nginx: Path) -> None:
    printed, turns = curl(nginx, "-k", "--http1.1", "URL/text.txt", socket_name="tls.sock", scheme="https")
    assert printed.decode() == TEXT
    played = assert_any_cut(Conversation, turns, step=5003)
    assert played.kinds() == ["client_hello", "server_hello"]
    attrs = played.dissector.attrs
    assert (attrs["sni"], attrs["version"], attrs["alpn_offered"]) == ("a.example", "TLS 1.3", ["http/1.1"])
    assert (attrs["ja4"][:4], attrs["ja4"][8:10]) == ("t13d", "h1")
    assert played.dissector.opaque


def test_https_to_a_plain_port(nginx: Path) -> None:
    with Tap(nginx / "plain.sock") as tap:
        command = ["curl", "-sk", "--noproxy", "*", f"https://127.0.0.1:{tap.port}/"]
        assert subprocess.run(command, check=False, timeout=30).returncode != 0
    played = play(Conversation, tap.turns)
    assert played.messages[0].kind == "client_hello"
    assert played.dissector.protocol == "tls"


def test_gzip_is_what_nginx_sent(nginx: Path) -> None:
    """The range of a response holds its body as it was sent."""
    _, turns = curl(nginx, "-0", "-H", "Accept-Encoding: gzip", "URL/zip/text.txt", "-o", os.devnull)
    played = play(Conversation, turns)
    (answer,) = answers(played)
    sent = played.bytes_of(answer).partition(b"\r\n\r\n")[2]
    body = sent if answer.attrs["encoding"] == "gzip" else gzip.compress(sent)
    assert gzip.decompress(body).decode() == TEXT
