"""The query language: Lucene syntax to a ClickHouse condition over `messages`, in which every value is a parameter.

    customer_id "10.0.0.1"          both words, in any letter case; punctuation counts, so these match as written
    "drop table"                    the words side by side, whatever stands between them
    cust* OR clien?                 * anything up to the next space, ? one letter or digit
    method:POST AND NOT status:2*   fields of the message or of its session, see `fields.FIELDS`
    status:[400 TO 499] time:>=2h   ranges; times as in `appliance.store.times`
    client_address:10.1.0.0/16      one address or a network
    (alice OR bob) -path:"/healthz" groups; AND is implied; - is NOT; * alone matches everything

Text in, `Compiled` out; no I/O. Whatever is typed, the result is a condition or `MalformedInput` with the position.
"""

import re
from dataclasses import dataclass
from typing import Any

from luqum import tree
from luqum.exceptions import IllegalCharacterError, ParseError
from luqum.thread import parse

from appliance.errors import MalformedInput
from appliance.store import fields
from appliance.store.conditions import Conditions
from appliance.store.fields import ANY, ONE, Part, Value

MAX_QUERY = 4096  # characters
MAX_TERMS = 64
MAX_DEPTH = 48
MAX_NEEDLES = 4  # words that a snippet may show

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?=:)")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_PIECE = re.compile(r"\\(.)|([*?])|([^\\*?]+)", re.DOTALL)
_KINDS = {
    tree.Fuzzy: "~",
    tree.Proximity: "~",
    tree.Boost: "^",
    tree.Regex: "a regular expression",
}
_WORDS = {"&&": "AND", "||": "OR", "!": "NOT"}
_POSITION = re.compile(r"position (\d+)")


@dataclass(frozen=True, slots=True)
class Compiled:
    """A condition on rows of `messages`, its parameters, and lower-case words that its matches contain."""

    sql: str
    parameters: dict[str, Any]
    needles: tuple[str, ...]


def compile_query(query: str, now_ns: int) -> Compiled:
    """Compile a query; `now_ns` is what relative times count from. Raises `MalformedInput`."""
    if len(query) > MAX_QUERY:
        raise MalformedInput(f"query has {len(query)} characters; shorten it to {MAX_QUERY}")
    if "\0" in query:
        raise MalformedInput("query holds a NUL character; remove it")
    if not query.strip():
        raise MalformedInput("query is empty; * matches everything")
    escaped, origin = _escape(query)
    try:
        parsed = parse(escaped)
    except (ParseError, IllegalCharacterError, ArithmeticError) as error:  # the last of a degree that is no number
        found = _POSITION.search(str(error))
        where = f"at position {origin[min(int(found[1]), len(origin) - 1)] + 1}" if found else "at its end"
        raise MalformedInput(
            f"query cannot be read {where}; put words with punctuation in double quotes, close quotes and brackets"
        ) from None
    if parsed is None:
        raise MalformedInput("query is empty; * matches everything")
    walk = _Walk(now_ns, origin)
    sql = walk.condition(parsed, None, 0)
    return Compiled(sql, walk.conditions.parameters, tuple(walk.needles[:MAX_NEEDLES]))


def _escape(query: str) -> tuple[str, list[int]]:
    """Escape what people type in words but Lucene reserves: slashes, single quotes, colons not behind a field's name.

    Returns the escaped text and, for each of its characters and its end, the position in `query`.
    """
    text: list[str] = []
    origin: list[int] = []

    def put(part: str, at: int) -> None:
        text.append(part)
        origin.extend(range(at, at + len(part)))

    at, word, brackets = 0, True, 0  # word: a field's name may start here
    groups: list[bool] = []  # of each open parenthesis: whether it stands within a field
    after_field = False
    while at < len(query):
        char = query[at]
        field = _FIELD.match(query, at) if word and not brackets and not any(groups[-1:]) else None
        if field:
            put(query[at : field.end() + 1], at)
            at, word, after_field = field.end() + 1, False, True
            continue
        if char == "(":
            groups.append(after_field or any(groups[-1:]))
        elif char == ")" and groups:
            groups.pop()
        after_field = False
        if char == '"':
            end = _quote_end(query, at)
            put(query[at:end], at)
            at = end
            word = False
            continue
        if char == "\\":
            put(query[at : at + 2], at)
            at, word = at + 2, False
            continue
        brackets = max(0, brackets + (char in "[{") - (char in "]}"))
        if char in "/:'":
            text.append("\\")
            origin.append(at)
        put(char, at)
        word = char in "([{+-!" or char.isspace()
        at += 1
    return "".join(text), [*origin, len(query)]


