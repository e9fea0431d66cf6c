"""Keys of hosts: the gateway's own, which agents know it by, and those of servers as they were first seen.

    DATA/keys/ssh_host_ed25519_key, ssh_host_rsa_key    OpenSSH private keys, mode 0600, made at the first need
    DATA/state/ssh_known_hosts                          a line `[address]:port type base64` for each server

The first is shared by all relay workers and outlives them; who replaces it changes what every agent sees. A server's
key is remembered by address and port when no rule pins it, before the gateway logs in there; it is never replaced by
itself. When a server has a new key, its line is removed by hand.
"""

import base64
import fcntl
import hashlib
import os
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from appliance.errors import Unavailable
from appliance.identity.staged import locked, write_private

RSA_BITS: Final = 3072
ED25519: Final = "ssh_host_ed25519_key"
RSA: Final = "ssh_host_rsa_key"  # for clients that know no other
_Made = Ed25519PrivateKey | rsa.RSAPrivateKey


def host_keys(data: Path) -> list[bytes]:
    """The gateway's private keys in OpenSSH's format, Ed25519 first. Raises `Unavailable`."""
    folder = data / "keys"
    found = []
    try:
        with locked(folder):
            for name in (ED25519, RSA):
                path = folder / name
                if not path.exists():
                    write_private(path, _private(_make(name)))
                found.append(path.read_bytes())
    except OSError as error:
        raise Unavailable(f"{folder}: {error.strerror}; relays need their SSH host keys there") from error
    return found


def public_keys(data: Path) -> list[str]:
    """The gateway's public keys, `type base64`, as in known_hosts. Raises `Unavailable`."""
    found = []
    for text in host_keys(data):
        try:
            key = serialization.load_ssh_private_key(text, None)
        except ValueError as error:
            raise Unavailable(
                f"{data / 'keys'}: an SSH host key there is not readable; remove it to have one made"
            ) from error
        encoded = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        found.append(encoded.decode())
    return found


def fingerprint(public: str) -> str:
    """`SHA256:…` of `type base64`, as ssh-keygen -l prints it."""
    digest = hashlib.sha256(base64.b64decode(public.split()[1])).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def _make(name: str) -> _Made:
    if name == ED25519:
        return Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)


def _private(key: _Made) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


class KnownHosts:
    """Servers' keys as they were first seen, shared by all workers."""

    def __init__(self, data: Path) -> None:
        self.path = data / "state" / "ssh_known_hosts"

    def find(self, address: str, port: int) -> str:
        """The key, `type base64`; "" for a server that was never seen. Raises `OSError`."""
        try:
            text = self.path.read_text("ascii", "replace")
        except FileNotFoundError:
            return ""
        return _find(text, address, port)

    def remember(self, address: str, port: int, key: str) -> bool:
        """Keep the key of a server; False: another one was kept meanwhile. Raises `OSError`."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = file.read()
            known = _find(text, address, port)
            if not known:
                broken = "\n" if text and not text.endswith("\n") else ""
                file.write(f"{broken}[{address}]:{port} {key}\n")
                file.flush()
                os.fsync(file.fileno())
        return known in ("", key)


def _find(text: str, address: str, port: int) -> str:
    start = f"[{address}]:{port} "
    return next((line.removeprefix(start).strip() for line in text.splitlines() if line.startswith(start)), "")
