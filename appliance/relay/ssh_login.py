"""Log-ins of SSH: the agent's with the gateway, and the gateway's with the server (RFC 4252, RFC 4256).

What a peer may try is bounded: a wrong token or password `TRIES` times, any request `REQUESTS` times; so is what the
server has to say before: `BANNERS` times.
"""

from collections.abc import Callable
from typing import Any, Final, Protocol

import asyncssh
from asyncssh.public_key import get_default_public_key_algs

from appliance.dissect import ssh_messages as ssh
from appliance.errors import VerbatimError
from appliance.identity.credential import Kind, Secret
from appliance.model import Direction
from appliance.relay.failure import Failure
from appliance.relay.flow import Flow
from appliance.relay.ssh_connection import ServerConnection
from appliance.relay.ssh_hosts import KnownHosts, fingerprint

TRIES: Final = 3
REQUESTS: Final = 64  # of all kinds
BANNERS: Final = 16
MAX_BANNER: Final = 16384  # characters
LONG: Final = 1023  # bytes that OpenSSH's client takes from a prompt at most (readpass.c)
MAX_TOKEN: Final = 65536  # bytes, in all its parts
VERSION: Final = "Verbatim"
CIPHERS: Final = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)  # the fastest first, for servers; with agents it is they who choose
_PLAIN_KEYS: Final = [name.decode() for name in get_default_public_key_algs()]  # no certificates: no CA is known
_REDACTED: Final = b"*"


def agent_options(host_keys: list[bytes]) -> asyncssh.SSHServerConnectionOptions:
    """How the gateway speaks with agents."""
    return asyncssh.SSHServerConnectionOptions(
        config=None,
        server_version=VERSION,
        server_host_keys=[asyncssh.import_private_key(key) for key in host_keys],
        encryption_algs=CIPHERS,
        compression_algs=("none",),
        gss_host=None,
        x509_trusted_certs=None,
        agent_forwarding=False,
        login_timeout=0,
        keepalive_interval=0,
    )


class Relays(Protocol):
    """`SshRelay`, as a log-in sees it."""

    @property
    def flow(self) -> Flow: ...

    def record(self, direction: Direction, payload: bytes) -> None: ...

    async def log_in(self, user: str, password: str | None) -> bool: ...

    def lost(self, direction: Direction, error: Exception | None) -> None: ...


