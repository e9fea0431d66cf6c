"""HTTP/2 in the path (RFC 9113): frames pass one to one, on the same streams.

    agent:  preface, SETTINGS, WINDOW_UPDATE, DATA, … ──────────────────────────────► as they came
            HEADERS … CONTINUATION → decoded → judged → (token → identity) ─────────► written anew
                                         └─ refused: answered on its stream; its DATA is taken, and credited
    server: everything ──────────────────────────────────────────────────────────────► as it came

Windows are those of the two ends: what one of them gives the other passes, so nothing has to be buffered here. Of what
the server says nothing is decoded; answers of the gateway stand between its frames (see http2_head.py).

What breaks a rule by which the two sides could lose track of each other ends the connection (GOAWAY); a request that is
ambiguous, or not allowed, ends its stream. Either goes on record.
"""

from dataclasses import dataclass
from typing import Final

from appliance.config import RelayRule
from appliance.dissect.http2_frames import PREFACE
from appliance.identity.credential import Secret
from appliance.model import Direction, Identity
from appliance.relay import http2_say as say
from appliance.relay.failure import Failure
from appliance.relay.http2_agent import AgentFrames
from appliance.relay.http2_block import Block
from appliance.relay.http2_head import Fields, Head, check_trailers, encode, read_request
from appliance.relay.http2_server import Stream
from appliance.relay.http_access import Access
from appliance.relay.http_answer import MISDIRECTED, dial_status, status_of
from appliance.relay.http_credentials import AUTHORIZED
from appliance.relay.http_head import Ambiguous, Malformed
from appliance.relay.http_late import Late
from appliance.relay.mediator import ANY, Commands, Context, Dial, Fail, HangUp, Mediator, Note, Refuse, Say, Shut, Take

