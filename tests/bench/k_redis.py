"""redis-benchmark, SET and GET, with one command at a time and with sixteen: through the relay against direct.

redis-benchmark and Redis share one core; the relay has another to itself.
"""

from collections.abc import Callable, Sequence

from tests.bench import Figure, load
from tests.bench.peers import Place, pinned
from tests.bench.stand import ENDS, HERE, Stand, Subject, compared, in_turns
from tests.lab.wait import until

TITLE = "redis-benchmark through the relay against direct"
SERVER = Place(HERE, 6379)
CLIENTS = 32
ROUNDS = 3
DIRECT, SPLICE, MEDIATE = "direct", "splice", "mediate"
REACH = "ratio >= 0.5"
PIPELINES = {1: 30_000, 16: 200_000}  # commands at a time, and requests of a run


def run(say: Callable[[str], None]) -> list[Figure]:
    with Stand() as stand:
        server = stand.host.popen(
            pinned(["redis-server", "--port", str(SERVER.port), "--bind", HERE, "--save", ""], ENDS)
        )
        ping = ["redis-cli", "-h", HERE, "ping"]
        until(lambda: stand.host.run(ping, check=False).output == "PONG\n", "Redis answers")
        several = [Subject(DIRECT, SERVER)]
        several += [stand.relay(mode, SERVER, {"application": "redis", "mode": mode}) for mode in (SPLICE, MEDIATE)]
        figures = []
        for pipeline, requests in PIPELINES.items():
            figures += figures_of(stand, several, pipeline, requests, say)
        server.stop()
    return figures


def figures_of(
    stand: Stand, several: Sequence[Subject], pipeline: int, requests: int, say: Callable[[str], None]
) -> list[Figure]:
    def ask(one: Subject) -> tuple[float, float]:
        rates = load.redis_benchmark(
            stand.host,
            one.place,
            requests=requests,
            clients=CLIENTS,
            core=ENDS,
            options=("-P", str(pipeline)),
            env={},
        )
        return requests * len(rates), sum(requests / rate for rate in rates.values())

    found = in_turns(several, ask, rounds=ROUNDS, unit="requests", say=say)
    what = f"redis-benchmark -c {CLIENTS} -P {pipeline}"
    return [
        *compared("k", what, found, SPLICE, DIRECT, "requests", REACH),
        *compared("k", what, found, MEDIATE, DIRECT, "requests", REACH),
    ]
