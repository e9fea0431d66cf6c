"""PostgreSQL from bytes: recorded conversations, and made ones for what real peers seldom do."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dissect import Match
from appliance.dissect.conversation import Conversation
from appliance.dissect.postgres import Postgres
from appliance.dissect.sql_half import MAX_MESSAGE, MAX_REDACTED
from appliance.dissect.sql_text import MAX_REPEATED
from appliance.dissect.table import MAX_ROWS, MAX_ROWS_BYTES
from appliance.model import Direction, Redaction
from tests.dissect.harness import (
    C,
    Gap,
    Played,
    S,
    Turn,
    assert_any_cut,
    assert_survives,
    assert_truncated,
    of,
    only,
    play,
)
from tests.dissect.postgres_bytes import (
    ASK_CLEAR,
    BOUND,
    CANCEL,
    CLOSED,
    EXECUTE,
    GSS,
    IDLE,
    KEY,
    LOGGED_IN,
    OK,
    PARSED,
    PASSWORD,
    SSL,
    START,
    SYNC,
    bind,
    close,
    columns,
    describe,
    done,
    error,
    execute,
    packet,
    parse,
    query,
    row,
    typed,
    z,
)

VECTORS = Path(__file__).parents[1] / "vectors" / "postgres"
CASES = sorted(path.stem for path in VECTORS.glob("*.json"))
BEGINNING: list[Turn] = [(C, START), (S, LOGGED_IN)]


def load(case: str) -> tuple[dict[str, Any], list[Turn]]:
    vector: dict[str, Any] = json.loads((VECTORS / f"{case}.json").read_text("utf-8"))
    return vector, [(Direction(whose), bytes.fromhex(data)) for whose, data in vector["turns"]]


def behind(*turns: Turn) -> Played:
    """Play these behind a log-in."""
    return play(Postgres, [*BEGINNING, *turns])


# -- recorded ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_vector(case: str) -> None:
    """`turns` of a real conversation; the `messages`, `redactions` and `attrs` that they make."""
    vector, turns = load(case)
    played = play(Postgres, turns)
    shown = [
        {
            "direction": one.direction,
            "kind": one.kind,
            "start": one.start,
            "end": one.end,
            "text": one.text,
            "attrs": one.attrs,
            "reply_to": one.reply_to,
            "flags": list(one.flags),
        }
        for one in played.messages
    ]
    assert shown == vector["messages"], vector["why"]
    assert [[one.direction, one.start, one.end, one.what] for one in played.redactions] == vector["redactions"]
    assert played.dissector.attrs == vector["attrs"]


@pytest.mark.parametrize("case", CASES)
def test_vector_in_any_cut(case: str) -> None:
    _, turns = load(case)
    total = sum(len(what) for _, what in turns if isinstance(what, bytes))
    played = assert_any_cut(Postgres, turns, step=1 if total < 700 else 7)
    starts = {(one.direction.other, one.start) for one in played.messages}
    for one in played.messages:
        assert one.reply_to is None or (one.direction, one.reply_to) in starts, "an answer to nothing"


@pytest.mark.parametrize("case", CASES)
def test_vector_truncated(case: str) -> None:
    _, turns = load(case)
    secrets = [secret.rstrip(b"\0") for secret in play(Postgres, turns).secrets()]
    total = sum(len(what) for _, what in turns if isinstance(what, bytes))
    assert_truncated(Postgres, turns, secrets=secrets, step=1 if total < 700 else 5)


@pytest.mark.parametrize("case", CASES)
def test_vector_through_the_conversation(case: str) -> None:
    """Detected from its bytes, and not disturbed by bytes behind its end."""
    vector, turns = load(case)
    played = play(Conversation, [*turns, (C, b"?trailing"), (S, b"?trailing")])
    assert played.dissector.protocol == "postgres"
    assert played.kinds()[: len(vector["messages"])] == [one["kind"] for one in vector["messages"]]
    flawed = played.messages[len(vector["messages"]) :]
    assert all(one.kind == "malformed" for one in flawed)


@pytest.mark.parametrize("case", CASES)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_vector_with_changed_bytes(case: str, data: st.DataObject) -> None:
    _, turns = load(case)
    changed: list[Turn] = []
    for direction, what in turns:
        assert isinstance(what, bytes)
        broken = bytearray(what)
        for _ in range(data.draw(st.integers(0, 2))):
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.integers(0, 9)) == 0:
            at = data.draw(st.integers(0, len(broken)))
            changed += [(direction, bytes(broken[:at])), (direction, Gap(data.draw(st.integers(1, 300))))]
            broken = broken[at:]
        changed.append((direction, bytes(broken)))
    assert_survives(Postgres, changed, split=data.draw(st.sampled_from([None, 1, 13])))


@given(st.lists(st.tuples(st.sampled_from([C, S]), st.binary(max_size=200)), max_size=8), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes(turns: list[Turn], started: bool) -> None:
    assert_survives(Postgres, [*BEGINNING, *turns] if started else turns, split=5)


_KINDS = st.sampled_from(list("BCDEFHPQSXcdfp123AGIKNRTVWZnstv?"))


@given(st.lists(st.tuples(st.sampled_from([C, S]), _KINDS, st.binary(max_size=40)), max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_messages(messages: list[tuple[Direction, str, bytes]]) -> None:
    played = assert_survives(Postgres, [*BEGINNING, *((whose, typed(kind, body)) for whose, kind, body in messages)])
    for one in played.messages:
        assert one.end > one.start


# -- before log-in -------------------------------------------------------------------------------------------------


def test_tls_goes_to_its_successor() -> None:
    hello, answer = b"\x16\x03\x01 hello", b"\x16\x03\x03 answer"
    played = play(Postgres, [(C, SSL), (S, b"S"), (C, hello)], close=False)
    assert played.kinds() == ["negotiate", "negotiate"]
    assert (played.dissector.successor, played.dissector.opaque) == ("tls", True)
    assert played.messages[1].reply_to == 0
    assert played.messages[1].attrs == {"encryption": "tls", "answer": "S"}
    played = play(Postgres, [(C, SSL), (S, b"S" + answer)], close=False)
    assert played.dissector.rest(S) == answer
    conversation = play(Conversation, [(C, SSL), (S, b"S"), (C, hello)], close=False)
    assert conversation.dissector.attrs["protocols"] == ["postgres", "tls"]


def test_tls_that_was_taken_off_on_the_way() -> None:
    session = [(C, START), (S, LOGGED_IN), (C, query("SELECT 1")), (S, done("SELECT 1") + IDLE)]
    played = assert_any_cut(Postgres, [(C, SSL), (S, b"S"), *session])
    assert played.kinds()[:4] == ["negotiate", "negotiate", "startup", "authenticated"]
    assert not played.dissector.opaque
    assert only(played, "query").attrs["sql"] == "SELECT 1"
    declined = assert_any_cut(Postgres, [(C, GSS), (S, b"N"), (C, SSL), (S, b"S"), *session])
    assert only(declined, "startup").start == len(GSS + SSL)


def test_the_beginning_of_tls_is_lost() -> None:
    played = play(Postgres, [(C, SSL), (S, b"S"), (C, Gap(300)), (C, b"\x17\x03\x03"), (S, b"\x16\x03\x03")])
    assert (played.dissector.successor, played.dissector.opaque) == (None, True)
    assert played.kinds() == ["negotiate", "negotiate"]


def test_a_client_that_does_not_wait_for_the_answer() -> None:
    played = play(Postgres, [(C, SSL + START + query("SELECT 1")), (S, b"N"), (S, LOGGED_IN)])
    assert played.kinds()[:4] == ["negotiate", "negotiate", "startup", "query"]
    early = play(Postgres, [(C, SSL + b"\x16\x03\x01 hello"), (S, b"S")], close=False)
    assert early.dissector.rest(C) == b"\x16\x03\x01 hello"
    assert early.dissector.settled(C) == len(SSL)


def test_gss_encryption_is_opaque() -> None:
    played = play(Postgres, [(C, GSS), (S, b"G"), (C, b"\x00\x00\x00\x05token"), (S, b"anything")])
    assert played.kinds() == ["negotiate", "negotiate"]
    assert (played.dissector.successor, played.dissector.opaque) == (None, True)
    assert played.dissector.settled(C) == len(GSS) + 9


def test_gss_refused_then_tls_refused() -> None:
    played = assert_any_cut(Postgres, [(C, GSS), (S, b"N"), (C, SSL), (S, b"N"), (C, START), (S, LOGGED_IN)])
    assert played.kinds()[:5] == ["negotiate"] * 4 + ["startup"]
    assert [one.reply_to for one in of(played, "negotiate")] == [None, 0, None, len(GSS)]


def test_an_error_instead_of_an_answer() -> None:
    played = assert_any_cut(Postgres, [(C, SSL), (S, error("53300", "sorry, too many clients already"))])
    assert played.kinds() == ["negotiate", "error"]


def test_an_answer_that_is_none() -> None:
    played = play(Postgres, [(C, SSL), (S, b"?" * 20), (C, START)])
    assert played.messages[1].flags == ("malformed",)
    assert not played.dissector.opaque


def test_an_answer_before_its_question() -> None:
    played = assert_survives(Postgres, [(S, b"N"), (C, SSL), (S, b"\0\0\0\5\0"), (C, START)])
    assert only(played, "startup").start == len(SSL)


def test_cancel() -> None:
    played = assert_any_cut(Postgres, [(C, CANCEL)])
    (said,) = played.messages
    assert (said.kind, said.attrs, said.flags) == ("cancel", {"pid": 4711}, ())
    assert not played.redactions
    assert_truncated(Postgres, [(C, CANCEL)])


def test_a_long_cancel_key() -> None:
    """Version 3.2 has keys of up to 256 bytes."""
    key = struct.pack("!I", 1) + bytes(range(1, 256)) + b"x"
    assert only(play(Postgres, [(C, packet(80877102, key))]), "cancel").attrs == {"pid": 1}
    played = play(Postgres, [(C, START), (S, OK + typed("K", key) + IDLE)])
    assert only(played, "key").attrs == {"pid": 1}
    assert not played.redactions


def test_start_up() -> None:
    startup = packet(0x00030002, z("user", "ada", "application_name", "agent", "replication", "true") + b"\0")
    answer = typed("v", struct.pack("!II", 0, 1) + z("_pq_.new"))
    played = assert_any_cut(Postgres, [(C, startup), (S, answer + LOGGED_IN)])
    assert only(played, "startup").attrs["version"] == "3.2"
    assert only(played, "negotiate-version").attrs == {"version": "3.0", "unsupported": ["_pq_.new"]}
    attrs = played.dissector.attrs
    assert (attrs["user"], attrs["database"], attrs["replication"]) == ("ada", "ada", "true")


@pytest.mark.parametrize(
    "start",
    [
        packet(131072, z("old")),
        packet(196608, b"user\0ada"),
        packet(196608, z("user") + b"\0"),
        packet(80877103, b"more"),
        struct.pack("!II", 7, 196608),
        struct.pack("!II", 10001, 196608) + bytes(9993),
        packet(80877102, b"\0"),
    ],
    ids=["version-2", "no-end", "no-pair", "long-ssl", "too-short", "too-long", "short-cancel"],
)
def test_malformed_start_up(start: bytes) -> None:
    played = assert_survives(Postgres, [(C, start), (S, OK)])
    assert of(played, "malformed")
    assert not of(played, "startup")


# -- credentials ---------------------------------------------------------------------------------------------------

LOG_IN: list[Turn] = [(C, START), (S, ASK_CLEAR), (C, PASSWORD), (S, LOGGED_IN)]


def test_a_password_is_redacted() -> None:
    played = assert_any_cut(Postgres, LOG_IN)
    assert played.secrets() == [b"open sesame\0"]
    said = [one for one in of(played, "authentication") if one.direction is C]
    assert [(one.flags, one.attrs, one.text) for one in said] == [(("redacted",), {"method": "password"}, "password")]
    assert_truncated(Postgres, LOG_IN, secrets=[b"open sesame"])


def test_bytes_settle_once_they_can_be_no_credential() -> None:
    played = play(Postgres, [*LOG_IN[:2], (C, PASSWORD[:9])], close=False)
    assert played.dissector.settled(C) == len(START) + 5
    played = play(Postgres, [*LOG_IN, (C, query("SELECT 1")[:9])], close=False)
    assert played.dissector.settled(C) == len(START) + len(PASSWORD) + 9
    played = play(Postgres, [(C, START), (S, OK + KEY[:11])], close=False)
    assert played.dissector.settled(S) == len(OK) + 11
    assert play(Postgres, [(C, START[:9])], close=False).dissector.settled(C) == 9
    assert play(Postgres, [(C, CANCEL[:14])], close=False).dissector.settled(C) == 14


def test_a_password_that_nobody_asked_for() -> None:
    """A client may send it at once, and the server's request may be lost."""
    played = assert_any_cut(Postgres, [(C, START + PASSWORD), (S, ASK_CLEAR + LOGGED_IN)])
    assert b"open sesame\0" in played.secrets()


