"""Verbs that run the appliance: up, and its five processes."""

from typing import Annotated

import typer

from appliance import config
from appliance.cli import supervise
from appliance.cli.output import Config, Data, Json, console, emit
from appliance.errors import MalformedInput
from appliance.identity.undumpable import forbid_dumps
from appliance.lock import only
from appliance.replay.text import printable


def register(app: typer.Typer) -> None:
    for verb in (up, wire, relay, record, store, api):
        app.command()(verb)


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
    forbid_dumps()
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


def relay(
    config_file: Config = None,
    data: Data = None,
    worker: Annotated[int | None, typer.Option(hidden=True, min=0, help="Be one worker, of this number.")] = None,
    json: Json = False,
) -> None:
    """Terminate the flows of rules with lane = "relay", record their plaintext, forward it (needs root)."""
    forbid_dumps()
    from appliance.relay import service
    from appliance.relay.worker import run

    settings = config.load(config_file, data=data)
    if worker is not None:
        raise typer.Exit(run(settings, worker))
    options = ["--data", str(settings.data)] + (["--config", str(config_file)] if config_file else [])
    raise typer.Exit(service.run(settings, options))


def record(config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Turn the journal into sessions and messages, and put them into the store."""
    forbid_dumps()
    from appliance import record as recorder

    settings = config.load(config_file, data=data)
    with only(settings.data, "record"):
        recorder.run(settings)


def store(config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Serve the embedded store on loopback."""
    forbid_dumps()
    from appliance.store.service import run

    run(config.load(config_file, data=data))


def api(config_file: Config = None, data: Data = None, json: Json = False) -> None:
    """Serve leases, search and streams over HTTPS."""
    forbid_dumps()
    from api import app as service

    settings = config.load(config_file, data=data)
    with only(settings.data, "api"):
        service.run(settings)
