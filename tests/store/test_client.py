"""What the recorder relies on: exactly once, in order, errors that say what to do."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError

from appliance.config import Settings
from appliance.config import Store as StoreSettings
from appliance.errors import DamagedEvidence, MalformedInput, Refused, Unavailable
from appliance.model import Direction, Row
from appliance.store import client, engine, link, rows, schema
from appliance.store.client import Store, open_store
from tests.lab.wait import until
from tests.store import samples
from tests.store.conftest import PATIENCE, serving


def count(store: Store, table: str, session: int) -> int:
    found = store.select(
        f"SELECT count() AS n FROM {table} WHERE session_id = {{id:UUID}}", {"id": str(samples.number(session))}
    )
    return int(found[0]["n"])


def test_a_repeated_batch_is_stored_once(store: Store) -> None:
    batch: list[Row | rows.AuditRow] = [
        samples.session(201),
        *(samples.message(201, seq, f"text {seq}") for seq in range(100)),
        *(samples.chunk(201, seq, Direction.CLIENT, seq, b"\0\xff") for seq in range(100)),
        samples.finding(201, 0),
        samples.event("201", 5),
        rows.AuditRow(1, "alice", "search", "201"),
    ]
    for _ in range(3):
        store.insert(batch)
    assert [count(store, table, 201) for table in rows.KEYED] == [1, 100, 100, 1]
    assert store.select("SELECT count() AS n FROM events WHERE stream = '201'") == [{"n": 1}]
    assert store.select("SELECT actor FROM audit WHERE object = '201'") == [{"actor": "alice"}]


def test_a_batch_over_many_days_is_stored_once(store: Store) -> None:
    """More partitions than the engine takes by default."""
    day = 86_400 * samples.SECOND
    batch = [samples.session(210 + at, started_ns=samples.START - at * day) for at in range(110)]
    store.insert(batch)
    store.insert(batch)
    wanted = [row.session_id for row in batch]
    assert store.last_seqs("sessions", wanted) == dict.fromkeys(wanted, 0)


def test_equal_rows_in_different_batches_are_kept_apart(store: Store) -> None:
    """A token names the whole batch: one more row makes it another batch."""
    first = [samples.message(202, 0, "a")]
    store.insert(first)
    store.insert([*first, samples.message(202, 1, "b")])
    assert count(store, "messages", 202) == 3


def test_nothing_is_an_insert_of_nothing(store: Store) -> None:
    store.insert([])


def test_last_seqs_and_last_position(store: Store) -> None:
    ids = [samples.number(at) for at in range(20_400, 23_400)]  # more than one query's worth
    store.insert([samples.message(at, seq, "x") for at in range(20_400, 23_400, 2) for seq in range(2)])
    assert store.last_seqs("messages", ids) == {samples.number(at): 1 for at in range(20_400, 23_400, 2)}
    assert store.last_seqs("chunks", ids) == {}
    assert store.last_seqs("chunks", []) == {}
    assert store.last_position("203") is None
    store.insert([samples.event("203", position) for position in (0, 2**63, 7)])
    assert store.last_position("203") == 2**63
    with pytest.raises(MalformedInput, match="events: no such table of session rows"):
        store.last_seqs("events", ids)


def test_large_batches_are_cut_the_same_way_each_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "BATCH_ROWS", 7)
    monkeypatch.setattr(client, "BATCH_BYTES", 2000)
    batch = [samples.chunk(204, seq, Direction.SERVER, seq * 500, bytes(500)) for seq in range(50)]
    batch[10] = samples.chunk(204, 10, Direction.SERVER, 5000, bytes(9000))
    blocks = list(client._blocks(rows.CHUNKS, batch))
    assert sum(block.rows for block in blocks) == 50
    assert max(block.rows for block in blocks) == 3
    assert [block.rows for block in blocks if len(block.body) > 2000] == [1]
    store.insert(batch)
    store.insert(batch)
    assert count(store, "chunks", 204) == 50


def test_text_that_is_no_unicode_is_malformed_in_a_query(store: Store) -> None:
    with pytest.raises(MalformedInput, match="no Unicode"):
        store.select("SELECT {s:String}", {"s": "\ud800"})


def test_several_threads_share_a_store(store: Store) -> None:
    faults: list[BaseException] = []

    def work(session: int) -> None:
        try:
            for seq in range(10):
                store.insert([samples.message(session, seq, "x")])
                assert store.last_seqs("messages", [samples.number(session)]) == {samples.number(session): seq}
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(session,)) for session in range(220, 224)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def fake(insert: Any = None, query: Any = None) -> Store:
    """A store whose link behaves as told."""
    return Store(lambda served: link.Link(SimpleNamespace(query=query), insert, "there", lambda: None))


def test_fewer_rows_than_given_are_damage() -> None:
    with pytest.raises(DamagedEvidence, match=r"took 1 of 2 rows for messages; the batch may be repeated"):
        fake(insert=lambda block: 1).insert([samples.message(1, 0, "a"), samples.message(1, 1, "b")])


@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (OperationalError("secret"), Unavailable, "store at there fails"),
        (DatabaseError("secret", code=159), Refused, "exceeds the store's limits; narrow"),
        (DatabaseError("secret", code=516), Refused, "refuses the account"),
        (DatabaseError("secret", code=60, name="UNKNOWN_TABLE"), Unavailable, "ClickHouse error 60 UNKNOWN_TABLE"),
        (
            DatabaseError("secret", code=243),
            Unavailable,
            "takes no rows: its disk is full, or has less than its reserve",
        ),
        (ConnectionResetError("secret"), Unavailable, "store at there fails"),
    ],
)
def test_errors_of_the_driver_become_ours_without_its_text(
    raised: Exception, expected: type[Exception], text: str
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise raised

    with pytest.raises(expected, match=text) as fault:
        fake(query=fail).select("SELECT 1")
    assert "secret" not in str(fault.value)


def test_a_batch_that_needs_too_much_memory_is_no_query_to_narrow() -> None:
    def fail(block: rows.Block) -> int:
        raise DatabaseError("secret", code=241)

    with pytest.raises(Unavailable, match=r"too little memory for the batch; raise store\.max_memory"):
        fake(insert=fail).insert([samples.event("s", 1)])


def test_after_a_failure_the_next_call_connects_anew() -> None:
    opened: list[int] = []

    def insert(block: rows.Block) -> int:
        if len(opened) == 1:
            raise OperationalError("gone")
        return block.rows

    def connect(served: bool) -> link.Link:
        opened.append(1)
        return link.Link(None, insert, "there", lambda: None)

    store = Store(connect)
    with pytest.raises(Unavailable):
        store.insert([samples.event("s", 1)])
    store.insert([samples.event("s", 1)])
    assert len(opened) == 2


def test_who_had_the_service_does_not_lock_it_out(tmp_path: Path) -> None:
    """The service dies and starts again; in between, nobody else opens its folder."""
    settings = Settings(data=tmp_path)
    with (
        open_store(settings, "reader", embed=False) as early,
        pytest.raises(Unavailable, match="is not served now; start `verbatim store`"),
    ):
        early.last_position("kept")
    with serving(tmp_path) as process:
        store = open_store(settings, "writer")
        store.insert([samples.event("kept", 9)])
        process.kill()
        process.wait()
    for _ in range(2):
        with pytest.raises(Unavailable):
            store.last_position("kept")
    with serving(tmp_path):
        assert store.last_position("kept") == 9
    store.close()


def test_a_link_that_is_dropped_in_use_is_closed_by_its_last_user() -> None:
    closed: list[int] = []
    one = link.Link(None, lambda block: 0, "there", lambda: closed.append(1))
    one.enter()
    one.enter()
    one.close()
    one.leave()
    assert closed == []
    one.leave()
    one.close()
    assert closed == [1]


def test_a_closed_store_says_so() -> None:
    store = fake()
    store.close()
    with pytest.raises(Unavailable, match="store is closed"):
        store.insert([samples.event("s", 1)])


def test_a_reader_cannot_insert(tmp_path: Path, served: Settings) -> None:
    with open_store(served, "reader") as store, pytest.raises(Refused, match="open for reading only"):
        store.insert([samples.event("s", 1)])


HOLD = """
import sys
from pathlib import Path
from appliance.store.engine import Lock
lock = Lock(Path(sys.argv[1]))
assert lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_the_folder_of_another_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"held\n"
        monkeypatch.setattr(link, "WAIT_SECONDS", 0.2)
        with pytest.raises(Unavailable, match=rf"is in use by process {other.pid}; wait for it"):
            open_store(Settings(data=tmp_path), "writer")
        monkeypatch.setattr(link, "WAIT_SECONDS", 30.0)
        got: list[bool] = []
        waiting = threading.Thread(target=lambda: got.append(_take(tmp_path)))
        waiting.start()
        other.stdin.close()
        waiting.join(30)
        assert got == [True]


