"""The lease table: who holds an address, and until when."""

import json
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import MalformedInput, Refused
from appliance.identity.leases import (
    Change,
    Lease,
    LeaseHeld,
    LeaseTable,
    LeaseUnknown,
    Now,
    What,
    agent_address,
    identity_from_json,
    identity_to_json,
    lease_id,
)
from appliance.model import Identity

S = 1_000_000_000
NOW = Now(unix=1_790_000_000 * S, boottime=500 * S, boot="boot-1")
ANN = Identity(issuer="https://idp.example", subject="ann", client="agent", groups=("dba",), run_id="r1")
BOB = replace(ANN, subject="bob")
EMPTY = LeaseTable(max_seconds=3600, limit=3)


def later(seconds: float, *, wall: float | None = None, now: Now = NOW) -> Now:
    """`seconds` on; `wall`: what the wall clock makes of it."""
    return Now(now.unix + int((seconds if wall is None else wall) * S), now.boottime + int(seconds * S), now.boot)


def granted(table: LeaseTable = EMPTY, address: str = "192.0.2.7", number: int = 7) -> tuple[LeaseTable, Lease]:
    table, changes = table.grant(address, ANN, NOW.unix + 60 * S, NOW, number, "agents0")
    return table, changes[-1].lease


def test_a_lease_binds_an_address_to_an_identity() -> None:
    table, lease = granted()
    assert lease.id == "0000000000000007"
    assert lease.number == 7
    assert lease.address == "192.0.2.7"
    assert lease.interface == "agents0"
    assert lease.identity == replace(ANN, lease_id=lease.id, method="lease")
    assert lease.expires_ns == NOW.unix + 60 * S
    assert lease.deadline_ns == NOW.boottime + 60 * S
    assert table.list() == (lease,)
    assert EMPTY.list() == ()  # a table is a value


def test_a_lease_knows_its_link_layer_address_and_follows_its_holder() -> None:
    table, changes = EMPTY.grant("192.0.2.7", ANN, NOW.unix + 60 * S, NOW, 7, "agents0", "02:00:00:00:00:07")
    assert changes[-1].lease.link == "02:00:00:00:00:07"
    again = LeaseTable.from_json(table.to_json(), 3600, 3, NOW)
    assert again.list() == table.list()
    table, changes = table.grant("192.0.2.7", ANN, NOW.unix + 60 * S, NOW, 8, "agents0", "02:00:00:00:00:08")
    assert (changes[-1].what, changes[-1].lease.link) == (What.RENEWED, "02:00:00:00:00:08")


@pytest.mark.parametrize("link", ["02:00", "02-00-00-00-00-07", "02:00:00:00:00:0G", 7])
def test_a_file_with_a_strange_link_layer_address_is_malformed(link: object) -> None:
    table, _ = granted()
    said = table.to_json()
    said["leases"][0]["link"] = link
    with pytest.raises(MalformedInput, match="link"):
        LeaseTable.from_json(said, 3600, 3, NOW)


def test_one_identity_cannot_take_all_leases() -> None:
    table = replace(EMPTY, holder_limit=2)
    for number in (1, 2):
        table, _ = table.grant(f"192.0.2.{number}", ANN, NOW.unix + 60 * S, NOW, number)
    with pytest.raises(Refused, match=r"this identity has 2, the most that it may; give some of them back"):
        table.grant("192.0.2.3", ANN, NOW.unix + 60 * S, NOW, 3)
    table.grant("192.0.2.1", ANN, NOW.unix + 90 * S, NOW, 3)  # what it has it may renew
    table, _ = table.grant("192.0.2.3", BOB, NOW.unix + 60 * S, NOW, 3)
    again = LeaseTable.from_json(table.to_json(), 3600, 9, NOW, 2)
    with pytest.raises(Refused, match="give some of them back"):
        again.grant("192.0.2.4", ANN, NOW.unix + 60 * S, NOW, 4)


def test_a_lease_is_no_longer_than_the_maximum() -> None:
    _, changes = replace(EMPTY, max_seconds=10).grant("192.0.2.7", ANN, NOW.unix + 60 * S, NOW, 7)
    assert changes[-1].lease.expires_ns == NOW.unix + 10 * S
    assert changes[-1].lease.deadline_ns == NOW.boottime + 10 * S