SCRAM = b"SCRAM-SHA-256\0\0\0\0\x17n,,n=,r=abcdefghijklmno"
FINAL = b"c=biws,r=abcdefghijklmnopqrs,p=dGhpcyBpcyBubyBwcm9vZg=="


def test_scram_is_not_redacted_but_anything_that_is_not_scram() -> None:
    ask = typed("R", struct.pack("!I", 10) + z("SCRAM-SHA-256", "OAUTHBEARER") + b"\0")
    going_on = typed("R", struct.pack("!I", 11) + b"r=abc,s=c2FsdA==,i=4096")
    scram: list[Turn] = [(C, START), (S, ask), (C, typed("p", SCRAM)), (S, going_on), (C, typed("p", FINAL)), (S, OK)]
    played = assert_any_cut(Postgres, scram)
    assert not played.redactions
    assert played.dissector.attrs["auth"] == "scram-sha-256"
    assert of(played, "authentication")[0].attrs["mechanisms"] == ["SCRAM-SHA-256", "OAUTHBEARER"]
    bearer = z("OAUTHBEARER") + struct.pack("!I", 22) + b"n,,\x01auth=Bearer abc\x01\x01"
    assert play(Postgres, [(C, START), (S, ask), (C, typed("p", bearer))]).secrets() == [bearer]
    clear: list[Turn] = [(C, START), (S, ASK_CLEAR), (C, typed("p", SCRAM))]
    assert play(Postgres, clear).secrets() == [SCRAM]


