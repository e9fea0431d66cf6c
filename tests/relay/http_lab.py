"""nginx on loopback for relays to talk to, which logs the credentials that it was shown."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.pki import Pki
from tests.lab.wait import until

NAME = "api.example.com"
BIG = bytes(range(256)) * 16384  # 4 MiB

CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; user root;
events {{ worker_connections 256; }}
http {{
    log_format shown '$request_method $uri $http_host $server_protocol auth=$http_authorization key=$http_x_api_key '
                     'proxy=$http_proxy_authorization length=$request_length';
    access_log {folder}/access.log shown;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    client_max_body_size 64m;
    server {{
        listen {address}:{clear};
        listen {address}:{h2c} http2;
        listen {address}:{tls} ssl http2;
        server_name _;
        ssl_certificate {certificate}; ssl_certificate_key {key};
        root {folder}/files;
        location = /upload {{ proxy_pass http://{address}:{sink}; }}
        location = /hello {{ return 200 "hello $request_method\\n"; }}
        location = /missing {{ return 404 "no\\n"; }}
    }}
    server {{ listen {address}:{sink}; location / {{ return 200 "$http_content_length\\n"; }} }}
}}
"""


@dataclass(frozen=True)
class Nginx:
    """Ports: HTTP/1.1 in clear, HTTP/2 in clear, TLS with both."""

    folder: Path
    address: str
    clear: int
    h2c: int
    tls: int

    def shown(self, wanted: str = "") -> list[str]:
        """What was asked, one line each; waits for one with `wanted`."""

        def look() -> list[str]:
            lines = (self.folder / "access.log").read_text().splitlines()
            return lines if any(wanted in line for line in lines) else []

        return until(look, f"a request with {wanted} in the log") if wanted else look()


def free_ports(address: str, count: int) -> list[int]:
    held = [socket.create_server((address, 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


@contextmanager
def nginx(folder: Path, pki: Pki, address: str = "127.0.0.1", within: tuple[str, ...] = ()) -> Iterator[Nginx]:
    """`within`: the command that enters its network."""
    (folder / "files").mkdir(parents=True)
    (folder / "files/big").write_bytes(BIG)
    clear, h2c, tls, sink = free_ports("127.0.0.1", 4)
    certificate, key = pki.issue(NAME, (address,), file=f"nginx-{clear}")
    config = folder / "nginx.conf"
    config.write_text(
        CONFIG.format(
            folder=folder, address=address, clear=clear, h2c=h2c, tls=tls, sink=sink, certificate=certificate, key=key
        )
    )
    command = [*within, "nginx", "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]
    process = subprocess.Popen(command)
    try:
        until(lambda: _listens(folder, process), "nginx to listen")
        yield Nginx(folder, address, clear, h2c, tls)
    finally:
        process.terminate()
        process.wait(10)


def _listens(folder: Path, process: "subprocess.Popen[bytes]") -> bool:
    assert process.poll() is None, (folder / "error.log").read_text()
    pid = folder / "pid"
    return pid.exists() and bool(pid.read_text().strip())
