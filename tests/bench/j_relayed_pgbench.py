"""PostgreSQL by pgbench's select-only script: through the relay, in both of its modes, against pgbouncer and no one.

pgbench and PostgreSQL share one core; the relay, or pgbouncer, has another to itself. All in clear text. pgbouncer
pools in transaction mode, with a server connection for each client.
"""

from collections.abc import Callable

from tests.bench import Figure, c_pgbench, load, peers
from tests.bench.peers import Place
from tests.bench.stand import ENDS, HERE, SUBJECT, Stand, Subject, compared, in_turns

TITLE = "pgbench -S, 8 clients, through the relay against pgbouncer and direct"
SECONDS = 3
ROUNDS = 5
SERVER = Place(HERE, 5432)
POOLER = Place(HERE, 6432)
DIRECT, PGBOUNCER = "direct", "pgbouncer"
REACH = {"splice": "ratio >= 1.0", "mediate": "ratio >= 0.8"}
PASSWORD = "just-here"


def run(say: Callable[[str], None]) -> list[Figure]:
    with Stand() as stand:
        c_pgbench.serve(stand.host, stand.folder / "postgres", ENDS)
        pooler = peers.pgbouncer(
            stand.host, stand.folder / "pgbouncer", POOLER, SERVER, "postgres", {"postgres": PASSWORD}, SUBJECT
        )
        several = [Subject(DIRECT, SERVER), Subject(PGBOUNCER, POOLER, pooler)]
        several += [stand.relay(mode, SERVER, {"application": "postgres", "mode": mode}) for mode in REACH]
        environment = {"PGPASSWORD": PASSWORD, "PGSSLMODE": "disable"}

        def transact(one: Subject) -> tuple[float, float]:
            rate = load.pgbench(
                stand.host,
                one.place,
                user="postgres",
                database="postgres",
                seconds=SECONDS,
                clients=c_pgbench.CLIENTS,
                core=ENDS,
                env=environment,
            )
            return rate * SECONDS, SECONDS

        found = in_turns(several, transact, rounds=ROUNDS, unit="transactions", say=say)
    figures = []
    for mode, reach in REACH.items():
        figures += compared("j", "pgbench -S", found, mode, PGBOUNCER, "transactions", reach)
        figures += compared("j", "pgbench -S", found, mode, DIRECT, "transactions")
    return figures
