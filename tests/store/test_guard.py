"""Each statement goes to a running service with the reader's token, and the forbidden ones with the writer's too."""

from pathlib import Path
from urllib.parse import urlencode

import httpx2 as httpx
import pytest

from appliance.errors import Refused
from appliance.store import guard
from appliance.store.link import Service

FORBIDDEN = [
    # writes, definitions and control
    "INSERT INTO messages SELECT * FROM messages",
    "INSERT INTO messages VALUES (1)",
    "INSERT INTO verbatim.messages (session_id) SELECT session_id FROM messages",
    "INSERT INTO FUNCTION file('x.csv') SELECT 1",
    "INSERT INTO messages (`seq`) FORMAT JSONEachRow\n{}",
    "INSERT INTO system.settings (name) FORMAT Native\n",
    "INSERT INTO other.messages (seq) FORMAT Native\n",
    "INSERT INTO messages (seq) SETTINGS async_insert=1 FORMAT Native\n",
    "INSERT INTO messages (seq) FROM INFILE '/etc/passwd' FORMAT Native\n",
    "insert into schema_version (version) FORMAT Native\n",
    "ALTER TABLE messages DELETE WHERE 1",
    "ALTER TABLE messages UPDATE kind = 'x' WHERE 1",
    "DELETE FROM messages WHERE 1",
    "TRUNCATE TABLE messages",
    "DROP TABLE messages",
    "DROP DATABASE verbatim",
    "RENAME TABLE messages TO m2",
    "DETACH TABLE messages",
    "OPTIMIZE TABLE messages FINAL",
    "CREATE TABLE t (a Int8) ENGINE = Memory",
    "CREATE TABLE t ENGINE = File(CSV) AS SELECT 1",
    "CREATE FUNCTION f AS x -> x",
    "CREATE USER u",
    "GRANT ALL ON *.* TO default",
    "SET readonly = 0",
    "SET max_execution_time = 0",
    "USE system",
    "SYSTEM SHUTDOWN",
    "SYSTEM RELOAD CONFIG",
    "KILL QUERY WHERE 1",
    "KILL MUTATION WHERE 1",
    "BACKUP TABLE messages TO File('x')",
    "ATTACH TABLE messages",
    "EXCHANGE TABLES messages AND chunks",
    "UNDROP TABLE messages",
    "BEGIN TRANSACTION",
    # statements that read too much
    "SHOW TABLES",
    "SHOW DATABASES",
    "SHOW CREATE TABLE messages",
    "EXISTS TABLE messages",
    "EXPLAIN SELECT 1",
    "DESCRIBE TABLE system.settings",
    "DESCRIBE TABLE default.messages",
    "DESCRIBE TABLE file('/etc/passwd')",
    "DESCRIBE (SELECT 1)",
    "CHECK TABLE messages",
    # several statements
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE messages",
    "SELECT 1;; DROP TABLE messages",
    "SELECT 1 /* ; */; DROP TABLE messages -- x",
    "SELECT '\\'' ; DROP TABLE messages --'",
    # files
    "SELECT 1 INTO OUTFILE '/tmp/verbatim-outfile'",
    "SELECT 1 INTO/**/OUTFILE '/tmp/verbatim-outfile' FORMAT CSV",
    "SELECT 1\nINTO\nOUTFILE '/tmp/verbatim-outfile' TRUNCATE FORMAT CSV",
    "SELECT * FROM file('/etc/passwd')",
    "SELECT * FROM file/**/('/etc/passwd', LineAsString)",
    "SELECT * FROM FILE('/etc/passwd', 'LineAsString')",
    "SELECT * FROM `file`('/etc/passwd')",
    "SELECT * FROM \"file\"('/etc/passwd')",
    "SELECT * FROM messages, file('/etc/passwd')",
    "SELECT * FROM messages JOIN file('/etc/passwd') AS f ON 1",
    "SELECT * FROM (SELECT * FROM file('/etc/passwd'))",
    "SELECT (SELECT * FROM file('/etc/passwd') LIMIT 1)",
    "SELECT 1 WHERE 1 IN (SELECT 1 FROM file('/etc/passwd'))",
    "SELECT 1 WHERE 1 IN file('/etc/passwd')",
    "SELECT 1 UNION ALL SELECT * FROM file('/etc/passwd')",
    "SELECT file('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    'SELECT * FROM "/etc/passwd"',
    "SELECT * FROM `/etc/passwd`",
    "SELECT * FROM default.`/etc/passwd`",
    "SELECT * FROM `default`.`/etc/passwd`",
    'SELECT * FROM "messages\n" ',
    "SELECT * FROM `messages (alias m)` AS x",
    "SELECT 1 WHERE 1 IN default.`/etc/passwd`",
    "SELECT * FROM messages AS m LEFT JOIN `/etc/passwd` AS p ON 1",
    "WITH x AS (SELECT * FROM file('/etc/passwd')) SELECT * FROM x",
    "WITH 1 AS x SELECT x",
    # networks and programs
    "SELECT * FROM url('http://127.0.0.1/', CSV)",
    "SELECT * FROM s3('http://127.0.0.1/x', CSV)",
    "SELECT * FROM remote('127.0.0.1', system.one)",
    "SELECT * FROM cluster('x', system.one)",
    "SELECT * FROM mysql('h', 'd', 't', 'u', 'p')",
    "SELECT * FROM postgresql('h', 'd', 't', 'u', 'p')",
    "SELECT * FROM executable('id', TSV, 'x String')",
    "SELECT * FROM Python(os)",
    "SELECT * FROM input('x String')",
    # other tables and table functions
    "SELECT * FROM system.settings",
    "SELECT * FROM `system`.`settings`",
    'SELECT * FROM "system"."parts"',
    "SELECT * FROM system . parts",
    "SELECT * FROM system/**/.parts",
    "SELECT * FROM SYSTEM.PARTS",
    "SELECT * FROM INFORMATION_SCHEMA.TABLES",
    "SELECT 1 WHERE 1 IN system.numbers",
    "SELECT * FROM numbers(10)",
    "SELECT * FROM generateRandom('a Int8')",
    "SELECT * FROM merge('system', '.*')",
    "SELECT * FROM view(SELECT 1)",
    "SELECT * FROM values('a Int8', 1)",
    "SELECT * FROM null('a Int8')",
    "SELECT * FROM loop(messages)",
    "SELECT * FROM dictionary('x')",
    "SELECT * FROM {t:Identifier}",
    "SELECT * FROM {t:/**/Identifier}",
    "SELECT {t:Identifier} FROM messages",
    "FROM system.one SELECT *",
    "SELECT name, value, readonly FROM system.settings",
    # functions
    "SELECT sleep(3)",
    "SELECT getSetting('readonly')",
    "SELECT hostName()",
    "SELECT currentUser()",
    "SELECT dictGet('x', 'y', 1)",
    "SELECT joinGet('x', 'y', 1)",
    "SELECT range(1000000000)",
    "SELECT repeat('x', 1000000000)",
    "SELECT evalMLMethod(1, 2)",
    "SELECT formatQuery('SELECT 1')",
    # settings
    "SELECT 1 SETTINGS readonly = 0",
    "SELECT 1 SETTINGS max_execution_time = 0",
    "SELECT 1/**/SETTINGS/**/readonly=0",
    "SELECT * FROM (SELECT 1 SETTINGS readonly = 0)",
    "SELECT 1 FORMAT JSON SETTINGS readonly = 0",
    # formats and noise
    "SELECT 1 FORMAT Template",
    "SELECT 1 FORMAT Prometheus",
    "/* x */ DROP TABLE messages",
    "-- x\nDROP TABLE messages",
    "/* SELECT */ SELECT 1",
    "\ufeffSELECT 1",
    "(SELECT 1)",
    "((SELECT 1)) INTO OUTFILE '/tmp/verbatim-outfile'",
    "garbage",
    "SELECT",
    "SELECT '",
    "SELECT /* ",
]

