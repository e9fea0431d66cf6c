"""nginx in the foreground, which writes below one folder only."""

from pathlib import Path

CONFIG = """
user www-data;
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{http}
}}
"""


def command(folder: Path, http: str, *, connections: int = 512) -> list[str | Path]:
    """Write a configuration with this content of its `http` block; the command that serves it."""
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, http=http, connections=connections))
    return ["nginx", "-p", folder, "-c", config, "-e", "stderr"]
