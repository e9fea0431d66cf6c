"""Positions of the ring: what comes twice, what is missing, and which ring took over."""

from appliance.session.place import Place


def at(end: int | None, ring: str = "r1") -> Place:
    place = Place()
    place.ring, place.end = ring, end
    return place


def test_the_first_span_is_taken_as_it_comes() -> None:
    place = Place()
    assert place.span(500, 700) == (0, None)
    assert place.end == 700


def test_what_is_written_again_is_left_out() -> None:
    place = at(700)
    assert place.span(500, 700) == (None, None)
    assert place.span(600, 800) == (100, None)
    assert place.span(800, 900) == (0, None)
    assert place.end == 900


def test_a_jump_says_where_the_record_should_have_gone_on() -> None:
    place = at(700)
    assert place.span(750, 900) == (0, 700)
    assert place.end == 900


def test_a_ring_that_was_drained_is_followed_without_loss() -> None:
    place = at(700)
    assert place.opened("r2", {"after": "r1", "until": 700, "position": 40}) is None
    assert (place.ring, place.end) == ("r2", 40)


def test_a_ring_that_was_not_drained_may_have_held_more() -> None:
    place = at(700)
    assert place.opened("r2", {"after": "r1", "until": 650}) == {"ring": "r1", "from": 700, "new_ring": "r2"}
    assert (place.ring, place.end) == ("r2", None)


def test_the_same_ring_goes_on() -> None:
    place = at(700)
    assert place.opened("r1", {"position": 40}) is None
    assert (place.ring, place.end) == ("r1", 700)


def test_what_the_same_ring_gave_away_before_is_missing_at_once() -> None:
    """Not only when more comes: the wire process says up to where it had read."""
    place = at(700)
    assert place.opened("r1", {"position": 950}) == {"from": 700, "to": 950}
    assert place.end == 950
    assert place.span(950, 990) == (0, None), "and is told once"
