"""Agents' own programs, written with the libraries that real ones use. Each is a module that runs by itself:

    python -m tests.lab.clients.redis < settings.json > told.json

The settings say where the server is, as whom, and with which `library`; what it prints is what it sent and got, the
oracle of what must have been recorded. Settings come by standard input: a command line is visible to everyone.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.lab.net import PYTHON, Host

Settings = dict[str, Any]
Told = dict[str, Any]


def ask(host: Host, client: str, settings: Mapping[str, Any], env: Mapping[str, str] | None = None) -> Told:
    """What the program `client` says when run on `host`; raises with its error output when it fails."""
    command: list[str | Path] = [PYTHON, "-m", f"tests.lab.clients.{client}"]
    told: Told = json.loads(host.run(command, input=json.dumps(dict(settings)), env=env, timeout=60).output)
    return told


def serve(libraries: Mapping[str, Callable[[Settings], Told]]) -> None:
    """The main function of a client: `settings["library"]` says which of its libraries works."""
    settings: Settings = json.load(sys.stdin)
    json.dump(libraries[settings.pop("library")](settings), sys.stdout, ensure_ascii=False)
