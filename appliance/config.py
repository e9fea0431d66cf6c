"""Settings of the appliance: one TOML file, overridable by environment variables.

`--config FILE`, else `$VERBATIM_CONFIG`, else `/etc/verbatim/verbatim.toml` if it exists. An environment
variable `VERBATIM_STORE__URL` overrides `url` in `[store]`. Unknown names are errors. The README lists every setting.
"""

import binascii
import os
import re
import tomllib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from appliance.errors import MalformedInput

DEFAULT_CONFIG = Path("/etc/verbatim/verbatim.toml")
Network = IPv4Network | IPv6Network
Seconds = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
HOST = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
EVERYWHERE = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
SPEAKS_FIRST = ("mysql", "ssh")  # applications whose server does


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RelayRule(Section):
    """How a relay treats the flows of a rule whose lane is relay."""

    application: Literal["auto", "http", "postgres", "mysql", "redis", "ssh", "raw"] = Field(
        "auto", description="the protocol; auto: by the port where mediation needs it, else by what is said"
    )
    mode: Literal["splice", "mediate"] = Field(
        "splice", description="splice: bytes pass unchanged; mediate: the protocol is parsed in the path"
    )
    identify: Literal["lease", "token"] = Field(
        "lease", description="token: an access token in the protocol says who acts, and wins over a lease; mediate only"
    )
    secret: str = Field(
        "", description="name of the credential that is used upstream instead of the agent's; mediate only"
    )
    source: Literal["gateway", "agent"] = Field("gateway", description="whose address the server sees")
    opaque: Literal["refuse", "pass"] = Field(
        "refuse",
        description="TLS that cannot be terminated (pinning, ECH, certificate, ALPN): refuse, or pass as ciphertext",
    )
    verify: bool = Field(True, description="the server's certificate must be valid; false: recorded and accepted")
    ca: Path | None = Field(None, description="PEM file to verify the server's certificate with; empty: system")
    client_certificate: str = Field("", description="name of the secret of kind tls-client to show to the server")
    upstream_tls: Literal["same", "require"] = Field(
        "same", description="same: TLS to the server when the agent speaks TLS; require: also when it does not"
    )
    host_key: str = Field(
        "", description="SSH: the server's pinned public key, as in authorized_keys; empty: the first seen"
    )

    @field_validator("host_key")
    @classmethod
    def _public_key(cls, value: str) -> str:
        """RFC 4253 section 6.6: what is encoded begins with the key's type, as a string."""
        kind, encoded = (*value.split(), "", "")[:2]
        try:
            begins = binascii.a2b_base64(encoded, strict_mode=True).startswith(len(kind).to_bytes(4) + kind.encode())
        except ValueError:
            begins = False
        if value and not begins:
            raise ValueError("not a public key of SSH; write it as ssh-ed25519 AAAA...")
        return value

    @model_validator(mode="after")
    def _needs_mediation(self) -> Self:
        for name, set_ in (("identify = 'token'", self.identify == "token"), ("secret", bool(self.secret))):
            if set_ and self.mode != "mediate":
                raise ValueError(f"{name} needs mode = 'mediate': a spliced flow is not changed")
        if self.mode == "mediate" and self.application in ("auto", "raw"):
            raise ValueError("mode = 'mediate' needs an application: http, postgres, mysql, redis or ssh")
        if self.identify == "token" and self.opaque == "pass":
            raise ValueError("opaque = 'pass' cannot go with identify = 'token': no token is seen in ciphertext")
        return self


