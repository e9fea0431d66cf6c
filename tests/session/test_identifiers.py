from appliance.session.identifiers import relayed_id, session_id
from tests.session.traffic import STREAM, T0


def test_shape_of_a_uuid_of_version_7() -> None:
    one = session_id(STREAM, 1 << 24, T0)
    assert one.version == 7
    assert one.variant == "specified in RFC 4122"
    assert one.int >> 80 == T0 // 1_000_000


def test_the_same_again_and_different_ones_for_different_records() -> None:
    assert session_id(STREAM, 8, T0) == session_id(STREAM, 8, T0)
    ids = {session_id(stream, position, T0) for stream in (STREAM, bytes(16)) for position in range(1000)}
    assert len(ids) == 2000


def test_pinned() -> None:
    """Changing this renames every session that is read from a journal again."""
    assert str(session_id(STREAM, 1 << 24, T0)) == "018bcfe5-6800-7278-805c-8653c23d1c35"


def test_times_before_1970_count_as_1970() -> None:
    assert session_id(STREAM, 8, -5).int >> 80 == 0


def test_flows_of_a_relay_have_ids_of_their_own() -> None:
    """By number and time of the start; one that goes on with a flow is another, by its place."""
    assert str(relayed_id(STREAM, 7, T0)) == "018bcfe5-6800-799b-9371-4a5ca31bd84a"
    moments = {relayed_id(STREAM, flow, T0 + ns) for flow in range(1, 100) for ns in range(10)}
    assert len(moments | {relayed_id(STREAM, 1, T0, position) for position in range(8, 808, 8)}) == 1090
    assert relayed_id(STREAM, 2**64 - 1, 2**64 - 1).version == 7
