"""HTTP/1.1 in the path (RFC 9110, RFC 9112): whose request it is, with which credential it goes on, and whether two
readers would take it for the same thing; also as an explicit proxy (CONNECT, absolute-form).

    agent:  head → (token → identity) → (server is connected) → body ┐ one request at a time: what an agent sends
    server:                             head → body → whole answer ──┘ ahead waits, and no answer can be another's

    101 to WebSocket: splice          CONNECT: tunnel          refused: answered; late bytes are recorded, not passed

Bytes pass as they came, but for heads that the gateway has to change: a credential that is put in or taken out, fields
that are for a proxy, an upgrade to a protocol that would escape. What is ambiguous (request smuggling) ends the flow
with 400, from a server with 502. One connection has one rule: a request whose Host leads to another one gets 421.
"""

from typing import Final

from appliance.config import RelayRule
from appliance.identity.credential import Secret
from appliance.model import Direction, Identity
from appliance.relay.failure import Failure
from appliance.relay.http1_exchange import Exchange
from appliance.relay.http_access import Access
from appliance.relay.http_answer import MISDIRECTED, answer, dial_status, status_of
from appliance.relay.http_body import BodyReader
from appliance.relay.http_credentials import PROXY_AUTHORIZED, loose_secrets
from appliance.relay.http_head import (
    Ambiguous,
    Framing,
    Malformed,
    Request,
)
from appliance.relay.http_late import Late
from appliance.relay.http_rewrite import masked, rewritten, to_websocket
from appliance.relay.mediator import (
    ANY,
    Commands,
    Context,
    Dial,
    Fail,
    HangUp,
    Mediator,
    Note,
    Pass,
    Refuse,
    Say,
    Shut,
    Splice,
    Take,
    Tunnel,
)

MAX_AHEAD: Final = 64 * 1024  # bytes of requests that wait for the answer to the one before
CLIENT, SERVER = Direction.CLIENT, Direction.SERVER
KEEPS: Final = (401, 407)  # answers behind which an agent may come again with a token


