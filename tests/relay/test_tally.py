"""What several workers count together."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from appliance.relay import tally as module
from appliance.relay.tally import Tally

LEASE = "00000000000000ab"
KILLED = f"""
import sys
from pathlib import Path
from appliance.relay.tally import Tally
one = Tally(Path(sys.argv[1]), sys.argv[2])
one.add("{LEASE}", 3)
print("counted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Tally, Tally]]:
    with ExitStack() as stack:
        one, other = (stack.enter_context(closing(Tally(tmp_path, name))) for name in ("relay-0", "relay-1"))
        one.refresh()
        yield one, other


def test_flows_of_all_workers_count(pair: tuple[Tally, Tally]) -> None:
    one, other = pair
    one.add(LEASE, 2)
    other.add(LEASE, 1)
    other.add("10.0.0.9", 5)
    assert one.count(LEASE) == other.count(LEASE) == 3
    assert one.count("10.0.0.9") == 5
    one.add(LEASE, -2)
    other.add(LEASE, -1)
    assert one.count(LEASE) == other.count(LEASE) == 0


def test_slots_are_used_again(pair: tuple[Tally, Tally]) -> None:
    one, other = pair
    for number in range(2 * module.SLOTS):
        one.add(str(number), 1)
        assert other.count(str(number)) == 1
        one.add(str(number), -1)
    one.add(LEASE, 1)
    assert other.count(LEASE) == 1


def test_whoever_finds_no_slot_is_counted_by_its_worker(pair: tuple[Tally, Tally]) -> None:
    one, other = pair
    owners = [str(number) for number in range(2 * module.SLOTS)]
    for owner in owners:
        one.add(owner, 1)
    assert all(one.count(owner) == 1 for owner in owners)
    assert module.SLOTS // 2 < sum(other.count(owner) for owner in owners) <= module.SLOTS
    for owner in owners:
        one.add(owner, -1)
    assert not any(other.count(owner) for owner in owners)


def test_a_worker_that_was_killed_counts_no_more(tmp_path: Path) -> None:
    with closing(Tally(tmp_path, "relay-0")) as one:
        command = [sys.executable, "-c", KILLED, str(tmp_path), "relay-1"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"counted\n"
            one.refresh()
            assert one.count(LEASE) == 3
            process.send_signal(signal.SIGKILL)
        one.refresh()
        assert one.count(LEASE) == 0
        assert [path.name for path in (tmp_path / "run" / "relay-flows").iterdir()] == ["relay-0"]


def test_its_successor_of_the_same_name_begins_anew(tmp_path: Path) -> None:
    with closing(Tally(tmp_path, "relay-0")) as one:
        with closing(Tally(tmp_path, "relay-1")) as other:
            other.add(LEASE, 3)
            one.refresh()
        with closing(Tally(tmp_path, "relay-1")) as other:
            one.refresh()
            assert one.count(LEASE) == 0
            other.add(LEASE, 1)
            assert one.count(LEASE) == 1
