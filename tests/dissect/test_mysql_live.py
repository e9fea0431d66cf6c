"""A real MariaDB, real clients, and a relay that records: what they saw is what the messages say."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest

from appliance.dissect import Match
from appliance.dissect.conversation import Conversation
from appliance.dissect.mysql import Mysql
from appliance.model import Message
from tests.dissect.harness import C, Played, S, assert_any_cut, assert_truncated, of, play
from tests.dissect.mysql_lab import Library, Server, available, server
from tests.dissect.postgres_lab import Relay, relay

pytestmark = pytest.mark.skipif(not available(), reason="needs MariaDB and root, to run it as user mysql")

TYPES = """
    CREATE TABLE kinds (a TINYINT, b SMALLINT UNSIGNED, c MEDIUMINT, d INT, e BIGINT UNSIGNED, f FLOAT, g DOUBLE,
      h DECIMAL(20,5), i DATE, j DATETIME(6), k TIMESTAMP(3) NULL, l TIME(2), m YEAR, n CHAR(5), o VARCHAR(50),
      p TEXT, q VARBINARY(9), r BLOB, s ENUM('x','y'), t SET('p','q'), v JSON, w UUID, x INET6, y INT(6) ZEROFILL,
      z FLOAT(7,2), aa DATETIME, ab TIME);
    INSERT INTO kinds VALUES
      (-128, 65535, -8388608, -2147483648, 18446744073709551615, 1.5, 0.1, 12345.678, '2026-11-23',
       '2026-11-23 08:09:10.123456', '2026-01-02 03:04:05.678', '-838:59:58.99', 2026, 'é', '☃ snow', 'long', 'raw',
       'blob', 'y', 'p,q', '{"a": [1, null]}', '123e4567-e89b-12d3-a456-426655440000', '2001:db8::1', 42, 3.14159,
       '2026-11-23 00:00:00', '100:00:01'),
      (127, 0, 8388607, 2147483647, 0, 1e30, 1e300, -0.5, '0001-01-01', '1000-01-01 00:00:00', NULL, '00:00:00',
       1901, '', '', '', '', '', 'x', '', '[]', NULL, '::', 0, -1, NULL, '-00:00:01'),
      (0, 1, 0, 0, 9007199254740993, 123456, -12345678901234567890, 99999, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
      (1, 1, 1, 1, 1, 0.00001, 1e-9, 1, '9999-12-31', '9999-12-31 23:59:59.999999', '2037-01-01 00:00:00', '23:59:59',
       2155, 'abc', 'x', 'y', 'z', 'w', 'x', 'q', '1', NULL, '::1', 1234567, 0, '1999-01-01 01:02:03', '12:34:56')
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Server]:
    with server() as one:
        setup = "CREATE TABLE goods (id INT PRIMARY KEY AUTO_INCREMENT, name VARCHAR(40), price DECIMAL(8,2));"
        setup += "INSERT INTO goods (name, price) VALUES ('tea', 1.10), ('süß', NULL);" + TYPES
        run = one.cli(one.port, "--default-character-set=utf8mb4", sql=setup)
        assert not run.returncode, run.stderr
        yield one


@pytest.fixture
def wire(lab: Server) -> Iterator[Relay]:
    with relay(lab.port) as one:
        yield one


def played(wire: Relay, number: int = 0, count: int = 1) -> Played:
    recording = wire.ended(count)[number]
    whole = play(Mysql, recording.turns)
    assert Mysql.detect(recording.stream(C), recording.stream(S)) is Match.YES
    for flag in ("malformed", "undissected", "undecoded", "unresolved"):
        assert not [one for one in whole.messages if flag in (*one.flags, one.kind)], flag
    said = json.dumps([[one.text, one.attrs] for one in whole.messages], ensure_ascii=False)
    for secret in whole.secrets():
        assert secret not in whole.stored(C) + whole.stored(S)
        assert secret.decode("latin-1") not in said
    return whole


def query(whole: Played, sql: str) -> Message:
    (found,) = [one for one in of(whole, "query") if one.attrs["sql"].startswith(sql)]
    return found


def rows(whole: Played, asked: Message) -> list[list[str | None]]:
    return [row for one in of(whole, "rows") if one.reply_to == asked.start for row in one.attrs["rows"]]