def test_gss_tokens_are_redacted() -> None:
    ask = typed("R", struct.pack("!I", 7))
    played = play(Postgres, [(C, START), (S, ask), (C, typed("p", b"\x60token")), (S, OK)])
    assert played.secrets() == [b"\x60token"]
    assert played.dissector.attrs["auth"] == "gss"


def test_a_password_with_a_gap_inside() -> None:
    played = play(Postgres, [*LOG_IN[:2], (C, PASSWORD[:8]), (C, Gap(3)), (C, PASSWORD[11:] + query("SELECT 1"))])
    kept = played.stored(C)
    assert b"ope" not in kept
    assert b"sesame" not in kept
    assert only(played, "query").attrs["sql"] == "SELECT 1"
    (said,) = [one for one in of(played, "authentication") if one.direction is C]
    assert set(said.flags) == {"redacted", "truncated"}


def test_the_end_of_a_password_behind_a_gap() -> None:
    turns: list[Turn] = [*LOG_IN[:2], (C, Gap(8)), (C, PASSWORD[8:]), (S, LOGGED_IN), (C, query("SELECT 1") + SYNC)]
    for split in (None, 1):
        played = play(Postgres, turns, split=split)
        assert b"sesame" not in played.stored(C)
        assert only(played, "query").attrs["sql"] == "SELECT 1"
    turns = [(C, START), (S, OK), (S, Gap(10)), (S, KEY[10:] + IDLE), (C, query("SELECT 1"))]
    played = play(Postgres, turns)
    assert of(played, "ready")