class Rule(Section):
    """What happens to flows to a destination. A host that fits wins, then the longest network, port, protocol."""

    to: Network | None = Field(
        None, description="destination network; may be left out where host is given: any address"
    )
    host: str = Field(
        "", description="name of the server, or *.example.com for all below it; on the wire by recorded DNS answers"
    )
    port: int = Field(0, ge=0, le=65535, description="0: any")
    protocol: Literal["any", "tcp", "udp", "icmp"] = Field("any", description="of the transport")
    lane: Literal["tap", "relay", "refuse"] = Field(
        "tap", description="tap: record and forward; relay: terminate, record the plaintext and forward; refuse"
    )
    unbound: bool = Field(False, description="open to agents without a lease; recorded as unbound")
    relay: RelayRule = Field(RelayRule(), description="how a relay treats the flows; for lane = 'relay'")

    @field_validator("host")
    @classmethod
    def _host(cls, value: str) -> str:
        name = value.lower().removesuffix(".")
        if name and not HOST.fullmatch(name):
            raise ValueError(f"{value!r} is not a host name; write db.example.com or *.example.com")
        return name

    @field_validator("to", mode="before")
    @classmethod
    def _network(cls, value: object) -> object:
        """Here, so that a mistake is told once, and not for either version of IP."""
        if value is None or isinstance(value, IPv4Network | IPv6Network):
            return value
        try:
            whole = ip_network(value, strict=False) if isinstance(value, str) else None
        except ValueError:
            whole = None
        if not isinstance(value, str) or whole is None:
            raise ValueError(f"{value!r} is not a network; write 10.0.0.0/8 or fd00::/8")
        try:
            return ip_network(value)
        except ValueError as error:
            raise ValueError(f"{value!r}: host bits are set; write {whole}") from error

    @model_validator(mode="after")
    def _port_needs_protocol(self) -> Self:
        if self.port and self.protocol not in ("tcp", "udp"):
            raise ValueError("a rule with a port needs protocol = 'tcp' or 'udp'")
        if self.to is None and not self.host:
            raise ValueError("a rule needs a network in 'to', or a 'host'")
        if self.lane == "relay" and self.protocol not in ("any", "tcp"):
            raise ValueError("lane = 'relay' is for protocol = 'tcp'")
        if self.lane != "relay" and self.relay != RelayRule():
            raise ValueError("[rules.relay] needs lane = 'relay'")
        return self

    @model_validator(mode="after")
    def _a_name_that_is_known_and_proven(self) -> Self:
        """A relay hears names from agents: not before a server that speaks first, and unproven ones."""
        relay = self.relay
        if self.host and relay.application in SPEAKS_FIRST:
            raise ValueError(
                f"application = '{relay.application}' needs a network in 'to', and no 'host': the server speaks first, "
                "before any name is heard"
            )
        proven = relay.verify and relay.upstream_tls == "require"
        if self.host and relay.secret and not proven and not any(network.prefixlen for network in self.networks()):
            raise ValueError(
                "a secret for a 'host' needs its network in 'to', or upstream_tls = 'require' and verify = true: "
                "over cleartext an agent may call any server by that name"
            )
        return self

    def is_about(self, name: str) -> bool:
        """Does `host` mean this name? *.example.com means every name below it, and not itself."""
        name = name.lower().removesuffix(".")
        if self.host.startswith("*."):
            return name.endswith(self.host[1:]) and len(name) > len(self.host) - 1
        return name == self.host

    def networks(self) -> tuple[Network, ...]:
        """The destinations: `to`, or every address."""
        return EVERYWHERE if self.to is None else (self.to,)


class Wire(Section):
    agents: tuple[str, ...] = Field((), description="names of the agent-facing interfaces")
    upstream: tuple[str, ...] = Field((), description="names of the upstream-facing interfaces")
    other: tuple[str, ...] = Field(
        (),
        description="names, with wildcards, of interfaces that agents' traffic never takes; others are a fault when up",
    )
    bpffs: Path = Field(Path("/sys/fs/bpf/verbatim"), description="where programs, maps and ring are pinned")
    ring_bytes: Bytes = Field(16 * 2**20, description="a power of two, pages of 4 KiB")
    clamp: float = Field(
        0.25,
        ge=0,
        le=1,
        description="share of the ring that is filled above which TCP windows are lowered; 0 or 1: never",
    )
    max_flows: Count = Field(131072, description="flows at one time; an agent may have as many as are free beside it")
    max_flows_per_lease: Count = Field(65536, description="and never more than this")
    max_leases: Count = Field(16384, description="leases at one time")
    bind_link: bool = Field(
        True, description="a lease is for the link-layer address that the agent had when it took it"
    )
    flow_idle: Seconds = Field(3600.0, description="a TCP flow without packets ends after this")
    datagram_idle: Seconds = Field(60.0, description="the same for UDP and ICMP")
    unanswered_idle: Seconds = Field(20.0, description="the same for flows whose other side never answered")
    refusal_interval: Seconds = Field(1.0, description="between two refusal records of one source and reason")
    refusal_rate: Count = Field(
        200, description="refusal records in a second, of all sources; what is beyond is counted"
    )
    table: str = Field("verbatim", pattern=r"^[a-z][a-z0-9_]{0,30}$", description="name of the nftables table")

    @field_validator("ring_bytes")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value < 65536 or value & (value - 1):
            raise ValueError("ring_bytes must be a power of two of at least 65536")
        return value


