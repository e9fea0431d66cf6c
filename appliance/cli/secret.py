"""`verbatim secret`: the credentials that the gateway uses upstream, so that agents never hold them.

Values come from standard input, a file or a prompt, and go nowhere but sealed to the disk. Every change is on record.
"""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance import config
from appliance.cli.given import hidden, span, user
from appliance.cli.output import Config, Data, Json, console, emit, errors, facts, table
from appliance.errors import MalformedInput
from appliance.identity import secrets
from appliance.identity.credential import MAX_VALUE, Kind, Secret, check_name, parse
from appliance.identity.undumpable import forbid_dumps
from appliance.journal import spool
from appliance.replay.text import printable

app = typer.Typer(
    name="secret", help="Credentials that the gateway uses in the place of agents'.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="As a rule's relay.secret names it.")]
File = Annotated[
    Path | None,
    typer.Option("--file", metavar="FILE", readable=False, help="Holds the value; '-': standard input, the default."),
]
User = Annotated[str, typer.Option("--user", help="Who logs in: of kinds password and ssh-key.")]
Header = Annotated[str, typer.Option("--header", help="Of kind token: the HTTP header; default a bearer token.")]
CertificateFile = Annotated[
    Path | None,
    typer.Option("--certificate", metavar="FILE", readable=False, help="Of kinds ssh-key and tls-client."),
]


@app.callback()
def options() -> None:
    """Credentials that the gateway uses in the place of agents'."""
    forbid_dumps()


@app.command("set")
def set_secret(
    name: Name,
    kind: Annotated[Kind, typer.Option("--kind", help="What it is.")],
    file: File = None,
    user_name: User = "",
    header: Header = "",
    certificate: CertificateFile = None,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Keep a new secret; its value is read from standard input, --file or a prompt."""
    settings = config.load(config_file, data=data)
    given = _given(name, kind, file, user_name, header, certificate)
    kept = secrets.add(settings.data, given, time.time_ns(), user())
    _tell(settings.data, "secret-set", f"secret {name} was set", kept)
    _show(kept, json)


@app.command("list")
def list_secrets(config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """List secrets: what they are, since when, set by whom; never their values. Exit code 1: one is not readable."""
    settings = config.load(config_file, data=data)
    found, faults = secrets.Secrets.open(settings).all()
    if json:
        for each in found:
            emit(_facts(each))
        for name, fault in faults.items():
            emit({"name": name, "fault": fault})
    else:
        columns = ("name", "kind", "user", "header", "generation", "set", "by", "former", "fingerprint")
        shown = map(_facts, found)
        table(columns, ([said[column] for column in columns] for said in shown))
        for fault in faults.values():
            errors.print(printable(fault), soft_wrap=True)
    if faults:
        raise typer.Exit(1)


@app.command("rotate")
def rotate(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Which one gets a new value.")] = None,
    key: Annotated[bool, typer.Option("--key", help="Seal all secrets with a new key instead.")] = False,
    file: File = None,
    keep_former: Annotated[
        str, typer.Option("--keep-former", metavar="SPAN", help="Keep the former value so long, as 30m, 12h or 7d.")
    ] = "0",
    user_name: User = "",
    header: Header = "",
    certificate: CertificateFile = None,
    config_file: Config = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Give a secret a new value, which new sessions use at once; or, with --key, seal all with a new key."""
    settings = config.load(config_file, data=data)
    of_one = file is not None or keep_former != "0" or user_name or header or certificate is not None
    if key == (name is not None) or (key and of_one):
        raise MalformedInput("secret rotate: name one secret, or give --key alone")
    if name is None:
        _reseal(settings.data, json)
        return
    grace = span("--keep-former", keep_former)
    before = secrets.Secrets.open(settings).get(name)
    given = _given(name, before.kind, file, user_name or before.user, header or before.header, certificate)
    kept = secrets.renew(settings.data, given, time.time_ns(), user(), int(grace.total_seconds()) * 10**9)
    _tell(
        settings.data,
        "secret-rotated",
        f"secret {name} has another value",
        kept,
        former_seconds=int(grace.total_seconds()),
    )
    _show(kept, json)


@app.command("remove")
def remove(name: Name, config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Remove a secret; sessions that use it go on, new ones are refused."""
    settings = config.load(config_file, data=data)
    secrets.remove(settings.data, check_name(name))
    spool.leave(settings.data, "secret-removed", f"secret {name} was removed", time.time_ns(), name=name, uid=user())
    if json:
        emit({"name": name, "removed": True})


def _given(name: str, kind: Kind, file: Path | None, user_name: str, header: str, certificate: Path | None) -> Secret:
    check_name(name)
    if kind in (Kind.SSH_KEY, Kind.TLS_CLIENT) and file is None and os.isatty(0):
        raise MalformedInput(f"secret {name}: a {kind} is more than a line; give it with --file")
    beside = b"" if certificate is None else hidden("certificate", certificate, MAX_VALUE)
    value = hidden(f"{kind} {name}", file, MAX_VALUE)
    return parse(name, kind, value, user=user_name, header=header, certificate=beside)


def _tell(data: Path, event: str, text: str, secret: Secret, **more: Any) -> None:
    said = {"name": secret.name, "secret_kind": secret.kind.value, "generation": secret.generation, "uid": secret.uid}
    spool.leave(data, event, text, secret.set_ns, **said, **more)


def _reseal(data: Path, json: bool) -> None:
    former, fresh = secrets.rekey(data)
    said = {"former_key": former.key_id.hex(), "key": fresh.key_id.hex(), "secrets": len(secrets.names(data))}
    text = f"all secrets ({said['secrets']}) were sealed with a new key"
    spool.leave(data, "secrets-resealed", text, time.time_ns(), **said, uid=user())
    if json:
        emit(said)
    else:
        console.print(f"{text}: {said['key']}")


def _facts(secret: Secret) -> dict[str, Any]:
    return {
        "name": secret.name,
        "kind": secret.kind.value,
        "user": secret.user,
        "header": secret.header,
        "generation": secret.generation,
        "set": datetime.fromtimestamp(secret.set_ns // 10**9, UTC).isoformat(),
        "by": secret.uid,
        "former": "kept" if secret.former else "",
        "fingerprint": secret.fingerprint,
    }


def _show(secret: Secret, json: bool) -> None:
    said = _facts(secret)
    if json:
        emit(said)
    else:
        facts((name, value) for name, value in said.items() if value != "")
