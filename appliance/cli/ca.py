"""`verbatim ca`: the appliance's certificate authority. Every change is on record."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography import x509
from cryptography.x509.oid import NameOID

from appliance import config
from appliance.cli.given import user
from appliance.cli.output import Config, Data, Json, console, emit, errors, facts
from appliance.config import Settings
from appliance.errors import MalformedInput, Refused
from appliance.identity import ca
from appliance.identity.certificate import MAX_COMMON_NAME, ends
from appliance.identity.constraints import Constraints
from appliance.identity.staged import write_private
from appliance.identity.undumpable import forbid_dumps
from appliance.journal import spool
from appliance.relay import ssh_hosts
from appliance.replay.text import printable

app = typer.Typer(name="ca", help="The appliance's CA: what agents trust.")

Days = Annotated[float, typer.Option("--days", min=1, max=36500, help="How long the CA's certificate is valid.")]
Permit = Annotated[
    list[str] | None,
    typer.Option("--permit", metavar="NAME|NETWORK", help="Only for this name and all below it, or this network."),
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="NAME|NETWORK", help="Never for these; wins over --permit.")
]
Key = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", readable=False, help="PEM file of an EC key, used from where it is."),
]


@app.callback(invoke_without_command=True)
def options(context: typer.Context, config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """The appliance's CA: what agents trust. Without a verb: show."""
    forbid_dumps()
    if context.invoked_subcommand is None:
        show(config_file, data, json)
    elif config_file or data or json:
        raise MalformedInput(f"ca: options go behind the verb; write verbatim ca {context.invoked_subcommand} --data …")


