"""What passes between an agent and a server once both log-ins are done: the SSH connection protocol (RFC 4254).

Messages pass one by one, as they are but for the channel's number, so that windows, ends, exit codes and the order of
requests and answers are those of the two ends. A message is recorded, then sent on. What may pass:

    from the agent   channels of type `session`, up to `MAX_CHANNELS`; on them everything but forwarding: terminals,
                     environment (`ENVIRONMENT`), shell, exec, subsystems, resizing, signals
    from the server  what belongs to these channels: output, ends, exit codes

Everything else is answered by the gateway in the order in which it was asked, and is a finding: forwarding of ports,
of sockets, of X11 and of an agent's keys, in either direction, and channels of other types.
"""

import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import asyncssh

from appliance.dissect import ssh_messages as ssh
from appliance.dissect.ssh_messages import Parsed
from appliance.model import Direction
from appliance.relay.flow import NUMBER
from appliance.relay.ssh_connection import AgentConnection, ServerConnection
from appliance.relay.ssh_files import File, SftpFiles

MAX_CHANNELS: Final = 64
MAX_PACKET: Final = 65536  # bytes of data that a peer may be told to put into one message
MAX_WAITING: Final = 256  # requests of a channel without an answer
MAX_TOLD: Final = 64  # findings of one connection
ENVIRONMENT: Final = re.compile(r"LANG|LC_[A-Z]{1,32}")  # as the usual AcceptEnv of sshd_config
_PROHIBITED: Final = 1  # RFC 4254 section 5.1
_UNKNOWN_TYPE: Final = 3
_SHORTAGE: Final = 4
_PASSING: Final = {
    Direction.CLIENT: frozenset(
        ("pty-req", "env", "shell", "exec", "subsystem", "window-change", "xon-xoff", "signal", "break",
         "eow@openssh.com", "keepalive@openssh.com")
    ),
    Direction.SERVER: frozenset(
        ("exit-status", "exit-signal", "xon-xoff", "eow@openssh.com", "keepalive@openssh.com")
    ),
}  # fmt: skip
_FORWARDINGS: Final = frozenset(
    (
        "tcpip-forward", "streamlocal-forward@openssh.com", "x11-req", "auth-agent-req@openssh.com", "direct-tcpip",
        "direct-streamlocal@openssh.com", "forwarded-tcpip", "forwarded-streamlocal@openssh.com", "x11",
        "auth-agent@openssh.com", "tun@openssh.com",
    )
)  # fmt: skip
_QUIET: Final = frozenset(
    ("keepalive@openssh.com", "hostkeys-00@openssh.com", "hostkeys-prove-00@openssh.com", "cancel-tcpip-forward",
     "cancel-streamlocal-forward@openssh.com")
)  # fmt: skip

Record = Callable[[Direction, bytes], None]
Tell = Callable[[str, str, Mapping[str, Any]], None]  # kind, text, attrs


@dataclass(slots=True)
class _Channel:
    """`number`: ours, with both peers; `peers`: by direction, the number of the peer that speaks in it."""

    number: int
    peers: list[int]
    opened: bool = False
    closed: set[Direction] = field(default_factory=set)
    waiting: tuple[deque[bool], deque[bool]] = field(default_factory=lambda: (deque(), deque()))
    files: SftpFiles | None = None


