"""Which bytes are a message: where to go on behind a gap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dissect.postgres_frames import CLIENT_TYPES, HEADER, SERVER_TYPES, search
from tests.dissect.postgres_bytes import IDLE, SYNC, query, row


@pytest.mark.parametrize(
    ("data", "known", "place"),
    [
        (b"tail of a row" + row(b"1") + IDLE, SERVER_TYPES, (13, 0)),
        (IDLE, SERVER_TYPES, (0, 0)),
        (b"xyz" + SYNC, CLIENT_TYPES, (3, 0)),
        (b"xyz" + query("SELECT 1"), CLIENT_TYPES, (3, 0)),
        (b"no message at all", SERVER_TYPES, (13, HEADER)),
        (b"ab" + row(b"1234"), SERVER_TYPES, (2, 20)),  # who knows before the next one
        (b"ab" + row(b"1234")[:-2], SERVER_TYPES, (2, 15)),
        (b"Z\0\0\0\x05x" + row(b"1") + IDLE, SERVER_TYPES, (0, 0)),
        (b"D\0\0\0\x02" + IDLE, SERVER_TYPES, (5, 0)),  # too short to be a message
        (b"D\0\0\0\x05?????????" + IDLE, SERVER_TYPES, (14, 0)),  # nothing behind it
        (b"", SERVER_TYPES, (0, HEADER)),
    ],
)
def test_search(data: bytes, known: bytes, place: tuple[int, int]) -> None:
    assert search(data, known) == place


@given(st.binary(max_size=300))
def test_search_always_gets_on(data: bytes) -> None:
    place, need = search(data, SERVER_TYPES)
    assert 0 <= place <= len(data)
    assert need == 0 or need > len(data) - place