MAX_STREAMS: Final = 1024  # at one time
CLIENT, SERVER = Direction.CLIENT, Direction.SERVER


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is not passed yet."""

    stream: int
    head: Head
    end_stream: bool


class Http2(AgentFrames, Mediator):
    """One connection of an agent."""

    def __init__(self, context: Context) -> None:
        self._access = Access(context)
        super().__init__(frozenset(self._access.names if self._access.takes_tokens else ()))
        self._context = context
        self._waiting: Asked | None = None  # for an identity
        self._dialling = self._connected = False
        self._unreachable: tuple[int, str, str] | None = None  # status, reason, text
        self._agent_ended = False
        self._late: Late | None = None  # the last answer is said
        self.ready = True  # a request may come at any time: there is no log-in

    # -- what is read ----------------------------------------------------------------------------------------------

    def limit(self, direction: Direction) -> int:
        return ANY

    def routed(self, rule: RelayRule, secret: Secret | None) -> None:
        self._access.routed(rule, secret)

    def receive(self, direction: Direction, data: bytes) -> Commands:
        out: Commands = []
        if self._late is not None:
            return self._late.take(data) if direction is CLIENT else out
        if direction is CLIENT:
            self._held += data
            self._go_on(out)
            return out
        try:
            out += self._server.receive(data)
        except Malformed as fault:
            out.append(Take(SERVER, data))
            self._fail(502, "malformed", f"HTTP/2 of the server: {fault}", out)
        return out

    def _go_on(self, out: Commands) -> None:
        """With what the agent has sent."""
        try:
            if self._begun or self._preface():
                self._frames(out)
        except Malformed as fault:
            self._broke(fault, out)
        self._flush(out)
        if self._late is not None or self._waiting is not None:
            return
        if self._unreachable is not None and (self._highest or self._agent_ended):  # what was asked was answered
            _, reason, text = self._unreachable
            self._shut(reason, text, say.NO_ERROR, out)
        elif self._agent_ended:
            self._end_of_agent(out)

    def _frames(self, out: Commands) -> None:
        if self._connected or self._unreachable is not None:
            while self._waiting is None and self._late is None and self._frame(out):
                continue
        elif not self._dialling:
            self._dialling = True
            context = self._context
            out.append(Dial(tls=context.tls, server_name=context.server_name, alpn=("h2",), by_rule=True))

    def _preface(self) -> bool:
        found = super()._preface()
        if found and self._connected:
            self._pass(len(PREFACE))
        return found

    def dialled(self) -> Commands:
        out: Commands = []
        self._connected = True
        if self._begun:
            self._pass(len(PREFACE))
            self._go_on(out)
        return out

    def dial_failed(self, reason: str, text: str) -> Commands:
        return self._without_server(dial_status(reason), reason, text)

    def refused(self, reason: str, text: str) -> Commands:
        return self._without_server(status_of(reason), reason, text)

    def _without_server(self, status: int, reason: str, text: str) -> Commands:
        """Requests are answered, also those that come later."""
        self._unreachable = status, reason, text
        out = self._server.open()
        if self._begun:
            self._drop(len(PREFACE), out)
        self._go_on(out)
        return out

    # -- requests --------------------------------------------------------------------------------------------------

    def _request(self, block: Block, fields: Fields, out: Commands) -> None:
        try:
            head = read_request(fields)
            if block.end_stream and head.length:
                raise Ambiguous("cl-mismatch", "a Content-Length without a body")
        except Malformed as fault:
            text = f"HTTP/2 of the agent: {fault}"
            if isinstance(fault, Ambiguous):
                out.append(
                    Note("smuggling", text, {"cases": [fault.case], "side": "agent"}, CLIENT, -len(block.raw), 0)
                )
            self._decline(Asked(block.stream, Head(fields), block.end_stream), 400, "malformed", text, out)
            return
        asked = Asked(block.stream, head, block.end_stream)
        if self._unreachable is not None:
            self._decline(asked, *self._unreachable, out)
        elif not self._context.permits(head.host):
            self._decline(asked, MISDIRECTED, "host", "the request's host is of another rule than the connection", out)
        elif len(self._streams) >= MAX_STREAMS:
            self._refuse(asked.stream)
            out += self._server.say(say.reset(asked.stream, say.REFUSED_STREAM))
            out.append(Note("declined", f"more than {MAX_STREAMS} streams at one time", {"reason": "too-many-streams"}))
        else:
            self._identify(asked, out)

    def _identify(self, asked: Asked, out: Commands) -> None:
        """Who says it?"""
        try:
            wanted = self._access.wanted(asked.head)
        except Failure as failure:
            self._decline(asked, 401, failure.reason, failure.text, out)
            return
        if wanted is None:
            self._send(asked, out)
        else:
            self._waiting = asked
            out.append(wanted)

    def identified(self, identity: Identity) -> Commands:
        out: Commands = []
        asked, self._waiting = self._waiting, None
        self._access.identified()
        if asked is not None:
            self._send(asked, out)
        self._go_on(out)
        return out

    def unidentified(self, text: str) -> Commands:
        out: Commands = []
        asked, self._waiting = self._waiting, None
        if asked is not None:
            self._decline(asked, 401, "token", text, out)
        self._go_on(out)
        return out

    def _send(self, asked: Asked, out: Commands) -> None:
        """To the server, with what has to be changed."""
        head = asked.head
        try:
            credential = self._access.credential(out)
        except Failure as failure:
            self._decline(asked, 503, failure.reason, failure.text, out)
            return
        drop, add = set(self._access.ours(head)), [] if credential is None else [credential]
        drop.update(name for name, _ in add)
        fields = [field for field in head.fields if field[0] not in drop] + add
        block = encode(fields, frozenset(name for name, _ in add) | {AUTHORIZED})
        out.append(Say(SERVER, say.headers(asked.stream, block, end_stream=asked.end_stream)))
        self._streams[asked.stream] = Stream(head.length, head.grpc, asked.end_stream)

    def _trailers(self, block: Block, fields: Fields, out: Commands) -> None:
        known = self._streams[block.stream]
        if known.agent_ended or not block.end_stream:
            raise Malformed("a second head of a request")
        check_trailers(fields)
        if known.left:
            raise Ambiguous("cl-mismatch", "a body that is shorter than its Content-Length")
        out.append(Say(SERVER, say.headers(block.stream, encode(fields), end_stream=True)))
        self._ended(block.stream)

    def _decline(self, asked: Asked, status: int, reason: str, text: str, out: Commands) -> None:
        """The gateway answers; the others go on."""
        said = say.answer(asked.stream, status, text, grpc=asked.head.grpc)
        if not asked.end_stream:
            said += say.reset(asked.stream, say.NO_ERROR)
        self._refuse(asked.stream)
        out += self._server.say(said)
        out.append(Note("declined", text, {"status": status, "reason": reason}))

    # -- ends ------------------------------------------------------------------------------------------------------

    def ended(self, direction: Direction) -> Commands:
        out: Commands = []
        if direction is CLIENT:
            self._agent_ended = True
            if self._late is None and self._waiting is None and (self._connected or not self._dialling):
                self._end_of_agent(out)
        elif self._late is None and self._connected:
            if self._streams:
                self._fail(502, "server-gone", "the server ended before its answers", out)
            else:
                self._shut("", "", say.NO_ERROR, out)
        return out

    def _end_of_agent(self, out: Commands) -> None:
        self._take_held(out)
        if self._connected and self._streams:
            out.append(Shut(SERVER))
        else:
            self._shut("", "", None, out)

    def stop(self, reason: str, text: str) -> Commands:
        out: Commands = []
        if self._late is None:
            self._take_held(out)
            self._answer_all(status_of(reason), text, out)
            out += self._server.say(say.goaway(self._highest, say.NO_ERROR))
        return [*out, Fail(reason, text)]

    def _broke(self, fault: Malformed, out: Commands) -> None:
        """The agent says what is not HTTP/2."""
        text = f"HTTP/2 of the agent: {fault}"
        self._take_held(out)
        reason = "malformed"
        if isinstance(fault, Ambiguous):
            reason = "smuggling"
            out.append(Note(reason, text, {"cases": [fault.case], "side": "agent"}))
        self._shut(reason, text, say.PROTOCOL_ERROR, out)

    def _fail(self, status: int, reason: str, text: str, out: Commands) -> None:
        """The server cannot go on."""
        self._take_held(out)
        self._answer_all(status, text, out)
        self._shut(reason, text, say.INTERNAL_ERROR, out)

    def _answer_all(self, status: int, text: str, out: Commands) -> None:
        """Streams whose answer has not begun."""
        for stream, known in self._streams.items():
            if not known.answered:
                out += self._server.say(say.answer(stream, status, text, grpc=known.grpc))

    def _shut(self, reason: str, text: str, error: int | None, out: Commands) -> None:
        """The last frames; `error` None: nobody is there to read them."""
        if error is not None:
            out += self._server.open() + self._server.say(say.goaway(self._highest, error))
        self._late = Late(hides=self._hides)
        if reason:
            out.append(Refuse(reason, text))
        if self._connected:
            out.append(HangUp())
        out.append(Shut(CLIENT))
