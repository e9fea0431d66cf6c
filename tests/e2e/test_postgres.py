"""What psql printed, and what a program bound and fetched, equals what the messages say."""

import json
from typing import Any

from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.net import PYTHON
from tests.lab.task import Task

TABS = ("-A", "-F", "\t", "-P", "null=\\N", "-P", "footer=off")  # psql prints what COPY would
CUSTOMERS = "SELECT id, name, country, notes, profile, since FROM customers ORDER BY id;"
ORDERS = "SELECT * FROM orders ORDER BY id;"


def of(messages: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [message for message in messages if message["kind"] == kind]


def printed_like_psql(rows: list[dict[str, Any]]) -> str:
    """The result as psql prints it: the columns' names, then the rows. A long result comes in several messages."""
    names = "\t".join(column["name"] for column in rows[0]["attrs"]["columns"])
    cells = [["\\N" if cell is None else cell for cell in row] for message in rows for row in message["attrs"]["rows"]]
    return "".join("\t".join(line) + "\n" for line in [[names], *cells])


def test_psql(task: Task, lab: Lab, appliance: Appliance, family: int) -> None:
    printed = task.psql(CUSTOMERS, *TABS, host=lab.db.addresses[family]).output
    assert "山田 太郎" in printed
    session = task.session(protocol="postgres")
    messages = appliance.messages(session)
    (query,), rows, (result,) = of(messages, "query"), of(messages, "rows"), of(messages, "result")
    assert query["text"] == CUSTOMERS
    assert printed_like_psql(rows) == printed
    assert [message["reply_to"] for message in rows] == [query["start"]]
    assert result["attrs"]["tag"] == "SELECT 5"
    assert session["coverage"] == "complete"
    assert session["findings"] == []
    assert (session["attrs"]["user"], session["attrs"]["database"]) == (lab.db.user, lab.db.database)
    assert session["server"] == {"address": lab.db.addresses[family], "port": 5432}


def test_many_rows(task: Task, lab: Lab, appliance: Appliance) -> None:
    printed = task.psql(ORDERS, *TABS, host=lab.db.addresses[0]).output
    assert printed.count("\n") == 401
    rows = of(appliance.messages(task.session(protocol="postgres")), "rows")
    assert len(rows) > 1
    assert printed_like_psql(rows) == printed


def test_byte_ranges_point_into_the_stream(task: Task, lab: Lab, appliance: Appliance) -> None:
    """A message can be read again from the bytes that it names."""
    task.psql(CUSTOMERS, host=lab.db.addresses[1])
    session = task.session(protocol="postgres")
    (query,) = of(appliance.messages(session), "query")
    said = appliance.stream(session, "client")[query["start"] : query["end"]]
    assert said == b"Q" + (len(CUSTOMERS) + 5).to_bytes(4, "big") + CUSTOMERS.encode() + b"\0"


def test_program_with_bind_values(task: Task, lab: Lab, appliance: Appliance, family: int) -> None:
    command = [str(PYTHON), "-m", "tests.lab.client", lab.db.addresses[family], lab.db.database, lab.db.user]
    told = json.loads(task.run(command, env=task.password()).output)
    messages = appliance.messages(task.session(protocol="postgres"))

    queries = {query["start"]: query for query in of(messages, "query")}
    answers: dict[int, list[list[str | None]]] = {start: [] for start in queries}
    for rows in of(messages, "rows"):
        answers[rows["reply_to"]] += rows["attrs"]["rows"]
    selects = [start for start, query in queries.items() if "profile->>'tier'" in query["attrs"]["sql"]]
    assert [[str(value) for value in queries[start]["attrs"]["parameters"]] for start in selects] == [
        select["parameters"] for select in told["select"]
    ]
    assert [answers[start] for start in selects] == [select["rows"] for select in told["select"]]

    (binary,) = [start for start, query in queries.items() if "ANY(" in query["attrs"]["sql"]]
    assert [row[5] for row in answers[binary]] == [row[5] for row in told["binary"]]
    assert [row[1] for row in answers[binary]] == [row[1] for row in told["binary"]]

    (insert,) = [query for query in queries.values() if "INSERT INTO audit" in query["attrs"]["sql"]]
    assert insert["attrs"]["parameters"] == ["bound value Ω", "second"]
    copies = of(messages, "copy")
    assert [sorted(_lines(copy["text"])) for copy in copies] == [sorted(told["copied_in"]), sorted(told["copied_out"])]
    assert [copy["direction"] for copy in copies] == ["client", "server"]
    (error,) = of(messages, "error")
    assert told["error"]["message"] in error["text"]
    assert told["error"]["sqlstate"] in json.dumps(error["attrs"])


def _lines(text: str) -> list[str]:
    """Rows of COPY's text format with one column (PostgreSQL documentation, COPY, "Text Format")."""
    return [line.replace("\\t", "\t").replace("\\\\", "\\") for line in text.splitlines()]


def test_wrong_password(task: Task, lab: Lab, appliance: Appliance) -> None:
    done = task.run(
        task.psql_command("-c", "SELECT 1", host=lab.db.addresses[0]), env={"PGPASSWORD": "no"}, check=False
    )
    assert done.code == 2
    (error,) = of(appliance.messages(task.session(protocol="postgres")), "error")
    assert "password authentication failed" in error["text"]


def test_password_in_clear_text_is_not_kept(task: Task, lab: Lab, appliance: Appliance) -> None:
    assert task.psql("SELECT 'hi'", "-At", host=lab.db.addresses[0], user=lab.db.legacy).output == "hi\n"
    session = task.session(protocol="postgres")
    secret = [m for m in appliance.messages(session) if m["direction"] == "client" and "redacted" in m["flags"]]
    assert [message["text"] for message in secret] == ["password"]
    stream = appliance.stream(session, "client")
    assert lab.db.password.encode() not in stream
    assert b"p" + (len(lab.db.password) + 5).to_bytes(4, "big") + b"*" * len(lab.db.password) in stream
    assert len(stream) == session["bytes"]["client"]
    assert "redacted" in session["findings"]
