from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedInput
from appliance.store import paging, times

ID = UUID(int=7)


def test_a_cursor_gives_its_key_back() -> None:
    rows = [{"at": at} for at in range(3)]
    cursor = paging.after(rows, 2, lambda row: [row["at"], str(ID), "text"])
    assert cursor is not None
    assert paging.key(cursor, int, UUID, str) == [1, ID, "text"]
    assert paging.after(rows, 3, lambda row: [row["at"]]) is None


@given(st.text(max_size=60) | st.binary(max_size=40).map(lambda raw: raw.decode("latin-1")))
def test_any_other_cursor_is_malformed(cursor: str) -> None:
    with pytest.raises(MalformedInput, match="cursor is not one"):
        paging.key(cursor, int, UUID, int)


@pytest.mark.parametrize("parts", [[True, str(ID)], [-1, str(ID)], [2**64, str(ID)], [1, "x"], ["1", str(ID)], [1], {}])
def test_a_forged_cursor_is_malformed(parts: object) -> None:
    rows: list[dict[str, object]] = [{}, {}]
    cursor = paging.after(rows, 1, lambda row: parts)  # type: ignore[arg-type,return-value]
    assert cursor is not None
    with pytest.raises(MalformedInput, match="cursor is not one"):
        paging.key(cursor, int, UUID)


@pytest.mark.parametrize("limit", [0, -1, 11])
def test_a_limit_out_of_range_is_malformed(limit: int) -> None:
    with pytest.raises(MalformedInput, match="limit"):
        paging.size(limit, 10)


def test_bounds() -> None:
    assert paging.bounds(None, None, 5) == (0, times.LAST_NS)
    assert paging.bounds("now", 9, 5) == (5, 9)
    with pytest.raises(MalformedInput, match="outside of 1970"):
        paging.bounds(-1, None, 5)
