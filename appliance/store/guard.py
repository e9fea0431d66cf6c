"""What a statement may do at the store service. Three locks, each enough for most doors, all of them always used.

1. A reader's handle is set to `readonly = 1` for good: no writes, no settings. (It lets INTO OUTFILE and KILL by.)
2. The engine's own classification: one statement, read-only. (It lets `file()` and other table functions by.)
3. The engine's own parse of the statement, node by node against lists of what is allowed: tables of the store,
   functions that only compute, no SETTINGS. Comments, quotes and spacing mean here what they mean there.

A writer may besides put Native blocks into the store's tables, by one exact form of INSERT.
"""

import re
from collections.abc import Mapping

from appliance.errors import Refused
from appliance.store import schema
from appliance.store.engine import Handle
from appliance.store.rows import BY_NAME

MAX_STATEMENT = 262_144  # bytes
MAX_KNOWN = 512  # statements that were found good and are not parsed again
READABLE = frozenset({*BY_NAME, "schema_version"})

_NODES = """
    SelectWithUnionQuery SelectQuery ExpressionList Subquery Literal Asterisk OrderByElement Function Identifier
    TablesInSelectQuery TablesInSelectQueryElement TableExpression TableJoin ArrayJoin TableIdentifier
"""
_FUNCTIONS = """
    and or not in notIn equals notEquals less greater lessOrEquals greaterOrEquals
    plus minus multiply divide intDiv modulo negate abs least greatest round
    if multiIf ifNull isNull isNotNull coalesce nullIf CAST _CAST lambda
    tuple tupleElement array arrayElement arrayExists arrayFirst arrayFilter arrayMap arrayJoin arraySort arrayDistinct
    has hasAny hasAll length empty notEmpty mapKeys mapValues mapContains
    count countIf countDistinct sum sumIf min max avg any argMin argMax uniq uniqExact quantile
    groupArray groupUniqArray
    like notLike ilike match position positionUTF8 positionCaseInsensitive positionCaseInsensitiveUTF8
    hasPhrase hasAllTokens hasAnyTokens startsWith endsWith lower lowerUTF8 upper upperUTF8 lengthUTF8
    substring substringUTF8 concat replaceRegexpOne cutQueryString
    JSONExtractString JSONExtractInt JSONExtractRaw JSONHas
    toString toInt64 toInt64OrNull toUInt64 toUInt32 toUInt16 toFloat64 toUUID toIPv6
    toDate toDateTime toDateTime64 toYYYYMMDD toStartOfDay toStartOfHour toStartOfMinute
    toUnixTimestamp64Nano fromUnixTimestamp64Nano version timezone
"""
NODES = frozenset(_NODES.split())
FUNCTIONS = frozenset(_FUNCTIONS.split())
# What clickhouse-connect asks a server when it connects, word for word.
GREETINGS = frozenset(
    {
        "SELECT name, value, readonly FROM system.settings LIMIT 10000 FORMAT Native",
        "SELECT 1 AS check FORMAT Native",
    }
)

_SELECT = re.compile(r"\s*SELECT\b", re.IGNORECASE)
_DESCRIBE = re.compile(r"\s*DESCRIBE\s+TABLE\s+(?:`?(\w+)`?\.)?`?(\w+)`?(?:\s+FORMAT\s+\w+)?\s*", re.ASCII)
_NAME = r"(?:`[A-Za-z_][A-Za-z0-9_]*`|[A-Za-z_][A-Za-z0-9_]*)"
_INSERT = re.compile(
    rf"INSERT INTO (?:(?P<database>{_NAME})\.)?(?P<table>{_NAME}) \((?P<columns>{_NAME}(?:, {_NAME})*)\) FORMAT Native"
)
_ROW = re.compile(r"( *)(\S+)(?: (.*?))?(?: \(alias .*\))?(?: \(children \d+\))?")


def insert(statement: str) -> tuple[str, tuple[str, ...]] | None:
    """Table and columns of a writer's INSERT; None if it is none. Raises `Refused` for another form or table."""
    text = statement.strip()
    if text[:6].upper() != "INSERT":
        return None
    found = _INSERT.fullmatch(text)
    if not found:
        raise Refused("only INSERT INTO table (columns) FORMAT Native is accepted; send rows in that form")
    table = found["table"].strip("`")
    if (found["database"] or schema.DATABASE).strip("`") != schema.DATABASE or table not in BY_NAME:
        raise Refused(f"rows go into the tables {', '.join(sorted(BY_NAME))} only; name one of them")
    return table, tuple(name.strip("`") for name in found["columns"].split(", "))


def greets(statement: str) -> bool:
    """Whether this is what clickhouse-connect asks when it connects."""
    return " ".join(statement.split()) in GREETINGS


class Guard:
    """Judges the SELECTs of readers. `databases`: all that the engine has. One guard for all threads."""

    def __init__(self, databases: frozenset[str]) -> None:
        self._foreign = frozenset(name.lower() for name in databases - {schema.DATABASE})
        self._known: dict[str, None] = {}

    def select(self, handle: Handle, statement: str, parameters: Mapping[str, str]) -> None:
        """Return if the statement may run on `handle`, else raise `Refused` with the reason."""
        if statement in self._known or greets(statement):
            return
        if len(statement.encode("utf-8", "replace")) > MAX_STATEMENT:
            raise Refused(f"statement is longer than {MAX_STATEMENT} bytes; shorten it")
        if described := _DESCRIBE.fullmatch(statement):
            if (described[1] or schema.DATABASE) == schema.DATABASE and described[2] in READABLE:
                return
            raise Refused("only the store's own tables can be described")
        if not _SELECT.match(statement):
            raise Refused("only SELECT is accepted, without a leading comment")
        if "identifier" in statement.lower():
            raise Refused("parameters of type Identifier are not accepted; write the name")
        report = handle.classify(statement)
        if report["statement_count"] != 1 or getattr(report["query_class"], "name", "") != "READ_ONLY":
            raise Refused("only one read-only statement is accepted, without INTO OUTFILE")
        self._parse(handle.run(f"EXPLAIN AST {statement}", params=dict(parameters)).decode("utf-8", "replace"))
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[statement] = None

    def _parse(self, syntax: str) -> None:
        above: list[str] = []  # kinds of the nodes over this one
        for line in syntax.rstrip("\n").split("\n"):
            found = _ROW.fullmatch(line)
            kind, name = (found[2], found[3] or "") if found else ("", "")
            depth = len(found[1]) if found else 0
            if kind not in NODES or depth > len(above):
                raise Refused("statement has a part that is not accepted (such as WITH, SETTINGS, windows or samples)")
            del above[depth:]
            parent = above[-1] if above else ""
            if kind == "Function" and (parent == "TableExpression" or name not in FUNCTIONS):
                raise Refused("statement calls a function that is not accepted")
            if kind == "TableIdentifier" and name.removeprefix(f"{schema.DATABASE}.") not in READABLE:
                raise Refused(f"only these tables can be read: {', '.join(sorted(READABLE))}")
            if kind == "Identifier" and name.split(".")[0].lower() in self._foreign and "." in name:
                raise Refused("only the store's own tables can be read")
            above.append(kind)