def test_a_token_that_has_expired_gives_no_lease() -> None:
    with pytest.raises(Refused, match="expired"):
        EMPTY.grant("192.0.2.7", ANN, NOW.unix, NOW, 7)


def test_the_same_holder_keeps_its_lease() -> None:
    table, lease = granted()
    refreshed = replace(ANN, groups=("dba", "ops"), token_sha256="ab" * 32)
    table, changes = table.grant("192.0.2.7", refreshed, NOW.unix + 90 * S, later(5), 8, "agents1")
    assert [change.what for change in changes] == [What.RENEWED]
    assert changes[0].lease.id == lease.id
    assert changes[0].lease.expires_ns == NOW.unix + 90 * S
    assert changes[0].lease.identity.groups == ("dba", "ops")
    assert changes[0].lease.interface == "agents1"
    assert table.list() == (changes[0].lease,)


def test_another_run_supersedes_the_lease() -> None:
    table, old = granted()
    table, changes = table.grant("192.0.2.7", replace(ANN, run_id="r2"), NOW.unix + 90 * S, later(5), 8)
    assert [change.what for change in changes] == [What.SUPERSEDED, What.GRANTED]
    assert changes[0].lease == old
    assert table.list() == (changes[1].lease,)
    assert changes[1].lease.id == "0000000000000008"


@pytest.mark.parametrize(
    "other", [BOB, replace(ANN, issuer="https://b"), replace(ANN, act=("x",)), replace(ANN, client="c")]
)
def test_another_identity_waits_for_the_end_of_the_lease(other: Identity) -> None:
    table, lease = granted()
    with pytest.raises(LeaseHeld):
        table.grant("192.0.2.7", other, NOW.unix + 90 * S, later(5), 8)
    table, changes = table.grant("192.0.2.7", other, NOW.unix + 900 * S, later(60), 8)
    assert [change.what for change in changes] == [What.EXPIRED, What.GRANTED]
    assert changes[0] == Change(What.EXPIRED, lease)


def test_an_address_has_one_lease_however_it_is_written() -> None:
    table, lease = granted()
    table, changes = table.grant("::ffff:192.0.2.7", ANN, NOW.unix + 90 * S, NOW, 8)
    assert changes[-1].lease.id == lease.id


def test_a_full_table_takes_no_more_but_renews() -> None:
    table = EMPTY
    for number in (1, 2, 3):
        table, _ = granted(table, f"192.0.2.{number}", number)
    with pytest.raises(Refused, match="max_leases"):
        granted(table, "192.0.2.4", 4)
    table, changes = table.grant("192.0.2.2", ANN, NOW.unix + 90 * S, NOW, 9)
    assert changes[-1].what is What.RENEWED
    _, changes = table.grant("192.0.2.4", ANN, NOW.unix + 900 * S, later(60), 9)  # two of three have ended
    assert changes[-1].what is What.GRANTED


def test_renewing_moves_the_end_and_keeps_the_run() -> None:
    table, lease = granted()
    table, change = table.renew(lease.id, NOW.unix + 120 * S, later(30), replace(ANN, run_id="", groups=()))
    assert change.what is What.RENEWED
    assert change.lease.expires_ns == NOW.unix + 120 * S
    assert change.lease.identity == replace(ANN, groups=(), lease_id=lease.id, method="lease")
    assert table.get(lease.id) == change.lease


def test_a_lease_is_renewed_by_its_holder_only_and_only_while_it_lives() -> None:
    table, lease = granted()
    with pytest.raises(LeaseHeld):
        table.renew(lease.id, NOW.unix + 120 * S, NOW, BOB)
    with pytest.raises(LeaseUnknown):
        table.renew(lease.id, NOW.unix + 120 * S, later(60))
    with pytest.raises(LeaseUnknown):
        table.renew("00000000000000ff", NOW.unix + 120 * S, NOW)


def test_a_revoked_lease_is_gone() -> None:
    table, lease = granted()
    table, change = table.revoke(lease.id)
    assert change == Change(What.REVOKED, lease)
    assert table.list() == ()
    with pytest.raises(LeaseUnknown):
        table.revoke(lease.id)