def test_redaction_is_no_place_to_hide() -> None:
    """An agent and a server of its own that send nothing but "passwords"."""
    hidden = typed("p", b"x" * 60000)
    played = play(Postgres, [(C, START), *[(C, hidden)] * 20])
    assert sum(one.end - one.start for one in played.redactions) == MAX_REDACTED
    endless = b"p" + struct.pack("!I", 1 << 29) + b"x" * 600000
    played = play(Postgres, [(C, START), (C, endless), (C, b"y" * 600000)], split=50000)
    assert sum(one.end - one.start for one in played.redactions) == MAX_REDACTED
    assert played.stored(C).endswith(b"y" * 600000)


def test_after_log_in_there_are_no_passwords() -> None:
    played = behind((C, PASSWORD), (S, KEY))
    assert not played.redactions


# -- simple query --------------------------------------------------------------------------------------------------


def test_rows_come_in_batches() -> None:
    turns: list[Turn] = [
        (C, query("SELECT n")),
        (S, columns("n") + row(b"x") * (2 * MAX_ROWS + 1) + done("SELECT 201") + IDLE),
    ]
    played = behind(*turns)
    assert [(one.attrs["row_offset"], len(one.attrs["rows"])) for one in of(played, "rows")] == [
        (0, 100),
        (100, 100),
        (200, 1),
    ]
    assert only(played, "result").attrs["rows"] == 201
    large = row(b"y" * 30000)
    played = behind((C, query("SELECT n")), (S, columns("n") + large * 7 + done("SELECT 7") + IDLE))
    assert [len(one.attrs["rows"]) for one in of(played, "rows")] == [3, 3, 1]
    assert all(one.end - one.start < MAX_ROWS_BYTES + len(large) for one in of(played, "rows"))
    assert played.bytes_of(of(played, "rows")[0]) == large * 3


def test_a_notice_between_rows_ends_the_batch() -> None:
    answer = columns("n") + row(b"1") + error("00000", "half way", "N") + row(b"2") + done("SELECT 2") + IDLE
    played = behind((C, query("SELECT n")), (S, answer))
    assert [one.kind for one in played.messages[-4:]] == ["rows", "notice", "rows", "result"]
    assert [one.attrs["row_offset"] for one in of(played, "rows")] == [0, 1]
    assert {one.reply_to for one in of(played, "rows", "notice", "result")} == {len(START)}


