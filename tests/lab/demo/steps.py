"""One step for each further protocol: what an agent does with a real client, and how the record of it compares.

A new one is an entry of `STEPS`. Its client prints what it got; that is compared with the messages of its session.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab.appliance import Appliance, Rule, relayed
from tests.lab.lab import Lab
from tests.lab.services import Llm, MariaDb, Redis, Service, Ssh, TlsPostgres, Web
from tests.lab.task import Task

Say = Callable[[str, str], None]  # whose shell, and the command line
Messages = Sequence[dict[str, Any]]  # of the step's session, in order

MODEL = "model.lab.test"  # the language models
MODEL_KEY, SHOP, SSH_KEY = "model-key", "shop", "worker"  # names of secrets
COMMAND = "echo reports of $USER; seq 3"
TOKEN_SQL = "SELECT session_user, count(*) AS orders FROM orders"
MARIADB_SQL = "SELECT name, notes FROM customers ORDER BY id; SELECT count(*) AS unpaid FROM orders WHERE NOT paid;"
REDIS_COMMANDS = ("SET basket:7 abacus", "INCR visits", "HSET customer:1 name Ada tier gold", "HGETALL customer:1")


@dataclass(frozen=True)
class Step:
    """`what` it shows, how its session's `protocol` is called, and the server.

    `work` runs the client and returns what it printed; `compare` says whether the messages tell the same, and what they
    tell in a few words.
    """

    what: str
    protocol: str
    service: type[Service]
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


def _page(task: Task, lab: Lab, say: Say) -> str:
    say("agent1", f"curl -6 https://{lab.web.fqdn}/api/items   # TLS ends at the gateway, and begins there anew")
    return task.curl("-6", f"https://{lab.web.fqdn}/api/items").output


def _pages(messages: Messages, printed: str) -> tuple[bool, str]:
    (response,) = (m for m in messages if m["kind"] == "response")
    return response["text"].partition("\n\n")[2] == printed, f"{len(printed)} characters of JSON"


def _ssh(task: Task, lab: Lab, say: Say) -> str:
    where = f"{lab.ssh.user}@{lab.ssh.fqdn}"
    say("agent1", f"ssh {where} {COMMAND!r}   # the lease says who this is, and the gateway has the key")
    known = task.agent.home / "known_hosts_of_the_gateway"
    trust = ["-o", f"UserKnownHostsFile={known}", "-o", "StrictHostKeyChecking=accept-new", "-o", "LogLevel=ERROR"]
    return task.run(["ssh", "-F", "none", "-o", "BatchMode=yes", *trust, where, COMMAND]).output


def _ssh_output(messages: Messages, printed: str) -> tuple[bool, str]:
    asked = [m["attrs"]["command"] for m in messages if m["kind"] == "exec"]
    told = "".join(m["text"] for m in messages if m["kind"] == "output")
    return asked == [COMMAND] and told == printed, f"{len(printed)} characters of {COMMAND!r}"


def _model(task: Task, lab: Lab, say: Say) -> str:
    url = f"https://{MODEL}/v1/chat/completions"
    say("agent1", f"curl -N -H @token --json @question.json {url}   # the API gets a key that the agent has not")
    asked = {"model": "lab-1", "stream": True, "messages": [{"role": "user", "content": "How are sales?"}]}
    header = task.agent.home / "token"
    header.touch(0o600)
    header.write_text(f"Authorization: Bearer {task.token}\n")
    return task.curl("-N", "-H", f"@{header}", "--json", "@-", url, input=json.dumps(asked)).output


def _events(messages: Messages, printed: str) -> tuple[bool, str]:
    told = [m["text"] for m in messages if m["kind"] == "event"]
    return bool(told) and "\n\n".join(told) + "\n\n" == printed, f"{len(told)} events, one at a time"


def _psql(task: Task, lab: Lab, say: Say) -> str:
    server = lab.tls_db
    say("agent1", f"PGPASSWORD=$TOKEN psql 'host={server.fqdn} sslmode=verify-full' -c {TOKEN_SQL!r}")
    where = f"host={server.fqdn} user={server.user} dbname={server.database} sslmode=verify-full"
    command = ["psql", "-X", "-A", "-F", "\t", "-P", "footer=off", where, "-c", TOKEN_SQL]
    return task.run(command, env={"PGPASSWORD": task.token, **task.trust()}).output


def _rows(messages: Messages, printed: str) -> tuple[bool, str]:
    (rows,) = (m["attrs"] for m in messages if m["kind"] == "rows")
    table = [[column["name"] for column in rows["columns"]], *rows["rows"]]
    return "".join("\t".join(line) + "\n" for line in table) == printed, f"{len(table)} lines, TLS opened"


def rules(lab: Lab) -> list[Rule]:
    """What is opened for the steps that need a relay."""
    by_token = {"mode": "mediate", "identify": "token"}
    return [
        relayed(lab, Web, 443)[1],
        *relayed(lab, Llm, 443, host=MODEL, application="http", secret=MODEL_KEY, **by_token),
        *relayed(lab, Ssh, 22, application="ssh", mode="mediate", secret=SSH_KEY),
        *relayed(lab, TlsPostgres, 5432, application="postgres", secret=SHOP, **by_token),
    ]


def keep_secrets(lab: Lab, appliance: Appliance) -> None:
    """The credentials that these rules use in the place of agents'."""
    password = ["--kind", "password", "--user", lab.tls_db.user]
    for name, kind, value in ((MODEL_KEY, ["--kind", "token"], lab.llm.key), (SHOP, password, lab.tls_db.password)):
        appliance.verbatim("secret", "set", name, *kind, input=value)
    key = ["--user", lab.ssh.user, "--file", str(lab.ssh.key)]
    appliance.verbatim("secret", "set", SSH_KEY, "--kind", "ssh-key", *key)


STEPS: tuple[Step, ...] = (
    Step("what the MariaDB client printed", "mysql", MariaDb, _mariadb, _mariadb_rows),
    Step("what redis-cli printed", "redis", Redis, _redis, _redis_replies),
    Step("what curl got within TLS", "http2", Web, _page, _pages),
    Step("what a command printed by SSH", "ssh", Ssh, _ssh, _ssh_output),
    Step("what the language model said", "http2", Llm, _model, _events),
    Step("what psql printed, with a token as its password", "postgres", TlsPostgres, _psql, _rows),
)