class Channels:
    """Between `agent` and `server`. `record` puts a message on record, as said in a direction; `tell` a finding."""

    def __init__(self, agent: AgentConnection, server: ServerConnection, record: Record, tell: Tell) -> None:
        self._connections: dict[Direction, AgentConnection | ServerConnection] = {
            Direction.CLIENT: agent,
            Direction.SERVER: server,
        }
        self._record = record
        self._tell = tell
        self._told = 0
        self._channels: dict[int, _Channel] = {}
        self._next = 0

    # -- of the connection -----------------------------------------------------------------------------------------

    def heard(self, direction: Direction, payload: bytes) -> None:
        """A message that is not on a channel. Raises `asyncssh.DisconnectError`."""
        number = payload[0]
        if number in (ssh.OPEN_CONFIRMATION, ssh.OPEN_FAILURE) and direction is Direction.SERVER:
            self._answered(_parse(payload))
        elif number == ssh.CHANNEL_OPEN:
            self._open(direction, payload)
        elif number == ssh.GLOBAL_REQUEST:
            self._asked(direction, payload)
        else:
            raise asyncssh.ProtocolError("an answer to nothing")

    def _asked(self, direction: Direction, payload: bytes) -> None:
        parsed = _parse(payload)
        name = parsed.fields["name"]
        if direction is Direction.CLIENT:
            self._record(direction, payload)
            if name == "no-more-sessions@openssh.com" and not parsed.fields["want_reply"]:
                self._connections[Direction.SERVER].emit(payload)
                return
        if name not in _QUIET:
            self._refused(direction, name, parsed)
        if parsed.fields["want_reply"]:
            self._answer(direction, ssh.encode(ssh.REQUEST_FAILURE))

    def _open(self, direction: Direction, payload: bytes) -> None:
        parsed = _parse(payload)
        fields = parsed.fields
        if direction is Direction.CLIENT:
            self._record(direction, payload)
        kind, why = fields["type"], _UNKNOWN_TYPE
        if direction is Direction.CLIENT and kind == "session":
            if len(self._channels) < MAX_CHANNELS:
                self._open_session(fields)
                return
            why = _SHORTAGE
        elif kind in _FORWARDINGS:
            why = _PROHIBITED
        self._refused(direction, kind, parsed)
        text = "too many channels" if why == _SHORTAGE else "the gateway opens sessions only"
        said = ssh.encode(ssh.OPEN_FAILURE, recipient=fields["sender"], reason=why, description=text)
        self._answer(direction, said)

    def _open_session(self, fields: dict[str, Any]) -> None:
        number, self._next = self._next, (self._next + 1) % 2**32
        self._channels[number] = _Channel(number, [fields["sender"], 0])
        opening = ssh.encode(
            ssh.CHANNEL_OPEN,
            type="session",
            sender=number,
            window=fields["window"],
            maximum=min(fields["maximum"], MAX_PACKET),
        )
        self._connections[Direction.SERVER].emit(opening)

    def _answered(self, parsed: Parsed) -> None:
        """The server opened a channel, or did not."""
        fields = parsed.fields
        channel = self._channels.get(fields["recipient"])
        if channel is None or channel.opened:
            raise asyncssh.ProtocolError("an answer to nothing")
        if parsed.number == ssh.OPEN_FAILURE:
            del self._channels[channel.number]
            said = ssh.encode(ssh.OPEN_FAILURE, **{**fields, "recipient": channel.peers[0]})
        else:
            channel.opened = True
            channel.peers[1] = fields["sender"]
            for connection in self._connections.values():
                connection.open_channel(channel.number)
            said = ssh.encode(
                ssh.OPEN_CONFIRMATION,
                recipient=channel.peers[0],
                sender=channel.number,
                window=fields["window"],
                maximum=min(fields["maximum"], MAX_PACKET),
            )
        self._answer(Direction.CLIENT, said)

    def _answer(self, direction: Direction, payload: bytes) -> None:
        """Say something of the gateway's own to who speaks in `direction`."""
        if direction is Direction.CLIENT:
            self._record(Direction.SERVER, payload)
        self._connections[direction].emit(payload)

    def _refused(self, direction: Direction, name: str, parsed: Parsed) -> None:
        self._told += 1
        if self._told > MAX_TOLD:
            return
        known = name in _FORWARDINGS
        attrs: dict[str, Any] = {"request": name[:64], "asked_by": direction.value}
        for key in ("address", "port", "path"):
            if known and key in parsed.fields:
                value = parsed.fields[key]
                attrs[key] = value if isinstance(value, int) else value[:1024]
        what = f"forwarding is refused: {name}" if known else "a request was refused: its type is not let through"
        self._tell("forwarding" if known else "withheld", what, attrs)

    # -- on a channel ----------------------------------------------------------------------------------------------

    def heard_on(self, direction: Direction, number: int, payload: bytes) -> None:
        """A message on an open channel. Raises `asyncssh.DisconnectError`."""
        channel = self._channels[number]
        if direction in channel.closed:
            raise asyncssh.ProtocolError("a message behind the close of its channel")
        kind = payload[0]
        if kind in (ssh.DATA, ssh.EXTENDED_DATA):
            self._pass(channel, direction, payload)
            if channel.files is not None and kind == ssh.DATA:
                for file in channel.files.receive(direction, payload[9:]):
                    self._record(file.direction, _told(file))
        elif kind == ssh.WINDOW_ADJUST:
            self._send(channel, direction, payload)
        elif kind == ssh.CHANNEL_REQUEST:
            self._request(channel, direction, payload)
        elif kind in (ssh.CHANNEL_SUCCESS, ssh.CHANNEL_FAILURE):
            self._reply(channel, direction, payload)
        elif kind in (ssh.EOF, ssh.CLOSE):
            self._pass(channel, direction, payload)
            if kind == ssh.CLOSE:
                self._close(channel, direction)
        else:
            raise asyncssh.ProtocolError("a message of an unknown number")

    def _pass(self, channel: _Channel, direction: Direction, payload: bytes) -> None:
        if direction is Direction.CLIENT:
            self._record(direction, payload)
            self._send(channel, direction, payload)
        else:
            renumbered = _renumbered(payload, channel.peers[0])
            self._record(direction, renumbered)
            self._connections[Direction.CLIENT].emit(renumbered)

    def _send(self, channel: _Channel, direction: Direction, payload: bytes) -> None:
        """To the other peer, by its number."""
        other = direction.other
        self._connections[other].emit(_renumbered(payload, channel.peers[NUMBER[other]]))

    def _close(self, channel: _Channel, direction: Direction) -> None:
        channel.closed.add(direction)
        if len(channel.closed) == len(Direction):
            del self._channels[channel.number]
            for connection in self._connections.values():
                connection.close_channel(channel.number)

    def _request(self, channel: _Channel, direction: Direction, payload: bytes) -> None:
        parsed = _parse(payload)
        fields = parsed.fields
        kind, wanted = fields["type"], fields["want_reply"]
        waiting = channel.waiting[NUMBER[direction]]
        passing = kind in _PASSING[direction]
        if kind == "env" and not ENVIRONMENT.fullmatch(fields["name"]):
            passing = False
        if len(waiting) >= MAX_WAITING:
            raise asyncssh.ProtocolError("too many requests without an answer")
        if passing:
            self._pass(channel, direction, payload)
            if direction is Direction.CLIENT:
                self._starts(channel, kind, fields)
            if wanted:
                waiting.append(True)
            return
        if direction is Direction.CLIENT:
            self._record(direction, payload)
        self._refused(direction, kind, parsed)
        if wanted:
            waiting.append(False)
            self._refuse_next(channel, direction)

    @staticmethod
    def _starts(channel: _Channel, kind: str, fields: dict[str, Any]) -> None:
        """Is it SFTP that begins here? Known before its first packet comes; a server that refuses it says none."""
        if kind == "subsystem" and fields["name"] == "sftp" and channel.files is None:
            channel.files = SftpFiles()

    def _reply(self, channel: _Channel, direction: Direction, payload: bytes) -> None:
        """An answer to the oldest request of the other side."""
        waiting = channel.waiting[NUMBER[direction.other]]
        if not waiting:
            raise asyncssh.ProtocolError("an answer to nothing")
        waiting.popleft()
        self._pass(channel, direction, payload)
        self._refuse_next(channel, direction.other)

    def _refuse_next(self, channel: _Channel, direction: Direction) -> None:
        """Answer those requests that the gateway refused and whose turn it is."""
        waiting = channel.waiting[NUMBER[direction]]
        while waiting and not waiting[0]:
            waiting.popleft()
            said = ssh.encode(ssh.CHANNEL_FAILURE, recipient=channel.peers[NUMBER[direction]])
            self._answer(direction, said)


def _parse(payload: bytes) -> Parsed:
    """Raises `asyncssh.ProtocolError`."""
    try:
        return ssh.parse(payload)
    except ValueError as error:
        raise asyncssh.ProtocolError("a message does not fit its layout") from error


def _renumbered(payload: bytes, recipient: int) -> bytes:
    return b"".join((payload[:1], recipient.to_bytes(4), payload[5:]))


def _told(file: File) -> bytes:
    direction = "upload" if file.direction is Direction.CLIENT else "download"
    return ssh.encode(ssh.FILE, path=file.path, direction=direction, bytes=file.size, sha256=file.sha256)