@pytest.mark.parametrize(
    "bad", [row(b"1", b"2"), typed("D", b"\0"), typed("D", b"\0\1\0\0\0\x09x"), typed("D", b"\0\1\0\0\0\1xy")]
)
def test_a_row_that_does_not_fit(bad: bytes) -> None:
    played = behind((C, query("SELECT n")), (S, columns("n") + bad + row(b"after") + done("SELECT 2") + IDLE))
    batch = only(played, "rows")
    assert "malformed" in batch.flags
    assert batch.attrs["rows"][-1] == ["after"]


def test_rows_that_were_not_announced() -> None:
    played = behind((S, row(b"stray", None) + done("SELECT 1") + IDLE))
    batch = only(played, "rows")
    assert (batch.attrs["columns"], batch.attrs["rows"], batch.reply_to) == ([], [["stray", None]], None)


def test_results_with_the_same_columns_are_told_apart_by_their_formats() -> None:
    """What is remembered of a RowDescription is the same for all; the format that Bind asked for is not."""
    described = columns("n", oid=23)
    plain = behind((C, query("SELECT n")), (S, described + row(b"1234") + done("SELECT 1") + IDLE))
    asked = parse("SELECT n") + bind(results=b"\1") + describe("P") + EXECUTE + SYNC
    binary = behind((C, asked), (S, PARSED + BOUND + described + row(b"\0\0\0\7") + done("SELECT 1") + IDLE))
    assert [of(one, "rows")[0].attrs["rows"] for one in (plain, binary)] == [[["1234"]], [["7"]]]
    assert of(plain, "result")[0].attrs["columns"] == of(binary, "result")[0].attrs["columns"]


def test_a_result_of_too_many_columns() -> None:
    played = behind((C, query("SELECT")), (S, columns(*["n"] * 2000)))
    assert only(played, "malformed").flags == ("truncated",)


def test_bytes_that_are_not_text() -> None:
    played = behind((C, typed("Q", b"SELECT '\xff'\0")), (S, columns("\x01") + row(b"\xe2\x98") + IDLE))
    assert only(played, "query").attrs["sql"] == "SELECT '\\xff'"
    assert only(played, "rows").attrs["rows"] == [["\\xe2\\x98"]]


# -- extended query ------------------------------------------------------------------------------------------------


def test_bind_values_and_the_range_of_a_query() -> None:
    sent = parse("SELECT $1, $2, $3", "", 23, 25, 600) + bind(
        b"\0\0\0\x2a", None, bytes(16), formats=b"\1", results=b"\1"
    )
    tail = describe("P") + EXECUTE
    answer = PARSED + BOUND + columns("n", oid=23, code=1) + row(b"\xff\xff\xff\xff") + done("SELECT 1") + IDLE
    played = behind((C, sent + tail + SYNC), (S, answer))
    asked = only(played, "query")
    assert asked.attrs["parameters"] == ["42", None, "\\x" + "00" * 16]
    assert asked.flags == ("undecoded",)
    assert asked.text == "SELECT $1, $2, $3\n$1 = 42\n$2 = NULL\n$3 = \\x" + "00" * 16
    assert played.bytes_of(asked) == sent[len(parse("SELECT $1, $2, $3", "", 23, 25, 600)) :] + tail
    assert only(played, "prepare").attrs["types"] == ["int4", "text", "point"]
    assert only(played, "rows").attrs["rows"] == [["-1"]]
    assert only(played, "rows").reply_to == asked.start


def test_row_limits() -> None:
    sent = parse("SELECT n") + bind(portal="p") + describe("P", "p") + execute("p", 2)
    first = PARSED + BOUND + columns("n") + row(b"1") + row(b"2") + typed("s")
    again = execute("p", 2) + close("P", "p") + SYNC
    played = behind((C, sent), (S, first), (C, again), (S, row(b"3") + done("SELECT 1") + CLOSED + IDLE))
    one, two = of(played, "query")
    assert (one.attrs["limit"], two.attrs["limit"], two.attrs["sql"]) == (2, 2, "SELECT n")
    assert played.bytes_of(two) == execute("p", 2)
    suspended, finished = of(played, "result")
    assert (suspended.attrs["suspended"], suspended.attrs["rows"], suspended.reply_to) == (True, 2, one.start)
    assert (finished.attrs["rows"], finished.reply_to) == (1, two.start)
    assert [(batch.attrs["row_offset"], batch.reply_to) for batch in of(played, "rows")] == [
        (0, one.start),
        (2, two.start),
    ]
    assert of(played, "rows")[1].attrs["columns"] == [{"name": "n", "type": "text"}]


