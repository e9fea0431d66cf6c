"""What a relay's records of one flow become."""

from pathlib import Path
from typing import Any

import pytest

from appliance.model import Coverage, Direction, Ending
from tests.dissect.handshakes import make_certificate, shake_hands
from tests.session.relaying import ALICE, Flow, clock, exchange, feed, leg, run, span, stream
from tests.session.traffic import MS, SECOND, T0, Recorded

C, S = Direction.CLIENT, Direction.SERVER
GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def test_a_flow_from_open_to_close() -> None:
    found = run(exchange(Flow()))
    row = found.session
    assert (row.client_address, row.client_port, row.server_address, row.server_port) == (
        "10.0.0.2", 40000, "10.0.1.3", 5432,
    )  # fmt: skip
    assert (row.transport, row.lane, row.source, row.node) == ("tcp", "relay", "relay-0", "gw")
    assert (row.started_ns, row.ended_ns, row.ending) == (T0, T0 + 5 * MS, Ending.FIN)
    assert (row.identity.subject, row.identity.lease_id, row.identity.method) == ("alice", ALICE["lease_id"], "lease")
    assert (found.stream(C), found.stream(S)) == (b"hello", b"world\n")
    assert (row.client_bytes, row.server_bytes, row.client_packets, row.server_packets) == (5, 6, 3, 3)
    assert row.coverage is Coverage.COMPLETE
    assert row.attrs["relay"] == {"flow": 1, "rule": 4, "kernel_flow": 99, "reason": ""}
    assert [message.message.text for message in found.messages()] == ["hello", "world\n"]
    assert row.findings == ()


def test_flows_in_one_frame_are_told_apart() -> None:
    one, two = exchange(Flow(1)), exchange(Flow(2, client_port=40001))
    found = run([record for pair in zip(one, two, strict=True) for record in pair])
    assert [row.client_port for row in found.sessions] == [40000, 40001]
    assert all(found.stream(C, row) == b"hello" for row in found.sessions)
    assert len({row.session_id for row in found.sessions}) == 2


def test_who_it_is_may_come_from_within_the_protocol() -> None:
    flow = Flow()
    token = {"issuer": "https://id", "subject": "bob", "method": "postgres-password", "token_sha256": "ab" * 32}
    found = run([flow.open(), flow.note("identified", identity=token), flow.close()])
    assert (found.session.identity.subject, found.session.identity.method) == ("bob", "postgres-password")
    assert (found.session.identity.token_sha256, found.session.identity.lease_id) == ("ab" * 32, ALICE["lease_id"])
    assert found.session.findings == ()


def test_a_lease_counts_also_where_the_relay_does_not_know_whose_it_is() -> None:
    flow = Flow()
    found = run([flow.open(identity=None, lease_id="00000000000000cd"), flow.close()])
    assert (found.session.identity.lease_id, found.session.identity.method) == ("00000000000000cd", "lease")


@pytest.mark.parametrize("said", [None, {"subject": 5}, {"unheard": "of"}, [], "alice"])
def test_an_identity_that_says_nothing_is_nobody(said: Any) -> None:
    flow = Flow()
    assert run([flow.open(identity=said), flow.close()]).session.identity.method == "unbound"


def test_a_credential_that_the_relay_took_is_flagged_once() -> None:
    """Its bytes are asterisks already; that of a dissector that redacts it too is no second finding."""
    flow = Flow()
    head = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer "
    request = head + b"*" * 20 + b"\r\n\r\n"
    note = flow.note("redacted", start=len(head), end=len(head) + 20, what="token")
    found = run([flow.open(), note, flow.data(0, request), flow.close(MS)])
    (finding,) = found.findings(kind="redacted")
    assert (finding.direction, finding.start, finding.end) == (C, len(head), len(head) + 20)
    assert finding.attrs == {"what": "token"}
    (chunk,) = found.chunks()
    assert chunk.redacted == ((len(head), len(head) + 20),)
    assert found.stream(C) == request


def test_a_credential_that_the_relay_did_not_take_is_redacted_by_the_dissector() -> None:
    flow = Flow()
    request = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer secret\r\n\r\n"
    found = run([flow.open(), flow.data(0, request), flow.close(MS)])
    assert b"secret" not in found.stream(C)
    assert [finding.attrs["what"] for finding in found.findings(kind="redacted")] == ["authorization"]


def test_the_protocol_is_as_the_relay_says() -> None:
    """Two bytes would leave it open; the rule says what they are."""
    flow = Flow()
    frames = [span(flow.open(), flow.note("protocol", protocol="raw"), flow.data(0, b"GE")), clock(SECOND)]
    found = Recorded(feed(stream(*frames)))
    assert found.session.protocol == "raw"
    assert found.session.attrs["relay"]["protocol"] == "raw"
    assert found.stream(C) == b"GE"


def test_what_is_known_of_both_legs_is_in_the_attributes() -> None:
    flow = Flow()
    found = run(
        [
            flow.open(),
            flow.note("tls", sni="api.example", version="TLSv1.3", alpn="h2"),
            flow.note("upstream", address="10.0.1.3", port=5432, tls={"version": "TLSv1.3"}),
            flow.note("upstream", login={"user": "app"}),
            flow.close(),
        ]
    )
    attrs = found.session.attrs
    assert attrs["relay"]["tls"]["version"] == attrs["relay"]["upstream"]["tls"]["version"] == "TLSv1.3"
    assert (attrs["sni"], attrs["alpn"]) == ("api.example", "h2")
    assert attrs["relay"]["upstream"]["login"] == {"user": "app"}
    assert found.session.findings == ()


