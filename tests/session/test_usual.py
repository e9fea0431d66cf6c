"""The short way of usual segments gives the rows that the long way gives."""

import json
from collections.abc import Iterable

import pytest

from appliance.journal import RING, Frame, FrameKind
from appliance.model import Row
from appliance.session.tcp import TcpSession
from appliance.wire.clock import CLOCK
from tests.bench import journals
from tests.session.test_assembler import busy
from tests.session.traffic import feed, frame, ingest

OPENED = json.dumps({"node": "gw", "source": "wire", "boot": "b", "ring": "r", "position": 0}).encode()


def wire(packets: Iterable[tuple[int, bytes]]) -> list[Frame]:
    """The frames that the wire process writes of these records."""
    frames = [frame(1, FrameKind.OPEN, OPENED), frame(2, FrameKind.CLOCK, CLOCK.pack(1, journals.T0))]
    position = 0
    for _, one in packets:
        end = position + len(one)
        frames.append(Frame(len(frames) + 1, FrameKind.SPAN, journals.T0, one, position, end, RING))
        position = end
    return frames


TRAFFIC = {
    "busy": lambda: ingest(busy(), size=5),
    "bulk": lambda: wire(journals.bulk(20 * journals.SUPER)),
    "postgres": lambda: wire(journals.postgres(200, flows=3)),
    "http": lambda: wire(journals.http(200, flows=3)),
}


@pytest.mark.parametrize("name", TRAFFIC)
def test_the_same_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = TRAFFIC[name]()
    taken: list[bool] = []
    usual = TcpSession.usual

    def counted(self: TcpSession, *what: object) -> bool:
        taken.append(usual(self, *what))  # type: ignore[arg-type]
        return taken[-1]

    monkeypatch.setattr(TcpSession, "usual", counted)
    short: list[Row] = feed(frames)
    assert any(taken)
    monkeypatch.setattr(TcpSession, "usual", lambda self, *what: False)
    assert feed(frames) == short