def _quote_end(query: str, at: int) -> int:
    """Position behind the phrase that starts at `at`; the end of the query if it is not closed."""
    at += 1
    while at < len(query):
        if query[at] == "\\":
            at += 2
            continue
        if query[at] == '"':
            return at + 1
        at += 1
    return len(query)


class _Walk:
    """One pass over the syntax tree."""

    def __init__(self, now_ns: int, origin: list[int]) -> None:
        self.conditions = Conditions("q")
        self.needles: list[str] = []
        self._now = now_ns
        self._origin = origin
        self._terms = 0
        self._negated = 0

    def condition(self, node: tree.Item, field: tuple[str, int] | None, depth: int) -> str:
        """SQL of a node. `field`: name and position of the field that it is searched in; None: all text."""
        if depth > MAX_DEPTH:
            raise MalformedInput(f"query is nested more than {MAX_DEPTH} deep; simplify it")
        match node:
            case tree.OrOperation():
                return self._joined(" OR ", node, field, depth)
            case tree.AndOperation() | tree.UnknownOperation():
                return self._joined(" AND ", node, field, depth)
            case tree.Not() | tree.Prohibit():
                self._negated += 1
                inner = self.condition(node.a, field, depth + 1)
                self._negated -= 1
                return f"NOT ({inner})"
            case tree.Plus() | tree.Group() | tree.FieldGroup():
                return self.condition(node.children[0], field, depth + 1)
            case tree.SearchField():
                if field is not None:
                    raise MalformedInput(f"field {node.name!r} at position {self._at(node)} lies within another field")
                return self.condition(node.expr, (node.name, self._at(node)), depth + 1)
        return self._term(node, field)

    def _joined(self, by: str, node: tree.Item, field: tuple[str, int] | None, depth: int) -> str:
        return by.join(f"({self.condition(child, field, depth + 1)})" for child in node.children)

    def _term(self, node: tree.Item, field: tuple[str, int] | None) -> str:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise MalformedInput(f"query has more than {MAX_TERMS} terms; simplify it")
        name, at = field or ("text", self._at(node))
        handler = fields.FIELDS.get(name.lower())
        if handler is None:
            raise MalformedInput(
                f"{name!r} at position {at} is not a field; use one of {', '.join(sorted(fields.FIELDS))}, "
                "or put the words in double quotes"
            )
        value = self._value(node)
        try:
            sql = handler(self.conditions, value, self._now)
        except MalformedInput as error:
            raise MalformedInput(f"{name} at position {at}: {error}") from None
        if name.lower() == "text" and not self._negated:
            self.needles += fields.needles(value)
        return sql

    def _value(self, node: tree.Item) -> Value:
        match node:
            case tree.Word() if node.value in _WORDS:
                raise MalformedInput(f"{node.value} at position {self._at(node)}: write {_WORDS[node.value]} instead")
            case tree.Word():
                return Value(_parts(node.value))
            case tree.Phrase():
                return Value((_ESCAPED.sub(r"\1", node.value[1:-1]),), phrase=True)
            case tree.Range():
                return Value(
                    low=_bound(node.low),
                    high=_bound(node.high),
                    include_low=node.include_low,
                    include_high=node.include_high,
                )
            case tree.From():
                return Value(low=_bound(node.a), include_low=node.include)
            case tree.To():
                return Value(high=_bound(node.a), include_high=node.include)
        raise MalformedInput(
            f"{_KINDS.get(type(node), 'this')} at position {self._at(node)} is not supported; "
            "use words, phrases in double quotes, * and ?, fields and ranges"
        )

    def _at(self, node: tree.Item) -> int:
        position = node.pos if isinstance(node.pos, int) else 0
        return self._origin[min(position, len(self._origin) - 1)] + 1


def _parts(word: str) -> tuple[Part, ...]:
    """Literals and wildcards of a word, escapes resolved, neighbouring literals joined."""
    parts: list[Part] = []
    for escaped, wildcard, literal in _PIECE.findall(word):
        if wildcard:
            parts.append(ANY if wildcard == "*" else ONE)
        elif parts and isinstance(parts[-1], str):
            parts[-1] += escaped or literal
        else:
            parts.append(escaped or literal)
    return tuple(parts)


def _bound(node: tree.Item) -> str | None:
    """A bound of a range: its text; None for *."""
    if isinstance(node, tree.Prohibit):
        return f"-{_bound(node.a)}"
    if isinstance(node, tree.Phrase):
        return str(_ESCAPED.sub(r"\1", node.value[1:-1]))
    parts = _parts(node.value)
    if parts == (ANY,):
        return None
    return Value(parts).text