def test_other_notes_are_findings() -> None:
    flow = Flow()
    said = [
        flow.note("certificate", text="expired", names=["a"]),
        flow.note("generated", 1, start=0, end=4, text="the gateway answered"),
        flow.data(1, b"oops"),
        flow.note("refused", text="no", time=MS),
        flow.note("tls", text="TLS failed", time=MS, leg="agent"),
        flow.note("protocol", text="not a message", time=MS),
    ]
    found = run([flow.open(), *said, flow.close(2 * MS, ending="rst")])
    assert [(row.kind, row.direction, row.start, row.end, row.text) for row in found.findings()] == [
        ("certificate", None, 0, 0, "expired"),
        ("generated", S, 0, 4, "the gateway answered"),
        ("refused", None, 0, 0, "no"),
        ("tls", None, 0, 0, "TLS failed"),
        ("protocol", None, 0, 0, "not a message"),
    ]
    assert found.findings()[0].attrs == {"names": ["a"]}
    assert found.session.findings == ("certificate", "generated", "protocol", "refused", "tls")
    assert found.session.ending is Ending.RST


def test_half_a_close_ends_a_message() -> None:
    """What was asked ends with its direction: the dissector has no more to wait for."""
    flow = Flow()
    frames = [span(flow.open(), flow.data(0, b"GET / HTTP/1.1\r\n"), flow.eof(0, MS)), clock(SECOND)]
    found = Recorded(feed(stream(*frames)))
    assert [message.message.flags for message in found.messages()] == [("truncated",)]
    assert found.session.ending is Ending.OPEN


@pytest.mark.parametrize("ending", ["fin", "rst", "idle", "cut", "nonsense", "open"])
def test_how_it_ended(ending: str) -> None:
    flow = Flow()
    expected = Ending(ending) if ending not in ("nonsense", "open") else Ending.INTERRUPTED
    assert run([flow.open(), flow.close(ending=ending)]).session.ending is expected


@pytest.mark.parametrize(
    ("agent", "upstream", "coverage"),
    [
        (leg(5), leg(6), Coverage.COMPLETE),
        (leg(5, 4), leg(6), Coverage.PARTIAL),
        (leg(5), leg(6, 5), Coverage.PARTIAL),
        ({"kernel": None, "socket": {"received": 5, "acked": 1}}, leg(6), Coverage.COMPLETE),
        ({"kernel": None, "socket": None}, {"kernel": None, "socket": None}, Coverage.COMPLETE),
        ({"kernel": {"sent": 5, "acked": 1, "packets": 2}, "socket": None}, leg(6), Coverage.PARTIAL),
    ],
)
def test_coverage_joins_the_legs(agent: dict[str, Any], upstream: dict[str, Any], coverage: Coverage) -> None:
    flow = Flow()
    found = run([*exchange(flow)[:-1], flow.close(5 * MS, agent=agent, upstream=upstream)])
    assert found.session.coverage is coverage
    stated = found.session.attrs["coverage"]
    assert stated["recorded"] == {"client": 5, "server": 6}
    assert (stated["agent"], stated["upstream"]) == (agent, upstream)


def test_ciphertext_that_was_passed_is_opaque(tmp_path: Path) -> None:
    flow = Flow(server_port=443)
    turns = shake_hands(make_certificate(tmp_path / "both.pem"))
    records = [flow.data(int(side is S), data) for side, data in turns if isinstance(data, bytes)]
    found = run([flow.open(), *records, flow.close(MS)])
    assert (found.session.protocol, found.session.coverage) == ("tls", Coverage.OPAQUE)


def test_bytes_that_are_missing_leave_a_gap() -> None:
    flow = Flow()
    flow.sent[1] = 0
    records = [flow.open(), flow.data(1, b"one")]
    flow.sent[1] += 4
    records += [flow.data(1, b"two"), flow.close(MS)]
    found = run(records)
    (gap,) = found.findings(kind="gap")
    assert (gap.direction, gap.start, gap.end, gap.attrs) == (S, 3, 7, {"reason": "journal"})
    assert found.stream(S) == b"one\0\0\0\0two"
    assert (found.session.coverage, found.session.attrs["coverage"]["missing"]["server"]) == (Coverage.PARTIAL, 4)


def test_an_end_behind_missing_bytes_leaves_a_gap() -> None:
    flow = Flow()
    records = [flow.open(), flow.data(0, b"one")]
    flow.sent[0] += 4
    found = run([*records, flow.eof(0), flow.close(MS)])
    assert [(gap.start, gap.end) for gap in found.findings(kind="gap")] == [(3, 7)]


def test_bytes_that_come_twice_are_kept_beside_the_stream() -> None:
    flow = Flow()
    records = [flow.open(), flow.data(0, b"abcdef")]
    flow.sent[0] = 4
    found = run([*records, flow.data(0, b"EFgh"), flow.close(MS)])
    assert found.stream(C) == b"abcdefgh"
    assert [(chunk.offset, chunk.data) for chunk in found.chunks() if chunk.copy] == [(4, b"EF")]
    assert [(row.start, row.end) for row in found.findings(kind="overlap")] == [(4, 6)]


def test_notes_that_are_none_do_no_harm() -> None:
    flow = Flow()
    found = run(
        [
            flow.open(client_port="x", rule=None),
            flow.note("", start="a", end=None),
            flow.note("redacted", start=9, end=3),
            flow.note("identified"),
            flow.close(),
        ]
    )
    assert found.session.client_port == 0
    assert found.session.findings == ("note",)
