"""Leases in force: what is on record, in the file and in the kernel after each step, failures included."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from appliance import config
from appliance.errors import MalformedInput, Refused, Unavailable
from appliance.identity.leases import LeaseTable, Now
from appliance.journal import Damage, Frame, FrameKind, JournalKey, Reader, Writer
from appliance.model import Identity
from appliance.wire import bpf, leasing, maps
from appliance.wire.abi import LeaseValue, pack_address
from appliance.wire.leasing import Leasing
from appliance.wire.neighbours import Neighbours
from appliance.wire.notes import Notes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for BPF maps")
S = 1_000_000_000
NOW = Now(1_790_000_000 * S, 500 * S, "boot")
ANN = Identity(issuer="https://idp.example", subject="ann", run_id="r1")
JOURNAL = config.Journal(segment_bytes=2**20, max_bytes=4 * 2**20, min_free_bytes=1)


def behind(address: str) -> str:
    if address.startswith("203."):
        raise Refused("not behind an agent-facing interface")
    return "agents0"


class Bench:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "leases.json"
        self.key = JournalKey.load_or_create(folder)
        self.writer = Writer(folder / "wire", self.key, settings=JOURNAL)
        self.notes = Notes(self.writer, "boot")
        self.fd = bpf.create_map(bpf.HASH, 16, LeaseValue.LAYOUT.size, 4, "leases")
        self.kernel = bpf.Map(self.fd)
        self.leasing = self.open(NOW)

    def open(self, now: Now) -> Leasing:
        table = leasing.load(self.file, 3600, 4, now)
        return Leasing(self.file, table, self.kernel, self.notes, {"agents0": 9})

    def close(self) -> None:
        self.writer.close()
        os.close(self.fd)

    def grant(self, address: str = "192.0.2.7", identity: Identity = ANN, now: Now = NOW) -> str:
        return self.leasing.grant(address, identity, now.unix + 60 * S, behind, now).id

    def said(self) -> list[tuple[str, str]]:
        """Lease events on record: what, id."""
        found = []
        with Reader(self.folder / "wire", self.key) as reader:
            while (item := reader.read()) is not None:
                assert not isinstance(item, Damage)
                if item.kind is FrameKind.LEASE:
                    value = json.loads(item.payload)
                    found.append((value["event"], value["id"]))
        return found

    def held(self) -> dict[str, int]:
        """Address → expiry, as the kernel has it."""
        return {key[-4:].hex(): LeaseValue.unpack(value).expires for key, value in self.kernel.items()}

    def saved(self) -> list[str]:
        return [row["id"] for row in json.loads(self.file.read_text())["leases"]]

    def fill_journal(self) -> None:
        for size in (2**19, 2**12, 2**6):
            with suppress(Unavailable):
                while True:
                    self.writer.append(FrameKind.EVENT, b"{}" + bytes(size), time_ns=0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def test_a_granted_lease_is_on_record_in_the_file_and_in_the_kernel(bench: Bench) -> None:
    id = bench.grant()
    assert bench.said() == [("granted", id)]
    assert bench.saved() == [id]
    value = bench.kernel.lookup(pack_address("192.0.2.7"))
    assert value is not None
    assert LeaseValue.unpack(value) == LeaseValue(int(id, 16), NOW.boottime + 60 * S, 9)
    assert bench.file.stat().st_mode & 0o777 == 0o600


class Switchboard:
    """Neighbour entries as `Neighbours` would keep them."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, str], bytes] = {}
        self.mac = bytes.fromhex("020000000007")
        self.full = False

    def link(self, address: str, index: int) -> bytes:
        return b"" if address.startswith("192.0.2.8") else self.mac

    def hold(self, place: tuple[int, str], link: bytes) -> None:
        if self.full:
            raise Unavailable("no neighbour entry")
        self.held[place] = link

    def free(self, place: tuple[int, str]) -> None:
        self.held.pop(place, None)

    def reconcile(self, wanted: dict[tuple[int, str], bytes]) -> None:
        self.held = dict(wanted)


