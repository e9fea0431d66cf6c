"""TLS of relays: the first bytes of a handshake, contexts for agents and for servers, and what is put on record.

The server is asked first, with the agent's SNI and ALPN offer, and its certificate is verified; then the agent gets a
certificate minted for the same name, and the protocol that the server chose. Sessions are resumed on both sides: to
agents by tickets (RFC 8446 §4.6.1, RFC 5077) of contexts that live as long as their certificate, to servers by the
session of the last connection to the same address under the same name.
"""

import hashlib
import os
import ssl
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, Final, Generic, TypeVar

from cryptography import x509

from appliance.config import RelayRule
from appliance.dissect.tls_hello import ClientHello, Malformed, ja4, parse_client_hello, text_of
from appliance.errors import MalformedInput, Refused
from appliance.identity.credential import Secret
from appliance.identity.mint import Mint
from appliance.relay.failure import Failure
from appliance.relay.leg import Leg

MAX_HELLO: Final = 64 * 1024  # bytes of a ClientHello; post-quantum key shares take 2 KiB
MAX_CONTEXTS: Final = 1024
MAX_SESSIONS: Final = 4096
MAX_NAME: Final = 300  # characters of a name as it is put on record; a real one has 253 at most
MAX_SUBJECT: Final = 4096  # and of a certificate's owner
HANDSHAKE: Final = 0x16
ALERTS: Final = {"access-denied": 49, "internal-error": 80}

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """The last so many; who was not used for longest goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
        return found

    def put(self, key: K, value: V) -> V:
        self._held[key] = value
        self._held.move_to_end(key)
        if len(self._held) > self._size:
            self._held.popitem(last=False)
        return value


def begins_tls(prefix: bytes) -> bool:
    """Do these bytes begin a TLS handshake (RFC 8446 §5.1)? One is enough to say no, three to say yes."""
    return bool(prefix) and prefix[0] == HANDSHAKE and prefix[1:2] in (b"", b"\x03") and prefix[2:3] <= b"\x04"


def alert(name: str) -> bytes:
    """A fatal alert in the clear, for a peer with whom there is no key yet (RFC 8446 §6)."""
    return bytes((21, 3, 3, 0, 2, 2, ALERTS[name]))


async def read_hello(leg: Leg) -> ClientHello:
    """The agent's ClientHello, which stays to be read. Raises `Failure`."""
    reader, data = HelloReader(), bytearray()
    while True:
        more = await leg.receive()
        data += more
        try:
            hello = reader.feed(more)
        except Malformed as error:
            leg.unread(bytes(data))
            raise Failure("tls", "the agent's ClientHello is malformed") from error
        if hello is not None or not more or len(data) > MAX_HELLO:
            leg.unread(bytes(data))
        if hello is not None:
            return hello
        if not more:
            raise Failure("tls", "the agent ended within its ClientHello")
        if len(data) > MAX_HELLO:
            raise Failure("tls", f"the agent's ClientHello is longer than {MAX_HELLO} bytes")


class HelloReader:
    """Puts a ClientHello together, of one record or several, in any pieces: each byte is looked at once."""

    def __init__(self) -> None:
        self._data = bytearray()  # that was not taken yet
        self._left = 0  # bytes of the record that are still to come
        self._message = bytearray()

    def feed(self, data: bytes) -> ClientHello | None:
        """None: more is to come. Raises `Malformed`."""
        self._data += data
        while True:
            if not self._left:
                if len(self._data) < 5:
                    return None
                if self._data[0] != HANDSHAKE or self._data[1] != 3:
                    raise Malformed
                self._left = int.from_bytes(self._data[3:5])
                del self._data[:5]
            part = self._data[: self._left]
            del self._data[: len(part)]
            self._left -= len(part)
            self._message += part
            if len(self._message) >= 4:
                whole = 4 + int.from_bytes(self._message[1:4])
                if self._message[0] != 1 or whole > MAX_HELLO:
                    raise Malformed
                if len(self._message) >= whole:
                    return parse_client_hello(bytes(self._message[4:whole]))
            if self._left:
                return None


def usable(offer: Sequence[bytes]) -> tuple[str, ...]:
    """The protocols of an agent's offer that a server can be asked for: without those that only test it (RFC 8701)."""
    return tuple(name.decode("ascii") for name in offer if name and name.isascii())


class AgentTls:
    """Contexts of the gateway as a server: a minted certificate, and one protocol of the agent's offer."""

    def __init__(self, mint: Mint) -> None:
        self._mint = mint
        self._contexts: Cache[tuple[int, str], ssl.SSLContext] = Cache(MAX_CONTEXTS)

    def context(self, name: str, upstream: bytes | None, alpn: str) -> ssl.SSLContext:
        """For a server that agents call `name`; `upstream`: its own certificate (DER). Raises `Failure`."""
        try:
            certificate = None if upstream is None else x509.load_der_x509_certificate(upstream)
        except ValueError:
            certificate = None  # OpenSSL reads what cryptography is too strict for
        try:
            leaf = self._mint.leaf((name,), certificate)
        except (Refused, MalformedInput) as error:
            raise Failure("certificate", f"no certificate can be minted: {error}") from error
        key = (leaf.certificate.serial_number, alpn)
        held = self._contexts.get(key)
        if held is not None:
            return held
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        _harden(context)
        leaf.load_into(context)
        if alpn:
            context.set_alpn_protocols([alpn])
        return self._contexts.put(key, context)


