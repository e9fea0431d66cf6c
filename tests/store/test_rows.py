import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from appliance.errors import MalformedInput
from appliance.model import Direction, Row
from appliance.store import rows
from tests.store import samples

EVERY: list[Row | rows.AuditRow] = [
    samples.session(1),
    samples.message(1, 0, "SELECT 1", sql="SELECT 1"),
    samples.chunk(1, 0, Direction.CLIENT, 0, b"\0\xff", redacted=((0, 1),)),
    samples.finding(1, 0),
    samples.event("stream", 1),
    rows.AuditRow(1, "alice", "search", "query"),
]


@pytest.mark.parametrize("row", EVERY, ids=lambda row: type(row).__name__)
def test_the_same_rows_make_the_same_block_and_other_rows_another_token(row: rows.AuditRow) -> None:
    table = rows.TABLES[type(row)]
    block = rows.encode(table, [row, row])
    assert block == rows.encode(table, [row, row])
    assert block.rows == 2
    assert block.token != rows.encode(table, [row]).token


def test_token_depends_on_every_column_of_a_session() -> None:
    row = samples.session(1, 1)
    changed = [
        replace(row, attrs={"database": "other"}),
        replace(row, ended_ns=row.ended_ns + 1),
        replace(row, identity=dataclasses.replace(row.identity, act=("agent-8", "planner"))),
        replace(row, findings=()),
    ]
    tokens = {rows.encode(rows.SESSIONS, [one]).token for one in [row, *changed]}
    assert len(tokens) == 1 + len(changed)


def test_token_names_the_table_too() -> None:
    by_table = rows.by_table(EVERY)
    assert list(by_table) == list(rows.TABLES.values())
    assert len({rows.encode(table, members).token for table, members in by_table.items()}) == len(by_table)


def test_order_within_a_table_is_kept() -> None:
    mixed: list[Row | rows.AuditRow] = [
        samples.message(1, 0, "a"),
        samples.session(1),
        samples.message(1, 1, "b"),
        samples.message(1, 2, "c"),
    ]
    assert rows.by_table(mixed)[rows.MESSAGES] == [mixed[0], mixed[2], mixed[3]]


def test_a_number_outside_of_its_column_is_malformed_and_names_the_column() -> None:
    with pytest.raises(MalformedInput, match=r"client_port of sessions is not of type UInt16"):
        rows.encode(rows.SESSIONS, [samples.session(1, client_port=70_000)])


@given(st.text(st.characters(codec=None), max_size=50))
def test_any_text_is_encoded(text: str) -> None:
    assert rows.encode(rows.MESSAGES, [samples.message(1, 0, text, note=text)]).rows == 1


def test_times_outside_of_the_columns_range_are_clipped() -> None:
    early, late = samples.event("s", -(2**70)), samples.event("s", 2**70)
    block = rows.encode(rows.EVENTS, [replace(early, position=0), replace(late, position=0)])
    assert (2**63 - 1).to_bytes(8, "little") in block.body


def test_searchable_keeps_scalars_by_dotted_name() -> None:
    attrs = {"status": 200, "ok": True, "tls": {"sni": "x", "deep": {"er": {"no": 1}}}, "alpn": ["h2", "http/1.1"]}
    assert rows.searchable(attrs | {"headers": [["a", "b"]], "none": None}) == {
        "status": "200",
        "ok": "true",
        "alpn": "h2, http/1.1",
        "tls.sni": "x",
    }


def test_searchable_is_bounded() -> None:
    found = rows.searchable({str(at): "x" * 5000 for at in range(1000)})
    assert len(found) == rows.MAX_FIELDS
    assert {len(value) for value in found.values()} == {rows.MAX_FIELD}


def test_json_takes_what_the_fast_encoder_refuses() -> None:
    assert rows.json_bytes({"big": 2**80, "odd": "\ud800"}) == b'{"big":%d,"odd":"\\ud800"}' % 2**80
