import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dissect import Dissector, Match, Output
from appliance.dissect.conversation import MAX_HANDOVERS, Conversation
from appliance.dissect.detection import MAX_PENDING
from appliance.dissect.raw import Raw
from appliance.dissect.registry import STREAM, form
from appliance.model import Direction, Message
from tests.dissect.harness import START_NS, TURN_NS, C, Gap, S, Turn, assert_any_cut, assert_survives, play

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Lines(Raw):
    """Test protocol: begins with "L"; ">name\\n" hands over; "!" is a bug."""

    protocol = "lines"

    def __init__(self, client_offset: int = 0, server_offset: int = 0) -> None:
        super().__init__(client_offset, server_offset)
        self.successor: str | None = None
        self.left = {C: b"", S: b""}
        self.attrs = {"lines": True}

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        if not client:
            return Match.MORE
        return Match.YES if client[:1] == b"L" else Match.NO

    def receive(self, direction: Direction, data: bytes, ts_ns: int) -> Output:
        if b"!" in data:
            raise RuntimeError(f"quotes {data!r}")
        if b">" in data:
            before, _, after = data.partition(b">")
            name, _, self.left[direction] = after.partition(b"\n")
            out = super().receive(direction, before + b">" + name + b"\n", ts_ns)
            self.successor = name.decode()
            return out + self.close(direction, ts_ns)
        return super().receive(direction, data, ts_ns)

    def rest(self, direction: Direction) -> bytes:
        return self.left[direction]


class Slow(Raw):
    """Test protocol that takes 8 bytes to say yes, if they begin with "LS"."""

    protocol = "slow"

    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        if not b"LS".startswith(client[:2]):
            return Match.NO
        return Match.YES if len(client) >= 8 else Match.MORE


class BadDetector(Raw):
    @staticmethod
    def detect(client: bytes, server: bytes) -> Match:
        raise ValueError("bug")


def lines(*registry: type[Dissector]) -> Conversation:
    return Conversation(registry=(*registry, Lines, Raw))


def test_replays_in_order_with_its_own_times() -> None:
    conversation = lines(Slow)
    assert conversation.receive(C, b"LS", START_NS) == []
    assert conversation.receive(S, b"hi", START_NS + 1) == []
    assert (conversation.protocol, conversation.settled(C), conversation.settled(S)) == ("", 0, 0)
    out = conversation.receive(C, b"345678", START_NS + 2) + conversation.close(C, START_NS + 3)
    out += conversation.close(S, START_NS + 3)
    said = [(m.direction, m.ts_ns - START_NS, m.start, m.end) for m in out if isinstance(m, Message)]
    assert said == [(C, 0, 0, 2), (S, 1, 0, 2), (C, 2, 2, 8)]
    assert (conversation.protocol, conversation.settled(C)) == ("slow", 8)


def test_an_undecided_detector_holds_back_those_behind_it() -> None:
    for split in (None, 1, 3):
        assert play(lambda: lines(Slow), [(C, b"LS345678")], split=split).dissector.protocol == "slow"
        assert play(lambda: lines(Slow), [(C, b"LS34567")], split=split).dissector.protocol == "lines"
        assert play(lambda: lines(Slow), [(C, b"x")], split=split).dissector.protocol == "raw"


def test_a_detectors_bug_counts_as_no() -> None:
    assert play(lambda: lines(BadDetector), [(C, b"L")]).dissector.protocol == "lines"