def printed(run: "subprocess.CompletedProcess[bytes]") -> list[list[str | None]]:
    """What `mariadb --batch --raw --skip-column-names` printed."""
    assert not run.returncode, run.stderr
    return [
        [None if cell == "NULL" else cell for cell in line.split("\t")] for line in run.stdout.decode().splitlines()
    ]


BATCH = ("--batch", "--raw", "--skip-column-names", "--default-character-set=utf8mb4")


# -- the command line's client -------------------------------------------------------------------------------------


def test_what_the_client_printed_is_what_the_messages_say(lab: Server, wire: Relay) -> None:
    sql = "SELECT seq, CONCAT('row ', seq) AS text, IF(seq % 3, NULL, seq / 7) AS share FROM seq_1_to_250"
    shown = printed(lab.cli(wire.port, *BATCH, "-e", sql))
    whole = played(wire)
    asked = query(whole, "SELECT seq")
    assert rows(whole, asked) == shown
    batches = of(whole, "rows")
    assert [one.attrs["row_offset"] for one in batches if one.reply_to == asked.start] == [0, 100, 200]
    assert [one["name"] for one in batches[-1].attrs["columns"]] == ["seq", "text", "share"]
    (result,) = [one for one in of(whole, "result") if one.reply_to == asked.start]
    assert (result.attrs["rows"], result.attrs["affected"]) == (250, None)
    assert whole.bytes_of(asked)[5:] == sql.encode()
    assert whole.dissector.attrs["user"] == "open"
    assert "10.11" in whole.dissector.attrs["server_version"]
    (startup,) = of(whole, "startup")
    assert startup.attrs["attributes"]["program_name"] == "mysql"
    assert of(whole, "terminate")


def test_values_of_all_types(lab: Server, wire: Relay) -> None:
    shown = printed(lab.cli(wire.port, *BATCH, "-e", "SELECT * FROM kinds"))
    whole = played(wire)
    asked = query(whole, "SELECT * FROM kinds")
    assert rows(whole, asked) == shown
    types = {one["name"]: one["type"] for one in of(whole, "rows")[-1].attrs["columns"]}
    assert (types["a"], types["b"], types["e"]) == ("tinyint", "smallint unsigned", "bigint unsigned")
    assert (types["q"], types["r"], types["p"], types["s"]) == ("varbinary", "blob", "text", "enum")
    assert (types["v"], types["w"], types["x"]) == ("json", "uuid", "inet6")


def test_prepared_statements_say_the_same_as_text(lab: Server, wire: Relay) -> None:
    shown = printed(lab.cli(lab.port, *BATCH, "-e", "SELECT * FROM kinds"))
    client = Library(wire.port)
    made = client.statement("SELECT * FROM kinds")
    client.execute(made)
    client.execute(made)
    client.end(made)
    client.close()
    whole = played(wire)
    first, second = of(whole, "query")[-2:]
    assert rows(whole, first) == shown
    assert rows(whole, second) == shown
    assert (first.attrs["sql"], first.attrs["prepared"]) == ("SELECT * FROM kinds", second.attrs["prepared"])


def test_bind_values(lab: Server, wire: Relay) -> None:
    client = Library(wire.port)
    made = client.statement("SELECT ?, ?, ?, ?")
    client.execute(made, [-5, 0.25, "süß", None])
    client.execute(made, [6, 1e30, "", b"\0\xff"])
    client.reset(made)
    client.end(made)
    made = client.statement("SELECT ?, 2")
    client.execute(made, [b""], long=[b"long ", b"value"])
    client.end(made)
    client.direct("SELECT 17 AS direct")
    client.close()
    whole = played(wire)
    asked = [one for one in of(whole, "query") if one.attrs["prepared"]]
    assert asked[0].attrs["parameters"] == ["-5", "0.25", "süß", None]
    assert asked[0].text == "SELECT ?, ?, ?, ?\n$1 = -5\n$2 = 0.25\n$3 = süß\n$4 = NULL"
    assert asked[1].attrs["parameters"] == ["6", "1e30", "", "\\x00ff"]
    assert asked[2].attrs["parameters"] == ["long value"]
    assert [one.text for one in of(whole, "bind")] == ["long ", "value"]
    assert rows(whole, asked[0]) == [["-5", "0.25", "süß", None]]
    assert rows(whole, asked[2]) == [["long value", "2"]]
    assert asked[3].attrs["prepared"] == "last"
    assert (asked[3].attrs["sql"], rows(whole, asked[3])) == ("SELECT 17 AS direct", [["17"]])


