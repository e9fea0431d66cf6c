"""When nothing held back unrecorded packets, as told by looks at each lock."""

from appliance.identity.leases import Now
from appliance.wire.locks import EVERYWHERE, FILTER, GATE, INTERLOCK, LASTING_NS, MAX_ABSENCES, Locks, Unguarded

SECOND = 10**9
T0 = 10**18
ALL = [(FILTER, "in"), (FILTER, "out"), (GATE, "in"), (GATE, "out"), (INTERLOCK, EVERYWHERE)]


def at(seconds: float) -> Now:
    return Now(T0 + int(seconds * SECOND), int(seconds * SECOND), "boot")


def seen(moment: float, locks: Locks | None = None) -> Locks:
    """All are in place."""
    locks = locks or Locks()
    for lock, place in ALL:
        locks.in_place(lock, place, at(moment))
    return locks


def gone(locks: Locks, until: float, *which: tuple[str, str]) -> None:
    for lock, place in which:
        locks.missing(lock, place)
        locks.put_back(lock, place, at(until))


def test_all_gone_at_the_same_look_is_told_once_with_its_bounds() -> None:
    locks = seen(10)
    gone(locks, 17.1, (FILTER, "in"), (GATE, "out"))
    assert locks.judge(at(17.2)) is None, "nothing is known of the interlock yet"
    gone(locks, 17.3, (INTERLOCK, EVERYWHERE))
    assert locks.judge(at(17.4)) == Unguarded(at(10), at(17.1), ("in", "out"))
    assert locks.judge(at(17.5)) is None
    assert seen(18, locks).judge(at(18)) is None


def test_the_bounds_are_the_tightest_that_hold_the_truth() -> None:
    locks = seen(10)
    locks.in_place(INTERLOCK, EVERYWHERE, at(12))
    gone(locks, 14, (FILTER, "in"))
    gone(locks, 15, (GATE, "in"), (INTERLOCK, EVERYWHERE))
    assert locks.judge(at(16)) == Unguarded(at(12), at(14), ("in",))


def test_one_lock_that_held_is_enough() -> None:
    for held in (FILTER, GATE, INTERLOCK):
        locks = seen(10)
        gone(locks, 11, *(one for one in ALL if one[0] != held))
        for lock, place in ALL:
            if lock == held:
                locks.in_place(lock, place, at(11))
        assert locks.judge(at(11)) is None, held


def test_one_after_the_other_is_no_hole() -> None:
    """What was put back holds before the next one goes."""
    locks = seen(10)
    for number, lock in enumerate((INTERLOCK, GATE, FILTER), 1):
        for known, place in ALL:
            if known == lock:
                gone(locks, 10 + number, (lock, place))
            else:
                locks.in_place(known, place, at(10 + number))
        assert locks.judge(at(10 + number)) is None


def test_what_cannot_be_put_back_is_told_from_time_to_time_and_at_its_end() -> None:
    locks = seen(10)
    for lock, place in ALL:
        locks.missing(lock, place)
    told = [locks.judge(at(11 + second)) for second in range(8)]
    lasting = LASTING_NS // SECOND
    assert [one is not None for one in told] == [second % lasting == 0 for second in range(8)]
    gone(locks, 20, (INTERLOCK, EVERYWHERE))
    assert locks.judge(at(20.1)) == Unguarded(at(10), at(20), ("in", "out"))
    assert locks.judge(at(30)) is None


def test_locks_that_a_former_process_left_and_nobody_saw_since() -> None:
    locks = Locks()
    gone(locks, 5, *ALL)
    assert locks.judge(at(5.1)) == Unguarded(None, at(5), ("in", "out"))


def test_what_is_remembered_is_bounded() -> None:
    locks = seen(10)
    locks.missing(INTERLOCK, EVERYWHERE)
    for number in range(5 * MAX_ABSENCES):
        gone(locks, 11 + number, (FILTER, "in"))
    assert len(list(locks._absences(FILTER))) == MAX_ABSENCES
    assert len(list(seen(500, locks)._absences(FILTER))) == MAX_ABSENCES
    locks.judge(at(500))
    assert list(locks._absences(FILTER)) == []