def test_a_lease_is_bound_to_its_link_layer_address_while_it_lasts(bench: Bench) -> None:
    board = Switchboard()
    table = leasing.load(bench.file, 3600, 4, NOW)
    bound = Leasing(bench.file, table, bench.kernel, bench.notes, {"agents0": 9}, cast(Neighbours, board))
    lease = bound.grant("192.0.2.7", ANN, NOW.unix + 60 * S, behind, NOW)
    assert board.held == {(9, "192.0.2.7"): board.mac}
    value = bench.kernel.lookup(pack_address("192.0.2.7")) or b""
    assert LeaseValue.unpack(value).link == board.mac
    board.held.clear()
    bound.tend()
    assert board.held == {(9, "192.0.2.7"): board.mac}
    bound.moved({"agents0": 12})
    assert board.held == {(12, "192.0.2.7"): board.mac}
    bound.revoke(lease.id, NOW)
    assert board.held == {}
    routed = bound.grant("192.0.2.8", ANN, NOW.unix + 60 * S, behind, NOW)
    assert (routed.link, board.held) == ("", {})


def test_no_neighbour_entry_no_lease(bench: Bench) -> None:
    board = Switchboard()
    board.full = True
    table = leasing.load(bench.file, 3600, 4, NOW)
    bound = Leasing(bench.file, table, bench.kernel, bench.notes, {"agents0": 9}, cast(Neighbours, board))
    with pytest.raises(Unavailable, match="no neighbour entry"):
        bound.grant("192.0.2.7", ANN, NOW.unix + 60 * S, behind, NOW)
    assert bench.held() == {}
    assert [what for what, _ in bench.said()] == ["granted", "revoked"]


def test_superseding_renewing_and_revoking(bench: Bench) -> None:
    first = bench.grant()
    second = bench.grant(identity=Identity(issuer="https://idp.example", subject="ann", run_id="r2"))
    bench.leasing.renew(second, NOW.unix + 90 * S, None, NOW)
    assert bench.held() == {"c0000207": NOW.boottime + 90 * S}
    bench.leasing.revoke(second, NOW)
    assert sorted(bench.said()[:2]) == sorted([("granted", first), ("granted", second)])
    assert bench.said()[2:] == [("superseded", first), ("renewed", second), ("revoked", second)]
    assert (bench.saved(), bench.held()) == ([], {})


def test_an_expired_lease_is_taken_away(bench: Bench) -> None:
    id = bench.grant()
    bench.leasing.expire(Now(NOW.unix - 9999 * S, NOW.boottime + 60 * S, "boot"))
    assert bench.said() == [("granted", id), ("expired", id)]
    assert (bench.saved(), bench.held()) == ([], {})


def test_who_is_not_behind_an_agents_interface_gets_none(bench: Bench) -> None:
    with pytest.raises(Refused):
        bench.grant("203.0.113.9")
    assert (bench.said(), bench.held()) == ([], {})


def test_without_room_in_the_journal_none_is_granted_but_one_is_revoked(bench: Bench) -> None:
    id = bench.grant()
    bench.fill_journal()
    with pytest.raises(Unavailable):
        bench.grant("192.0.2.8")
    assert bench.saved() == [id]
    assert list(bench.held()) == ["c0000207"]
    bench.leasing.revoke(id, NOW)
    assert (bench.saved(), bench.held()) == ([], {})
    assert not bench.notes.flush()  # its frame waits