class ServerTls:
    """Contexts of the gateway as a client, one for each way to verify and certificate to show, and the sessions to
    resume. A context holds all of the system's authorities: agents must not be able to have more of them made."""

    def __init__(self) -> None:
        self._contexts: Cache[Hashable, ssl.SSLContext] = Cache(MAX_CONTEXTS)
        self._sessions: Cache[Hashable, ssl.SSLSession] = Cache(MAX_SESSIONS)

    def context(self, rule: RelayRule, alpn: Sequence[str], client: Secret | None) -> ssl.SSLContext:
        """`client`: the certificate to show to the server. The context offers `alpn` to the next connection made with
        it, and others to later ones. Raises `Failure` when the rule's CA can't be read."""
        key = (rule.verify, rule.ca, (client.name, client.generation) if client else None)
        context = self._contexts.get(key) or self._contexts.put(key, self._make(rule, client))
        context.set_alpn_protocols(list(alpn))  # OpenSSL copies it into each connection (SSL_CTX_set_alpn_protos(3))
        return context

    def _make(self, rule: RelayRule, client: Secret | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not rule.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif rule.ca is not None:
            try:
                context.load_verify_locations(rule.ca)
            except (OSError, ssl.SSLError) as error:
                raise Failure("certificate", f"the rule's CA {rule.ca} cannot be read: {error.strerror}") from error
        else:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        _harden(context)
        if client is not None:
            load_client(context, client)
        return context

    def session(self, context: ssl.SSLContext, address: str, port: int, name: str) -> ssl.SSLSession | None:
        """That of the last connection; only with the context that it was made with."""
        return self._sessions.get((id(context), address, port, name))

    def keep(self, context: ssl.SSLContext, address: str, port: int, name: str, tls: ssl.SSLObject) -> None:
        """The session of a connection that ends, whose ticket may have come at any time."""
        session = tls.session
        if session is not None and session.has_ticket:
            self._sessions.put((id(context), address, port, name), session)


def _harden(context: ssl.SSLContext) -> None:
    """No new handshake within a connection; and an end without a closing alert is seen as what it is (Python would take
    it for a good one, SSL_CTX_set_options(3))."""
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF


def load_client(context: ssl.SSLContext, secret: Secret) -> None:
    """Have a client's `context` show the certificate of a secret of kind tls-client. Raises `Failure`."""
    file = os.memfd_create("verbatim-client", os.MFD_CLOEXEC)  # ssl reads files only: this one is in memory alone
    try:
        os.write(file, f"{secret.value.reveal()}\n{secret.certificate}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{file}")
    except (OSError, ssl.SSLError) as error:
        raise Failure("certificate", f"secret {secret.name}: not a usable key and certificate") from error
    finally:
        os.close(file)


def offered(hello: ClientHello) -> dict[str, Any]:
    """What an agent's ClientHello says, for the record."""
    said: dict[str, Any] = {"sni": hello.sni[:MAX_NAME], "ja4": ja4(hello)}
    if hello.alpn:
        said["offered"] = [text_of(name) for name in hello.alpn]
    if hello.ech:
        said["ech"] = True
    return said


def agreed(tls: ssl.SSLObject, *, server: bool) -> dict[str, Any]:
    """What a handshake came to; `server`: with the server's certificate."""
    cipher = tls.cipher()
    said: dict[str, Any] = {
        "version": tls.version(),
        "cipher": cipher[0] if cipher else "",
        "alpn": tls.selected_alpn_protocol() or "",
        "resumed": bool(tls.session_reused),
    }
    if server:
        der = tls.getpeercert(True)
        if der:
            said["certificate"] = certificate_facts(der)
    return said


def certificate_facts(der: bytes) -> dict[str, Any]:
    """Of a certificate: its SHA-256, and what people look for."""
    said: dict[str, Any] = {"sha256": hashlib.sha256(der).hexdigest()}
    try:
        certificate = x509.load_der_x509_certificate(der)
        said["subject"] = certificate.subject.rfc4514_string()[:MAX_SUBJECT]
        said["issuer"] = certificate.issuer.rfc4514_string()[:MAX_SUBJECT]
        said["not_after"] = certificate.not_valid_after_utc.isoformat()
        said["serial"] = f"{certificate.serial_number:x}"
    except Exception:  # hostile DER: whatever the parser makes of it
        said["unreadable"] = True
    return said