def test_bulk_execution_and_cursor(lab: Server, wire: Relay) -> None:
    client = Library(wire.port)
    made = client.statement("INSERT INTO goods (id, name) VALUES (?, ?)")
    client.bulk(made, [[101, 102, 103], ["one", None, "three"]])
    client.end(made)
    chosen = client.statement("SELECT id, name FROM goods WHERE id > 100 ORDER BY id")
    assert client.cursor(chosen) == 3
    client.end(chosen)
    client.close()
    whole = played(wire)
    asked, selected = [one for one in of(whole, "query") if one.attrs["prepared"]]
    assert asked.attrs["batch"] == [["101", "one"], ["102", None], ["103", "three"]]
    (result,) = [one for one in of(whole, "result") if one.reply_to == asked.start]
    assert result.attrs["affected"] == 3
    assert rows(whole, selected) == [["101", "one"], ["102", None], ["103", "three"]]
    assert [one.attrs["row_offset"] for one in of(whole, "rows") if one.reply_to == selected.start] == [0, 2]


def test_several_statements_errors_and_warnings(lab: Server, wire: Relay) -> None:
    with pymysql.connect(
        host="127.0.0.1",
        port=wire.port,
        user="open",
        database="shop",
        client_flag=pymysql.constants.CLIENT.MULTI_STATEMENTS,
        ssl_disabled=True,
    ) as client:
        with client.cursor() as cursor:
            cursor.execute("SELECT 1; UPDATE goods SET price = 2 WHERE id < 3; SELECT 'x', 2")
            while cursor.nextset():
                pass
        with client.cursor() as cursor, pytest.raises(pymysql.err.ProgrammingError):
            cursor.execute("SELECT * FROM nothing_here")
        client.ping()
        client.select_db("mysql")
        with client.cursor() as cursor:
            cursor.execute("SELECT CAST('7x' AS INT)")
    whole = played(wire)
    asked = query(whole, "SELECT 1;")
    answers = [one for one in of(whole, "result") if one.reply_to == asked.start]
    assert [(one.attrs["rows"], one.attrs["affected"]) for one in answers] == [(1, None), (0, 2), (1, None)]
    assert rows(whole, asked) == [["1"], ["x", "2"]]
    (error,) = of(whole, "error")
    assert (error.attrs["code"], error.attrs["sqlstate"]) == (1146, "42S02")
    assert error.text == "ERROR 1146 (42S02): Table 'shop.nothing_here' doesn't exist"
    assert error.reply_to == query(whole, "SELECT * FROM nothing").start
    assert [one.attrs["command"] for one in of(whole, "command")] == ["PING", "INIT_DB"]
    warned = query(whole, "SELECT CAST")
    (result,) = [one for one in of(whole, "result") if one.reply_to == warned.start]
    assert result.attrs["warnings"] == 1


def test_another_character_set(lab: Server, wire: Relay) -> None:
    login = pymysql.connect(
        host="127.0.0.1", port=wire.port, user="open", database="shop", charset="latin1", ssl_disabled=True
    )
    with login as client, client.cursor() as cursor:
        cursor.execute("SELECT 'größer €' AS größe")
        assert cursor.fetchall() == (("größer €",),)
    whole = played(wire)
    asked = query(whole, "SELECT 'größer €'")
    assert rows(whole, asked) == [["größer €"]]
    assert of(whole, "rows")[-1].attrs["columns"][0]["name"] == "größe"


