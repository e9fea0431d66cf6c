"""What passes between the two connections, message by message; what does not is refused in its turn."""

from collections.abc import Mapping
from typing import Any

import asyncssh
import pytest

from appliance.dissect import ssh_messages as ssh
from appliance.model import Direction
from appliance.relay.ssh_channels import MAX_CHANNELS, MAX_TOLD, MAX_WAITING, Channels

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER


class Peer:
    """A connection: what was sent to it, and its channels."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.open: set[int] = set()

    def emit(self, payload: bytes) -> None:
        self.sent.append(payload)

    def open_channel(self, number: int) -> None:
        self.open.add(number)

    def close_channel(self, number: int) -> None:
        self.open.discard(number)

    def taken(self) -> list[dict[str, Any]]:
        found = [{"number": parsed.number} | parsed.fields for parsed in map(ssh.parse, self.sent)]
        self.sent.clear()
        return found


class Between:
    def __init__(self) -> None:
        self.agent, self.server = Peer(), Peer()
        self.stream: list[tuple[Direction, bytes]] = []
        self.told: list[tuple[str, Mapping[str, Any]]] = []
        self.channels = Channels(self.agent, self.server, self._record, self._tell)  # type: ignore[arg-type]

    def _record(self, direction: Direction, payload: bytes) -> None:
        self.stream.append((direction, payload))

    def _tell(self, kind: str, text: str, attrs: Mapping[str, Any]) -> None:
        self.told.append((kind, attrs))

    def hear(self, direction: Direction, number: int, **fields: Any) -> None:
        self.channels.heard(direction, ssh.encode(number, **fields))

    def on(self, direction: Direction, channel: int, number: int, **fields: Any) -> None:
        self.channels.heard_on(direction, channel, ssh.encode(number, recipient=channel, **fields))

    def opened(self, agent: int = 7, server: int = 70) -> int:
        self.hear(CLIENT, ssh.CHANNEL_OPEN, type="session", sender=agent, window=100, maximum=2**31)
        (opening,) = self.server.taken()
        self.hear(SERVER, ssh.OPEN_CONFIRMATION, recipient=opening["sender"], sender=server, window=5, maximum=9)
        (confirmed,) = self.agent.taken()
        assert (confirmed["recipient"], confirmed["window"], confirmed["maximum"]) == (agent, 5, 9)
        assert (opening["window"], opening["maximum"]) == (100, 65536)
        return int(confirmed["sender"])


def test_channels_keep_their_numbers_apart() -> None:
    between = Between()
    first, second = between.opened(7, 70), between.opened(8, 80)
    between.on(CLIENT, second, ssh.DATA, data=b"to the second")
    between.on(SERVER, first, ssh.EXTENDED_DATA, type=1, data=b"of the first")
    between.on(SERVER, second, ssh.WINDOW_ADJUST, bytes=11)
    assert between.server.taken() == [{"number": ssh.DATA, "recipient": 80, "data": b"to the second"}]
    assert between.agent.taken() == [
        {"number": ssh.EXTENDED_DATA, "recipient": 7, "type": 1, "data": b"of the first"},
        {"number": ssh.WINDOW_ADJUST, "recipient": 8, "bytes": 11},
    ]
    assert [ssh.parse(payload).fields["recipient"] for _, payload in between.stream[-2:]] == [second, 7]


def test_a_channel_is_forgotten_when_both_closed_it() -> None:
    between = Between()
    channel = between.opened()
    between.on(CLIENT, channel, ssh.EOF)
    between.on(CLIENT, channel, ssh.CLOSE)
    with pytest.raises(asyncssh.ProtocolError):
        between.on(CLIENT, channel, ssh.DATA, data=b"late")
    assert between.agent.open == between.server.open == {channel}
    between.on(SERVER, channel, ssh.CLOSE)
    assert between.agent.open == between.server.open == set()


def test_a_refused_request_is_answered_in_its_turn() -> None:
    between = Between()
    channel = between.opened()
    terminal = {"term": "xterm", "columns": 80, "rows": 24}
    between.on(CLIENT, channel, ssh.CHANNEL_REQUEST, type="pty-req", want_reply=True, **terminal)
    between.on(CLIENT, channel, ssh.CHANNEL_REQUEST, type="auth-agent-req@openssh.com", want_reply=True)
    between.on(CLIENT, channel, ssh.CHANNEL_REQUEST, type="shell", want_reply=True)
    assert [sent["type"] for sent in between.server.taken()] == ["pty-req", "shell"]
    assert between.agent.taken() == []
    between.on(SERVER, channel, ssh.CHANNEL_SUCCESS)
    assert [sent["number"] for sent in between.agent.taken()] == [ssh.CHANNEL_SUCCESS, ssh.CHANNEL_FAILURE]
    between.on(SERVER, channel, ssh.CHANNEL_SUCCESS)
    assert [sent["number"] for sent in between.agent.taken()] == [ssh.CHANNEL_SUCCESS]
    assert [kind for kind, _ in between.told] == ["forwarding"]
    with pytest.raises(asyncssh.ProtocolError):
        between.on(SERVER, channel, ssh.CHANNEL_SUCCESS)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("direct-tcpip", {"address": "10.0.0.1", "port": 80, "originator": "x", "originator_port": 1}),
        ("direct-streamlocal@openssh.com", {"path": "/run/docker.sock"}),
        ("tun@openssh.com", {}),
        ("auth-agent@openssh.com", {}),
    ],
)
@pytest.mark.parametrize("direction", list(Direction))
def test_no_forwarding_is_opened(direction: Direction, kind: str, fields: dict[str, Any]) -> None:
    between = Between()
    between.hear(direction, ssh.CHANNEL_OPEN, type=kind, sender=3, window=1, maximum=1, **fields)
    asked, other = (between.agent, between.server)[:: 1 if direction is CLIENT else -1]
    (answer,) = asked.taken()
    assert (answer["number"], answer["recipient"], answer["reason"]) == (ssh.OPEN_FAILURE, 3, 1)
    assert other.taken() == []
    ((finding, attrs),) = between.told
    assert (finding, attrs["request"], attrs["asked_by"]) == ("forwarding", kind, direction.value)
    assert {name: attrs[name] for name in ("address", "port", "path") if name in fields} == {
        name: fields[name] for name in ("address", "port", "path") if name in fields
    }
    assert len(between.stream) == (2 if direction is CLIENT else 0)


def test_no_port_is_listened_on_and_who_asks_whether_it_lives_is_answered() -> None:
    between = Between()
    between.hear(CLIENT, ssh.GLOBAL_REQUEST, name="tcpip-forward", want_reply=True, address="", port=8080)
    between.hear(CLIENT, ssh.GLOBAL_REQUEST, name="keepalive@openssh.com", want_reply=True)
    between.hear(SERVER, ssh.GLOBAL_REQUEST, name="keepalive@openssh.com", want_reply=True)
    between.hear(SERVER, ssh.GLOBAL_REQUEST, name="hostkeys-00@openssh.com", data=b"any")
    between.hear(CLIENT, ssh.GLOBAL_REQUEST, name="no-more-sessions@openssh.com")
    assert [sent["number"] for sent in between.agent.taken()] == [ssh.REQUEST_FAILURE] * 2
    assert [sent.get("name", "") for sent in between.server.taken()] == ["", "no-more-sessions@openssh.com"]
    assert [attrs["request"] for _, attrs in between.told] == ["tcpip-forward"]


def test_what_a_peer_may_pile_up_is_bounded() -> None:
    between = Between()
    channel = between.opened()
    for _ in range(MAX_WAITING):
        between.on(CLIENT, channel, ssh.CHANNEL_REQUEST, type="signal", want_reply=True, signal="INT")
    with pytest.raises(asyncssh.ProtocolError):
        between.on(CLIENT, channel, ssh.CHANNEL_REQUEST, type="signal", want_reply=True, signal="INT")
    for sender in range(MAX_CHANNELS + 3):
        between.hear(CLIENT, ssh.CHANNEL_OPEN, type="session", sender=sender, window=1, maximum=1)
    refused = [sent for sent in between.agent.taken() if sent["number"] == ssh.OPEN_FAILURE]
    assert [sent["reason"] for sent in refused] == [4] * 4
    for _ in range(2 * MAX_TOLD):
        between.hear(CLIENT, ssh.CHANNEL_OPEN, type="x11", sender=1, originator="", originator_port=1)
    assert len(between.told) == MAX_TOLD


@pytest.mark.parametrize(
    ("direction", "payload"),
    [
        (CLIENT, ssh.encode(ssh.OPEN_CONFIRMATION)), (CLIENT, ssh.encode(ssh.REQUEST_SUCCESS)),
        (SERVER, ssh.encode(ssh.OPEN_CONFIRMATION, recipient=5)), (SERVER, ssh.encode(ssh.REQUEST_FAILURE)),
        (CLIENT, b"\x5a\xff\xff\xff\xff"), (CLIENT, b"\x50"), (SERVER, b"\x5b\0"),
    ],
)  # fmt: skip
def test_what_does_not_fit_ends_the_connection(direction: Direction, payload: bytes) -> None:
    with pytest.raises(asyncssh.ProtocolError):
        Between().channels.heard(direction, payload)
