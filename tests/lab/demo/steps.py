"""One step for each further protocol: what an agent does with a real client, and how the record of it compares.

A new one is an entry of `STEPS`. Its client prints what it got; that is compared with the messages of its session.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab.lab import Lab
from tests.lab.task import Task

Say = Callable[[str, str], None]  # whose shell, and the command line
Messages = Sequence[dict[str, Any]]  # of the step's session, in order

MARIADB_SQL = "SELECT name, notes FROM customers ORDER BY id; SELECT count(*) AS unpaid FROM orders WHERE NOT paid;"
REDIS_COMMANDS = ("SET basket:7 abacus", "INCR visits", "HSET customer:1 name Ada tier gold", "HGETALL customer:1")


@dataclass(frozen=True)
class Step:
    """`what` it shows, and how its sessions' `protocol` is called.

    `work` runs the client and returns what it printed; `compare` says whether the messages tell the same, and what they
    tell in a few words.
    """

    what: str
    protocol: str
    work: Callable[[Task, Lab, Say], str]
    compare: Callable[[Messages, str], tuple[bool, str]]


def _mariadb(task: Task, lab: Lab, say: Say) -> str:
    server = lab.mariadb
    say("agent1", f"mariadb -h {server.fqdn} -u {server.user} {server.database} -e {MARIADB_SQL!r}")
    client = ["mariadb", "--no-defaults", "--skip-ssl", "--batch", "--raw", "--default-character-set=utf8mb4"]
    where = ["-h", server.fqdn, "-u", server.user, server.database]
    return task.run([*client, *where, "-e", MARIADB_SQL], env={"MYSQL_PWD": server.password}).output


def _mariadb_rows(messages: Messages, printed: str) -> tuple[bool, str]:
    text, before = "", None
    for message in messages:
        if message["kind"] == "rows":
            if message["reply_to"] != before:
                text += "\t".join(column["name"] for column in message["attrs"]["columns"]) + "\n"
            before = message["reply_to"]
            for row in message["attrs"]["rows"]:
                text += "\t".join("NULL" if cell is None else str(cell) for cell in row) + "\n"
    return text == printed, f"{text.count(chr(10))} lines"


def _redis(task: Task, lab: Lab, say: Say) -> str:
    server = lab.redis
    say("agent1", f"redis-cli -h {server.fqdn} --user {server.user}   # {', '.join(REDIS_COMMANDS)}")
    command = ["redis-cli", "--no-raw", "-h", server.fqdn, "--user", server.user, "--no-auth-warning"]
    lines = "\n".join(REDIS_COMMANDS) + "\n"
    return task.run(command, input=lines, env={"REDISCLI_AUTH": server.password}).output


def _redis_replies(messages: Messages, printed: str) -> tuple[bool, str]:
    # redis-cli logs in first, and asks for the list of commands that it helps to type.
    asked = {m["start"]: m["text"] for m in messages if m["kind"] == "command" and m["text"] in REDIS_COMMANDS}
    told = [m["text"] for m in messages if m["kind"] == "reply" and m["reply_to"] in asked]
    good = tuple(asked.values()) == REDIS_COMMANDS and "\n".join(told) + "\n" == printed
    return good, f"{len(told)} replies"


STEPS: tuple[Step, ...] = (
    Step("what the MariaDB client printed", "mysql", _mariadb, _mariadb_rows),
    Step("what redis-cli printed", "redis", _redis, _redis_replies),
)
