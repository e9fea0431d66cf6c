"""MySQL from bytes: what a MariaDB does not say, what real peers seldom do, and how it is cut."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dissect import Match, Torn
from appliance.dissect import mysql_session as session
from appliance.dissect.conversation import Conversation
from appliance.dissect.mysql import MAX_FLAWS, Mysql
from appliance.dissect.sql_half import MAX_MESSAGE, MAX_REDACTED
from appliance.dissect.table import MAX_ROWS
from appliance.model import Direction, Message, Redaction
from tests.dissect.harness import (
    START_NS,
    C,
    Gap,
    Played,
    S,
    Turn,
    assert_any_cut,
    assert_survives,
    assert_truncated,
    feed,
    of,
    only,
    play,
)
from tests.dissect.mysql_bytes import (
    BEGINNING,
    DIALOGUE,
    HASH,
    MODERN,
    MODERN_BEGINNING,
    SECRETS,
    VENDOR,
    answer,
    change_user,
    column,
    command,
    eof,
    error,
    execute,
    fixed,
    greeting,
    lenenc,
    ok,
    packet,
    prepared,
    query,
    response,
    row,
    ssl_request,
    string,
    table,
)


def behind(*turns: Turn) -> Played:
    """Play these behind a log-in."""
    return play(Mysql, [*BEGINNING, *turns])


def kept(played: Played) -> str:
    said = "\n".join(f"{one.text} {one.attrs}" for one in played.messages)
    return said + (played.stored(C) + played.stored(S)).decode("latin-1")


# -- the whole -----------------------------------------------------------------------------------------------------


def test_a_dialogue_in_any_cut() -> None:
    played = assert_any_cut(Mysql, DIALOGUE)
    assert played.kinds() == [
        *("greeting", "startup", "authenticated", "query", "rows", "result", "prepare", "prepared"),
        *("query", "rows", "result", "query", "rows", "result"),
        *("change-user", "authentication", "authentication", "authenticated"),
        *("query", "copy-start", "copy", "copy-done", "result", "query", "error", "terminate"),
    ]
    assert not [one for one in played.messages if {"malformed", "undecoded"} & {*one.flags}]
    starts = {(one.direction.other, one.start) for one in played.messages}
    for one in played.messages:
        assert one.reply_to is None or (one.direction, one.reply_to) in starts, "an answer to nothing"
    assert played.secrets() == [HASH, HASH, b"open sesame\0"]
    asked = [one.attrs["parameters"] for one in of(played, "query")]
    assert asked[1:3] == [["5"], ["6"]]
    assert [one.attrs["rows"] for one in of(played, "rows")] == [[["1"], [None]], [["5"]], [["6"]]]
    assert of(played, "rows")[0].text == "a\n1\n\\N"


def test_a_dialogue_truncated() -> None:
    assert_truncated(Mysql, DIALOGUE, secrets=SECRETS)
    assert_truncated(Conversation, DIALOGUE, secrets=SECRETS, step=3)


def test_a_dialogue_through_the_conversation() -> None:
    """Detected from the server's greeting, and not disturbed by bytes behind its end."""
    played = play(Conversation, [*DIALOGUE, (C, b"?trailing"), (S, b"?trailing")])
    assert played.dissector.protocol == "mysql"
    assert played.kinds()[:26] == play(Mysql, DIALOGUE).kinds()
    assert all({"malformed", "truncated"} & {*one.flags} for one in played.messages[26:])


@pytest.mark.parametrize("whose", [C, S])
def test_a_dialogue_with_a_gap_at_every_place(whose: Direction) -> None:
    """No credential is kept, and the conversation is understood again."""
    last: list[Turn] = [(C, query("select 2")), (S, table(row("two"))), (C, query("select 3")), (S, table(row("3")))]
    total = sum(len(what) for direction, what in DIALOGUE if direction is whose and isinstance(what, bytes))
    for length in (1, 7, 40):
        for place in range(total - length):
            played = play(Mysql, [*_with_gap(DIALOGUE, whose, place, length), *last])
            shown = kept(played)
            for secret in SECRETS:
                text = secret.decode()
                assert not any(text[at : at + 8] in shown for at in range(len(text) - 7)), (place, length)
            assert of(played, "query")[-1].attrs["sql"] == "select 3", (place, length)
            assert of(played, "rows")[-1].attrs["rows"] == [["3"]], (place, length)
            assert of(played, "rows")[-1].reply_to == of(played, "query")[-1].start


