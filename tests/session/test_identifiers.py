from appliance.session.identifiers import session_id
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
