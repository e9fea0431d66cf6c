"""Verbs that run the appliance: up, its four processes, its CA."""

from typing import Annotated

import typer

from appliance import config
from appliance.cli import supervise
from appliance.cli.output import Config, Data, Json, console, emit, facts
from appliance.errors import MalformedInput
from appliance.identity import ca as authority
from appliance.lock import only
from appliance.replay.text import printable


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
        bool, typer.Option("--teardown", help="Journal what the ring holds, take everything out of the kernel, end.")
    ] = False,
    stay_open: Annotated[
        bool,
        typer.Option("--open", help="Tear down while the kernel forwards, too: unrecorded traffic passes then."),
    ] = False,
    json: Json = False,
) -> None:
    """Attach the eBPF program, keep leases and rules, drain the ring into the journal (needs root)."""
    from appliance.wire.daemon import run
    from appliance.wire.teardown import teardown

    if stay_open and not tear_down:
        raise MalformedInput("--open: says how to tear down; give --teardown with it")
    settings = config.load(config_file, data=data)
    if tear_down:
        removed = teardown(settings, stay_open=stay_open)
        if json:
            emit({"torn_down": True, "removed": removed.things, "drained_bytes": removed.drained})
            return
        for thing in removed.things:
            console.print(f"removed: {printable(thing)}")
        console.print(f"journaled: {removed.drained} bytes of the ring" if removed.things else "nothing to remove")
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

    settings = config.load(config_file, data=data)
    with only(settings.data, "api"):
        service.run(settings)


def show_ca(config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Print the appliance's CA certificate and fingerprint, for agents to trust."""
    settings = config.load(config_file, data=data)
    ours = authority.load_or_create(settings.data, settings.node)
    if json:
        emit({"fingerprint_sha256": ours.fingerprint, "pem": ours.pem.decode("ascii")})
        return
    console.print(ours.pem.decode("ascii"), end="")
    facts((("SHA-256", ours.fingerprint), ("file", settings.data / "keys" / "ca.crt")))
