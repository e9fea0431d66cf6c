"""The README is a contract: what is not in it does not exist, and what is in it exists."""

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import typer.main

from api.app import create
from api.deps import Parts
from api.metrics import SIMPLE
from appliance import cli
from appliance.config import Section, Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def settings(model: Any, prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = getattr(field.annotation, "__args__", (None,))[0]
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from settings(field.annotation, f"{prefix}{name}.")
        elif isinstance(inner, type) and issubclass(inner, Section):
            yield from settings(inner, f"{name}[].")
        else:
            yield f"{prefix}{name}"


def test_every_setting_is_documented_and_no_other() -> None:
    documented = re.findall(r"^\| `([a-z_.\[\]]+)` \| ", README.partition("## Settings")[2].partition("## ")[0], re.M)
    assert documented == list(settings(Settings, ""))


def test_every_verb_is_documented_and_no_other() -> None:
    command = typer.main.get_command(cli.app)
    verbs = set(getattr(command, "commands", {}))
    documented = set(re.findall(r"^\| `verbatim ([a-z]+)` \|", README, re.M))
    assert verbs == documented


def test_every_route_is_documented_and_no_other() -> None:
    parts = cast(Parts, SimpleNamespace(settings=Settings()))
    paths = create(parts).openapi()["paths"]
    routes = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    assert routes == set(re.findall(r"`((?:GET|POST|DELETE) /[^`?]*)`", README.partition("## API")[2]))


def test_every_metric_is_documented() -> None:
    for name, *_ in SIMPLE:
        assert f"`{name}" in README


def test_every_finding_and_event_of_a_recording_is_documented() -> None:
    part = README.partition("### Findings and events")[2].partition("### Search")[0]
    sources = [*(ROOT / "appliance" / "session").glob("*.py"), ROOT / "appliance" / "ingest" / "spans.py"]
    sources += [*(ROOT / "appliance" / "wire").glob("*.py"), ROOT / "appliance" / "record.py"]
    said = r'(?:finding|_blame|_notes\.event|event|Fact)\(\s*"([a-z-]+)"|Note\("([a-z-]+)"|"kind": "([a-z-]+)"'
    kinds = {"".join(found) for path in sources for found in re.findall(said, path.read_text("utf-8"))}
    assert {"gap", "fin-ignored", "packets-skipped", "filter-restored"} <= kinds
    assert [kind for kind in sorted(kinds) if f"`{kind}`" not in part] == []