class Journal(Section):
    segment_bytes: Bytes = Field(64 * 2**20, description="size of one journal file")
    max_bytes: Bytes = Field(4 * 2**30, description="traffic stalls before the journal grows past this")
    min_free_bytes: Bytes = Field(512 * 2**20, description="traffic stalls before the disk has less left than this")
    keep_bytes: int = Field(
        0,
        ge=0,
        description="what was read is kept up to this much before its files are used again, to be read once more",
    )
    durability: Literal["page-cache", "fsync"] = Field(
        "page-cache", description="what a write must reach before the ring is freed; fsync survives power loss"
    )


class Record(Section):
    """Limits of the recorder."""

    max_sessions: Count = Field(65536, description="open sessions held in memory")
    max_buffer: Bytes = Field(4 * 2**20, description="out-of-order bytes kept per direction")
    max_memory: Bytes = Field(256 * 2**20, description="all sessions' state, about; what costs most degrades at that")
    idle: Seconds = Field(3600.0, description="a session without packets ends after this, in recorded time")
    datagram_idle: Seconds = Field(60.0, description="the same for UDP and ICMP")
    snapshot: Seconds = Field(5.0, description="between two snapshots of the recorder's state")
    max_body: Bytes = Field(1 * 2**20, description="bytes of one decoded body or text kept for search")


class Store(Section):
    url: str = Field(
        "", description="of a ClickHouse server, http(s)://user:password@host:port/database; empty: embedded"
    )
    listen: str = Field("127.0.0.1:0", description="address of the embedded store; port 0: any free one")
    max_memory: Annotated[int, Field(ge=512 * 2**20)] = Field(
        2**30, description="memory of the embedded store; a search that needs more is refused"
    )


class Api(Section):
    listen: tuple[str, ...] = Field(("127.0.0.1:8443",), description="addresses of the HTTPS API; [v6]:port for IPv6")
    names: tuple[str, ...] = Field((), description="further names and addresses in its certificate")