def test_undecided_is_bounded() -> None:
    endless: list[list[Turn]] = [
        [(C, b"GET /" + b"a" * 5000)],
        [(S, b"HTTP/1.")] * 2000,
        [(C, b"GET /"), (C, Gap(1)), *[(C, b"a" * 100)] * (MAX_PENDING // 100 + 1)],
    ]
    for turns in endless:
        played = play(Conversation, turns, close=False)
        assert played.dissector.protocol in ("http1", "raw")
        assert played.dissector.settled(turns[-1][0]) > 0 or played.dissector.protocol == "http1"


def test_nothing_is_said_of_an_empty_session() -> None:
    played = play(Conversation, [])
    assert (played.output, played.dissector.protocol) == ([], "")


def test_a_dissectors_bug_becomes_a_message() -> None:
    turns: list[Turn] = [(C, b"Lone"), (S, b"answer"), (C, b"secret!"), (S, b"more"), (C, b"and more")]
    played = play(lines, turns)
    bug = next(m for m in played.messages if m.kind == "undissected")
    assert bug.attrs == {"dissector": "lines", "exception": "RuntimeError"}
    assert bug.text == ""
    assert played.bytes_of(bug) == b"secret!"
    assert played.dissector.protocol == "lines"
    assert played.dissector.attrs == {"lines": True, "protocols": ["lines", "raw"]}
    after = [(m.kind, m.text) for m in played.messages if m.ts_ns > START_NS + 2 * TURN_NS]
    assert after == [("undissected", ""), ("data", "secret!"), ("data", "more"), ("data", "and more")]
    assert [played.dissector.protocol_of(m) for m in played.messages if m.direction is C] == [
        "lines",
        "raw",
        "raw",
        "raw",
    ]


@pytest.mark.parametrize("method", ["settled", "close", "gap", "rest"])
def test_a_bug_anywhere_is_survived(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> Any:
        raise KeyError("bug")

    monkeypatch.setattr(Lines, method, bug)
    played = play(lines, [(C, b"L"), (C, Gap(2)), (C, b"x>raw\nrest"), (S, b"y")])
    assert played.streams[C].endswith(b"rest")
    assert played.dissector.settled(S) == 1


def test_a_hand_over_replays_the_rest_of_both_directions() -> None:
    conversation = lines()
    conversation.receive(C, b"L", START_NS)
    conversation._dissector.left[S] = b"srv"  # type: ignore[union-attr]
    conversation.receive(S, b"abcsrv", START_NS + 1)
    out = conversation.receive(C, b"a>raw\nrest", START_NS + 2) + conversation.close(C, START_NS + 3)
    said = [(m.direction, m.start, m.end, m.text) for m in out if isinstance(m, Message)]
    assert said == [(S, 0, 6, "abcsrv"), (C, 1, 7, "a>raw\n"), (S, 3, 6, "srv"), (C, 7, 11, "rest")]
    assert (conversation.settled(C), conversation.settled(S)) == (11, 6)


def test_detects_again_behind_auto() -> None:
    turns: list[Turn] = [(C, b"L>auto\n" + GET), (S, OK)]
    for cut in (None, 7, 8, 20):
        played = play(lambda: Conversation(registry=(Lines, *STREAM)), turns, cut=cut)
        request, response = played.messages[-2:]
        assert (request.kind, request.start, response.reply_to) == ("request", 7, 7)
        assert played.dissector.protocol == "http1"
        assert played.dissector.attrs["protocols"] == ["lines", "http1"]
        assert played.dissector.protocol_of(request) == "http1"


def test_unknown_successor_is_raw() -> None:
    played = play(lines, [(C, b"L>smtp\nEHLO"), (S, b"220 hello")])
    assert played.dissector.attrs["protocols"] == ["lines", "raw"]
    assert played.dissector.protocol == "lines"
    assert [m.text for m in played.messages[1:]] == ["EHLO", "220 hello"]


def test_hand_overs_are_bounded() -> None:
    played = play(lines, [(C, b"L>auto\n" * 50)])
    assert len(played.dissector.attrs["protocols"]) == MAX_HANDOVERS + 2
    assert played.dissector.attrs["protocols"][-1] == "raw"


def test_a_protocol_that_is_told_is_not_detected() -> None:
    """Bytes that came before, and that another dissector would take, are the named one's."""
    talk = Conversation()
    assert talk.receive(C, b"G", START_NS) == []
    assert [item.kind for item in talk.adopt("raw") if isinstance(item, Message)] == []
    found = talk.receive(C, GET[1:], START_NS + 1) + talk.close(C, START_NS + 2)
    assert [(item.text, item.start) for item in found if isinstance(item, Message)] == [(GET.decode(), 0)]
    assert talk.protocol == "raw"


def test_a_protocol_that_is_told_too_late_or_is_unknown_changes_nothing() -> None:
    talk = Conversation()
    assert talk.adopt("gopher") == []
    talk.receive(C, GET, START_NS)
    assert talk.adopt("raw") == []
    assert talk.protocol == "http1"


def test_http_tunnel_to_tls(client_hello: bytes) -> None:
    turns: list[Turn] = [
        (C, b"CONNECT a.example:443 HTTP/1.1\r\n\r\n"),
        (S, b"HTTP/1.1 200 OK\r\n\r\n"),
        (C, client_hello),
    ]
    played = assert_any_cut(Conversation, turns, step=7)
    assert played.kinds() == ["request", "response", "client_hello"]
    assert played.dissector.protocol == "tls"
    assert played.dissector.attrs["sni"] == "a.example"
    assert played.bytes_of(played.messages[2]) == client_hello[5:]


def test_attrs_that_were_given_do_not_change_later(client_hello: bytes) -> None:
    exchange = (C, GET), (S, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    for turns in (exchange * 2, ((C, client_hello), (C, client_hello), (S, client_hello))):
        one = Conversation()
        given_before: list[tuple[str, dict[str, Any]]] = []
        for direction, data in turns:
            one.receive(direction, data, 5)
            given_before.append((repr(one.attrs), one.attrs))
        assert all(repr(attrs) == was for was, attrs in given_before)
        assert len({was for was, _ in given_before}) > 1


def test_websocket_behind_an_upgrade() -> None:
    turns: list[Turn] = [
        (C, b"GET /c HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi"),
        (S, b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n\x81\x07welcome"),
    ]
    played = assert_any_cut(Conversation, turns)
    assert played.kinds() == ["request", "response", "text", "text"]
    assert played.bytes_of(played.messages[2]) == b"\x81\x02hi"
    assert played.messages[3].text == "welcome"
    assert played.dissector.attrs["protocols"] == ["http1", "websocket"]


def test_gap_before_detection() -> None:
    played = play(Conversation, [(C, Gap(10)), (C, b"x\r\n\r\n" + GET), (S, OK)])
    assert played.kinds() == ["data", "request", "response"]
    assert played.dissector.protocol == "http1"
    played = play(Conversation, [(S, Gap(5)), (C, GET), (S, OK)])
    assert played.kinds() == ["request", "response"]
    assert played.messages[1].start == 5
    played = play(Conversation, [(C, b"GET /lo"), (C, Gap(3)), (C, b"ng HTTP/1.1\r\n\r\n"), (S, OK), (C, GET)])
    assert played.dissector.protocol == "http1"
    assert "response" in played.kinds()


def test_first_offsets() -> None:
    conversation = Conversation("tcp", 1000, 2000)
    out = conversation.receive(C, GET, START_NS) + conversation.receive(S, OK, START_NS)
    assert [m.start for m in out] == [1000, 2000]
    assert (conversation.settled(C), conversation.settled(S)) == (1000 + len(GET), 2000 + len(OK))


def test_text_is_cut() -> None:
    out = Conversation(max_text=5).receive(C, GET, START_NS)
    assert [(m.text, m.flags) for m in out if isinstance(m, Message)] == [("GET /", ("truncated",))]


def test_datagrams_are_judged_one_by_one() -> None:
    played = play(lambda: Conversation("udp"), [(C, b"\x00"), (C, b"hello"), (S, b"world")])
    assert played.dissector.protocol == "raw"
    assert [m.text for m in played.messages] == ["", "hello", "world"]


def test_pickled_while_detecting() -> None:
    conversation = Conversation()
    conversation.receive(C, GET[:5], START_NS)
    conversation = pickle.loads(pickle.dumps(conversation))
    out = conversation.receive(C, GET[5:], START_NS)
    assert [(m.start, m.end) for m in out] == [(0, len(GET))]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([C, S]), st.one_of(st.binary(max_size=60), st.integers(1, 9).map(Gap))), max_size=8
    ),
    st.sampled_from(["tcp", "udp"]),
)
def test_survives_anything(turns: list[Turn], transport: str) -> None:
    assert_survives(lambda: Conversation(transport), turns)


def test_each_dissector_has_a_name_of_its_own() -> None:
    """A hand-over and a successor name one: of those of the same protocol, too, they mean exactly one."""
    names = [form(one) for one in STREAM]
    assert len(set(names)) == len(names)
    assert {form(one) for one in STREAM if one.protocol == "ssh"} == {"ssh", "ssh-relayed"}
