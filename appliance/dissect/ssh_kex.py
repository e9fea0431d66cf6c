"""What SSH says in the clear: identification, KEXINIT, and the server's host key.

Formats: RFC 4253 §4.2 and §7.1, the replies of key exchanges RFC 4253 §8 (diffie-hellman-group*), RFC 4419 §3 (group
exchange), RFC 5656 §4 (ecdh), RFC 8731 §3 (curve25519). HASSH and HASSHServer: Salesforce's fingerprints of what the
client and the server offer (github.com/salesforce/hassh, BSD 3-Clause).

Functions take the payload of one packet and raise `ValueError` where it does not fit.
"""

import base64
import hashlib
from typing import Any, Final

from appliance.dissect.ssh_messages import Reader

KEXINIT: Final = 20
NEWKEYS: Final = 21
KEX_REPLY: Final = 31  # KEXDH_REPLY, KEX_ECDH_REPLY; of a group exchange the group
GEX_REPLY: Final = 33
LISTS: Final = (
    "kex", "host_key", "encryption_client", "encryption_server", "mac_client", "mac_server", "compression_client",
    "compression_server", "languages_client", "languages_server",
)  # fmt: skip
_PSEUDO: Final = ("ext-info-c", "ext-info-s", "kex-strict-c-v00@openssh.com", "kex-strict-s-v00@openssh.com")
_BITS: Final = {"ssh-rsa": 2, "ssh-dss": 1}  # which of a key's numbers tells its size


def parse_kexinit(payload: bytes) -> dict[str, list[str]]:
    """The ten lists of a KEXINIT by name, see `LISTS`."""
    reader = Reader(payload, 17)  # number and cookie
    offer = {}
    for name in LISTS:
        listed = reader.string().decode("ascii", "backslashreplace")
        offer[name] = listed.split(",") if listed else []
    reader.boolean()
    reader.uint32()
    if reader.left:
        raise ValueError("bytes behind the last field")
    return offer


def hassh(offer: dict[str, list[str]], *, server: bool) -> str:
    """HASSH of a client's KEXINIT, HASSHServer of a server's."""
    side = "server" if server else "client"
    parts = (offer["kex"], offer[f"encryption_{side}"], offer[f"mac_{side}"], offer[f"compression_{side}"])
    return hashlib.md5(";".join(map(",".join, parts)).encode(), usedforsecurity=False).hexdigest()


def negotiate(client: dict[str, list[str]], server: dict[str, list[str]]) -> dict[str, str]:
    """What both will use (RFC 4253 §7.1): the client's first that the server has too; "" if there is none."""
    chosen = {}
    for name in LISTS[:8]:
        offered = set(server[name])
        chosen[name] = next((one for one in client[name] if one in offered and one not in _PSEUDO), "")
    return chosen


def parse_host_key(payload: bytes) -> dict[str, Any]:
    """The host key of a key exchange's reply: type, fingerprint as ssh prints it, bits of RSA keys."""
    reader = Reader(payload, 1)
    blob = reader.string()
    key = Reader(blob)
    kind = key.text()
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    said: dict[str, Any] = {"type": kind, "fingerprint": f"SHA256:{digest}"}
    if kind in _BITS:
        numbers = [key.string() for _ in range(_BITS[kind])]
        said["bits"] = int.from_bytes(numbers[-1]).bit_length()
    reader.string()  # the exchange value
    reader.string()  # the signature
    return said