ALLOWED = [
    "SELECT 1",
    "  select 1 FORMAT JSON",
    "SELECT count() FROM messages -- a comment; DROP TABLE messages",
    "SELECT /* file('/etc/passwd') */ count() FROM verbatim.messages",
    "SELECT 'file(''/etc/passwd''); system.settings INTO OUTFILE'",
    "SELECT version(), timezone()",
    "SELECT m.kind, count() AS n FROM messages AS m WHERE m.seq > 0 GROUP BY m.kind HAVING n > 1 ORDER BY n LIMIT 5",
    "SELECT argMax(ending, seq) FROM sessions GROUP BY session_id",
    "SELECT seq FROM messages WHERE session_id IN (SELECT session_id FROM sessions WHERE node = {n:String})",
    "SELECT count() FROM messages INNER JOIN sessions USING (session_id)",
    "SELECT fields['sni'] FROM sessions UNION ALL SELECT kind FROM findings",
    "DESCRIBE TABLE verbatim.messages",
    "DESCRIBE TABLE `messages` FORMAT JSON",
]


def ask(access: Service, token: str, statement: str, **parameters: str) -> httpx.Response:
    return httpx.post(
        f"{access.url}/?{urlencode({'database': 'verbatim', **parameters})}",
        content=statement.encode(),
        headers={"Authorization": f"Bearer {token}"},
    )


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_forbidden(access: Service, statement: str) -> None:
    for token in (access.reader, access.writer):
        for inline in (False, True):
            answer = (
                ask(access, token, "", query=statement, param_t="messages")
                if inline
                else ask(access, token, statement, param_t="messages")
            )
            assert answer.status_code >= 400, answer.text
            assert int(answer.headers["X-ClickHouse-Exception-Code"])
            assert "root:" not in answer.text
    assert not Path("/tmp/verbatim-outfile").exists()