@app.command("init")
def init(
    name: Annotated[
        str | None, typer.Option("--name", help="Of the CA, as agents see it; default Verbatim CA NODE.")
    ] = None,
    days: Days = ca.CA_LIFETIME.days,
    permit: Permit = None,
    exclude: Exclude = None,
    key: Key = None,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Make the CA, before the first start would make one without constraints. Refused when there is one."""
    settings = config.load(config_file, data=data)
    called = f"Verbatim CA {settings.node}"[:MAX_COMMON_NAME] if name is None else name
    if not 0 < len(called) <= MAX_COMMON_NAME or not called.isprintable():
        raise MalformedInput(f"--name: not a name for a CA; give up to {MAX_COMMON_NAME} printable characters")
    constraints = Constraints.parse(permit or (), exclude or ())
    now, lifetime = datetime.now(UTC), timedelta(days=days)
    made = ca.create(settings.data, called, now=now, lifetime=lifetime, constraints=constraints, key=key)
    _tell(settings.data, "ca-made", f"a CA was made: {called}", made.certificate)
    _warn(settings, made)
    _show(settings, made, json)


@app.command("show")
def show(config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Print the CA's certificate, fingerprint, validity, constraints and predecessors; made if there is none."""
    settings = config.load(config_file, data=data)
    _show(settings, ca.load_or_create(settings.data, settings.node), json)


@app.command("rotate")
def rotate(
    overlap: Annotated[
        float,
        typer.Option("--overlap", metavar="DAYS", min=0, max=3650, help="Who trusts the former CA can verify so long."),
    ] = ca.OVERLAP.days,
    days: Days = ca.CA_LIFETIME.days,
    permit: Permit = None,
    exclude: Exclude = None,
    key: Key = None,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Give the CA a new key and certificate and drop the former key; constraints stay unless others are given."""
    settings = config.load(config_file, data=data)
    constraints = Constraints.parse(permit or (), exclude or ()) if permit or exclude else None
    now, lifetime, span = datetime.now(UTC), timedelta(days=days), timedelta(days=overlap)
    made = ca.rotate(settings.data, now=now, overlap=span, lifetime=lifetime, constraints=constraints, key=key)
    more = {"former_sha256": ca.fingerprint(made.formers[0]), "overlap_until": _until(made, now)}
    _tell(settings.data, "ca-rotated", "the CA has a new key and certificate", made.certificate, **more)
    _warn(settings, made)
    _show(settings, made, json)


@app.command("issue")
def issue(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="DNS names and addresses; the first is shown.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="PREFIX", help="Writes PREFIX.crt, with its chain, and PREFIX.key.")
    ],
    client: Annotated[bool, typer.Option("--client", help="For a client; names may be any then.")] = False,
    days: Annotated[float, typer.Option("--days", min=1, max=3650, help="How long it is valid.")] = 90,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Make a key and a certificate for a server or, with --client, a client."""
    settings = config.load(config_file, data=data)
    now = datetime.now(UTC)
    ours = ca.load(settings.data)
    key_path, path = (out.with_name(f"{out.name}.{suffix}") for suffix in ("key", "crt"))
    for each in (key_path, path):
        if each.exists():
            raise Refused(f"{each}: is there already; name another --out, or remove it")
    key, certificate = ca.issue(ours, names, now, timedelta(days=days), client=client)
    write_private(key_path, ca.private_pem(key))
    bridge = ours.overlap(now)
    chain = (certificate, *((bridge,) if bridge else ()), ours.certificate)
    path.write_bytes(b"".join(map(ca.pem, chain)))
    text = f"a certificate was issued for {names[0]}"
    _tell(settings.data, "certificate-issued", text, certificate, names=names, client=client)
    said = {"certificate": str(path), "key": str(key_path), **_about(certificate)}
    if json:
        emit(said)
    else:
        facts((("certificate", path), ("key", key_path), ("SHA-256", said["fingerprint_sha256"])))


@app.command("ssh")
def ssh(config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Print the gateway's SSH host keys, as agents' known_hosts want them; made if there are none."""
    keys = ssh_hosts.public_keys(config.load(config_file, data=data).data)
    if json:
        emit({"keys": [{"key": key, "fingerprint_sha256": ssh_hosts.fingerprint(key)} for key in keys]})
        return
    for key in keys:
        console.print(key, soft_wrap=True, highlight=False)
    facts(tuple((key.split()[0], ssh_hosts.fingerprint(key)) for key in keys))


def _about(certificate: x509.Certificate) -> dict[str, Any]:
    return {
        "name": str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value),
        "fingerprint_sha256": ca.fingerprint(certificate),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": ends(certificate).isoformat(),
    }


def _tell(data: Path, event: str, text: str, certificate: x509.Certificate, **more: Any) -> None:
    spool.leave(data, event, text, time.time_ns(), **_about(certificate), **more, uid=user())


def _warn(settings: Settings, made: ca.Authority) -> None:
    """Of addresses that agents reach the API by, for which it gets no certificate."""
    from api.app import names

    _, left_out = ca.certifiable(made.certificate, names(settings))
    for name, reason in left_out.items():
        errors.print(printable(f"the API gets no certificate for {name}: {reason}"), soft_wrap=True)


def _until(authority: ca.Authority, now: datetime) -> str | None:
    bridge = authority.overlap(now)
    return None if bridge is None else ends(bridge).isoformat()


def _show(settings: Settings, ours: ca.Authority, json: bool) -> None:
    now = datetime.now(UTC)
    allowed = Constraints.of(ours.certificate)
    about = _about(ours.certificate)
    permitted, excluded = ([str(each) for each in side] for side in (allowed.permitted, allowed.excluded))
    until = _until(ours, now)
    if json:
        more = {"permitted": permitted, "excluded": excluded, "overlap_until": until}
        emit(about | more | {"former": [_about(each) for each in ours.formers], "pem": ours.pem.decode("ascii")})
        return
    console.print(ours.pem.decode("ascii"), end="")
    facts(
        (
            ("SHA-256", ours.fingerprint),
            ("file", settings.data / "keys" / ca.CERTIFICATE),
            ("name", about["name"]),
            ("valid", f"{about['not_before']} to {about['not_after']}"),
            ("permitted", ", ".join(permitted) or "any name, any address"),
            ("excluded", ", ".join(excluded) or "-"),
            *((("overlap", f"with the former one until {until}"),) if until else ()),
            *(("former", f"{ca.fingerprint(each)}, valid until {ends(each).isoformat()}") for each in ours.formers),
        )
    )
