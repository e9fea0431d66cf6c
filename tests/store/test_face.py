"""The HTTP interface, as clickhouse-connect uses it unchanged, and as it must not be used."""

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlencode, urlsplit

import clickhouse_connect
import httpx2 as httpx
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError
from clickhouse_connect.driver.transform import extract_exception_with_tag

from appliance.config import Settings
from appliance.store import rows
from appliance.store.client import open_store
from appliance.store.engine import Handle
from appliance.store.face import Face
from appliance.store.link import Service
from tests.store import samples

COLUMNS = ("session_id", "seq", "started", "search_text")
TYPES = ("UUID", "UInt32", "DateTime64(9, 'UTC')", "String")


def connect(access: Service, token: str, **options: Any) -> Any:
    address = urlsplit(access.url)
    return clickhouse_connect.get_client(
        host=address.hostname, port=address.port, username="any", password=token, database="verbatim", **options
    )


@pytest.fixture(scope="module")
def writer(access: Service) -> Iterator[Any]:
    client = connect(access, access.writer)
    yield client
    client.close()


@pytest.fixture(scope="module")
def reader(access: Service) -> Iterator[Any]:
    client = connect(access, access.reader)
    yield client
    client.close()


def count(client: Any, session: int) -> int:
    sql = "SELECT count(), uniqExact(seq), sum(length(search_text)) FROM messages WHERE session_id = {id:UUID}"
    total, distinct, size = client.query(sql, parameters={"id": str(samples.number(session))}).result_rows[0]
    assert total == distinct
    assert size == total * 1000
    return int(total)


@pytest.mark.parametrize(
    ("session", "compress"), [(101, "lz4"), (102, "zstd"), (103, "gzip"), (104, False), (105, True)]
)
def test_large_inserts_of_many_frames_arrive_whole(
    access: Service, reader: Any, session: int, compress: str | bool
) -> None:
    """The client's own insert: types from DESCRIBE, a frame per block of about 2 MB."""
    client = connect(access, access.writer, compress=compress)
    table = [[samples.number(session), seq, samples.started(session), f"{seq:01000}"] for seq in range(12_000)]
    summary = client.insert("messages", table, column_names=COLUMNS)
    assert summary.written_rows == len(table)
    assert count(reader, session) == len(table)
    client.close()


def test_the_same_token_again_is_no_insert(writer: Any, reader: Any) -> None:
    table = [[samples.number(110), seq, samples.started(110), f"{seq:01000}"] for seq in range(3)]
    for _ in range(3):
        writer.insert("messages", table, column_names=COLUMNS, settings={"insert_deduplication_token": "t-110"})
    assert count(reader, 110) == 3


def test_settings_that_are_not_listed_are_refused(access: Service) -> None:
    for name, code in (("readonly", 164), ("max_memory_usage", 115), ("allow_ddl", 115), ("log_queries", 115)):
        answer = httpx.post(
            f"{access.url}/?{urlencode({name: '0'})}",
            content=b"SELECT 1",
            headers={"Authorization": f"Bearer {access.reader}"},
        )
        assert answer.headers["X-ClickHouse-Exception-Code"] == str(code)


def test_parameters_arrive_exactly(reader: Any) -> None:
    odd = "tab\t newline\n quote' double\" back\\slash \\N {x:String} ä \x00 \x7f"
    sql = "SELECT {s:String} AS s, {a:Array(String)} AS a, {n:Int64} AS n"
    for text in (odd, odd * 400):  # the long one travels as a form
        answer = reader.query(sql, parameters={"s": text, "a": [text, ""], "n": -(2**63)})
        assert answer.result_rows == [(text, [text, ""], -(2**63))]


def test_other_ways_to_ask(reader: Any) -> None:
    assert reader.command("SELECT count() FROM audit WHERE actor = 'nobody'") == 0
    assert reader.query("SELECT seq FROM messages WHERE seq > 4000000000").result_rows == []
    assert reader.query("SELECT seq, kind FROM messages LIMIT 0").column_names == ("seq", "kind")
    assert reader.raw_query("SELECT 1 AS x FORMAT JSONEachRow") == b'{"x":1}\n'
    assert reader.query_arrow("SELECT 7 AS x").to_pydict() == {"x": [7]}
    assert reader.ping()