class AgentLogin(asyncssh.SSHServer):
    """The agent's, with the gateway."""

    def __init__(self, relay: Relays) -> None:
        self._relay = relay
        self._token = relay.flow.rule.identify == "token"
        self._requests = self._tries = 0
        self._parts = ""  # of a token that is longer than a prompt takes

    def heard(self, payload: bytes) -> None:
        """A USERAUTH_REQUEST, for the record: what it holds of credentials is asterisks there. Raises
        `asyncssh.DisconnectError`."""
        self._requests += 1
        if self._requests > REQUESTS:
            raise asyncssh.ProtocolError("too many log-ins")
        try:
            places = ssh.parse(payload).places
        except ValueError:
            return  # asyncssh ends the connection
        self._record(payload, [places[name] for name in ("password", "changed", "data") if name in places])

    def _record(self, payload: bytes, secrets: list[tuple[int, int]]) -> None:
        shown = bytearray(payload)
        what = "token" if self._token else "password"
        for start, end in secrets:
            if end > start:
                shown[start:end] = _REDACTED * (end - start)
                text = f"{what}: {end - start} bytes are kept by length only"
                self._relay.flow.note("redacted", text, {"what": what}, Direction.CLIENT, 4 + start, 4 + end)
        self._relay.record(Direction.CLIENT, bytes(shown))

    # -- what asyncssh asks ----------------------------------------------------------------------------------------

    async def begin_auth(self, username: str) -> bool:
        """Whether anything is to be shown: not where a lease says who this is, and the gateway has the credential."""
        if self._token or not self._relay.flow.rule.secret:
            return True
        return not await self._relay.log_in(username, None)

    def password_auth_supported(self) -> bool:
        return True

    async def validate_password(self, username: str, password: str) -> bool:
        return await self._shown(username, password, "ssh-password")

    def kbdint_auth_supported(self) -> bool:
        return True

    def get_kbdint_challenge(self, username: str, lang: str, submethods: str) -> asyncssh.misc.MaybeAwait[Any]:
        self._parts = ""
        return "", "", "", [("Access token: " if self._token else "Password: ", False)]

    async def validate_kbdint_response(self, username: str, responses: Any) -> Any:
        payload = ssh.encode(ssh.USERAUTH_INFO_RESPONSE, responses=list(responses))
        places, at = [], 5
        for response in responses:
            size = len(response.encode())
            places.append((at + 4, at + 4 + size))
            at += 4 + size
        self._record(payload, places)
        if len(responses) != 1:
            return False
        self._parts += responses[0]
        if len(responses[0].encode()) == LONG and len(self._parts) <= MAX_TOKEN:
            return "", "", "", [("Continued, or empty: ", False)]
        return await self._shown(username, self._parts, "ssh-keyboard-interactive")

    # -- what it comes to ------------------------------------------------------------------------------------------

    async def _shown(self, user: str, text: str, method: str) -> bool:
        flow = self._relay.flow
        if self._token:
            accepted = await self._identify(text.strip(), method) and await self._relay.log_in(user, None)
        else:
            accepted = await self._relay.log_in(user, text)
        if not accepted and not flow.over:
            self._tries += 1
            if self._tries >= TRIES:
                flow.stop("token-refused" if self._token else "login-refused", f"{TRIES} log-ins were not accepted")
        return accepted

    async def _identify(self, token: str, method: str) -> bool:
        flow = self._relay.flow
        try:
            identity = await flow.around.verify(token)
        except VerbatimError as error:
            if not flow.over:
                flow.around.count("token")
                flow.note("token-refused", str(error), {"method": method})
            return False
        if flow.over:
            return False
        flow.identified(identity, method)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.lost(Direction.CLIENT, exc)