class Issuer(Section):
    """An OpenID provider whose access tokens are accepted."""

    issuer: str = Field(description="as in the token's iss claim; an https address, unless jwks_uri is given")
    audience: tuple[str, ...] = Field(min_length=1, description="one of these must be in the token's aud claim")
    jwks_uri: str = Field("", description="an https address; empty: from the issuer's discovery document")
    ca: Path | None = Field(None, description="PEM file to verify the issuer's TLS certificate with; empty: system")
    algorithms: tuple[str, ...] = Field(
        ("RS256", "PS256", "ES256", "ES384", "EdDSA"), description="signature algorithms that are accepted"
    )
    jwks_refresh: Seconds = Field(300.0, description="keys are fetched again after this")
    jwks_max_stale: Seconds = Field(3600.0, description="keys older than this are not used when the issuer is down")
    leeway: float = Field(10.0, ge=0, le=300, description="seconds that clocks may differ")
    groups_claim: str = Field("groups", description="name of the claim that lists groups")
    roles_claim: str = Field("roles", description="name of the claim that lists roles in this API")

    @model_validator(mode="after")
    def _addresses(self) -> Self:
        """What is asked for keys must be an address; with `jwks_uri` the issuer itself is a name and never asked."""
        _https("jwks_uri" if self.jwks_uri else "issuer", self.jwks_uri or self.issuer)
        if not self.issuer.strip():
            raise ValueError("issuer must not be empty")
        if not self.jwks_uri and ("?" in self.issuer or "#" in self.issuer):  # OpenID Connect Discovery 1.0, section 3
            raise ValueError("issuer must have no query and no fragment")
        return self

    @field_validator("algorithms")
    @classmethod
    def _asymmetric(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        allowed = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
        if not value or set(value) - allowed:
            raise ValueError(f"algorithms must be some of {', '.join(sorted(allowed))}")
        return value


def _https(name: str, address: str) -> None:
    """Raises `ValueError` unless this is an https address; never shows one with a password in it."""
    wanted = f"{name} must be an address as https://login.example.com"
    if not address.isprintable() or any(character.isspace() for character in address):
        raise ValueError(f"{wanted}, without blanks")
    try:
        parts = urlsplit(address)
        whole = parts.scheme == "https" and parts.hostname and parts.port != 0
    except ValueError as error:
        raise ValueError(f"{wanted}: {error}") from error
    if not whole:
        raise ValueError(wanted)
    if "@" in parts.netloc:
        raise ValueError(f"{wanted}, without a user's name")


def endpoint(text: str) -> tuple[IPv4Address | IPv6Address, int]:
    """Address and port of 10.0.0.1:3128 or [fd00::1]:3128. Raises `ValueError`."""
    host, _, port = text.rpartition(":")
    address = ip_address(host.removeprefix("[").removesuffix("]"))
    if (address.version == 6) != host.startswith("[") or not port.isascii() or not 0 < int(port) < 65536:
        raise ValueError(text)
    return address, int(port)


class Relay(Section):
    """The relay processes, which serve the flows of rules with lane = "relay"."""

    workers: int = Field(0, ge=0, le=32, description="relay processes; 0: one for each processor")
    proxy: tuple[str, ...] = Field(
        (), description="agent-facing addresses of an explicit HTTP proxy, as 10.1.0.1:3128 or [v6]:port"
    )
    buffer_bytes: Annotated[int, Field(ge=16384)] = Field(
        256 * 1024, description="bytes of each direction that wait for a slow reader before its writer is held back"
    )
    handshake_timeout: Seconds = Field(15.0, description="for TLS, log-in and the connection to the server")
    idle_timeout: Seconds = Field(3600.0, description="a flow without bytes in either direction ends after this")
    max_connections_per_lease: Count = Field(
        1024, description="relayed at one time; the same for an address without a lease"
    )
    max_connections: Count = Field(16384, description="relayed by one process at one time")
    drain: Seconds = Field(300.0, description="how long a process that was replaced goes on with its flows")

    @field_validator("proxy")
    @classmethod
    def _endpoints(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                endpoint(text)
            except ValueError as error:
                raise ValueError(
                    f"{text!r} is not an address with a port; write 10.0.0.1:3128 or [fd00::1]:3128"
                ) from error
        return value


class Leases(Section):
    max_seconds: Seconds = Field(3600.0, description="a lease ends with its token, or after this")
    max_per_identity: Count = Field(256, description="leases of one identity at one time")


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="VERBATIM_", env_nested_delimiter="__", extra="forbid", frozen=True)

    data: Path = Field(Path("/var/lib/verbatim"), description="the folder of everything that the appliance keeps")
    node: str = Field("gateway", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="this gateway's name in every record")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="JSON lines on standard error")
    wire: Wire = Wire()
    journal: Journal = Journal()
    record: Record = Record()
    store: Store = Store()
    api: Api = Api()
    leases: Leases = Leases()
    relay: Relay = Relay()
    issuers: tuple[Issuer, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def relayed(self) -> bool:
        """Whether there is anything for relays to do."""
        return bool(self.relay.proxy) or any(rule.lane == "relay" for rule in self.rules)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


def load(config: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings; `overrides` (for example `data`) win over file and environment.

    Raises `MalformedInput` naming the file, the setting and what it should be.
    """
    named = config or (Path(os.environ["VERBATIM_CONFIG"]) if os.environ.get("VERBATIM_CONFIG") else None)
    path = named or DEFAULT_CONFIG
    values: dict[str, Any] = {}
    if named or path.exists():
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise MalformedInput(f"{path}: {error.strerror}; name a readable file with --config") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise MalformedInput(f"{path}: not TOML: {error}") from error
    try:
        settings = Settings(**values)
        return settings.model_copy(update={k: v for k, v in overrides.items() if v is not None})
    except SettingsError as error:  # it names the field, and what is in it may be a secret
        field = re.search(r'field "(\w+)"', str(error))
        variable = f"VERBATIM_{field[1].upper()}" if field else "a variable VERBATIM_…"
        raise MalformedInput(
            f"environment: {variable} is not JSON; write that, or one variable for each setting in it"
        ) from error
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: "
            + ("no such setting" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, "))
            for fault in error.errors()
        )
        raise MalformedInput(f"{path if values else 'environment'}: {faults}") from error