def test_everything_is_still_there(access: Service) -> None:
    """After all of the above."""
    for table in guard.READABLE:
        assert ask(access, access.reader, f"SELECT count() FROM {table}").status_code == 200


@pytest.mark.parametrize("statement", ALLOWED)
def test_allowed(access: Service, statement: str) -> None:
    answer = ask(access, access.reader, statement, param_n="gateway")
    assert answer.status_code == 200, answer.text
    assert ask(access, access.reader, statement, param_n="gateway").status_code == 200  # known now


def test_parameters_do_not_change_what_a_known_statement_means(access: Service) -> None:
    statement = "SELECT {x:String} AS x"
    assert ask(access, access.reader, statement, param_x="a").text == "a\n"
    for value in ("') FROM system.settings --", "file('/etc/passwd')", "a\\nFunction file"):
        assert ask(access, access.reader, statement, param_x=value).status_code == 200


def test_a_long_statement_is_refused(access: Service) -> None:
    assert ask(access, access.reader, f"SELECT '{'x' * guard.MAX_STATEMENT}'").status_code == 403


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("INSERT INTO messages (seq) FORMAT Native", ("messages", ("seq",))),
        ("INSERT INTO `verbatim`.`chunks` (`seq`, data) FORMAT Native", ("chunks", ("seq", "data"))),
        ("SELECT 1", None),
    ],
)
def test_the_form_of_an_insert(statement: str, expected: object) -> None:
    assert guard.insert(statement) == expected


@pytest.mark.parametrize("name", ["se`q", "seq)", "seq, (SELECT 1)", "seq -- ", ""])
def test_column_names_are_plain(name: str) -> None:
    with pytest.raises(Refused, match="only INSERT INTO table"):
        guard.insert(f"INSERT INTO messages ({name}) FORMAT Native")