def _with_gap(turns: list[Turn], whose: Direction, place: int, length: int) -> list[Turn]:
    """The same, without `length` bytes of one direction."""
    found: list[Turn] = []
    at = 0
    for direction, what in turns:
        assert isinstance(what, bytes)
        if direction is not whose or at + len(what) <= place or at >= place + length:
            found.append((direction, what))
        else:
            before, behind = what[: max(place - at, 0)], what[max(place + length - at, 0) :]
            missing = len(what) - len(before) - len(behind)
            parts: list[Turn] = [(direction, before), (direction, Gap(missing)), (direction, behind)]
            found += [part for part in parts if part[1] != b""]
        at += len(what) if direction is whose else 0
    return found


def test_the_wrong_direction() -> None:
    turned: list[Turn] = [(direction.other, what) for direction, what in DIALOGUE]
    played = assert_survives(Mysql, turned, split=3)
    for secret in SECRETS[:1]:
        assert secret not in played.stored(C)


@given(st.lists(st.tuples(st.sampled_from([C, S]), st.binary(max_size=200)), max_size=8), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_bytes(turns: list[Turn], started: bool) -> None:
    assert_survives(Mysql, [*BEGINNING, *turns] if started else turns, split=5)


@given(
    st.lists(
        st.tuples(st.sampled_from([C, S]), st.integers(0, 4), st.integers(0, 255), st.binary(max_size=40)), max_size=20
    )
)
@settings(max_examples=150, deadline=None)
def test_any_packets(packets: list[tuple[Direction, int, int, bytes]]) -> None:
    turns: list[Turn] = [(whose, packet(number, bytes([kind]) + body)) for whose, number, kind, body in packets]
    assert_survives(Mysql, [*BEGINNING, *turns])


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_changed_bytes(data: st.DataObject) -> None:
    changed: list[Turn] = []
    for direction, what in DIALOGUE:
        assert isinstance(what, bytes)
        broken = bytearray(what)
        for _ in range(data.draw(st.integers(0, 2))):
            broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
        if data.draw(st.integers(0, 9)) == 0:
            changed.append((direction, Gap(data.draw(st.integers(1, 300)))))
        changed.append((direction, bytes(broken)))
    assert_survives(Mysql, changed, split=data.draw(st.sampled_from([None, 1, 13])))


# -- detection -----------------------------------------------------------------------------------------------------


def test_detection() -> None:
    hello = greeting()
    assert Mysql.detect(b"", hello) is Match.YES
    assert {Mysql.detect(b"", hello[:size]) for size in range(20)} == {Match.MORE}
    blocked = packet(0, b"\xff\x69\x04Host '192.0.2.1' is not allowed to connect to this MariaDB server")
    assert Mysql.detect(b"", blocked) is Match.YES
    assert Mysql.detect(response(), b"") is Match.YES
    assert Mysql.detect(ssl_request(), b"") is Match.YES
    for other in (
        b"SSH-2.0-OpenSSH_9.2",
        b"220 mail.example ESMTP",
        b"HTTP/1.1 200 OK",
        b"\x16\x03\x03\0\x7a\2\0\0\x76",
    ):
        assert Mysql.detect(b"", other) is Match.NO
    for other in (b"GET / HTTP/1.1\r\n", b"\0\0\0\x08\x04\xd2\x16\x2f", b"*1\r\n$4\r\nPING\r\n", b"SSH-2.0-x"):
        assert Mysql.detect(other, b"") is Match.NO


def test_an_error_instead_of_a_greeting() -> None:
    said = b"\xff\x69\x04Host '192.0.2.1' is not allowed to connect to this MariaDB server"
    played = play(Conversation, [(S, packet(0, said))])
    assert played.dissector.protocol == "mysql"
    assert (only(played, "error").attrs["code"], only(played, "error").attrs["sqlstate"]) == (1129, "")


# -- before log-in -------------------------------------------------------------------------------------------------


def test_tls_goes_to_its_successor() -> None:
    hello, server_hello = b"\x16\x03\x01\x02\0 hello", b"\x16\x03\x03\0\x7a answer"
    offered = VENDOR | session.SSL
    played = play(Mysql, [(S, greeting(offered)), (C, ssl_request()), (C, hello)], close=False)
    assert played.kinds() == ["greeting", "negotiate"]
    assert (played.dissector.successor, played.dissector.opaque) == ("tls", True)
    assert played.dissector.rest(C) == hello
    for turns in ([(C, ssl_request() + hello)], [(C, ssl_request()), (C, hello), (S, server_hello)]):
        whole = assert_any_cut(Conversation, [(S, greeting(offered)), *turns])
        assert whole.dissector.attrs["protocols"] == ["mysql", "tls"]


def test_plaintext_behind_a_request_for_tls() -> None:
    """As a relay records it, where TLS was taken off: the numbers go on."""
    turns: list[Turn] = [
        (S, greeting(VENDOR | session.SSL)),
        (C, ssl_request()),
        (C, response(b"", VENDOR | session.SSL, plugin="mysql_clear_password", number=2)),
        (S, packet(3, b"\xfemysql_clear_password\0")),
        (C, packet(4, b"token-of-the-agent\0")),
        (S, packet(5, ok())),
        (C, query("select 1")),
        (S, table(row("1"))),
    ]
    played = assert_any_cut(Mysql, turns)
    assert played.kinds()[:6] == [
        *("greeting", "negotiate", "startup", "authentication", "authentication", "authenticated")
    ]
    assert (played.secrets(), played.dissector.opaque) == ([b"token-of-the-agent\0"], False)
    assert played.dissector.attrs["auth"] == "mysql_clear_password"
    assert of(played, "rows")[0].attrs["rows"] == [["1"]]
    assert_truncated(Mysql, turns, secrets=[b"token-of-the-agent"])
    starred: list[Turn] = [*turns[:4], (C, packet(4, b"*" * 18 + b"\0")), *turns[5:]]
    assert play(Mysql, starred).kinds() == played.kinds()


def test_caching_sha2_password() -> None:
    """MySQL 8: the fast way, and in full, in clear within TLS or encrypted with the server's key."""
    plugin = "caching_sha2_password"
    proof = bytes(range(64, 96))
    begin: list[Turn] = [(S, greeting(VENDOR, plugin)), (C, response(proof, plugin=plugin))]
    fast = assert_any_cut(Mysql, [*begin, (S, packet(2, b"\1\3") + packet(3, ok()))])
    assert of(fast, "authentication")[0].attrs == {"method": plugin, "step": "fast"}
    assert fast.dissector.attrs["auth"] == plugin
    clear: list[Turn] = [*begin, (S, packet(2, b"\1\4")), (C, packet(3, b"open sesame\0")), (S, packet(4, ok()))]
    assert assert_any_cut(Mysql, clear).secrets() == [proof, b"open sesame\0"]
    assert_truncated(Mysql, clear, secrets=[proof, b"open sesame"])
    key = b"-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n"
    sealed = b"sealed-password-" * 16
    turns: list[Turn] = [*begin, (S, packet(2, b"\1\4")), (C, packet(3, b"\2")), (S, packet(4, b"\1" + key))]
    turns += [(C, packet(5, sealed)), (S, packet(6, ok()))]
    played = assert_any_cut(Mysql, turns)
    steps = [(one.direction, one.attrs.get("step"), one.flags) for one in of(played, "authentication")]
    assert steps == [(S, "full", ()), (C, "key", ()), (S, "key", ()), (C, None, ("redacted",))]
    assert played.secrets() == [proof, sealed]


def test_log_in_of_old_clients() -> None:
    old = struct.pack("<H3s", session.CONNECT_WITH_DB, b"\xff\xff\xff") + b"ada\0" + b"OLDHASH8" + b"\0shop"
    turns: list[Turn] = [(S, greeting()), (C, packet(1, old)), (S, packet(2, b"\xfe")), (C, packet(3, b"NEWHASH8\0"))]
    played = assert_any_cut(Mysql, turns)
    assert only(played, "startup").attrs["user"] == "ada"
    assert only(played, "startup").attrs["database"] == "shop"
    assert played.secrets() == [b"OLDHASH8\0", b"NEWHASH8\0"]
    assert_truncated(Mysql, turns, secrets=[b"OLDHASH8", b"NEWHASH8"])


def test_log_in_refused() -> None:
    played = play(Mysql, [*BEGINNING[:2], (S, packet(2, error(1045, "28000", "Access denied for user 'ada'")))])
    assert only(played, "error").text == "ERROR 1045 (28000): Access denied for user 'ada'"
    assert only(played, "error").reply_to == 0


def test_a_broken_handshake_response_is_redacted() -> None:
    for body in (fixed(VENDOR) + b"ada", fixed(VENDOR) + b"ada\0\xfc\xff\xffopen sesame", b"open sesame"):
        played = play(Mysql, [(S, greeting()), (C, packet(1, body))])
        assert b"sesame" not in played.stored(C)
        assert "malformed" in played.messages[1].flags
    endless = packet(1, fixed(VENDOR) + b"x" * 300_000)
    played = play(Mysql, [(S, greeting()), (C, endless[:-10]), (C, Gap(5)), (C, b"12345")])
    assert sum(one.end - one.start for one in played.redactions) == MAX_REDACTED


def test_redaction_is_no_place_to_hide() -> None:
    played = behind(*[(C, packet(1, b"z" * 60_000))] * 10)
    assert sum(one.end - one.start for one in played.redactions) <= MAX_REDACTED


def test_compression_is_told() -> None:
    both = VENDOR | session.COMPRESS
    turns: list[Turn] = [(S, greeting(both)), (C, response(capabilities=both)), (S, packet(2, ok()))]
    small = query("select 1")
    squeezed = len(small).to_bytes(3, "little") + b"\0" + bytes(3) + small
    played = assert_any_cut(Mysql, [*turns, (C, squeezed), (S, b"\7\0\0\1\0\0\0" + packet(1, ok()))])
    assert played.dissector.attrs["compression"] == "zlib"
    assert [(one.direction, one.flags) for one in of(played, "undissected")] == [
        (C, ("undecoded",)),
        (S, ("undecoded",)),
    ]


# -- commands and answers ------------------------------------------------------------------------------------------


def test_results_without_eof_packets() -> None:
    described = answer(
        b"\1", column("a"), row("1"), row("2"), ok(first=0xFE, status=0x4002, info=b"\0\x0b\1\x09\x08newplace")
    )
    played = play(Mysql, [*MODERN_BEGINNING, (C, query("x")), (S, described), (C, query("y")), (S, packet(1, ok(5)))])
    assert [one.attrs["rows"] for one in of(played, "rows")] == [[["1"], ["2"]]]
    first, second = of(played, "result")
    assert (first.attrs["rows"], first.attrs["session"]) == (2, {"schema": "newplace"})
    assert second.attrs["affected"] == 5
    assert played.dissector.attrs["database"] == "newplace"


def test_several_results() -> None:
    first = [b"\1", column("a"), eof(), row("1"), eof(0x0A)]
    second = [ok(7, 12, status=0x0A, info=b"told")]
    third = [b"\1", column("b"), eof(), row("2"), eof()]
    played = assert_any_cut(
        Mysql, [*BEGINNING, (C, query("a; b; c")), (S, answer(*first, *second, *third)), (C, query("d"))]
    )
    answers = of(played, "result")
    assert [one.attrs["rows"] for one in answers] == [1, 0, 1]
    assert (answers[1].attrs["affected"], answers[1].attrs["last_insert_id"], answers[1].attrs["tag"]) == (
        7,
        "12",
        "told",
    )
    assert {one.reply_to for one in answers} == {only_start(played, "a; b; c")}


def only_start(played: Played, sql: str) -> int:
    (found,) = [one for one in of(played, "query") if one.attrs["sql"] == sql]
    return found.start


def test_rows_in_batches_whose_numbers_wrap() -> None:
    many = [row(str(number)) for number in range(2 * MAX_ROWS + 70)]
    played = behind((C, query("x")), (S, table(*many)), (C, query("y")), (S, table(row("z"))))
    assert [one.attrs["row_offset"] for one in of(played, "rows")] == [0, MAX_ROWS, 2 * MAX_ROWS, 0]
    assert [cell for one in of(played, "rows")[:3] for (cell,) in one.attrs["rows"]] == [str(n) for n in range(270)]


def test_rows_go_on_behind_a_gap() -> None:
    """The numbers of the packets tell where; the columns are known."""
    many = table(*[row(f"row number {number}") for number in range(3000)])
    played = behind(
        (C, query("x")), (S, many[:5000]), (S, Gap(700)), (S, many[5700:]), (C, query("y")), (S, table(row("z")))
    )
    shown = [cell for one in of(played, "rows") for (cell,) in one.attrs["rows"]]
    assert len(shown) > 2700
    assert shown[-2:] == ["row number 2999", "z"]
    assert only(played, "undissected").flags == ("undecoded",)


def test_query_attributes() -> None:
    both = MODERN | session.QUERY_ATTRIBUTES
    begin: list[Turn] = [(S, greeting(both)), (C, response(capabilities=both)), (S, packet(2, ok()))]
    named = b"\2\1\2\1" + b"\xfd\0" + string("trace") + b"\x03\0" + string("n") + string("abc")
    played = assert_any_cut(Mysql, [*begin, (C, command(3, named + b"select 1")), (C, command(3, b"\0\1select 2"))])
    first, second = of(played, "query")
    assert (first.attrs["sql"], first.attrs["attributes"]) == ("select 1", {"trace": "abc", "n": None})
    assert second.attrs["sql"] == "select 2"


def test_bind_values_without_their_types() -> None:
    """Types are named once; a statement that is not known has none."""
    made: list[Turn] = [
        (C, command(0x16, b"insert ?, ?")),
        (S, answer(prepared(3, 0, 2), column("?"), column("?"), eof())),
    ]
    first = execute(3, b"\0\1\xfd\0\x08\x80" + string("ab") + b"\xff" * 8)
    again = execute(3, b"\1\0" + (7).to_bytes(8, "little"))
    played = behind(
        *made, (C, first), (S, packet(1, ok(1))), (C, again), (S, packet(1, ok(1))), (C, execute(9, b"\0\1"))
    )
    asked = of(played, "query")
    assert asked[0].attrs["parameters"] == ["ab", "18446744073709551615"]
    assert asked[1].attrs["parameters"] == [None, "7"]
    assert asked[2].flags == ("unresolved", "undecoded")


def test_a_statement_ends() -> None:
    made: list[Turn] = [(C, command(0x16, b"select 1")), (S, packet(1, prepared(4)))]
    closed = command(0x19, struct.pack("<I", 4))
    played = behind(*made, (C, closed + execute(4)), (S, packet(1, error(1243, "HY000", "Unknown prepared statement"))))
    assert only(played, "command").attrs == {"command": "STMT_CLOSE", "prepared": "4"}
    assert only(played, "error").reply_to == of(played, "query")[-1].start
    assert of(played, "query")[-1].flags == ("unresolved",)


def test_other_commands() -> None:
    turns: list[Turn] = [
        (C, command(9)),
        (S, packet(1, b"Uptime: 4  Threads: 1")),
        (C, command(4, b"goods\0%")),
        (S, answer(column("id", 3) + b"\xfb", column("name") + b"\xfb", eof())),
        (C, command(0x0E)),
        (S, packet(1, ok())),
        (C, command(0x1B, b"\0\0")),
        (S, packet(1, eof())),
        (C, command(0x1F)),
        (S, packet(1, ok())),
        (C, command(0x0C, struct.pack("<I", 99))),
        (S, packet(1, error(1094, "HY000", "Unknown thread id: 99"))),
        (C, query("x")),
        (S, table(row("1"))),
    ]
    played = assert_any_cut(Mysql, [*BEGINNING, *turns])
    assert [one.attrs["command"] for one in of(played, "command")] == [
        *("STATISTICS", "FIELD_LIST", "PING", "SET_OPTION", "RESET_CONNECTION", "PROCESS_KILL")
    ]
    answers = of(played, "result")
    assert answers[0].text == "Uptime: 4  Threads: 1"
    assert [one["name"] for one in answers[1].attrs["columns"]] == ["id", "name"]
    assert only(played, "error").reply_to == of(played, "command")[-1].start
    assert only(played, "rows").attrs["rows"] == [["1"]]


def test_commands_that_do_not_wait() -> None:
    both = query("select 1") + query("select 2")
    played = behind((C, both), (S, table(row("1")) + table(row("2"))))
    first, second = of(played, "query")
    assert [(one.attrs["rows"], one.reply_to) for one in of(played, "rows")] == [
        ([["1"]], first.start),
        ([["2"]], second.start),
    ]


def test_progress_reports() -> None:
    report = b"\xff\xff\xff\1" + bytes((1, 2)) + (50_000).to_bytes(3, "little") + string("copy to tmp table")
    played = behind((C, query("alter")), (S, packet(1, report) + packet(2, ok())))
    told = only(played, "notice")
    assert (told.text, told.attrs["percent"]) == ("1/2 50.0% copy to tmp table", 50.0)
    assert only(played, "result").reply_to == told.reply_to == only(played, "query").start


def test_extended_metadata() -> None:
    more = string(b"\0" + string("point"))
    played = behind(
        (C, query("x")), (S, answer(b"\1", column("p", 255, charset=63, more=more), eof(), row(b"\0\1"), eof()))
    )
    assert only(played, "rows").attrs["columns"] == [{"name": "p", "type": "point"}]
    assert only(played, "rows").attrs["rows"] == [["\\x0001"]]


def test_passwords_in_sql_are_kept() -> None:
    """As with any other database: what SQL says is the record."""
    sql = "CREATE USER eve IDENTIFIED BY 'in plain'"
    played = behind((C, query(sql)), (S, packet(1, ok())))
    assert only(played, "query").attrs["sql"] == sql


# -- bad input -----------------------------------------------------------------------------------------------------


def test_long_packets_are_bounded() -> None:
    """A statement of two packets, of which the first one says that another follows."""
    sql = b"\3insert " + b"x" * (0xFFFFFF - 8 + 100)
    whole = packet(0, sql[:0xFFFFFF]) + packet(1, sql[0xFFFFFF:])
    dissector = Mysql()
    played = Played(dissector)
    for number, (direction, what) in enumerate(BEGINNING):
        assert isinstance(what, bytes)
        feed(played, direction, what, 1_700_000_000_000_000_000 + number)
    for at, upto in pairwise([*range(0, len(whole), 1 << 20), len(whole)]):
        feed(played, C, whole[at:upto], 1_700_000_000_000_001_000)
        assert dissector.held < 3 * MAX_MESSAGE
    feed(played, C, query("select 1"), 1_700_000_000_000_002_000)
    first, second = of(played, "query")
    assert (first.end - first.start, first.flags) == (len(whole), ("truncated",))
    assert len(first.text) == MAX_MESSAGE - 5
    assert second.attrs["sql"] == "select 1"


def test_garbage_ends_the_dissection() -> None:
    played = behind((C, packet(0, b"\x7f") * (MAX_FLAWS + 5)), (C, query("select 1")))
    assert len(of(played, "malformed")) == MAX_FLAWS
    assert not of(played, "query")


def test_a_number_of_columns_that_cannot_be() -> None:
    for body in (lenenc(70_000), b"\xfe" + b"\xff" * 8, b"\5\0\0"):
        played = behind((C, query("x")), (S, packet(1, body)), (C, query("y")), (S, table(row("1"))))
        assert only(played, "rows").reply_to == of(played, "query")[1].start
        assert of(played, "malformed")


def test_rows_that_do_not_fit() -> None:
    played = behind((C, query("x")), (S, table(row("1", "2"), b"\5ab", b"\xfc\xff", row("3"))))
    assert only(played, "rows").flags == ("malformed",)
    assert [one[:1] for one in only(played, "rows").attrs["rows"]] == [["1"], ["ab"], [], ["3"]]


def test_a_file_that_nobody_asked_for_is_no_way_out_of_redaction() -> None:
    played = behind((C, command(0x0E)), (S, packet(1, b"\xfbx.csv")), (C, packet(2, b"open sesame")))
    assert b"sesame" not in played.stored(C)
    changing = behind((C, change_user()), (S, packet(1, b"\xfbx.csv")), (C, packet(2, b"open sesame")))
    assert b"sesame" not in changing.stored(C)
    both = behind((C, query("x") + change_user()), (S, packet(1, b"\xfbx.csv")), (C, packet(2, b"open sesame")))
    assert b"sesame" not in both.stored(C)


def test_a_client_whose_first_bytes_were_not_seen() -> None:
    """The server's greeting says what is spoken; the client's bytes may begin anywhere."""
    said = response(b"open sesame, open sesame")
    for place in range(len(said)):
        conversation = Conversation()
        conversation.unseen(C)
        played = Played(conversation)
        turns = [(S, greeting()), (C, said[place:]), (S, packet(2, ok())), (C, query("select 1")), (S, table(row("1")))]
        for direction, what in turns:
            feed(played, direction, what, START_NS)
        assert b"sesame" not in played.stored(C), place
        assert of(played, "query")[-1].text == "select 1"
        assert of(played, "rows")[-1].reply_to == of(played, "query")[-1].start


@pytest.mark.parametrize("ends", [False, True])
def test_no_credential_behind_a_session_that_was_given_up(ends: bool) -> None:
    """Wherever within the dialogue: the one that goes on knows what may follow."""
    total = sum(len(what) for _, what in DIALOGUE if isinstance(what, bytes))
    for place in range(80, total, 3):
        first, second = Conversation(), Conversation()
        for direction in (C, S):
            second.unseen(direction)
        played = Played(second)
        fed = 0
        for direction, what in DIALOGUE:
            assert isinstance(what, bytes)
            if fed < place:
                first.receive(direction, what[: place - fed], START_NS)
            if fed < place <= fed + len(what):
                handover = first.handover()
                assert handover is not None
                second.succeed(handover)
            if fed + len(what) > place:
                feed(played, direction, what[max(place - fed, 0) :], START_NS)
            fed += len(what)
        for direction in (C, S) if ends else ():
            feed(played, direction, None, START_NS)
        shown = kept(played)
        for secret in SECRETS:
            text = secret.decode()
            assert not any(text[at : at + 8] in shown for at in range(len(text) - 7)), place
        assert second.protocol == "mysql"


def test_going_on_with_a_session_that_was_given_up() -> None:
    dissector = Mysql(1000, 2000)
    dissector.resume(C, Torn())
    dissector.resume(S, Torn())
    out = dissector.receive(C, query("select 1") + query("select 2"), 1)
    assert [one.text for one in out if isinstance(one, Message)] == ["select 1", "select 2"]
    assert dissector.settled(C) == 1000 + 26
    before = Mysql()
    before.receive(S, greeting(), 1)
    before.receive(C, response()[:60], 1)
    assert before.torn(C).size > 100
    after = Mysql(60, 0)
    after.resume(C, before.torn(C))
    redacted = [one for one in after.receive(C, response()[60:], 1) if isinstance(one, Redaction)]
    assert [(one.start, one.end) for one in redacted] == [(60, after.settled(C))]
