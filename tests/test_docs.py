"""The README is a contract: what is not in it does not exist, and what is in it exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import typer.main
from prometheus_client.parser import text_string_to_metric_families

from api.app import create
from api.deps import Parts
from api.metrics import OTHERS, SIMPLE, render
from appliance import cli
from appliance.config import Section, Settings
from appliance.doctor import Check
from appliance.overview import Look, overview
from appliance.status import publish
from appliance.wire.abi import Counter
from appliance.wire.watch import PLACES

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


def part(title: str) -> str:
    """A section of the README, up to the next heading of any depth."""
    return re.split(r"^##+ ", README.partition(f"# {title}\n")[2], maxsplit=1, flags=re.M)[0]


def rows(title: str) -> dict[str, str]:
    """First and last cell of each row of a section's table; a row may list several names."""
    found = re.findall(r"^\| (`[^|]+`) \| (?:.* \| )?([^|]+) \|$", part(title), re.M)
    return {name: text for names, text in found for name in re.findall(r"`([^`]+)`", names)}


def test_every_metric_is_documented_with_its_labels_and_help_and_no_other(tmp_path: Path) -> None:
    wire: dict[str, Any] = {
        "ring": {"bytes": 1, "fill": 1},
        "refusals": {"quic": 1},
        "others": dict.fromkeys(OTHERS, 1),
        "repairs": {"gate-restored": 1},
    }
    values = {
        "wire": wire,
        "record": {"read_ns": 1, "lag_seconds": 0.0},
        "store": {"rows": {"messages": 1}},
        "relay": {"refused": {"certificate": 1}},
    }
    for _, _, _, process, path in SIMPLE:
        inner: dict[str, Any] = values[process]
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = 1
    for process, published in values.items():
        publish(tmp_path, process, published)
    shown = {}
    for family in text_string_to_metric_families(render(Settings(data=tmp_path)).decode()):
        assert family.samples, family.name
        sample = family.samples[0]
        labels = f"{{{','.join(sorted(sample.labels, reverse=True))}}}" if sample.labels else ""
        assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
        shown[sample.name + labels] = family.documentation.removesuffix(".")
    assert shown == rows("Metrics")


def test_every_counter_of_the_program_has_a_metric() -> None:
    words = {name.name.lower().replace("_", "-") for name in Counter if Counter.BYTES < name < Counter.TOLD}
    assert words == set(OTHERS)


def test_every_check_of_the_doctor_is_documented_and_no_other() -> None:
    assert list(rows("Is it well?")) == [check.value for check in Check]


def test_every_field_of_the_status_is_documented_and_no_other() -> None:
    assert set(rows("What is it doing?")) == set(overview(None, Look(0.0, {}), embedded=True))


def test_every_fault_is_documented_and_no_other() -> None:
    wire = ROOT / "appliance" / "wire"
    ways = (
        r'(?:faults|found)\["([a-z-]+)"\] =',
        r'"faults": \{"([a-z-]+)"',
        r'\{"(stopped|silent)":',
        r'yield \(\s*f?"([a-z{}-]+)",',
        r'return "([a-z-]+)", f?"',
        r'\("([a-z-]+)", self\.[\w.]*fault\)',
    )
    sources = [wire / "watch.py", wire / "interfaces.py", wire / "daemon.py", wire / "routing.py"]
    sources += [ROOT / "appliance" / name for name in ("health.py", "identity/jwks.py")]
    sources += [ROOT / "appliance" / "relay" / name for name in ("worker.py", "service.py")]
    sources += (ROOT / "appliance" / "record").glob("*.py")
    names = {name for path in sources for way in ways for name in re.findall(way, path.read_text("utf-8"))}
    names = names - {"{program}-missing"} | {f"{place}-missing" for place in PLACES}
    assert names == set(rows("When something is wrong"))


def logged(path: Path) -> Iterator[ast.expr]:
    """The event of every log call of a module."""
    levels = {"debug", "info", "warning", "error", "exception", "critical"}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in levels:
            receiver = ast.unparse(node.func.value)
            if receiver in ("log", "self.log", "said") or "get_logger" in receiver:
                yield node.args[0]


def test_every_event_of_the_logs_is_documented_and_no_other() -> None:
    literal, computed = set(), set()
    for path in [*(ROOT / "appliance").rglob("*.py"), *(ROOT / "api").rglob("*.py")]:
        for event in logged(path):
            if isinstance(event, ast.Constant):
                literal.add(event.value)
            else:
                computed.add((path.name, ast.unparse(event)))
    events = set(re.findall(r"`([a-z-]+)`", README.partition("### Findings and events")[2].partition("### Search")[0]))
    faults = set(rows("When something is wrong"))
    documented = set(rows("Logs")) - {"library-message"}
    assert literal - events - faults == documented - events - faults
    assert computed == {("notes.py", "kind"), ("notes.py", "f'lease-{change.what.value}'")}  # events, by their kinds


def test_every_finding_and_event_of_a_recording_is_documented() -> None:
    part = README.partition("### Findings and events")[2].partition("### Search")[0]
    sources = [*(ROOT / "appliance" / "session").glob("*.py"), ROOT / "appliance" / "ingest" / "spans.py"]
    sources += [path for name in ("wire", "record", "relay") for path in (ROOT / "appliance" / name).glob("*.py")]
    said = r'(?:finding|blame|_notes\.event|event|repaired|note)\(\s*"([a-z-]+)"|Note\("([a-z-]+)"|"kind": "([a-z-]+)"'
    kinds = {"".join(found) for path in sources for found in re.findall(said, path.read_text("utf-8"))}
    assert {"gap", "fin-ignored", "packets-skipped", "interlock-restored", "withheld"} <= kinds
    kinds -= {"identified", "protocol", "tls", "upstream"}  # notes of relays that say what a session is
    assert [kind for kind in sorted(kinds) if f"`{kind}`" not in part] == []
