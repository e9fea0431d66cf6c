"""SSH by paramiko. Settings: host, port, user, host_key (as in known_hosts), password ("": by the file `key`)."""

import io
import socket
from base64 import b64decode

import paramiko

from tests.lab.clients import Settings, Told, serve

SECONDS = 15.0
CONTENT = bytes(range(256)) * 1000


def by_paramiko(settings: Settings) -> Told:
    transport = paramiko.Transport(socket.create_connection((settings["host"], settings["port"]), SECONDS))
    try:
        key = paramiko.PKey.from_type_string("ssh-ed25519", b64decode(settings["host_key"].split()[1]))
        transport.start_client(timeout=SECONDS)
        if transport.get_remote_server_key() != key:
            raise paramiko.BadHostKeyException(settings["host"], transport.get_remote_server_key(), key)
        if settings["password"]:
            transport.auth_password(settings["user"], settings["password"])
        else:
            transport.auth_publickey(settings["user"], paramiko.Ed25519Key.from_private_key_file(settings["key"]))
        return {"exec": _exec(transport), "shell": _shell(transport), "sftp": _sftp(transport)}
    finally:
        transport.close()


def _exec(transport: paramiko.Transport) -> Told:
    channel = transport.open_session(timeout=SECONDS)
    channel.settimeout(SECONDS)
    channel.exec_command("cat; echo problem >&2; exit 3")
    channel.sendall("sent Ω".encode())
    channel.shutdown_write()
    output, errors = channel.makefile("rb").read(), channel.makefile_stderr("rb").read()
    return {"output": output.decode(), "errors": errors.decode(), "code": channel.recv_exit_status()}


def _shell(transport: paramiko.Transport) -> Told:
    channel = transport.open_session(timeout=SECONDS)
    channel.settimeout(SECONDS)
    channel.get_pty("xterm", 80, 24)
    channel.invoke_shell()
    channel.resize_pty(100, 40)
    channel.sendall(b"stty size; exit 5\n")
    seen = b""
    while part := channel.recv(4096):
        seen += part
    return {"resized": b"40 100" in seen, "code": channel.recv_exit_status()}


def _sftp(transport: paramiko.Transport) -> Told:
    client = paramiko.SFTPClient.from_transport(transport)
    assert client
    with client:
        client.putfo(io.BytesIO(CONTENT), "sent.bin")
        back = io.BytesIO()
        client.getfo("sent.bin", back)
        client.rename("sent.bin", "moved.bin")
        client.mkdir("made")
        listed = sorted(name for name in client.listdir() if not name.startswith("."))
        size = client.stat("moved.bin").st_size
        client.remove("moved.bin")
        client.rmdir("made")
    return {"same": back.getvalue() == CONTENT, "listed": listed, "size": size}


if __name__ == "__main__":
    serve({"paramiko": by_paramiko})
