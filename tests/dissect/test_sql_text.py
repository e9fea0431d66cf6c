"""What messages may say again of what others said: few bytes on the wire don't become many characters in the store."""

import json
from collections.abc import Sequence

from appliance.dissect.postgres import Postgres
from appliance.dissect.sql_text import FREE_REPEATED, MAX_BRIEF, REPEATED_PER_BYTE, Repeats
from appliance.dissect.table import MAX_BRIEF as MAX_BRIEF_COLUMNS
from appliance.dissect.table import MAX_DESCRIBED
from appliance.model import Message
from tests.dissect.harness import C, Played, S, Turn, assert_any_cut, play
from tests.dissect.postgres_bytes import (
    EXECUTE,
    IDLE,
    LOGGED_IN,
    START,
    SYNC,
    bind,
    columns,
    done,
    error,
    parse,
    query,
    row,
)

BEGINNING: list[Turn] = [(C, START), (S, LOGGED_IN)]
NOTICE = error(kind="N")


def said(messages: Sequence[Message]) -> int:
    return sum(len(message.text) + len(json.dumps(message.attrs)) for message in messages)


def behind(*turns: Turn) -> Played:
    return play(Postgres, [*BEGINNING, *turns])


def test_the_allowance_grows_with_what_came() -> None:
    repeats = Repeats()
    assert repeats.allow(FREE_REPEATED, 0)
    assert not repeats.allow(1, 0)
    assert repeats.allow(REPEATED_PER_BYTE * 10, 10)
    assert not repeats.allow(1, 10)


def test_column_names_are_repeated_in_bounds() -> None:
    """A million bytes of names, then rows that a notice parts from each other: each row is a message."""
    many = columns(*["n" * 590] * 1600)
    rows = (row(b"1") + NOTICE) * 500
    played = behind((C, query("SELECT 1")), (S, many + rows + done("SELECT 500") + IDLE))
    batches = [message for message in played.messages if message.kind == "rows"]
    assert len(batches) == 500
    assert len(batches[0].attrs["columns"]) == MAX_DESCRIBED // 590
    assert len(batches[-1].attrs["columns"]) in (MAX_DESCRIBED // 590, MAX_BRIEF_COLUMNS)
    assert all("truncated" in message.flags for message in batches)
    assert said(played.messages) < 4 * (FREE_REPEATED + REPEATED_PER_BYTE * len(played.streams[S]))


def test_sql_is_repeated_in_bounds() -> None:
    sql = "SELECT " + "x" * 10_000
    again = (bind(name="s") + EXECUTE) * 2000
    played = behind((C, parse(sql, "s") + again + SYNC))
    asked = [message for message in played.messages if message.kind == "query"]
    assert (asked[0].attrs["sql"], asked[0].flags) == (sql, ())
    assert (asked[-1].attrs["sql"], asked[-1].flags) == (sql[:MAX_BRIEF], ("truncated",))
    assert asked[-1].attrs["prepared"] == "s"
    assert said(played.messages) < 4 * (FREE_REPEATED + REPEATED_PER_BYTE * len(played.streams[C]))


def test_short_ones_are_always_repeated() -> None:
    sql = "SELECT name FROM customers WHERE id = $1"
    played = behind((C, parse(sql, "s") + (bind(b"7", name="s") + EXECUTE) * 3000 + SYNC))
    assert {message.attrs["sql"] for message in played.messages if message.kind == "query"} == {sql}


def test_what_is_left_out_does_not_depend_on_the_cut() -> None:
    sql = "SELECT " + "x" * 16_000
    turns = [*BEGINNING, (C, parse(sql, "s") + (bind(name="s") + EXECUTE) * 100 + SYNC)]
    assert_any_cut(Postgres, turns, step=4001)