def test_what_cannot_be_saved_is_not_in_force(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    id = bench.grant()
    monkeypatch.setattr(bench.leasing, "_path", Path("/nonexistent/leases.json"))
    with pytest.raises(Unavailable):
        bench.grant("192.0.2.8")
    assert list(bench.held()) == ["c0000207"]
    assert [what for what, _ in bench.said()] == ["granted", "granted", "revoked"]
    bench.leasing.revoke(id, NOW)  # ends although it cannot be saved
    assert bench.held() == {}


def test_a_restart_brings_leases_back_and_removes_what_is_not_on_the_books(bench: Bench) -> None:
    id = bench.grant()
    ended = bench.leasing.grant("192.0.2.8", ANN, NOW.unix + 5 * S, behind, NOW).id
    bench.kernel.delete(pack_address("192.0.2.7"))
    bench.kernel.update(pack_address("192.0.2.9"), LeaseValue(1, 2**62, 0).pack())
    again = bench.open(Now(NOW.unix + 10 * S, NOW.boottime + 10 * S, "boot"))
    again.restore(Now(NOW.unix + 10 * S, NOW.boottime + 10 * S, "boot"))
    assert bench.held() == {"c0000207": NOW.boottime + 60 * S}
    assert bench.said()[2:] == [("expired", ended), ("restored", id)]


def test_leases_follow_an_interface_that_is_made_anew(bench: Bench) -> None:
    bench.grant()
    bench.leasing.moved({})
    assert bench.held() == {}
    bench.leasing.moved({"agents0": 12})
    value = bench.kernel.lookup(pack_address("192.0.2.7"))
    assert value is not None
    assert LeaseValue.unpack(value).ifindex == 12


def test_a_move_that_failed_is_made_up_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise Unavailable("kernel map leases: full")

    bench.grant()
    with monkeypatch.context() as patch:
        patch.setattr(maps, "reconcile", full)
        with pytest.raises(Unavailable, match="full"):
            bench.leasing.moved({"agents0": 12})
    bench.leasing.moved({"agents0": 12})
    assert LeaseValue.unpack(bench.kernel.lookup(pack_address("192.0.2.7")) or b"").ifindex == 12


def test_a_neighbour_that_cannot_be_held_after_a_move_is_tried_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(wanted: object) -> None:
        raise Unavailable("no neighbour entry")

    board = Switchboard()
    table = leasing.load(bench.file, 3600, 4, NOW)
    bound = Leasing(bench.file, table, bench.kernel, bench.notes, {"agents0": 9}, cast(Neighbours, board))
    bound.grant("192.0.2.7", ANN, NOW.unix + 60 * S, behind, NOW)
    with monkeypatch.context() as patch:
        patch.setattr(board, "reconcile", fail)
        with pytest.raises(Unavailable, match="no neighbour entry"):
            bound.moved({"agents0": 12})
    bound.tend()
    assert board.held == {(12, "192.0.2.7"): board.mac}


def test_what_could_not_be_saved_is_saved_when_there_is_room_again(bench: Bench) -> None:
    kept, id = bench.grant(), bench.grant("192.0.2.8")
    obstacle = bench.file.with_suffix(".new")
    obstacle.mkdir()
    bench.leasing.revoke(id, NOW)
    assert sorted(bench.saved()) == sorted([kept, id])
    bench.leasing.tend()
    assert bench.leasing.unsaved
    obstacle.rmdir()
    bench.leasing.tend()
    assert not bench.leasing.unsaved
    assert bench.saved() == [kept]


def test_a_damaged_file_is_malformed(tmp_path: Path) -> None:
    (tmp_path / "leases.json").write_text("{")
    with pytest.raises(MalformedInput):
        leasing.load(tmp_path / "leases.json", 3600, 4, NOW)
    assert leasing.load(tmp_path / "none.json", 3600, 4, NOW) == LeaseTable(3600, 4)


def test_a_damaged_file_is_set_aside_and_told_of(bench: Bench, tmp_path: Path) -> None:
    bench.file.write_text("{")
    settings = config.Settings(data=tmp_path)
    table = leasing.resume(bench.file, settings, bench.notes, NOW)
    limits = settings.leases.max_seconds, settings.wire.max_leases
    assert table == LeaseTable(*limits, holder_limit=settings.leases.max_per_identity)
    assert (bench.file.exists(), bench.file.with_suffix(".damaged").read_text()) == (False, "{")
    with Reader(bench.folder / "wire", bench.key) as reader:
        item = reader.read()
    assert isinstance(item, Frame)
    assert json.loads(item.payload)["kind"] == "leases-lost"


def test_a_full_table_is_granted_from_without_long_work(bench: Bench) -> None:
    for number in range(4):
        bench.grant(f"192.0.2.{number}")
    began = time.monotonic()
    with pytest.raises(Refused):
        bench.grant("192.0.2.99")
    assert time.monotonic() - began < 1