class Http1(Exchange, Mediator):
    """One connection of an agent."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._access = Access(context)
        self._token = ""  # of the request in hand
        self._connected: tuple[str, int] | None = None  # the server that is connected
        self._agent_ended = False
        self.ready = True  # a request may come at any time: there is no log-in

    # -- what is read ----------------------------------------------------------------------------------------------

    def limit(self, direction: Direction) -> int:
        if self._done:
            return 0
        if direction is CLIENT and self._late is None and len(self._agent) >= MAX_AHEAD:
            return 0
        return ANY

    def routed(self, rule: RelayRule, secret: Secret | None) -> None:
        self._access.routed(rule, secret)

    def receive(self, direction: Direction, data: bytes) -> Commands:
        out: Commands = []
        if self._late is not None:
            return self._late.take(data) if direction is CLIENT else out
        if direction is CLIENT:
            self._agent += data
            self._more(out)
            return out
        self._server += data
        try:
            self._answer_on(out)
        except Malformed as fault:
            self._refuse_answer(fault, out)
        return out

    # -- requests --------------------------------------------------------------------------------------------------

    def _more(self, out: Commands) -> None:
        """Go on with what the agent has sent."""
        try:
            self._requests(out)
        except Malformed as fault:
            self._refuse(fault, out)
        self._settle(out)

    def _judge(self, request: Request, out: Commands) -> None:
        """A whole head: may its server be asked, and who says it?"""
        context = self._context
        if not context.proxied and not context.permits(self._target.host or context.server_name):
            self._decline(MISDIRECTED, "host", "the request's Host is of another rule than the connection", out)
            return
        self._token = ""
        try:
            wanted = self._access.wanted(request)
        except Failure as failure:
            self._refuse_token(failure.text, out)
            return
        if wanted is None:
            self._proceed(out)
        else:
            self._token = wanted.token
            out.append(wanted)

    def _refuse_token(self, text: str, out: Commands) -> None:
        self._decline(407 if self._context.proxied else 401, "token", text, out)

    def identified(self, identity: Identity) -> Commands:
        out: Commands = []
        if self._request is not None:
            self._access.identified()
            self._proceed(out)
        self._more(out)
        return out

    def unidentified(self, text: str) -> Commands:
        out: Commands = []
        if self._request is not None:
            self._refuse_token(text, out)
        self._more(out)
        return out

    def _proceed(self, out: Commands) -> None:
        """The request in hand goes on, once its server is connected."""
        request, target, context = self._request, self._target, self._context
        assert request is not None
        if not context.proxied:
            if self._connected is not None:
                self._send(request, out)
            else:
                alpn = (context.alpn,) if context.alpn else ()
                name = context.server_name or target.host
                out.append(Dial(tls=context.tls, server_name=name, alpn=alpn, by_rule=True))
            return
        server = (target.host, target.port)
        if self._connected == server and request.method != b"CONNECT":
            self._send(request, out)
            return
        if self._connected is not None:
            out.append(HangUp())
        self._connected = None
        tls = target.scheme == b"https"
        by_rule = request.method != b"CONNECT"
        out.append(Dial(target.host, target.port, tls, target.host, ("http/1.1",) if tls else (), by_rule))

    def dialled(self) -> Commands:
        out: Commands = []
        target, request = self._target, self._request
        self._connected = (target.host, target.port)
        if request is not None and request.method == b"CONNECT":
            self._open_tunnel(request, out)
        elif request is not None:
            self._send(request, out)
        self._more(out)
        return out

    def _open_tunnel(self, request: Request, out: Commands) -> None:
        if self._agent:
            self._decline(400, "desynchronised", "bytes behind CONNECT before it was answered", out)
            return
        self._done, self._request = True, None
        self._take(request, out)
        out.append(Say(CLIENT, b"HTTP/1.1 200 Connection established\r\n\r\n"))
        out.append(Tunnel(self._target.host, self._target.port))

    def dial_failed(self, reason: str, text: str) -> Commands:
        out: Commands = []
        if self._request is None:
            self._condemn(dial_status(reason), reason, text, out)
        else:
            self._decline(dial_status(reason), reason, text, out)
        self._settle(out)
        return out

    def _send(self, request: Request, out: Commands) -> None:
        """To the server, with what has to be changed."""
        try:
            credential = self._access.credential(out)
        except Failure as failure:
            self._decline(503, failure.reason, failure.text, out)
            return
        said = rewritten(
            request,
            taken=self._access.ours(request, self._token),
            credential=credential,
            path=self._target.path if self._context.proxied else b"",
            proxied=self._context.proxied,
        )
        if said == request.raw:
            out.append(Pass(CLIENT, said))
        else:
            self._take(request, out)
            out.append(Say(SERVER, said))
        self._request, self._token = None, ""
        self._asked, self._upgrading = request.method, to_websocket(request)
        self._expecting = b"100-continue" in request.members(b"expect") and request.body.framing is not Framing.NONE
        body = BodyReader(request.body)
        self._sending = None if body.done else body

    def _take(self, request: Request, out: Commands) -> None:
        """On record, without what the gateway took for itself."""
        names = self._access.ours(request, self._token)
        if self._context.proxied:
            names.append(PROXY_AUTHORIZED)
        out.append(Take(CLIENT, request.raw, masked(request, names)))

    # -- answers ---------------------------------------------------------------------------------------------------

    def _answered(self, out: Commands) -> None:
        """An answer is whole."""
        self._answering, self._receiving, self._asked, self._upgrading = False, None, b"", False
        last = self._last and self._context.proxied  # where the server's end is not the agent's
        if last or self._expecting:  # nobody can tell whether the body still comes
            self._close(out)
        else:
            self._more(out)

    def _switch(self, out: Commands) -> None:
        """WebSocket, from the next byte on."""
        self._done = True
        if self._server:
            out.append(Pass(SERVER, bytes(self._server)))
        if self._agent:
            out.append(Pass(CLIENT, bytes(self._agent)))
        out.append(Splice())

    # -- ends ------------------------------------------------------------------------------------------------------

    def ended(self, direction: Direction) -> Commands:
        out: Commands = []
        if direction is CLIENT:
            self._agent_ended = True
            self._settle(out)
        elif not self._done and self._late is None:
            self._server_ended(out)
        return out

    def _settle(self, out: Commands) -> None:
        """Once the agent has ended and everything of it was dealt with, the server is told."""
        if not self._agent_ended or self._done or self._late is not None or self._request is not None:
            return
        if self._sending is not None:
            self._take_held(out)
            self._sending = None
            out.append(Note("truncated", "the agent ended within a request's body", {"side": "agent"}))
            out.append(Shut(SERVER))
        elif self._asked:
            if not self._agent:
                out.append(Shut(SERVER))
        elif self._agent:
            self._refuse(Malformed("the agent ended within a head"), out)
        else:
            self._close(out)

    def _server_ended(self, out: Commands) -> None:
        if self._server:
            out.append(Take(SERVER, bytes(self._server)))
            self._server.clear()
        if self._asked and not (self._receiving is not None and self._receiving.until_close):
            where = "within" if self._answering else "without"
            self._condemn(502, "server-gone", f"the server ended {where} an answer", out)
        elif not self._asked and (self._context.proxied or self._request is not None):
            self._connected = None  # the next request connects again
            out.append(HangUp())
        else:
            self._close(out)

    def _close(self, out: Commands) -> None:
        """The last answer is said: what else the agent sends is late."""
        self._take_held(out)
        self._shut("", "", out)

    def _shut(self, reason: str, text: str, out: Commands) -> None:
        self._late = Late(hides=self._access.takes_tokens)
        if reason:
            out.append(Refuse(reason, text))
        self._asked, self._answering, self._sending, self._receiving = b"", False, None, None
        if self._connected is not None:
            out.append(HangUp())
        out.append(Shut(CLIENT))

    def stop(self, reason: str, text: str) -> Commands:
        out: Commands = []
        if self._late is None and not self._done:
            waits = self._request is not None or bool(self._asked) or bool(self._agent)
            words = self._words(status_of(reason), text)
            self._take_held(out)
            if waits and not self._answering:
                out.append(words)
        return [*out, Fail(reason, text)]

    # -- refusals --------------------------------------------------------------------------------------------------

    def _refuse(self, fault: Malformed, out: Commands) -> None:
        """What the agent says is not to be passed on."""
        size, waits = len(self._agent), self._sending is None or bool(self._asked)
        self._take_held(out)
        self._condemn(fault.status, *_found(fault, "agent", -size, out), out, waits=waits)

    def _refuse_answer(self, fault: Malformed, out: Commands) -> None:
        out.append(Take(SERVER, bytes(self._server)))
        self._server.clear()
        self._condemn(502, *_found(fault, "server", 0, out), out, waits=bool(self._asked))

    def _decline(self, status: int, reason: str, text: str, out: Commands) -> None:
        """The request in hand is answered by the gateway; where it has no body, another one may follow."""
        request = self._request
        assert request is not None
        if status not in KEEPS or request.body.framing is not Framing.NONE or request.last:
            self._condemn(status, reason, text, out)
            return
        self._take(request, out)
        self._request, self._token = None, ""
        out.append(Say(CLIENT, answer(status, text, close=False, bare=request.method == b"HEAD")))
        out.append(Note("declined", text, {"status": status, "reason": reason}))

    def _condemn(self, status: int, reason: str, text: str, out: Commands, *, waits: bool = True) -> None:
        """The last answer, if one is waited for and has not begun."""
        words = self._words(status, text)
        self._take_held(out)
        if waits and not self._answering:
            out.append(words)
        self._shut(reason, text, out)

    def _words(self, status: int, text: str) -> Say:
        bare = self._asked == b"HEAD" or (self._request is not None and self._request.method == b"HEAD")
        return Say(CLIENT, answer(status, text, close=True, bare=bare))

    def _take_held(self, out: Commands) -> None:
        """On record: the request in hand, and bytes that nobody will read."""
        if self._request is not None:
            self._take(self._request, out)
            self._request, self._token = None, ""
        if self._agent:
            data = bytes(self._agent)
            secrets = loose_secrets(data, self._access.names) if self._access.takes_tokens else ()
            out.append(Take(CLIENT, data, secrets))
            self._agent.clear()


def _found(fault: Malformed, side: str, start: int, out: Commands) -> tuple[str, str]:
    """Put it on record; why the flow ends: reason and text. `start`: of the bytes, from the present end."""
    text = f"HTTP/1.1 of the {side}: {fault}"
    if not isinstance(fault, Ambiguous):
        return "malformed", text
    attrs = {"cases": [fault.case], "side": side}
    out.append(Note("smuggling", text, attrs, CLIENT, start, 0) if start else Note("smuggling", text, attrs))
    return "smuggling", text
