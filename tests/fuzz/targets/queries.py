"""What a person types into the search.

What holds: the result is a condition or `MalformedInput`; of what was typed nothing is in the SQL, only in parameters,
of which each is used; brackets and quotes of the SQL are closed.
"""

import re
from pathlib import Path
from typing import Final

from appliance.errors import MalformedInput
from appliance.store import conditions, fields
from appliance.store.language import compile_query
from tests.fuzz.targets import Target

NOW: Final = 1_700_000_000_000_000_000
PLACE: Final = re.compile(r"\{([a-z]+[0-9]+):([A-Za-z0-9]+)\}")
CONSTANTS: Final = "".join(Path(module.__file__ or "").read_text("utf-8") for module in (fields, conditions))
TOKEN: Final = re.compile(r"'[^']*'|[A-Za-z_][A-Za-z0-9_]*|[0-9]+|.", re.DOTALL)
OWN: Final = frozenset({"AND", "OR", "NOT", *"10(),.=!<>[]- "})  # of the language, and punctuation


def check(data: bytes) -> None:
    query = data.decode("utf-8", "replace")
    try:
        compiled = compile_query(query, NOW)
    except MalformedInput:
        return
    used = PLACE.findall(compiled.sql)
    assert sorted({name for name, _ in used}) == sorted(compiled.parameters), "parameters that are not those in the SQL"
    bare = PLACE.sub("", compiled.sql)
    for token in TOKEN.findall(bare):
        assert token in OWN or token in CONSTANTS, f"{token!r} in the SQL is none of its constants"
    outside = re.sub(r"'[^']*'", "", bare)
    assert "'" not in outside, "a quote that is not closed"
    depth = 0
    for char in outside:
        depth += (char in "([") - (char in ")]")
        assert depth >= 0, "a bracket too many"
    assert not depth, "a bracket that is not closed"
    for value in compiled.parameters.values():
        assert isinstance(value, str | int), f"a parameter of type {type(value).__name__}"
        assert not isinstance(value, int) or -(1 << 63) <= value < 1 << 63, "a number that is no Int64"
    assert all(isinstance(word, str) and word == word.lower() for word in compiled.needles), (
        "a needle that never matches"
    )


def seeds() -> list[bytes]:
    queries = (
        'customer_id "10.0.0.1"', '"drop table"', "cust* OR clien?", "method:POST AND NOT status:2*",
        "status:[400 TO 499]", "time:>=2h", "time:[2024-01-01 TO 2024-02-01T10:00:00Z}", "client_address:10.1.0.0/16",
        '(alice OR bob) -path:"/healthz"', "session:01890000-0000-7000-8000-000000000000", "text:(a b) AND +c",
        "port:5432 subject:* sni:a.example", "'; DROP TABLE x --", "{q0:String}", "a~2 b^3 /re/", "\\( \\* \\\"",
        "address:{10.0.0.1 TO 10.0.0.9]", "status:{* TO 300}", "flag:x && a || !b",
    )  # fmt: skip
    names = " ".join(f"{name}:1" for name in fields.FIELDS)
    return [query.encode() for query in (*queries, names, "(" * 60 + "a" + ")" * 60)]


WORDS: Final = (*(f"{name}:".encode() for name in fields.FIELDS), b" AND ", b" OR ", b" NOT ", b" TO ", b"[* TO ")
TARGETS: Final = {"query": Target(check, seeds, WORDS, 512)}