@pytest.mark.parametrize(
    ("now", "live"),
    [
        (later(59), True),
        (later(60), False),
        (later(60, wall=-3600), False),  # set back: the deadline of the kernel's clock holds
        (later(59, wall=-3600), True),
        (later(1, wall=3600), False),  # set forward: the token has expired
    ],
)
def test_steps_of_the_wall_clock_never_extend_a_lease(now: Now, live: bool) -> None:
    table, lease = granted()
    after, changes = table.expire(now)
    assert (after.list() == (lease,)) is live
    assert changes == (() if live else (Change(What.EXPIRED, lease),))


def through_json(table: LeaseTable, now: Now) -> LeaseTable:
    return LeaseTable.from_json(json.loads(json.dumps(table.to_json())), table.max_seconds, table.limit, now)


def test_a_table_survives_a_restart_of_the_process() -> None:
    table, lease = granted()
    assert through_json(table, later(10)).list() == (lease,)


def test_after_a_reboot_the_time_left_counts_on_the_new_clock() -> None:
    table, lease = granted()
    rebooted = Now(NOW.unix + 20 * S, 3 * S, "boot-2")
    (restored,) = through_json(table, rebooted).list()
    assert restored == replace(lease, deadline_ns=43 * S, boot="boot-2")


def test_after_a_reboot_a_wall_clock_before_the_grant_ends_the_lease() -> None:
    table, _ = granted()
    rebooted = Now(1_000 * S, 3 * S, "boot-2")  # no battery: the clock starts in 1970
    restored = through_json(table, rebooted)
    assert restored.expire(rebooted)[0].list() == ()


@pytest.mark.parametrize(
    "broken",
    [
        None,
        [],
        {},
        {"version": 2, "leases": []},
        {"version": 1, "leases": {}},
        {"version": 1, "leases": [1]},
        {"version": 1, "leases": [{"id": "7"}]},
    ],
)
def test_a_file_in_another_form_is_malformed(broken: object) -> None:
    with pytest.raises(MalformedInput):
        LeaseTable.from_json(broken, 3600, 3, NOW)


@pytest.mark.parametrize(
    "address",
    ["", "host", "192.0.2.7/32", "192.0.2.300", "0.0.0.0", "127.0.0.1", "::1", "::", "224.0.0.1", "ff02::1",
     "fe80::1%1", "fe80::1", "::ffff:127.0.0.1", "1" * 100, None, 7],
)  # fmt: skip
def test_what_is_no_agents_address_is_malformed(address: object) -> None:
    with pytest.raises(MalformedInput):
        agent_address(address)


@pytest.mark.parametrize("id", ["", "0" * 16, "7", "00000000000000AB", "000000000000000g", "0" * 15 + "²", 7, None])
def test_what_is_no_lease_id_is_malformed(id: object) -> None:
    with pytest.raises(MalformedInput):
        lease_id(id)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"token": "x"},
        {"subject": 7},
        {"act": "x"},
        {"groups": [1]},
        {"groups": ["x"] * 2000},
        {"subject": "x" * 9999},
    ],
)
def test_what_is_no_identity_is_malformed(value: object) -> None:
    with pytest.raises(MalformedInput):
        identity_from_json(value)


texts = st.text(max_size=20)
identities = st.builds(
    Identity, texts, texts, texts, st.lists(texts, max_size=3).map(tuple), st.lists(texts, max_size=3).map(tuple), texts
)


@given(identities)
def test_an_identity_survives_json(identity: Identity) -> None:
    assert identity_from_json(json.loads(json.dumps(identity_to_json(identity)))) == identity


@given(st.lists(st.tuples(st.integers(1, 4), identities, st.integers(1, 200), st.integers(0, 60)), max_size=12))
def test_whatever_is_asked_one_address_has_one_live_lease_within_its_bounds(
    requests: list[tuple[int, Identity, int, int]],
) -> None:
    table, now = EMPTY, NOW
    for number, (host, identity, seconds, pause) in enumerate(requests, 1):
        now = later(pause, now=now)
        try:
            table, changes = table.grant(f"192.0.2.{host}", identity, now.unix + seconds * S, now, number)
        except Refused:
            continue
        assert changes[-1].lease in table.list()
        assert all(lease.live(now) for lease in table.list())
        assert len(table.list()) <= table.limit
        assert len({lease.id for lease in table.list()}) == len(table.list())
    assert through_json(table, now) == replace(table, leases=MappingProxyType(dict(table.leases)))
