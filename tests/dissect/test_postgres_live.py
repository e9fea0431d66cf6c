"""A real PostgreSQL, real clients, and a relay that records: what they saw is what the messages say."""

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from appliance.dissect import Match
from appliance.dissect.postgres import Postgres
from appliance.model import Message
from tests.dissect.harness import C, Played, S, assert_truncated, of, play
from tests.dissect.postgres_lab import Relay, Server, available, relay, server
from tests.lab.wait import until

pytestmark = pytest.mark.skipif(not available(), reason="needs PostgreSQL 15 and root, to run it as user postgres")

TYPES = """
    SELECT true AS a_bool, false, (-32768)::int2 AS i2, 2147483647::int4 AS i4, (-9223372036854775808)::int8 AS i8,
    1.5::float4 AS f4, 0.1::float4, 1e6::float4, 1.17549435e-38::float4, 3.4028235e38::float4, 123456.7::float4,
    0.1::float8 AS f8, 1e15::float8, 123456789012345::float8, 1e-5::float8, 0.0001::float8, -0.0::float8,
    1e300::float8, 5e-324::float8, 'NaN'::float8, 'Infinity'::float8, '-Infinity'::float4, 1::float8, 12345.678::float8,
    0::numeric AS n, 1.10::numeric, -0.000012340::numeric, 12345678901234567890.123::numeric, 10000::numeric,
    'NaN'::numeric, 'Infinity'::numeric, 1e300::numeric, 0.00::numeric, 100.0001::numeric(10,4), 1e-20::numeric,
    'é☃'::text AS t, 'v'::varchar, 'pad'::bpchar(5), 'n'::name, 'c'::"char", ''::text, NULL::text, NULL::int4,
    '\\x00ff5c'::bytea AS b, ''::bytea,
    '2000-01-01'::date AS d, '1999-12-31'::date, '0044-03-15 BC'::date, '5874897-12-31'::date, 'infinity'::date,
    '-infinity'::date, '1582-10-04'::date,
    '00:00:00'::time AS tm, '23:59:59.999999'::time, '24:00:00'::time, '12:34:56.5'::time,
    '01:02:03+05:30'::timetz, '01:02:03-08'::timetz, '01:02:03.04+00:00:30'::timetz,
    '2026-11-23 08:00:00.123456'::timestamp AS ts, '0001-01-01 00:00:00 BC'::timestamp, 'infinity'::timestamp,
    '294276-12-31 23:59:59.999999'::timestamp, '2026-11-23 08:00:00+02'::timestamptz, '-infinity'::timestamptz,
    '1 year 2 mons 3 days 04:05:06.789'::interval AS iv, '-1 days'::interval, '0'::interval,
    '-1 years +2 days'::interval,
    '1 day -00:00:01'::interval, '-1 mons +1 day'::interval, '-1 day +02:00'::interval, '100:00:00'::interval,
    '-00:00:00.000001'::interval, '-13 mons'::interval,
    'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid AS u, '{"a": [1, null]}'::json AS j, '{"b": "☃"}'::jsonb AS jb,
    4294967295::oid AS o, '192.0.2.1'::inet AS ip, '192.0.2.1/24'::inet, '192.0.2.0/24'::cidr, '192.0.2.1/32'::cidr,
    '2001:db8::1'::inet, '::ffff:192.0.2.1'::inet, '2001:db8::/32'::cidr, '::1/64'::inet,
    '08:00:2b:01:02:03'::macaddr, '08:00:2b:01:02:03:04:05'::macaddr8, B'1011'::bit(4), B'101100111'::varbit,
    '16/B374D848'::pg_lsn, '12345'::xid, '<a/>'::xml, 'x'::refcursor,
    ARRAY[1,2,NULL]::int4[] AS ai, ARRAY[[1,2],[3,4]]::int8[], '[0:1]={5,6}'::int2[], '{}'::text[],
    ARRAY['a b','NULL','null','','q"\\', 'c,d','{','plain',NULL,'é','\t']::text[] AS at, ARRAY[true,false],
    ARRAY['\\x01'::bytea], ARRAY[1.5,NULL]::numeric[], ARRAY['2026-01-01'::date],
    ARRAY['a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid],
    ARRAY['{"a": 1}'::jsonb], ARRAY['192.0.2.1'::inet], ARRAY['1 day'::interval],
    ARRAY['2026-11-23 08:00+00'::timestamptz]
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Server]:
    with server() as one:
        with psycopg.connect(one.dsn(one.port), autocommit=True) as setup:
            setup.execute("CREATE TABLE goods (id int, name text, price numeric, since timestamptz)")
            setup.execute("CREATE TABLE line (n int, t text)")
        yield one


@pytest.fixture
def wire(lab: Server) -> Iterator[Relay]:
    with relay(lab.port) as one:
        yield one


def psql(lab: Server, port: int, *commands: str, role: str = "open", check: bool = True) -> str:
    command = ["psql", "-X", "-q", "-A", "-t", "-F", "\t", "-P", "null=\\N", lab.dsn(port, role)]
    for one in commands:
        command += ["-c", one]
    run = subprocess.run(command, capture_output=True, check=check, timeout=20)
    return run.stdout.decode()


def played(wire: Relay, number: int = 0, count: int = 1) -> Played:
    recording = wire.ended(count)[number]
    whole = play(Postgres, recording.turns)
    client, server = recording.stream(C), recording.stream(S)
    assert Postgres.detect(client, server) is Match.YES
    for flag in ("malformed", "undissected"):
        assert not [one for one in whole.messages if flag in (*one.flags, one.kind)]
    assert bytes(whole.streams[C]) == client
    assert bytes(whole.streams[S]) == server
    return whole


def rows(whole: Played, query: Message) -> list[list[str | None]]:
    return [row for one in of(whole, "rows") if one.reply_to == query.start for row in one.attrs["rows"]]


def query(whole: Played, sql: str) -> Message:
    (found,) = [one for one in of(whole, "query") if one.attrs["sql"].startswith(sql)]
    return found


# -- psql ----------------------------------------------------------------------------------------------------------


def test_what_psql_printed_is_what_the_messages_say(lab: Server, wire: Relay) -> None:
    sql = "SELECT n, 'row ' || n AS text, CASE WHEN n % 3 = 0 THEN n / 7.0 END AS share FROM generate_series(1, 250) n"
    printed = psql(lab, wire.port, sql)
    whole = played(wire)
    asked = query(whole, "SELECT n")
    found = rows(whole, asked)
    assert "\n".join("\t".join(cell if cell is not None else "\\N" for cell in row) for row in found) + "\n" == printed
    batches = of(whole, "rows")
    assert [one.attrs["row_offset"] for one in batches] == [0, 100, 200]
    assert batches[0].text.startswith("n\ttext\tshare\n1\trow 1\t\\N\n")
    assert [one["type"] for one in batches[0].attrs["columns"]] == ["int4", "text", "numeric"]
    (result,) = of(whole, "result")
    assert (result.attrs["tag"], result.attrs["rows"], result.reply_to) == ("SELECT 250", 250, asked.start)
    assert whole.bytes_of(asked) == b"Q" + (len(sql) + 5).to_bytes(4, "big") + sql.encode() + b"\0"


def test_several_statements_in_one_query(lab: Server, wire: Relay) -> None:
    assert psql(lab, wire.port, "SELECT 1; ; SELECT 2, 3; CREATE TEMP TABLE x (); SELECT 1 WHERE false") == "1\n2\t3\n"
    whole = played(wire)
    (asked,) = of(whole, "query")
    assert [one.attrs["tag"] for one in of(whole, "result")] == ["SELECT 1", "SELECT 1", "CREATE TABLE", "SELECT 0"]
    assert {one.reply_to for one in of(whole, "result", "rows")} == {asked.start}
    assert rows(whole, asked) == [["1"], ["2", "3"]]
    assert of(whole, "result")[3].attrs["columns"] == [{"name": "?column?", "type": "int4"}]


def test_an_empty_query(lab: Server, wire: Relay) -> None:
    with psycopg.connect(lab.dsn(wire.port), autocommit=True) as client:
        client.execute("")
        client.execute(" ; ")
    whole = played(wire)
    assert [one.attrs.get("empty") for one in of(whole, "result")] == [True, True]


def test_errors_and_notices(lab: Server, wire: Relay) -> None:
    psql(
        lab,
        wire.port,
        "DO $$ BEGIN RAISE NOTICE 'careful %', 1 USING HINT = 'none'; END $$",
        "SELECT * FROM nothing_here",
        "SELECT 1/0",
        check=False,
    )
    whole = played(wire)
    done, missing, divided = of(whole, "query")
    (notice,) = of(whole, "notice")
    assert notice.reply_to == done.start
    assert notice.attrs["severity"] == "NOTICE"
    assert notice.attrs["message"] == "careful 1"
    assert notice.attrs["hint"] == "none"
    first, second = of(whole, "error")
    assert (first.reply_to, first.attrs["sqlstate"], first.attrs["position"]) == (missing.start, "42P01", "15")
    assert first.text == 'ERROR 42P01: relation "nothing_here" does not exist'
    assert (second.reply_to, second.attrs["sqlstate"]) == (divided.start, "22012")


def test_transaction_status(lab: Server, wire: Relay) -> None:
    psql(lab, wire.port, "BEGIN", "SELECT 1", "SELECT 1/0", "ROLLBACK", check=False)
    assert [one.text for one in of(played(wire), "ready")] == ["idle", "transaction", "failed", "idle"]


# -- log-in --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "method"), [("open", "none"), ("plain", "password"), ("md5", "md5"), ("scram", "scram-sha-256")]
)
def test_log_in(lab: Server, wire: Relay, role: str, method: str) -> None:
    assert psql(lab, wire.port, "SELECT 1", role=role) == "1\n"
    whole = played(wire)
    attrs = whole.dissector.attrs
    assert (attrs["user"], attrs["database"], attrs["application_name"]) == (role, "postgres", "psql")
    assert attrs["auth"] == method
    assert attrs["server_version"].startswith("15.")
    (startup,) = of(whole, "startup")
    assert startup.attrs["parameters"]["user"] == role
    (accepted,) = of(whole, "authenticated")
    assert accepted.attrs["method"] == method
    redacted = {one.what: whole.bytes_of(one) for one in whole.redactions}
    if role == "plain":
        assert redacted.pop("password") == lab.password.encode() + b"\0"
    elif role == "md5":
        assert redacted.pop("password").startswith(b"md5")
    assert not redacted
    said = json.dumps([[one.text, one.attrs] for one in whole.messages], ensure_ascii=False)
    for secret in whole.secrets():
        assert secret not in whole.stored(C) + whole.stored(S)
        assert secret.rstrip(b"\0").decode("latin-1") not in said
    assert lab.password not in said
    turns = wire.recordings[0].turns[:8]
    assert_truncated(Postgres, turns, secrets=[secret for secret in whole.secrets() if len(secret) > 4])


def test_a_wrong_password(lab: Server, wire: Relay) -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(lab.dsn(wire.port, "plain").replace(lab.password, "guess-7"))
    whole = played(wire)
    (startup,) = of(whole, "startup")
    (error,) = of(whole, "error")
    assert (error.attrs["sqlstate"], error.reply_to) == ("28P01", startup.start)
    assert [whole.bytes_of(one) for one in whole.redactions] == [b"guess-7\0"]
    assert whole.dissector.attrs["auth"] == "password"


# -- extended protocol ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
def test_every_type_reads_as_the_server_prints_it(lab: Server, wire: Relay, binary: bool) -> None:
    printed = psql(lab, lab.port, f"COPY ({TYPES}) TO STDOUT WITH (FORMAT csv, NULL '<null>', FORCE_QUOTE *)")
    with psycopg.connect(lab.dsn(wire.port), autocommit=True) as client, client.cursor(binary=binary) as cursor:
        # no decoding by the client: some of these values have no Python counterpart
        cursor.execute(TYPES.encode(), binary=binary)
        assert cursor.pgresult is not None
        assert cursor.pgresult.fformat(0) == int(binary)
    whole = played(wire)
    (row,) = rows(whole, query(whole, TYPES[:20]))
    quoted = ",".join("<null>" if cell is None else '"' + cell.replace('"', '""') + '"' for cell in row)
    assert quoted + "\n" == printed
    assert not [one for one in whole.messages if "undecoded" in one.flags]


def test_types_without_a_decoder_are_in_hexadecimal(lab: Server, wire: Relay) -> None:
    with psycopg.connect(lab.dsn(wire.port), autocommit=True) as client:
        client.execute(b"SELECT '(1,2)'::point AS p, 'x'::text", binary=True)
    (batch,) = of(played(wire), "rows")
    assert batch.attrs["rows"] == [["\\x3ff00000000000004000000000000000", "x"]]
    assert batch.flags == ("undecoded",)


def test_bind_values_and_prepared_statements(lab: Server, wire: Relay) -> None:
    sql = "INSERT INTO goods VALUES (%s, %s, %b, %t)"
    values = [(n, f"thing {n}", n / 4, "2026-11-23 08:00+00") for n in range(4)]
    with psycopg.connect(lab.dsn(wire.port), autocommit=True, prepare_threshold=2) as client:
        for one in values:
            client.execute(sql, one)
        client.execute("SELECT name FROM goods WHERE id = %s AND name <> %s", (2, None))
    whole = played(wire)
    inserts = [one for one in of(whole, "query") if one.attrs["sql"].startswith("INSERT")]
    expected = [[str(n), f"thing {n}", f"{n / 4:g}", "2026-11-23 08:00+00"] for n in range(4)]
    assert [one.attrs["parameters"] for one in inserts] == expected
    assert inserts[0].attrs["prepared"] == ""
    assert inserts[3].attrs["prepared"].startswith("_pg3_")
    named = [one for one in of(whole, "prepare") if one.attrs["name"]]
    assert len(named) == 1  # the last two inserts share it
    assert inserts[3].attrs["prepared"] == named[0].attrs["name"]
    assert inserts[3].text.splitlines()[1:3] == ["$1 = 3", "$2 = thing 3"]
    assert {one.attrs["affected"] for one in of(whole, "result") if one.reply_to == inserts[3].start} == {1}
    assert query(whole, "SELECT name").attrs["parameters"] == ["2", None]
    assert whole.bytes_of(inserts[0])[:1] == b"B"
    assert whole.bytes_of(inserts[0]).endswith(b"E\0\0\0\x09\0\0\0\0\0")


def test_a_pipeline_with_an_error(lab: Server, wire: Relay) -> None:
    with psycopg.connect(lab.dsn(wire.port), autocommit=True) as client:
        with client.pipeline() as pipeline:
            first = client.execute("SELECT %s::int", (1,))
            client.execute("SELECT 1 / %s::int", (0,))
            client.execute("SELECT 'never'")
            with pytest.raises(psycopg.errors.DivisionByZero):
                pipeline.sync()
            last = client.execute("SELECT 'after'")
        assert first.fetchone() == (1,)
        assert last.fetchone() == ("after",)
    whole = played(wire)
    one, zero, never, after = [q for q in of(whole, "query") if q.attrs["sql"].startswith("SELECT")]
    (error,) = of(whole, "error")
    assert error.reply_to == zero.start
    assert rows(whole, one) == [["1"]]
    assert rows(whole, after) == [["after"]]
    assert never.start not in {q.reply_to for q in whole.messages}


def test_a_large_pipeline(lab: Server, wire: Relay) -> None:
    with psycopg.connect(lab.dsn(wire.port), autocommit=True) as client, client.pipeline():
        cursors = [client.execute("SELECT %s::int * 2", (n,)) for n in range(500)]
        assert [cursor.fetchone() for cursor in cursors] == [(2 * n,) for n in range(500)]
    whole = played(wire)
    asked = [one for one in of(whole, "query") if one.attrs["sql"].startswith("SELECT")]
    assert [rows(whole, one) for one in asked] == [[[str(2 * n)]] for n in range(500)]


def test_a_server_side_cursor(lab: Server, wire: Relay) -> None:
    with psycopg.connect(lab.dsn(wire.port)) as client, client.cursor("walk") as cursor:
        cursor.execute("SELECT generate_series(1, 5)")
        assert cursor.fetchmany(2) == [(1,), (2,)]
        assert cursor.fetchall() == [(3,), (4,), (5,)]
    whole = played(wire)
    fetches = [one for one in of(whole, "query") if one.attrs["sql"].startswith("FETCH")]
    assert [rows(whole, one) for one in fetches] == [[["1"], ["2"]], [["3"], ["4"], ["5"]]]


# -- COPY, and what comes by itself --------------------------------------------------------------------------------


def test_copy_both_ways(lab: Server, wire: Relay) -> None:
    lines = [f"{n}\tzeile ä {n}\n" for n in range(9000)]
    with psycopg.connect(lab.dsn(wire.port), autocommit=True) as client:
        with client.cursor().copy("COPY line FROM STDIN") as copy:
            data = "".join(lines).encode()
            for at in range(0, len(data), 997):  # cuts characters
                copy.write(data[at : at + 997])
        with client.cursor().copy("COPY line TO STDOUT") as copy:
            got = b"".join(bytes(one) for one in copy)
    assert got == data
    whole = played(wire)
    for direction in (C, S):
        batches = [one for one in of(whole, "copy") if one.direction is direction]
        assert len(batches) > 1
        assert "".join(one.text for one in batches) == data.decode()
        assert sum(one.attrs["bytes"] for one in batches) == len(data)
    assert [one.attrs["tag"] for one in of(whole, "result")] == ["COPY 9000", "COPY 9000"]
    into, out = of(whole, "copy-start")
    assert (into.attrs["copy"], into.reply_to) == ("in", query(whole, "COPY line FROM").start)
    assert (out.attrs["copy"], out.reply_to) == ("out", query(whole, "COPY line TO").start)
    assert {one.reply_to for one in of(whole, "copy", "copy-done") if one.direction is C} == {into.start}


def test_copy_in_binary(lab: Server, wire: Relay) -> None:
    with psycopg.connect(lab.dsn(wire.port), autocommit=True) as client:
        with client.cursor().copy("COPY line FROM STDIN (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            copy.write_row((-5, "binary words"))
            copy.write_row((-6, None))
        with client.cursor().copy("COPY (SELECT * FROM line WHERE n < 0) TO STDOUT (FORMAT binary)") as copy:
            b"".join(bytes(one) for one in copy)
    batches = of(played(wire), "copy")
    assert [one.text for one in batches] == ["\\xfffffffb\tbinary words\n\\xfffffffa\t\\N"] * 2
    assert {one.flags for one in batches} == {("undecoded",)}


def test_copy_that_fails(lab: Server, wire: Relay) -> None:
    with psycopg.connect(lab.dsn(wire.port), autocommit=True) as client:
        with pytest.raises(ValueError, match="changed my mind"):
            _copy_in(client, "1\tx\n", fail=True)
        with pytest.raises(psycopg.DataError):
            _copy_in(client, "no number\tx\n", fail=False)
        client.execute("SELECT 'still there'")
        client.execute("SELECT %s", ("there",))
    whole = played(wire)
    (failed,) = of(whole, "copy-fail")
    assert "changed my mind" in failed.text
    copies = [one for one in of(whole, "query") if one.attrs["sql"].startswith("COPY")]
    assert [one.reply_to for one in of(whole, "error")] == [one.start for one in copies]
    assert rows(whole, query(whole, "SELECT 'still")) == [["still there"]]
    assert rows(whole, query(whole, "SELECT $1")) == [["there"]]


def _copy_in(client: "psycopg.Connection[Any]", data: str, fail: bool) -> None:
    with client.cursor().copy("COPY line FROM STDIN") as copy:
        copy.write(data)
        if fail:
            raise ValueError("changed my mind")


def test_copy_by_the_extended_protocol(lab: Server, wire: Relay) -> None:
    """A Sync that comes with the Execute is passed over by the server while it copies."""
    with psycopg.connect(lab.dsn(wire.port), autocommit=True) as client:
        connection = client.pgconn
        connection.send_query_params(b"COPY line FROM STDIN", [])
        result = _next_result(client)
        assert result is not None
        assert result.status == psycopg.pq.ExecStatus.COPY_IN
        connection.put_copy_data(b"9\tnine\n")
        connection.put_copy_end()
        while _next_result(client) is not None:
            pass
        client.execute("SELECT 'behind'")
        client.execute("SELECT %s", ("further",))
    whole = played(wire)
    (copied,) = [one for one in of(whole, "result") if one.attrs["tag"] == "COPY 1"]
    assert copied.reply_to == query(whole, "COPY").start
    assert rows(whole, query(whole, "SELECT 'behind'")) == [["behind"]]
    assert rows(whole, query(whole, "SELECT $1")) == [["further"]]


def _next_result(client: "psycopg.Connection[Any]") -> Any:
    """The next result, without blocking within libpq: the relay runs in this process."""

    def arrived() -> bool:
        client.pgconn.flush()
        client.pgconn.consume_input()
        return not client.pgconn.is_busy()

    until(arrived, "a result")
    return client.pgconn.get_result()


def test_notifications(lab: Server, wire: Relay) -> None:
    with psycopg.connect(lab.dsn(wire.port), autocommit=True) as client:
        client.execute("LISTEN doorbell")
        with psycopg.connect(lab.dsn(lab.port), autocommit=True) as other:
            other.execute("NOTIFY doorbell, 'ding'")
        assert [one.payload for one in client.notifies(timeout=10, stop_after=1)] == ["ding"]
    (said,) = of(played(wire), "notification")
    assert (said.attrs["channel"], said.attrs["payload"], said.text) == ("doorbell", "ding", "doorbell: ding")


def test_cancel(lab: Server, wire: Relay) -> None:
    with psycopg.connect(lab.dsn(wire.port), autocommit=True) as client:
        canceller = threading.Thread(target=_cancel_when_asleep, args=(lab, client))
        canceller.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            client.execute("SELECT pg_sleep(20)")
        canceller.join()
    recordings = wire.ended(2)
    session, cancel = (play(Postgres, one.turns) for one in recordings)
    (key,) = of(session, "key")
    (said,) = of(cancel, "cancel")
    assert (said.attrs["pid"], said.flags) == (key.attrs["pid"], ())
    assert not cancel.redactions
    assert [one.attrs["sqlstate"] for one in of(session, "error")] == ["57014"]


def _cancel_when_asleep(lab: Server, client: "psycopg.Connection[Any]") -> None:
    with psycopg.connect(lab.dsn(lab.port), autocommit=True) as watcher:
        asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        until(lambda: watcher.execute(asleep).fetchone() == (1,), "the query sleeps")
    client.cancel_safe(timeout=10)


def test_a_function_call(lab: Server, wire: Relay) -> None:
    """libpq's large object functions are the fast path's last users."""
    with psycopg.connect(lab.dsn(wire.port), autocommit=True) as client:
        oid = client.execute("SELECT 'pg_catalog.int4pl(int4,int4)'::regprocedure::oid::int").fetchone()
        assert oid is not None
    whole = played(wire)
    recording = wire.recordings[0]
    ending = b"X\0\0\0\x04"
    function = oid[0].to_bytes(4, "big")
    call = function + b"\0\1\0\1\0\2\0\0\0\4\0\0\0\5\0\0\0\4\0\0\0\7\0\1"
    framed = b"F" + (len(call) + 4).to_bytes(4, "big") + call
    answer = _talk(lab, recording.stream(C).removesuffix(ending)[8:] + framed + ending)
    said = play(Postgres, [(C, recording.stream(C).removesuffix(ending)[8:] + framed + ending), (S, answer)])
    (called,) = of(said, "call")
    assert called.attrs == {"function": oid[0], "arguments": ["\\x00000005", "\\x00000007"]}
    (result,) = [one for one in of(said, "result") if one.reply_to == called.start]
    assert result.attrs == {"value": "\\x0000000c"}
    assert whole.dissector.attrs["user"] == said.dissector.attrs["user"]


def _talk(lab: Server, sent: bytes) -> bytes:
    async def talk() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", lab.port)
        writer.write(sent)
        got = await asyncio.wait_for(reader.read(-1), 20)
        writer.close()
        await writer.wait_closed()
        return got

    return asyncio.run(talk())


def test_replication_is_counted(lab: Server, wire: Relay) -> None:
    with psycopg.connect(lab.dsn(lab.port), autocommit=True) as client:
        client.execute("SELECT pg_create_logical_replication_slot('vb', 'test_decoding')")
        client.execute("INSERT INTO line VALUES (77, 'replicated')")
        end = client.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert end is not None
    command = ["pg_recvlogical", "--start", "--slot", "vb", "--endpos", end[0], "--no-loop", "-f", "-"]
    got = subprocess.run([*command, "-d", lab.dsn(wire.port)], capture_output=True, check=True, timeout=20).stdout
    assert b"replicated" in got
    whole = played(wire)
    assert whole.dissector.attrs["replication"] == "database"
    (began,) = of(whole, "copy-start")
    assert began.attrs["copy"] == "both"
    streamed = of(whole, "copy")
    assert sum(one.attrs["bytes"] for one in streamed if one.direction is S) > len(got)
    assert sum(one.attrs["bytes"] for one in streamed if one.direction is C) > 0
    assert {(one.attrs["format"], one.text) for one in streamed} == {("replication", "")}


def test_other_encodings(lab: Server, wire: Relay) -> None:
    with psycopg.connect(lab.dsn(wire.port, client_encoding="LATIN1"), autocommit=True) as client:
        assert client.execute("SELECT 'é' || %s", ("ü",)).fetchone() == ("éü",)
    whole = played(wire)
    asked = query(whole, "SELECT 'é'")
    assert asked.attrs["parameters"] == ["ü"]
    assert rows(whole, asked) == [["éü"]]


def test_pgbench(lab: Server, wire: Relay) -> None:
    """Every transaction of each protocol: as many queries and results as pgbench counted."""
    for number, mode in enumerate(("simple", "extended", "prepared")):
        script = lab.folder / "bench.sql"
        script.write_text("SELECT :client_id AS who, 7 * 6 AS answer;\n")
        command: list[str] = [
            "pgbench",
            "-n",
            "-M",
            mode,
            "-t",
            "50",
            "-f",
            str(script),
            "-h",
            "127.0.0.1",
            "-p",
            str(wire.port),
        ]
        run = subprocess.run([*command, "-U", "open", "postgres"], capture_output=True, check=True, timeout=30)
        assert b"processed: 50/50" in run.stdout
        whole = [play(Postgres, one.turns) for one in wire.ended(number + 1)][-1]
        asked = [one for one in of(whole, "query") if "AS answer" in one.attrs["sql"]]
        assert len(asked) == 50
        assert all(rows(whole, one) == [["0", "42"]] for one in asked)