def test_a_large_result_streams(access: Service, writer: Any, reader: Any) -> None:
    table = [[samples.number(120), seq, samples.started(120), f"{seq:01000}"] for seq in range(50_000)]
    writer.insert("messages", table, column_names=COLUMNS, column_type_names=TYPES)
    sql = "SELECT seq, search_text FROM messages WHERE session_id = {id:UUID} ORDER BY seq"
    with reader.query_row_block_stream(sql, parameters={"id": str(samples.number(120))}) as stream:
        seen = [row[0] for block in stream for row in block]
    assert seen == list(range(50_000))


def test_a_reader_that_goes_away_frees_its_handle(access: Service, reader: Any) -> None:
    """More broken streams than there are handles."""
    address = urlsplit(access.url)
    sql = "SELECT a.search_text FROM messages AS a, messages AS b FORMAT TabSeparated"
    for _ in range(12):
        with socket.create_connection((address.hostname, address.port or 0)) as raw:
            raw.sendall(
                f"POST / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {access.reader}\r\n"
                f"Content-Length: {len(sql)}\r\n\r\n{sql}".encode()
            )
            assert raw.recv(100).startswith(b"HTTP/1.1 200")
    assert reader.command("SELECT 1") == 1


def test_errors_have_the_engines_code(reader: Any) -> None:
    with pytest.raises(DatabaseError) as fault:
        reader.query("SELECT nosuch FROM messages")
    assert fault.value.code == 47
    late = "SELECT toUUID(search_text) FROM messages WHERE session_id = {id:UUID}"  # fails at the first row
    with pytest.raises(DatabaseError) as fault:
        _ = reader.query(late, parameters={"id": str(samples.number(120))}).result_rows
    assert fault.value.code == 6  # CANNOT_PARSE_TEXT


class Failing:
    """A handle whose answer breaks off behind its first block."""

    def run(self, sql: str, form: str = "", params: object = None) -> bytes:
        return b"SelectWithUnionQuery" if sql.startswith("EXPLAIN") else b"verbatim\n"

    def classify(self, statement: str) -> dict[str, Any]:
        return {"statement_count": 1, "query_class": SimpleNamespace(name="READ_ONLY")}

    def stream(self, sql: str, form: str, params: object) -> Iterator[bytes]:
        yield b"\x01\x01\x01x\x05UInt8\x07"  # one Native block: column x, one row, 7
        raise RuntimeError("Code: 159. DB::Exception: Timeout exceeded. (TIMEOUT_EXCEEDED)")

    def close(self) -> None:
        """Nothing is open."""


def test_an_error_behind_the_headers_reaches_the_client() -> None:
    """A result that breaks off must not read as a short result."""
    face = Face(("127.0.0.1", 0), {"writer": "w", "reader": "r"}, lambda _: cast(Handle, Failing()))
    serving = threading.Thread(target=face.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    try:
        url = f"http://127.0.0.1:{face.server_address[1]}"
        answer = httpx.post(url, content=b"SELECT 7 AS x FORMAT Native", headers={"Authorization": "Bearer r"})
        tag = answer.headers["X-ClickHouse-Exception-Tag"]
        assert answer.content.startswith(b"\x01\x01\x01x")
        told = extract_exception_with_tag(answer.content, tag)
        assert told == "Code: 159. DB::Exception: Timeout exceeded. (TIMEOUT_EXCEEDED)"
    finally:
        face.stop(5)
        serving.join()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 403),
        ({"Authorization": "Basic !!!"}, 401),
        ({"Authorization": "Basic ZGVmYXVsdDo="}, 401),
        ({"X-ClickHouse-Key": "wrong"}, 403),
    ],
)
def test_without_the_right_token_there_is_nothing(access: Service, headers: dict[str, str], status: int) -> None:
    for content in (b"SELECT 1", b"INSERT INTO messages (seq) FORMAT Native\n", b"x" * 100):
        answer = httpx.post(access.url, content=content, headers=headers)
        assert answer.status_code == status
        assert answer.headers["X-ClickHouse-Exception-Code"] == "516"
    assert httpx.get(f"{access.url}/ping").text == "Ok.\n"


def test_a_reader_cannot_insert(access: Service) -> None:
    client = connect(access, access.reader)
    with pytest.raises(ClickHouseError) as fault:
        client.insert("messages", [[samples.number(130), 0, 0, "x"]], COLUMNS, column_type_names=TYPES)
    assert getattr(fault.value, "code", None) == 497
    client.close()