def test_a_statement_that_was_described_once() -> None:
    """Drivers prepare, describe, and then only bind and execute; the result's format is what Bind asked for."""
    sent = parse("SELECT n", "s", 0) + describe("S", "s") + SYNC
    described = PARSED + typed("t", struct.pack("!HI", 1, 20)) + columns("n", oid=20) + IDLE
    again = bind(bytes(7) + b"\7", name="s", formats=b"\1", results=b"\1") + EXECUTE + SYNC
    answer = BOUND + row(bytes(7) + b"\x08") + done("SELECT 1") + IDLE
    played = behind((C, sent), (S, described), (C, again), (S, answer), (C, again), (S, answer))
    assert [one.attrs["parameters"] for one in of(played, "query")] == [["7"], ["7"]]
    assert [one.attrs["prepared"] for one in of(played, "query")] == ["s", "s"]
    assert [one.attrs["rows"] for one in of(played, "rows")] == [[["8"]], [["8"]]]
    assert [one.attrs["columns"] for one in of(played, "rows")] == [[{"name": "n", "type": "int8"}]] * 2


def test_a_bind_whose_execute_does_not_follow() -> None:
    sent = parse("A") + bind(b"1", portal="a") + parse("B") + bind(b"2", portal="b") + execute("a") + execute("b")
    played = behind((C, sent + SYNC), (S, (PARSED + BOUND) * 2 + done("A") + done("B") + IDLE))
    assert [(one.kind, one.attrs["sql"]) for one in of(played, "prepare", "bind", "query")] == [
        ("prepare", "A"),
        ("bind", "A"),
        ("prepare", "B"),
        ("bind", "B"),
        ("query", "A"),
        ("query", "B"),
    ]
    assert [one.attrs["parameters"] for one in of(played, "query")] == [["1"], ["2"]]
    assert [one.reply_to for one in of(played, "result")] == [one.start for one in of(played, "query")]
    assert only(behind((C, parse("A") + bind(b"1"))), "bind").attrs["parameters"] == ["1"]


def test_an_error_undoes_what_was_not_done() -> None:
    """Close of a statement that the server passed over: the statement is still there."""
    prepared = (C, parse("SELECT 1", "s") + SYNC), (S, PARSED + IDLE)
    failing = parse("BAD") + close("S", "s") + parse("OTHER", "t") + SYNC
    used = bind(name="s") + EXECUTE + bind(name="t") + EXECUTE + SYNC
    played = behind(*prepared, (C, failing), (S, error() + IDLE), (C, used))
    assert only(played, "error").reply_to == of(played, "prepare")[1].start
    one, two = of(played, "query")
    assert (one.attrs["sql"], one.flags) == ("SELECT 1", ())
    assert (two.attrs["sql"], two.flags) == ("", ("unresolved",))


def test_an_error_before_the_sync_is_sent() -> None:
    played = behind(
        (C, parse("BAD")),
        (S, error()),
        (C, bind(portal="x") + execute("x") + SYNC),
        (S, IDLE),
        (C, query("SELECT 1")),
        (S, columns("n") + row(b"1") + done("SELECT 1") + IDLE),
    )
    assert only(played, "rows").reply_to == of(played, "query")[1].start


def test_large_statements_are_not_repeated() -> None:
    """A short Execute must not make a message of a megabyte each time."""
    sql = "SELECT '" + "x" * 500_000 + "'"
    sent = parse(sql, "s") + (bind(b"v" * 100_000, portal="p", name="s") + execute("p")) + execute("p") * 50
    played = behind((C, sent + SYNC))
    assert only(played, "prepare").attrs["sql"] == sql
    asked = of(played, "query")
    assert [len(one.attrs["sql"]) for one in asked] == [MAX_REPEATED] * 51
    assert [len(one.attrs["parameters"]) for one in asked] == [1] + [0] * 50
    assert all("truncated" in one.flags for one in asked)


def test_a_function_call_in_text() -> None:
    call = struct.pack("!IHH", 1598, 0, 2) + b"\0\0\0\x011" + b"\xff\xff\xff\xff" + b"\0\0"
    played = behind((C, typed("F", call)), (S, typed("V", b"\0\0\0\x0242") + IDLE))
    assert only(played, "call").attrs == {"function": 1598, "arguments": ["1", None]}
    assert (only(played, "result").attrs, only(played, "result").reply_to) == ({"value": "42"}, len(START))


# -- what is wrong -------------------------------------------------------------------------------------------------


def test_an_unknown_type_is_passed_over() -> None:
    unknown = typed("?", b"what")
    played = behind((C, unknown + query("SELECT 1")), (S, unknown + columns("n") + row(b"1") + done("SELECT 1") + IDLE))
    assert [(one.attrs["type"], one.flags, played.bytes_of(one)) for one in of(played, "malformed")] == [
        ("?", ("malformed",), unknown)
    ] * 2
    assert only(played, "rows").reply_to == only(played, "query").start


