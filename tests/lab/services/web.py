"""nginx on ports 80, 443 (HTTP/2 by ALPN) and 8080 (HTTP/2 in clear text, by prior knowledge): files, JSON, gzip, and a
small application behind it (see `app.py`)."""

import gzip
import hashlib
import json
import socket
from typing import ClassVar

from tests.lab import nginx
from tests.lab.net import PYTHON
from tests.lab.services.base import Opening, Service

DOWNLOAD_BYTES = 3 * 2**20 + 1
APP_PORT = 8000

HTTP = """
    server_tokens off;
    keepalive_requests 1000000;
    default_type application/octet-stream;
    types {{ text/html html; text/plain txt; application/json json; }}
    client_max_body_size 16m;
    gzip on;
    gzip_types text/plain application/json;
    gzip_min_length 200;
    server {{
        listen {v4}:80;
        listen [{v6}]:80;
        listen {v4}:8080 http2;
        listen [{v6}]:8080 http2;
        listen {v4}:443 ssl http2;
        listen [{v6}]:443 ssl http2;
        server_name {name};
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        root {folder}/files;
        location /api/ {{ try_files $uri.json =404; }}
        location /app/ {{
            proxy_pass http://127.0.0.1:{app};
            proxy_http_version 1.1;
            proxy_buffering off;
        }}
        location = /old {{ return 301 /index.html; }}
    }}
"""


class Web(Service):
    name: ClassVar[str] = "web"
    number: ClassVar[int] = 20
    openings: ClassVar = (Opening("any", 0),)  # the whole host, and so what speaks QUIC too

    download: bytes  # what GET /download.bin answers: bytes that no one can guess or compress

    def start(self) -> None:
        files = self.folder / "files"
        (files / "api").mkdir(parents=True)
        (files / "index.html").write_text("<!doctype html><title>Shop</title><h1>Shop</h1>\n")
        catalogue = [{"id": n, "item": f"item {n}", "price": n * 1.25, "emoji": "🦉"} for n in range(200)]
        (files / "api/items.json").write_text(json.dumps({"items": catalogue}, ensure_ascii=False))
        (files / "plain.txt").write_text("".join(f"line {n} of a text that compresses well\n" for n in range(2000)))
        (files / "packed.json.gz").write_bytes(gzip.compress(json.dumps(catalogue).encode(), mtime=0))
        self.download = hashlib.shake_256(b"verbatim lab download").digest(DOWNLOAD_BYTES)
        (files / "download.bin").write_bytes(self.download)
        certificate, key = self.site.pki.issue(self.fqdn, self.addresses)
        v4, v6 = self.addresses
        http = HTTP.format(
            folder=self.folder, v4=v4, v6=v6, name=self.fqdn, certificate=certificate, key=key, app=APP_PORT
        )
        self.processes.append(self.host.popen([PYTHON, "-m", "tests.lab.services.app", str(APP_PORT), v4, v6]))
        self.processes.append(self.host.popen(nginx.command(self.folder, http)))

    def ready(self) -> bool:
        return self.listening(80, 443, 8080) and self.host.call(self._app_listens)

    def _app_listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", APP_PORT), 2).close()
        except OSError:
            return False
        return True
