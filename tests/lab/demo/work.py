"""What the demo's agents do, with real programs, and what these programs saw: the oracle of what must be recorded."""

import json
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from tests.lab.appliance import Appliance, literal
from tests.lab.demo.steps import STEPS, Say
from tests.lab.lab import Lab
from tests.lab.net import PYTHON
from tests.lab.task import Task

RUN = "demo/quarterly-report"
SECOND_RUN = "demo/second-opinion"
TABS = ("-A", "-F", "\t", "-P", "null=\\N", "-P", "footer=off")
SQL = """\
SELECT name, country, notes FROM customers ORDER BY id;
SELECT c.name, sum(o.quantity) AS items, sum(o.quantity * o.price) AS total
  FROM orders o JOIN customers c ON c.id = o.customer GROUP BY c.name ORDER BY total DESC;
SELECT card_number FROM customers;
"""
SECOND_SQL = "SELECT count(*) AS unpaid FROM orders WHERE NOT paid;"
REPORT = {"report": "quarterly", "author": "agent-one", "total": 1234.5, "remark": "done ✓"}
REFUSED_SECONDS = 2.0


@dataclass
class Work:
    """What the programs printed and downloaded. `first` and `second` are the tasks that they ran under."""

    first: Task
    second: Task
    token: str
    second_token: str
    psql: str = ""
    psql_errors: str = ""
    items: bytes = b""
    download: bytes = b""
    echo: bytes = b""
    page: bytes = b""
    program: dict[str, Any] = field(default_factory=dict)
    second_psql: str = ""
    told: dict[str, str] = field(default_factory=dict)  # what the client of each step printed
    refused: dict[str, float] = field(default_factory=dict)  # what was tried → seconds until it failed


def work(lab: Lab, appliance: Appliance, say: Say) -> Work:
    """Everything in order. `say` shows each command before it runs."""
    tokens, second_tokens = lab.tokens(1), lab.tokens(2)
    refused = {"a host without a lease": _without_lease(lab, say)}

    say("agent1", "curl https://idp.lab.test/token -d grant_type=…token-exchange …   # acts for alice")
    token = tokens.exchange("agent-one", tokens.log_in("alice"), lab.token("agent-one"))
    say("agent1", f"curl -k -o verbatim-ca.crt {appliance.url()}/v1/ca.crt   # SHA-256 {appliance.fingerprint[:16]}… ✓")
    say("agent1", f"curl --cacert verbatim-ca.crt -H @token --json @run.json {appliance.url()}/v1/leases")
    with Task(appliance, 1, token, RUN) as first:
        done = Work(first, first, token, token, refused=refused)
        _first(done, lab, say)
        done.told = {step.what: step.work(first, lab, say) for step in STEPS}
        say(
            "agent2", "curl https://idp.lab.test/token -d grant_type=…token-exchange …   # acts for agent-one for alice"
        )
        done.second_token = second_tokens.exchange("agent-two", token, lab.token("agent-two", agent=2))
        with Task(appliance, 2, done.second_token, SECOND_RUN) as second:
            done.second = second
            say("agent2", f"psql -h {lab.db.fqdn} -c {SECOND_SQL!r}")
            done.second_psql = second.psql(SECOND_SQL, *TABS).output
    return done


def _without_lease(lab: Lab, say: Say) -> float:
    url = f"http://{literal(lab.web.addresses[0])}/"
    say("agent2", f"curl {url}   # no lease: must fail at once")
    begun = time.monotonic()
    done = lab.agent(2).run(["curl", "-sS", "--max-time", "20", url], check=False)
    if done.code != 7:
        raise AssertionError(f"curl without a lease ended with code {done.code}, not 7: {done.errors}")
    return time.monotonic() - begun


def _first(done: Work, lab: Lab, say: Say) -> None:
    task, web = done.first, lab.web
    say("agent1", f"psql -h {lab.db.fqdn} -U {lab.db.user} {lab.db.database} < report.sql")
    psql = task.psql(SQL, *TABS)
    done.psql, done.psql_errors = psql.output, psql.errors

    say("agent1", f"curl --compressed http://{web.fqdn}/api/items")
    done.items = task.curl("--compressed", f"http://{web.fqdn}/api/items").stdout
    say("agent1", f"curl -6 -O http://{web.fqdn}/download.bin")
    done.download = task.curl("-6", f"http://{web.fqdn}/download.bin").stdout
    say("agent1", f"curl --json @report.json http://{web.fqdn}/app/echo")
    sent = json.dumps(REPORT, ensure_ascii=False)
    done.echo = task.curl("--json", "@-", f"http://{web.fqdn}/app/echo", input=sent).stdout
    say("agent1", f"curl -4 https://{web.fqdn}/index.html   # no relay for this one: it stays opaque")
    done.page = task.curl("-4", f"https://{web.fqdn}/index.html").stdout

    say("agent1", f"python -m tests.lab.client {lab.db.addresses[1]} …   # psycopg: bind values, COPY, an error")
    command = [str(PYTHON), "-m", "tests.lab.client", lab.db.addresses[1], lab.db.database, lab.db.user]
    done.program = json.loads(task.run(command, env=task.password()).output)

    say("agent1", f"(UDP to {web.fqdn}:443, as QUIC would)   # must be refused")
    done.refused["UDP 443 (QUIC)"] = task.agent.call(lambda: _quic(web.addresses[0]))


def _quic(address: str) -> float:
    begun = time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(REFUSED_SECONDS)
        asking.connect((address, 443))
        asking.send(b"\xc0\0\0\0\1" + bytes(1195))
        try:
            asking.recv(2048)
        except OSError:
            return time.monotonic() - begun
    raise AssertionError("a datagram to port 443 was answered")