@pytest.mark.parametrize("length", [0, 3, 1 << 30, 0xFFFFFFFF])
def test_an_impossible_length_ends_the_dissection_of_a_direction(length: int) -> None:
    bad = b"Q" + struct.pack("!I", length) + b"rest"
    played = behind((C, query("SELECT 1")), (C, bad), (C, query("SELECT 2")), (S, done("SELECT 1") + IDLE))
    flawed = only(played, "malformed")
    assert (played.bytes_of(flawed), flawed.flags) == (bad[:5], ("malformed",))
    assert only(played, "query").attrs["sql"] == "SELECT 1"
    assert only(played, "result").reply_to == only(played, "query").start
    assert played.dissector.settled(C) == len(played.streams[C])


def test_a_message_over_the_maximum_is_not_buffered() -> None:
    size = 40 * MAX_MESSAGE
    head = columns("big", "small")
    start = b"D" + struct.pack("!IHI", size + 10 + 5, 2, size)
    turns: list[Turn] = [(C, query("SELECT big")), (S, head + start)]
    turns += [(S, b"x" * MAX_MESSAGE)] * 40
    turns += [(S, b"\0\0\0\1y" + row(b"1", b"2") + done("SELECT 2") + IDLE)]
    played = behind(*turns)
    big, small = of(played, "rows")[0], of(played, "rows")[-1]
    assert "truncated" in big.flags
    assert len(big.attrs["rows"][0][0]) == MAX_MESSAGE - 11
    assert big.end - big.start == size + 16
    assert small.attrs["rows"] == [["1", "2"]]
    assert only(played, "result").attrs["rows"] == 2
    long = query("SELECT " + "x" * 2 * MAX_MESSAGE)
    for split in (None, 100_000, 999_983):
        cut = play(Postgres, [*BEGINNING, (C, long + query("SELECT 1"))], split=split)
        assert [(one.flags, one.end - one.start) for one in of(cut, "query")] == [
            (("truncated",), len(long)),
            ((), len(query("SELECT 1"))),
        ]
        assert len(of(cut, "query")[0].text) == MAX_MESSAGE - 5


def test_state_stays_small() -> None:
    """Pipelines without an end, statements without number: what is kept has a maximum."""
    import pickle

    dissector = Postgres()
    dissector.receive(C, START, 1)
    for number in range(3000):
        name = f"s{number}"
        dissector.receive(C, parse("SELECT '" + "x" * 9000 + "'", name) + bind(b"y" * 9000, portal=name, name=name), 1)
    for _ in range(30):
        dissector.receive(C, EXECUTE * 1000, 1)
    assert len(pickle.dumps(dissector)) < 20 << 20


# -- gaps ----------------------------------------------------------------------------------------------------------


def test_a_gap_inside_a_message() -> None:
    lost = query("SELECT 'much longer than that'")
    played = behind((C, lost[:10]), (C, Gap(9)), (C, lost[19:] + query("SELECT 2")), (S, done("SELECT 1") + IDLE))
    one, two = of(played, "query")
    assert (one.flags, one.text, bytes(played.streams[C][one.end :])) == (("truncated",), "SELEC", query("SELECT 2"))
    assert two.text == "SELECT 2"
    assert only(played, "result").reply_to == one.start


def test_a_gap_that_ends_with_a_message() -> None:
    lost = row(b"lost")
    answer = columns("n") + row(b"1")
    played = behind(
        (C, query("SELECT n")),
        (S, answer + lost[:7]),
        (S, Gap(len(lost) - 7)),
        (S, row(b"2") + done("SELECT 3") + IDLE),
    )
    rows = [cell for batch in of(played, "rows") for cell in batch.attrs["rows"]]
    assert rows[0] == ["1"]
    assert rows[-1] == ["2"]
    assert only(played, "result").attrs["rows"] == 3


def test_a_gap_over_messages() -> None:
    """Dissection goes on at the next message; nothing is matched with requests before the next ReadyForQuery."""
    tail = row(b"2")[5:] + row(b"3") + row(b"4") + done("SELECT 4") + IDLE
    played = behind(
        (C, query("SELECT n")),
        (S, columns("n") + row(b"1")),
        (S, Gap(50)),
        (S, tail),
        (C, query("SELECT m")),
        (S, columns("m") + row(b"5") + done("SELECT 1") + IDLE),
    )
    rows = of(played, "rows")
    assert [(one.attrs["rows"], one.reply_to is None) for one in rows] == [
        ([["1"]], False),
        ([["3"], ["4"]], True),
        ([["5"]], False),
    ]
    assert rows[-1].reply_to == of(played, "query")[1].start
    passed = only(played, "undissected")
    assert (passed.end - passed.start, passed.flags) == (len(row(b"2")) - 5, ("undecoded",))


