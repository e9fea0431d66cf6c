"""Verbs that run the appliance: up, its four processes, its CA."""

from typing import Annotated

import typer

from appliance import config
from appliance.cli import supervise
from appliance.cli.output import Config, Data, Json, console, emit, facts
from appliance.identity import ca as authority
from appliance.lock import only


def register(app: typer.Typer) -> None:
    for verb in (up, wire, record, store, api):
        app.command()(verb)
    app.command("ca")(show_ca)


def up(config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Run all processes of the appliance on this machine until interrupted (needs root)."""
    raise typer.Exit(supervise.up(config.load(config_file, data=data), config_file, as_json=json))


def wire(
    config_file: Config = None,
    data: Data = None,
    tear_down: Annotated[
        bool, typer.Option("--teardown", help="Detach and unpin everything, then end. Agents' traffic stops.")
    ] = False,
    json: Json = False,
) -> None:
    """Attach the eBPF program, keep leases and rules, drain the ring into the journal (needs root)."""
    from appliance.wire.daemon import run, teardown

    settings = config.load(config_file, data=data)
    if tear_down:
        teardown(settings)
        if json:
            emit({"torn_down": True})
    else:
        run(settings)


def record(config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Turn the journal into sessions and messages, and put them into the store."""
    from appliance import record as recorder

    settings = config.load(config_file, data=data)
    with only(settings.data, "record"):
        recorder.run(settings)


def store(config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Serve the embedded store on loopback."""
    from appliance.store.service import run

    run(config.load(config_file, data=data))


def api(config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Serve leases, search and streams over HTTPS."""
    from api import app as service

    service.run(config.load(config_file, data=data))


def show_ca(config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Print the appliance's CA certificate and fingerprint, for agents to trust."""
    settings = config.load(config_file, data=data)
    ours = authority.load_or_create(settings.data, settings.node)
    if json:
        emit({"fingerprint_sha256": ours.fingerprint, "pem": ours.pem.decode("ascii")})
        return
    console.print(ours.pem.decode("ascii"), end="")
    facts((("SHA-256", ours.fingerprint), ("file", settings.data / "keys" / "ca.crt")))
