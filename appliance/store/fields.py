# ruff: noqa: S608 - SQL is put together from constants; values are parameters
"""The fields of the query language: each turns a value into a condition on `messages`.

A field of the session (who, from where, how it ended) becomes a condition on the session's last revision.
The SQL is made of the constants here; every value is a parameter.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from appliance.errors import MalformedInput
from appliance.store import times
from appliance.store.conditions import Conditions, address_range

MAX_WILDCARDS = 8  # in one word
MAX_TOKENS = 32  # that the index is asked for at once (ClickHouse takes 64)
ANY, ONE = object(), object()  # the wildcards * and ?

Part = str | object
Field = Callable[[Conditions, "Value", int], str]  # (where parameters go, value, now in ns) -> SQL


@dataclass(frozen=True, slots=True)
class Value:
    """What a field is compared with: `parts` of a word (literals, ANY, ONE) or phrase, or bounds (None: open)."""

    parts: tuple[Part, ...] = ()
    phrase: bool = False
    low: str | None = None
    high: str | None = None
    include_low: bool = True
    include_high: bool = True

    @property
    def is_range(self) -> bool:
        return not self.parts

    @property
    def anything(self) -> bool:
        return self.parts == (ANY,)

    @property
    def text(self) -> str:
        """The value as one literal. Raises `MalformedInput` for ranges and wildcards."""
        if self.is_range or any(not isinstance(part, str) for part in self.parts):
            raise MalformedInput("takes one value, without wildcards or ranges")
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def like(self) -> str | None:
        """A pattern for LIKE, in lower case; None if there is no wildcard."""
        if all(isinstance(part, str) for part in self.parts):
            return None
        if sum(not isinstance(part, str) for part in self.parts) > MAX_WILDCARDS:
            raise MalformedInput(f"has more than {MAX_WILDCARDS} wildcards; shorten it")
        return "".join(_like(part) for part in self.parts)


def _like(part: Part) -> str:
    if isinstance(part, str):
        return re.sub(r"([\\%_])", r"\\\1", part.lower())
    return "%" if part is ANY else "_"


def keyword(column: str) -> Field:
    """The whole value of a text column, in any letter case; * and ? allowed; * alone: not empty."""

    def field(where: Conditions, value: Value, now_ns: int) -> str:
        if value.is_range:
            raise MalformedInput("takes no range")
        if value.anything:
            return f"{column} != ''"
        like = value.like
        if like is not None:
            return f"lowerUTF8({column}) LIKE {where.name(like)}"
        return f"lowerUTF8({column}) = {where.name(value.text.lower())}"

    return field


def listed(column: str) -> Field:
    """One of the values of an array of texts; * alone: there is any."""
    one = keyword("x")

    def field(where: Conditions, value: Value, now_ns: int) -> str:
        return f"arrayExists(x -> {one(where, value, now_ns)}, {column})"

    return field


def number(column: str) -> Field:
    """An integer column: one value, or a range."""

    def read(text: str) -> int:
        try:
            found = int(text) if text.isascii() else None
        except ValueError:
            found = None
        if found is None or not -(2**63) <= found < 2**63:
            raise MalformedInput("takes whole numbers and ranges of them, such as [400 TO 499] or >=500")
        return found

    def field(where: Conditions, value: Value, now_ns: int) -> str:
        if value.anything:
            return f"isNotNull({column})"
        if not value.is_range:
            only = read(value.text)
            return f"ifNull({column} = {where.name(only, 'Int64')}, 0)"
        conditions = []
        if value.low is not None:
            conditions.append(f"{column} {'>=' if value.include_low else '>'} {where.name(read(value.low), 'Int64')}")
        if value.high is not None:
            conditions.append(f"{column} {'<=' if value.include_high else '<'} {where.name(read(value.high), 'Int64')}")
        return f"ifNull({' AND '.join(conditions) or '1'}, 0)"

    return field


def digits(column: str) -> Field:
    """A number kept as text: whole, with wildcards (2*), or a range of numbers."""
    as_text, as_number = keyword(column), number(f"toInt64OrNull({column})")

    def field(where: Conditions, value: Value, now_ns: int) -> str:
        return (as_number if value.is_range else as_text)(where, value, now_ns)

    return field


def address(*columns: str) -> Field:
    """An address or network in any of the columns (IPv6, IPv4 mapped), or a range of addresses."""

    def field(where: Conditions, value: Value, now_ns: int) -> str:
        if value.is_range:
            low = address_range(value.low)[0] if value.low is not None else "::"
            high = address_range(value.high)[1] if value.high is not None else "ffff:" * 7 + "ffff"
        else:
            low, high = address_range(value.text)
        first, last = where.name(low, "IPv6"), where.name(high, "IPv6")
        between = [f"{column} BETWEEN {first} AND {last}" for column in columns]
        return " OR ".join(f"({part})" for part in between)

    return field


def moment(where: Conditions, value: Value, now_ns: int) -> str:
    """When a message arrived: a moment, minute or day; 15m: since then; or a range of these."""
    low: int | None
    high: int | None
    if value.is_range:
        low = high = None
        if value.low is not None:
            first, last = times.span(value.low, now_ns)
            low = first if value.include_low else last + 1
        if value.high is not None:
            first, last = times.span(value.high, now_ns)
            high = last if value.include_high else first - 1
    else:
        low, high = times.span(value.text, now_ns)
        if value.text.strip()[-1:] in times.UNITS:
            high = now_ns
    conditions = []
    if low is not None:
        conditions.append(f"ts >= fromUnixTimestamp64Nano({where.name(low, 'Int64')})")
    if high is not None:
        conditions.append(f"ts <= fromUnixTimestamp64Nano({where.name(high, 'Int64')})")
    return " AND ".join(conditions) or "1"


def session_id(where: Conditions, value: Value, now_ns: int) -> str:
    try:
        wanted = UUID(value.text)
    except ValueError:
        raise MalformedInput("takes a session id, a UUID; take one from `verbatim sessions`") from None
    return f"session_id = {where.name(str(wanted), 'UUID')}"


def words(column: str) -> Field:
    """Words anywhere in a long text, in any letter case, by its token index; as written where there is punctuation."""
    lower = f"lowerUTF8({column})"

    def field(where: Conditions, value: Value, now_ns: int) -> str:
        if value.is_range:
            raise MalformedInput("takes words, not a range")
        if value.anything:
            return "1"
        if value.like is not None:
            return " AND ".join(_pattern(where, lower, value.parts))
        text = value.text.lower()
        if not text:
            raise MalformedInput("is empty; write a word")
        tokens = _TOKEN.findall(text)
        conditions = [_tokens(lower, where.name(text))] if 0 < len(tokens) <= MAX_TOKENS else []
        if len(tokens) > 1:
            conditions.append(f"hasPhrase({lower}, {where.name(text)})")
        if not tokens or (len("".join(tokens)) < len(text) and not (value.phrase and " " in text)):
            conditions.append(f"position({lower}, {where.name(text)}) > 0")
        return " AND ".join(conditions)

    return field


_TOKEN = re.compile(r"[0-9a-zA-Z\x80-\U0010ffff]+")


def _tokens(lower: str, name: str) -> str:
    """All words of a text, in any order: the index answers this alone; for anything else texts have to be read."""
    return f"hasAllTokens({lower}, {name})"


def _pattern(where: Conditions, lower: str, parts: Sequence[Part]) -> list[str]:
    """Wildcards within a word: the literals narrow by index, the expression (linear time) decides."""
    literals = [part.lower() for part in parts if isinstance(part, str)]
    expression = [] if parts[0] is ANY or not literals else ["(?:^|[^0-9a-z])"]
    for part in parts:
        expression.append(re.escape(part.lower()) if isinstance(part, str) else r"\S*" if part is ANY else r"[\pL\pN_]")
    expression.append("" if parts[-1] is ANY or not literals else "(?:$|[^0-9a-z])")
    longest = max(literals, key=len, default="")
    conditions = [f"{lower} LIKE {where.name(f'%{_like(longest)}%')}"] if longest else []
    return [*conditions, f"match({lower}, {where.name(''.join(expression))})"]


def needles(value: Value) -> list[str]:
    """Lower-case literals that a match of `words` contains, for its snippet."""
    return [part.lower() for part in value.parts if isinstance(part, str) and part.strip()][:1]


def of_session(make: Callable[..., Field], *columns: str, last: bool = True) -> Field:
    """A field of the session. `last`: of its last revision; else the columns never change within a session."""
    inner = make(*(f"argMax({column}, seq)" if last else column for column in columns))
    tail = "GROUP BY session_id HAVING" if last else "WHERE"

    def field(where: Conditions, value: Value, now_ns: int) -> str:
        return f"session_id IN (SELECT session_id FROM sessions {tail} {inner(where, value, now_ns)})"

    return field


def only_if(condition: str, inner: Field) -> Field:
    """A field of those messages alone for which the condition holds."""

    def field(where: Conditions, value: Value, now_ns: int) -> str:
        return f"{condition} AND {inner(where, value, now_ns)}"

    return field


def said(inner: Field) -> Field:
    """A field whose value stands in the message's text too, as it is: the text's index narrows where to look."""

    def field(where: Conditions, value: Value, now_ns: int) -> str:
        exact = inner(where, value, now_ns)
        if value.is_range or value.like is not None or not 0 < len(_TOKEN.findall(value.text)) <= MAX_TOKENS:
            return exact
        return f"{_tokens('lowerUTF8(search_text)', where.name(value.text.lower()))} AND {exact}"

    return field


def _port(*columns: str) -> Field:
    fields = [number(column) for column in columns]

    def field(where: Conditions, value: Value, now_ns: int) -> str:
        return " OR ".join(f"({one(where, value, now_ns)})" for one in fields)

    return field


# The path of a request's target, in origin form (/a?b) or absolute form (http://host/a?b): RFC 9112, section 3.2.
_PATH = "replaceRegexpOne(cutQueryString(fields['target']), '^[A-Za-z][A-Za-z0-9+.-]*://[^/]*', '')"

FIELDS: dict[str, Field] = {
    "text": words("search_text"),
    "time": moment,
    "session": session_id,
    "protocol": keyword("protocol"),
    "kind": keyword("kind"),
    "direction": keyword("direction"),
    "flag": listed("flags"),
    "host": keyword("fields['host']"),
    "method": keyword("fields['method']"),
    "status": digits("fields['status']"),
    "target": said(keyword("fields['target']")),
    "path": said(keyword(_PATH)),
    "sql": only_if("fields['sql'] != ''", words("search_text")),
    "subject": of_session(keyword, "subject"),
    "issuer": of_session(keyword, "issuer"),
    "client": of_session(keyword, "client"),
    "group": of_session(listed, "groups"),
    "act": of_session(listed, "act"),
    "run": of_session(keyword, "run_id"),
    "lease": of_session(keyword, "lease_id"),
    "coverage": of_session(keyword, "coverage"),
    "ending": of_session(keyword, "ending"),
    "finding": of_session(listed, "findings"),
    "lane": of_session(keyword, "lane"),
    "node": of_session(keyword, "node", last=False),
    "source": of_session(keyword, "source", last=False),
    "database": of_session(keyword, "fields['database']"),
    "user": of_session(keyword, "fields['user']"),
    "sni": of_session(keyword, "fields['sni']"),
    "address": of_session(address, "client_ip", "server_ip", last=False),
    "client_address": of_session(address, "client_ip", last=False),
    "server_address": of_session(address, "server_ip", last=False),
    "port": of_session(_port, "client_port", "server_port", last=False),
    "client_port": of_session(_port, "client_port", last=False),
    "server_port": of_session(_port, "server_port", last=False),
}