def test_a_gap_at_every_place() -> None:
    _, turns = load("psql_cleartext_password")
    whole = play(Postgres, turns)
    secret = whole.secrets()[0].rstrip(b"\0")
    for number, (direction, what) in enumerate(turns):
        assert isinstance(what, bytes)
        for at in range(len(what)):
            for length in (1, 4, 60):
                left = what[at + length :]
                cut: list[Turn] = [(direction, what[:at]), (direction, Gap(min(length, len(what) - at)))]
                played = assert_survives(Postgres, [*turns[:number], *cut, (direction, left), *turns[number + 1 :]])
                assert secret not in played.stored(C)
                if direction is C and number == 4:
                    assert not any(secret[n : n + 4] in played.stored(C) for n in range(len(secret) - 3))


def test_the_start_was_not_seen() -> None:
    turns: list[Turn] = [
        (C, query("SELECT n") + query("SELECT m")),
        (S, columns("n") + row(b"1") + done("SELECT 1") + IDLE),
    ]
    played = play(Conversation, turns)
    assert played.dissector.protocol == "postgres"
    assert played.dissector.attrs["midstream"] is True
    assert only(played, "rows").reply_to == 0


# -- detection -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [START, SSL, GSS, CANCEL, packet(196608, b"\0"), packet(0x00030002, b"_pq_.x\0\0\0")])
def test_detect_a_start(start: bytes) -> None:
    assert Postgres.detect(start, b"") is Match.YES
    for length in range(len(start)):
        assert (
            Postgres.detect(start[:length], b"") is (Match.MORE if length < min(len(start), 9) else Match.YES)
            or length == 8
        )


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (b"GET / HTTP/1.1\r\n", b""),
        (b"POST / HTTP/1.1\r\n", b""),
        (b"DELETE / HTTP/1.1\r\n", b""),
        (b"SSH-2.0-x\r\n", b"SSH-2.0-x\r\n"),
        (b"\x16\x03\x01\x00\x05", b""),
        (b"\x00\x1d" + bytes(27), b""),  # DNS
        (b"", b"\x4a\x00\x00\x00\x0a8.0.36\x00"),  # MySQL
        (b"", b"220 mail ESMTP\r\n"),
        (b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"),
        (struct.pack("!II", 8, 196608), b""),
        (struct.pack("!II", 9, 80877103), b""),
        (struct.pack("!II", 20000, 196608), b""),
        (struct.pack("!II", 40, 131072), b""),
        (packet(196608, b"\x01\x02\0\0"), b""),
        (query("SELECT 1"), b"X\0\0\0\4"),
        (query("SELECT\0 1"), IDLE),
        (query("SELECT 1"), typed("?") + columns("n")),
        (parse("SELECT 1") + typed("?") + SYNC, PARSED),
        (SYNC, b"HTTP/1.1 200 OK"),
    ],
)
def test_other_protocols(client: bytes, server: bytes) -> None:
    assert Postgres.detect(client, server) is Match.NO


def test_what_comes_behind_a_whole_request_and_answer_changes_no_verdict() -> None:
    """It may come in the same segment, or in the next one."""
    for asked in (query("SELECT 1"), parse("SELECT 1") + bind() + EXECUTE + SYNC):
        for answered in (columns("n"), PARSED, done("SELECT 1")):
            for behind in (b"", b"?", typed("?"), b"\xff" * 9):
                assert Postgres.detect(asked + behind, answered + behind) is Match.YES
    assert Postgres.detect(bind(b"x"), PARSED) is Match.MORE, "the Sync may come"


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_detect_decides_in_time(client: bytes, server: bytes) -> None:
    Postgres.detect(client, server)
    assert Postgres.detect(client + bytes(4096), server) is not Match.MORE
    assert Postgres.detect(client, server + bytes(4096)) is not Match.MORE or client[:1] == b"\0"


def test_what_may_be_a_startup_or_the_end_of_a_password_is_not_settled() -> None:
    """Neither direction was seen from its start: bytes that are redacted at the end were never promised."""
    dissector = Postgres()
    for direction in (C, S):
        dissector.resume(direction, None)
    dissector.receive(C, b"\0\0\0\x17\0\3\0\0user\0u", 1)
    promised = dissector.settled(C)
    redacted = [each for each in dissector.close(C, 2) if isinstance(each, Redaction)]
    assert redacted
    assert min(each.start for each in redacted) >= promised
