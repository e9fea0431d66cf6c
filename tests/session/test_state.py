import os
import pickle
from collections import deque
from io import BytesIO
from typing import Any
from uuid import uuid4

import pytest

from appliance.errors import DamagedEvidence
from appliance.journal import Cursor
from appliance.model import Direction
from appliance.session import state


def encoded(kept: object) -> bytes:
    file = BytesIO()
    state.dump(kept, file)
    return file.getvalue()


def decoded(data: bytes) -> Any:
    return state.load(BytesIO(data))


def test_there_and_back() -> None:
    kept = {"a": [Direction.CLIENT, uuid4(), deque([1]), bytearray(b"x"), {1}, Cursor(1, 2, 3)]}
    assert decoded(encoded(kept)) == kept


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("false",)


class Sly:
    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        return getattr, (Direction, "mro")


@pytest.mark.parametrize("evil", [Evil(), Sly(), eval, pickle.loads, state.dump])
def test_foreign_classes_and_functions_are_refused(evil: object) -> None:
    with pytest.raises(DamagedEvidence, match="can't be read"):
        decoded(encoded(evil))


def test_damage_and_other_versions_are_refused() -> None:
    good = encoded([1, 2, 3])
    with pytest.raises(DamagedEvidence, match="damaged"):
        decoded(good[:-1])
    with pytest.raises(DamagedEvidence, match="version"):
        decoded(b"verbatim-recorder 999 " + good.partition(b" ")[2])
    with pytest.raises(DamagedEvidence, match="version"):
        decoded(b"")