# -- log-in --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "method"),
    [("open", "mysql_native_password"), ("native", "mysql_native_password"), ("ed", "client_ed25519")],
)
def test_log_in(lab: Server, wire: Relay, user: str, method: str) -> None:
    assert printed(lab.cli(wire.port, *BATCH, "-e", "SELECT 1", user=user)) == [["1"]]
    whole = played(wire)
    attrs = whole.dissector.attrs
    assert (attrs["user"], attrs["database"], attrs["auth"]) == (user, "shop", method)
    (accepted,) = of(whole, "authenticated")
    assert accepted.attrs["method"] == method
    secrets = whole.secrets()
    assert len(secrets) == {"open": 0, "native": 1, "ed": 2}[user]
    assert not secrets or len(secrets[-1]) == {"native": 20, "ed": 64}[user]
    turns = wire.recordings[0].turns[:8]
    assert_any_cut(Mysql, turns)
    assert_truncated(Mysql, turns, secrets=[secret for secret in secrets if len(secret) > 4])


def test_a_wrong_password(lab: Server, wire: Relay) -> None:
    with pytest.raises(pymysql.err.OperationalError):
        pymysql.connect(host="127.0.0.1", port=wire.port, user="native", password="wrong one", ssl_disabled=True)
    whole = played(wire)
    (error,) = of(whole, "error")
    (startup,) = of(whole, "startup")
    assert (error.attrs["code"], error.reply_to) == (1045, startup.start)
    assert not of(whole, "authenticated")


def test_a_change_of_user(lab: Server, wire: Relay) -> None:
    client = Library(wire.port)
    client.change_user("native", lab.password)
    client.direct("SELECT CURRENT_USER()")
    client.close()
    whole = played(wire)
    (changed,) = of(whole, "change-user")
    assert (changed.attrs["user"], changed.attrs["database"]) == ("native", "shop")
    assert rows(whole, query(whole, "SELECT CURRENT")) == [["native@%"]]
    assert whole.dissector.attrs["user"] == "native"
    assert {len(secret) for secret in whole.secrets()} == {20}


def test_tls(lab: Server, wire: Relay) -> None:
    assert printed(lab.cli(wire.port, *BATCH, "--ssl", "-e", "SELECT 1", user="native")) == [["1"]]
    recording = wire.ended()[0]
    whole = play(Conversation, recording.turns)
    assert whole.kinds()[:2] == ["greeting", "negotiate"]
    assert whole.dissector.attrs["protocols"] == ["mysql", "tls"]
    assert whole.dissector.opaque


# -- files and replication -----------------------------------------------------------------------------------------


def test_a_local_file(lab: Server, wire: Relay, tmp_path: Path) -> None:
    content = "".join(f"{number}\tgood {number} ☃\n" for number in range(1000, 7000))
    (tmp_path / "goods.tsv").write_text(content, "utf-8")
    sql = f"LOAD DATA LOCAL INFILE '{tmp_path / 'goods.tsv'}' INTO TABLE goods CHARACTER SET utf8mb4 (id, name)"
    run = lab.cli(wire.port, *BATCH, "--local-infile=1", "-e", sql)
    assert not run.returncode, run.stderr
    whole = played(wire)
    asked = query(whole, "LOAD DATA")
    (start,) = of(whole, "copy-start")
    assert (start.attrs["file"], start.reply_to) == (str(tmp_path / "goods.tsv"), asked.start)
    copies = of(whole, "copy")
    assert "".join(one.text for one in copies) == content
    assert {one.reply_to for one in copies} == {start.start}
    (result,) = [one for one in of(whole, "result") if one.reply_to == asked.start]
    assert result.attrs["tag"] == "Records: 6000  Deleted: 0  Skipped: 0  Warnings: 0"


def test_replication(lab: Server, wire: Relay) -> None:
    address = ["-h", "127.0.0.1", "-P", str(wire.port), "-u", "open", "--skip-ssl"]
    listed = printed(lab.cli(lab.port, *BATCH, "-e", "SHOW BINARY LOGS"))
    command = ["mariadb-binlog", "--no-defaults", "--read-from-remote-server", *address, str(listed[0][0])]
    run = subprocess.run(command, capture_output=True, check=False, timeout=20)
    assert not run.returncode, run.stderr
    whole = played(wire)
    (asked,) = of(whole, "replication")
    assert asked.attrs["file"] == listed[0][0]
    copies = of(whole, "copy")
    assert sum(one.attrs["bytes"] for one in copies) > 1000
    assert {one.reply_to for one in copies} == {asked.start}