def test_answers_are_not_delayed_by_nagle(access: Service) -> None:
    """With Nagle's algorithm every answer on a kept connection takes 40 ms and more."""
    address = urlsplit(access.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port)
    took = []
    for _ in range(20):
        begun = time.monotonic()
        connection.request("POST", "/", b"SELECT 1", {"Authorization": f"Bearer {access.reader}"})
        assert connection.getresponse().read() == b"1\n"
        took.append(time.monotonic() - begun)
    connection.close()
    assert min(took[1:]) < 0.03


def test_malformed_requests_do_not_stop_the_service(access: Service, reader: Any) -> None:
    address = urlsplit(access.url)
    for sent in (
        b"\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"PUT / HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    ):
        answer = b""
        with (
            contextlib.suppress(OSError),  # it may close before all is sent
            socket.create_connection((address.hostname, address.port or 0)) as raw,
        ):
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            answer = raw.recv(1000)
        assert b" 200 " not in answer.split(b"\r\n")[0]
    assert reader.command("SELECT 1") == 1


def test_readers_and_writers_at_once(served: Settings, access: Service) -> None:
    """Rows that a reader sees are whole batches, in every table order kept, while four writers insert."""
    stop = threading.Event()

    def write(session: int) -> None:
        with open_store(served, "writer") as store:
            for batch in range(10):
                store.insert([samples.message(session, batch * 50 + at, "together") for at in range(50)])

    def read() -> int:
        reads = 0
        with open_store(served, "reader") as store:
            while not stop.is_set() or not reads:
                sql = (
                    "SELECT session_id, count() AS n, max(seq) AS top FROM messages "
                    "WHERE session_id IN {ids:Array(UUID)} GROUP BY session_id"
                )
                for row in store.select(sql, {"ids": [str(samples.number(140 + at)) for at in range(4)]}):
                    assert row["n"] == row["top"] + 1
                    assert row["n"] % 50 == 0
                reads += 1
        return reads

    with ThreadPoolExecutor(8) as pool:
        reading = [pool.submit(read) for _ in range(4)]
        try:
            list(pool.map(write, range(140, 144)))
        finally:
            stop.set()
        assert all(one.result() > 0 for one in reading)
    with open_store(served, "reader") as store:
        wanted = {samples.number(140 + at): 499 for at in range(4)}
        assert store.last_seqs("messages", list(wanted)) == wanted


def test_every_table_takes_its_rows_over_the_wire(served: Settings) -> None:
    with open_store(served, "writer") as store:
        for table in rows.BY_NAME:
            described = store.select(f"DESCRIBE TABLE {table}")
            assert set(rows.BY_NAME[table].names) <= {row["name"] for row in described}


class Sleepy:
    """A handle that inserts when it is told to."""

    def __init__(self) -> None:
        self.inserted: list[bytes] = []

    def run(self, sql: str) -> bytes:
        return b"verbatim\n"

    def insert(self, block: rows.Block) -> int:
        self.inserted.append(block.body)
        return 1

    def close(self) -> None:
        """Nothing is held."""


def post(address: Any, body: bytes) -> socket.socket:
    connection = socket.create_connection(address[:2], 10)
    head = f"POST /?query=INSERT+INTO+messages+(seq)+FORMAT+Native HTTP/1.1\r\nContent-Length: {len(body)}\r\n"
    connection.sendall(head.encode() + b"Authorization: Bearer w\r\n\r\n" + body)
    return connection


def test_what_a_dead_client_left_behind_is_not_inserted() -> None:
    """Its successor asks what is there, and sends the rest in other batches: a late insert would double rows."""
    handle = Sleepy()
    face = Face(("127.0.0.1", 0), {"writer": "w", "reader": "r"}, lambda _: cast(Handle, handle))
    post(face.server_address, b"from one that died").close()
    alive = post(face.server_address, b"from one that lives")
    serving = threading.Thread(target=face.serve_forever, kwargs={"poll_interval": 0.01})
    serving.start()
    try:
        assert alive.recv(1000).startswith(b"HTTP/1.1 200")
        with alive, face.inserting(alive):
            asked = threading.Thread(target=face.settled)
            asked.start()
            asked.join(0.2)
            assert asked.is_alive()
        asked.join(10)
        assert not asked.is_alive()
    finally:
        face.stop(5)
        serving.join()
    assert handle.inserted == [b"from one that lives"]