def _take(data: Path) -> bool:
    lock = engine.Lock(data)
    until(lock.acquire, "release of the lock", PATIENCE)
    lock.release()
    return True


def test_the_lock_is_shared_within_a_process(tmp_path: Path) -> None:
    one, other = engine.Lock(tmp_path), engine.Lock(tmp_path)
    assert one.acquire()
    assert other.acquire()
    one.release()
    one.release()
    assert (tmp_path.resolve() / "store.lock") in engine.Lock._held
    other.release()
    assert (tmp_path.resolve() / "store.lock") not in engine.Lock._held


@pytest.mark.parametrize("url", ["x", "http://host", "ftp://host/db", "http:///db"])
def test_a_wrong_url_is_malformed(url: str, tmp_path: Path) -> None:
    with pytest.raises(MalformedInput, match=r"store\.url is not http"):
        open_store(Settings(data=tmp_path, store=StoreSettings(url=url)), "writer")


def test_a_server_that_does_not_answer_is_unavailable_and_the_password_stays_secret(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, store=StoreSettings(url="http://user:pw-secret@127.0.0.1:9/db"))
    with pytest.raises(Unavailable, match=r"127.0.0.1:9 does not answer; check that it runs") as fault:
        open_store(settings, "writer")
    assert "pw-secret" not in str(fault.value)


