"""Real TLS handshakes from Python's own ssl (OpenSSL), without sockets."""

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.dissect.harness import C, S, Turn

TLS12 = ssl.TLSVersion.TLSv1_2


def make_certificate(path: Path) -> Path:
    """A self-signed certificate with its key: CN and names `a.example`, `b.example`, 192.0.2.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a.example")])
    names: list[x509.GeneralName] = [x509.DNSName("a.example"), x509.DNSName("b.example")]
    now = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return path


def shake_hands(
    certificate: Path,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    alpn: tuple[str, ...] = ("h2", "http/1.1"),
    groups: str = "",
    name: str = "a.example",
) -> list[Turn]:
    """Shake hands and exchange a little: who sent what. `groups`: the server's."""
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.minimum_version = TLS12
    server.load_cert_chain(certificate)
    server.minimum_version = server.maximum_version = version
    if groups:
        server.set_ecdh_curve(groups)
    if alpn:
        client.set_alpn_protocols(list(alpn))
        server.set_alpn_protocols([alpn[-1]])
    wires = {C: (ssl.MemoryBIO(), ssl.MemoryBIO()), S: (ssl.MemoryBIO(), ssl.MemoryBIO())}
    ends = {
        C: client.wrap_bio(*wires[C], server_hostname=name or None),
        S: server.wrap_bio(*wires[S], server_side=True),
    }
    turns: list[Turn] = []

    def pump() -> None:
        for whose in (C, S):
            if data := wires[whose][1].read():
                turns.append((whose, data))
                wires[whose.other][0].write(data)

    for _ in range(6):
        for end in ends.values():
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            finally:
                pump()
    for whose in (C, S):
        ends[whose].write(b"application data " * 10)
        pump()
    return turns
