"""What agent and server say in HTTP/1.1, message by message: heads are judged, bodies pass."""

from abc import ABC, abstractmethod

from appliance.model import Direction
from appliance.relay.http_body import BodyReader
from appliance.relay.http_head import (
    CRLF,
    REQUEST_LINE,
    STATUS_LINE,
    Ambiguous,
    HeadScan,
    Malformed,
    Request,
    parse_request,
    parse_response,
    response_body,
)
from appliance.relay.http_late import Late
from appliance.relay.http_target import Target, target_of
from appliance.relay.mediator import Commands, Context, Pass, Take

CLIENT, SERVER = Direction.CLIENT, Direction.SERVER


class Exchange(ABC):
    """One request at a time and its answer. The reading methods raise `Malformed`; those bytes are held still."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._agent, self._server = bytearray(), bytearray()  # what is not whole, and what waits behind it
        self._heads, self._answers = HeadScan(REQUEST_LINE), HeadScan(STATUS_LINE)
        self._blank = False  # an empty line before a request was taken
        self._request: Request | None = None  # waits for an identity, or a connection
        self._target = Target("")  # of that request
        self._sending: BodyReader | None = None  # a request's body
        self._asked = b""  # method of the request whose answer is to come
        self._answering = False  # its head has passed
        self._last = False  # one of both ends the connection behind this answer
        self._receiving: BodyReader | None = None  # an answer's body
        self._expecting = False  # the agent waits for 100 before it sends the body
        self._upgrading = False
        self._late: Late | None = None  # the last answer is said
        self._done = False

    @abstractmethod
    def _judge(self, request: Request, out: Commands) -> None:
        """A request's head is whole, and is in hand now."""

    @abstractmethod
    def _answered(self, out: Commands) -> None:
        """An answer is whole."""

    @abstractmethod
    def _switch(self, out: Commands) -> None:
        """The server agreed to another protocol."""

    def _requests(self, out: Commands) -> None:
        agent = self._agent
        while agent and self._request is None and not self._done and self._late is None:
            if self._sending is not None:
                size = self._sending.take(agent)
                if not size:
                    return
                self._expecting = False
                out.append(Pass(CLIENT, bytes(agent[:size])))
                del agent[:size]
                if self._sending.done:
                    self._sending = None
                continue
            if self._asked:
                return
            if not self._blank and CRLF.startswith(bytes(agent[:2])):  # RFC 9112 §2.2
                if len(agent) < len(CRLF):
                    return
                self._blank = True
                out.append(Take(CLIENT, CRLF))
                del agent[:2]
                continue
            size = self._heads.find(agent)
            if not size:
                return
            request = parse_request(bytes(agent[:size]))
            self._target = target_of(request)
            if not self._context.proxied and request.method == b"CONNECT":
                raise Ambiguous("target", "CONNECT to a server that is no proxy")
            if self._context.proxied and not self._target.absolute and request.method != b"CONNECT":
                raise Malformed("not a request for a proxy: neither CONNECT nor an absolute target")
            del agent[:size]
            self._request, self._blank, self._last = request, False, request.last
            self._judge(request, out)

    def _answer_on(self, out: Commands) -> None:
        server = self._server
        while server and not self._done and self._late is None:
            if self._receiving is not None:
                size = self._receiving.take(server)
                if not size:
                    return
                out.append(Pass(SERVER, bytes(server[:size])))
                del server[:size]
                if self._receiving.done:
                    self._answered(out)
                continue
            if not self._asked:
                raise Ambiguous("unasked", "an answer to nothing")
            size = self._answers.find(server)
            if not size:
                return
            head = parse_response(bytes(server[:size]))
            body = response_body(head, self._asked)
            if head.status == 101 and not (self._upgrading and b"websocket" in head.members(b"upgrade")):
                raise Ambiguous("unasked", "another protocol, for which nobody asked")
            del server[:size]
            out.append(Pass(SERVER, head.raw))
            if head.status == 101:
                self._switch(out)
            elif head.status < 200:
                self._expecting = self._expecting and head.status != 100
            else:
                self._answering, self._receiving = True, BodyReader(body)
                self._last = self._last or head.last
                if self._receiving.done:
                    self._answered(out)