class ServerLogin(asyncssh.SSHClient):
    """The gateway's, with the server: by the rule's secret, else by the agent's `password`, else by nothing."""

    def __init__(
        self,
        flow: Flow,
        secret: Secret | None,
        user: str,
        password: str | None,
        banner: Callable[[str], None],
        lost: Callable[[Exception | None], None],
    ) -> None:
        self._flow = flow
        self._secret = secret
        self._user = secret.user if secret is not None and secret.user else user
        self._passwords: list[str] = []
        self._prompted = False
        self._banner = banner
        self._lost = lost
        self._banners = 0
        self._address, self._port = "", 0
        self._known = ""
        self._fault = ""  # why the server's key is not accepted
        if secret is None and password is not None:
            self._passwords = [password]
        elif secret is not None and secret.kind is Kind.PASSWORD:
            self._passwords = [each.value.reveal() for each in (secret, secret.former) if each is not None]

    def options(self, address: str, port: int) -> asyncssh.SSHClientConnectionOptions:
        """For the server at this address. Raises `Failure`."""
        self._address, self._port = address, port
        try:
            trusted = [asyncssh.import_public_key(key) for key in self._expected() if key]
        except (asyncssh.KeyImportError, OSError) as error:
            raise Failure("host-key", f"the key that is known of {address} port {port} is not readable") from error
        try:
            return asyncssh.SSHClientConnectionOptions(
                config=None,
                host=address,
                port=port,
                client_version=VERSION,
                username=self._user,
                client_keys=self._keys() or None,
                known_hosts=(trusted, [], []),
                server_host_key_algs=() if trusted else _PLAIN_KEYS,
                encryption_algs=CIPHERS,
                compression_algs=("none",),
                preferred_auth=("publickey", "password", "keyboard-interactive"),
                gss_host=None,
                x509_trusted_certs=None,
                agent_path=None,
                login_timeout=0,
                keepalive_interval=0,
            )
        except ValueError as error:
            raise Failure("login-refused", "the user's name, or the secret, is not usable with SSH") from error

    def _expected(self) -> list[str]:
        pinned = self._flow.rule.host_key
        if pinned:
            self._known = pinned
        else:
            self._known = KnownHosts(self._flow.around.settings.data).find(self._address, self._port)
        return [self._known]

    def _keys(self) -> list[Any]:
        secret = self._secret
        if secret is None or secret.kind is not Kind.SSH_KEY:
            return []
        return [_key(each) for each in (secret, secret.former) if each is not None]

    # -- what asyncssh asks ----------------------------------------------------------------------------------------

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        """For a key that is not known."""
        if self._known:
            self._fault = "pinned by the rule" if self._flow.rule.host_key else "remembered from before"
            return False
        text = " ".join(key.export_public_key().decode().split()[:2])
        try:
            kept = KnownHosts(self._flow.around.settings.data).remember(self._address, self._port, text)
        except OSError as error:
            self._fault = f"cannot be remembered: {error.strerror}"
            return False
        if not kept:
            self._fault = "remembered from another connection"
            return False
        said = f"the key of {self._address} port {self._port} was not known; it is remembered: {fingerprint(text)}"
        self._flow.note("host-key", said, {"fingerprint": fingerprint(text), "remembered": True})
        return True

    def auth_banner_received(self, msg: str, lang: str) -> None:
        self._banners += 1
        if self._banners > BANNERS or len(msg) > MAX_BANNER:
            raise asyncssh.ProtocolError("too many banners, or too long")
        self._banner(msg)

    def public_key_auth_requested(self) -> None:
        return None

    def password_auth_requested(self) -> str | None:
        return self._passwords.pop(0) if self._passwords else None

    def kbdint_auth_requested(self) -> str | None:
        return "" if self._passwords else None

    def kbdint_challenge_received(self, name: str, instructions: str, lang: str, prompts: Any) -> Any:
        """One hidden prompt is for the password; what only tells something is heard."""
        if not prompts:
            return []
        if len(prompts) != 1 or prompts[0][1]:
            return None
        password = self.password_auth_requested()
        return None if password is None else [password]

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)

    # -- what it comes to ------------------------------------------------------------------------------------------

    def told(self, server: ServerConnection) -> dict[str, Any]:
        """Of a log-in that succeeded, for the record."""
        key = server.get_server_host_key()
        said = {"user": self._user, "cipher": str(server.get_extra_info("send_cipher", ""))}
        if key is not None:
            said["host_key"] = key.get_fingerprint()
        if self._secret is not None:
            said["secret"] = self._secret.name
        return said

    def refused(self) -> Failure:
        if self._secret is None:
            return Failure("no-credential", "the server asks for a log-in, and the gateway's rule names no credential")
        return Failure("login-refused", f"the server does not accept the gateway's credential for {self._user}")

    def failed(self, error: Exception) -> Failure:
        """Why there is no log-in. Texts of exceptions may hold what the server said."""
        where = f"{self._address} port {self._port}"
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            why = self._fault or "not a key that the gateway accepts"
            return Failure("host-key", f"the key of the server {where} is not the one that is {why}")
        if isinstance(error, asyncssh.KeyExchangeFailed):
            if self._known:
                return Failure("host-key", f"the server {where} has no key of the kind that is known of it")
            return Failure("key-exchange", f"the server {where} and the gateway have no algorithm in common")
        if isinstance(error, asyncssh.ConnectionLost):
            return Failure("server-gone", f"the server {where} ended the connection before the log-in was done")
        return Failure("protocol", f"the server {where} does not keep to SSH: {type(error).__name__}")


def _key(secret: Secret) -> Any:
    """A private key, with its certificate where there is one. Raises `Failure`."""
    try:
        key = asyncssh.import_private_key(secret.value.reveal())
        return (key, asyncssh.import_certificate(secret.certificate)) if secret.certificate else key
    except (asyncssh.KeyImportError, ValueError) as error:
        raise Failure("secret", f"the rule's credential {secret.name} is not usable with SSH") from error
