"""`--identity`: who the sessions of a capture file belong to."""

import re
from typing import Any, Final

import msgspec

from appliance.errors import MalformedInput
from appliance.model import Identity

_WORDS: Final = ("issuer", "subject", "client", "run_id")
_LISTS: Final = ("act", "groups")
_MAX_LENGTH: Final = 4096  # of one value, in characters
_HOW: Final = "write issuer=…,subject=… (and client, run_id, act, groups) or the same as a JSON object"


def parse_identity(text: str) -> Identity:
    """Read a JSON object or `issuer=…,subject=…`; `act` and `groups` may be repeated. Raises `MalformedInput`.

    A comma begins the next pair only where a name and `=` follow, so that values may hold commas.
    """
    values = _from_json(text) if text.lstrip().startswith("{") else _from_pairs(text)
    unknown = sorted(set(values) - {*_WORDS, *_LISTS})
    if unknown:
        raise MalformedInput(f"identity: {unknown[0]!r} is not one of {', '.join((*_WORDS, *_LISTS))}; {_HOW}")
    if not values.get("subject"):
        raise MalformedInput(f"identity: the subject is missing; {_HOW}")
    words = {name: _word(name, values[name]) for name in _WORDS if name in values}
    lists = {name: _list(name, values[name]) for name in _LISTS if name in values}
    return Identity(**words, **lists, method="ingest")  # type: ignore[arg-type]


def _from_json(text: str) -> dict[str, Any]:
    try:
        values = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise MalformedInput(f"identity: not JSON: {error}; {_HOW}") from error
    assert isinstance(values, dict)  # it begins with a brace
    return values


def _from_pairs(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in re.split(r",(?=\s*[A-Za-z_]+\s*=)", text.strip()):
        name, equals, value = pair.partition("=")
        name = name.strip()
        if not equals:
            raise MalformedInput(f"identity: {pair[:40]!r} is not name=value; {_HOW}")
        if name in _LISTS:
            values.setdefault(name, []).append(value.strip())
        elif name in values:
            raise MalformedInput(f"identity: {name} is given twice; {_HOW}")
        else:
            values[name] = value.strip()
    return values


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_LENGTH:
        raise MalformedInput(f"identity: {name} must be a text of at most {_MAX_LENGTH} characters; {_HOW}")
    return value


def _list(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise MalformedInput(f"identity: {name} must be a list of texts; {_HOW}")
    return tuple(_word(name, member) for member in value)
