"""What is fuzzed: one module a target, or several for those that are alike. The table names them all."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Final

MODULES: Final = {
    "ring": "spans",
    "journal": "journals",
    "reassembly": "streams",
    "assembler": "sessions",
    "relayed": "relayed",
    "opening": "openings",
    "mediation": "openings",
    "conversation": "dissectors",
    "datagrams": "dissectors",
    "icmp": "dissectors",
    "tls": "dissectors",
    "http1": "dissectors",
    "http2": "dissectors",
    "websocket": "dissectors",
    "postgres": "dissectors",
    "mysql": "dissectors",
    "redis": "remote",
    "ssh": "remote",
    "ssh_relayed": "remote",
    "ssh_messages": "remote",
    "postgres_relayed": "postgres_relayed",
    "mysql_relayed": "databases_relayed",
    "redis_relayed": "databases_relayed",
    "values": "values",
    "dns_tcp": "dissectors",
    "dns_udp": "dissectors",
    "raw": "dissectors",
    "growth": "growth",
    "http_body": "bombs",
    "http_relay": "mediators",
    "capture": "captures",
    "export": "exports",
    "query": "queries",
    "terminal": "screens",
}


@dataclass(frozen=True)
class Target:
    """`check` raises `AssertionError` where something does not hold. `seeds`: cases to begin with; `words`: pieces of
    input that chance would not find; `size`: the longest input that is worth its time."""

    check: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...] = ()
    size: int = 4096


def load(name: str) -> Target:
    """Import a target by its name, and with it what it tries; one that is not in the table as `module:name`."""
    path, _, inside = name.rpartition(":")
    module = import_module(path or f"tests.fuzz.targets.{MODULES[name]}")
    target: Target = module.TARGETS[inside]
    return target