def test_the_schema_version_must_be_ours() -> None:
    schema.check(schema.VERSION, "there")
    with pytest.raises(Unavailable, match="use the release that wrote it, or a newer one"):
        schema.check(schema.VERSION + 1, "there")
    with pytest.raises(Unavailable, match="has schema version 0, this release needs"):
        schema.check(0, "there")


INSERTING = """
import sys
from pathlib import Path
from appliance.config import Settings
from appliance.store.client import open_store
from tests.store import samples
batches = [[samples.message(7, batch * 40 + at, f"row {at} " + "x" * 500) for at in range(40)] for batch in range(100)]
with open_store(Settings(data=Path(sys.argv[1])), "writer") as store:
    seqs = store.last_seqs("messages", [samples.number(7)])
    last = seqs.get(samples.number(7), -1)
    print(last, flush=True)
    for number, batch in enumerate(batches):
        if number * 40 <= last < number * 40 + 40 or number * 40 > last:  # the last one again, then on
            store.insert(batch)
            print(batch[-1].seq, flush=True)
"""


@pytest.mark.parametrize("place", ["in-process", "service"])
def test_killed_while_inserting_and_repeated_nothing_is_lost_or_doubled(place: str, tmp_path: Path) -> None:
    """SIGKILL of the process that owns the engine, several times; each run repeats the last batch and goes on."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", INSERTING, str(tmp_path)]
    acknowledged = -1
    for _ in range(3):
        with _owner(place, tmp_path, command, environment) as (owner, inserter):
            assert inserter.stdout is not None
            found = int(inserter.stdout.readline())
            assert found >= acknowledged  # what was acknowledged survives
            assert (found + 1) % 40 == 0  # whole batches only: a prefix
            for _ in range(10):
                acknowledged = int(inserter.stdout.readline())
            os.kill(owner.pid, signal.SIGKILL)
            inserter.kill()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as last:
        assert last.wait(100) == 0
    with serving(tmp_path), open_store(Settings(data=tmp_path), "reader") as store:
        figures = "count() AS n, uniqExact(seq) AS seqs, max(seq) AS top, uniqExact(search_text) AS texts"
        assert store.select(f"SELECT {figures} FROM messages") == [{"n": 4000, "seqs": 4000, "top": 3999, "texts": 40}]


class _owner:  # noqa: N801 - reads as a statement
    """The process that owns the engine, and the one that inserts: the same one without a service."""

    def __init__(self, place: str, data: Path, command: list[str], environment: dict[str, str]) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        if place == "service":
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "appliance", "store", "--data", str(data)],
                    stderr=subprocess.DEVNULL,
                    env=environment,
                )
            )
            until(lambda: (found := link.live_service(data)) and found.pid == self._processes[0].pid, "start", PATIENCE)
        self._processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        )

    def __enter__(self) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
        return self._processes[0], self._processes[-1]

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
