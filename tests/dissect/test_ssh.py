"""SSH on the wire against packets written by hand; real handshakes are in test_ssh_live.py."""

import pytest

from appliance.dissect import Match
from appliance.dissect.conversation import Conversation
from appliance.dissect.ssh import MAX_LINES, MAX_PACKET, Ssh
from appliance.dissect.ssh_kex import hassh, negotiate, parse_host_key, parse_kexinit
from appliance.dissect.ssh_messages import string
from tests.dissect.harness import C, Gap, S, Turn, assert_any_cut, assert_survives, assert_truncated, play
from tests.dissect.ssh_bytes import HANDSHAKE, NEWKEYS, REPLY, kexinit, packet


def test_handshake() -> None:
    played = assert_any_cut(Ssh, HANDSHAKE)
    assert [(m.direction, m.kind) for m in played.messages] == [
        (C, "banner"), (C, "kexinit"), (S, "banner"), (S, "kexinit"), (S, "host_key"), (S, "newkeys"), (C, "newkeys"),
    ]  # fmt: skip
    assert played.messages[0].attrs == {"version": "2.0", "software": "client_1", "comments": "some comment"}
    assert played.messages[1].attrs["host_key"] == ["ssh-ed25519", "ssh-rsa"]
    assert "aes128-ctr" in played.messages[1].text
    attrs = played.dissector.attrs
    assert attrs["client_version"] == "SSH-2.0-client_1 some comment"
    assert (attrs["kex"], attrs["cipher"], attrs["mac"]) == ("curve25519-sha256", "aes128-ctr", "hmac-sha2-256")
    assert attrs["encrypted"] == {"client": len(b"sealed too"), "server": len(b"sealed")}
    assert attrs["hassh"] == played.messages[1].attrs["hassh"]
    assert played.bytes_of(played.messages[4]) == REPLY
    assert played.messages[3].reply_to == played.messages[1].start
    assert played.dissector.opaque
    assert_truncated(Ssh, HANDSHAKE)


def test_not_opaque_before_keys_are_taken() -> None:
    played = assert_any_cut(
        Ssh, [*HANDSHAKE[:2], (S, packet(b"\1\0\0\0\2" + string("no common algorithm") + string("")))]
    )
    assert not played.dissector.opaque
    assert (played.messages[-1].kind, played.messages[-1].text) == ("disconnect", "no common algorithm")
    assert played.messages[-1].attrs == {"reason": 2}


def test_nothing_in_common() -> None:
    client = parse_kexinit(_payload(kexinit()))
    server = {**client, "encryption_client": ["none"]}
    assert negotiate(client, server)["encryption_client"] == ""
    assert negotiate(client, server)["kex"] == "curve25519-sha256"


def test_published_fingerprint() -> None:
    """Of libssh 0.6.3, as HASSH's own tool printed it beside the algorithms."""
    offer = {
        "kex": "curve25519-sha256@libssh.org,ecdh-sha2-nistp256,diffie-hellman-group14-sha1,diffie-hellman-group1-sha1",
        "encryption_client": "aes256-ctr,aes192-ctr,aes128-ctr,aes256-cbc,aes192-cbc,aes128-cbc,blowfish-cbc,3des-cbc,"
        "des-cbc-ssh1",
        "mac_client": "hmac-sha1",
        "compression_client": "none",
    }
    lists = {name: names.split(",") for name, names in offer.items()}
    assert hassh(lists, server=False) == "51cba57125523ce4b9db67714a90bf6e"
    mirrored = {name.replace("client", "server"): names for name, names in lists.items()}
    assert hassh(mirrored, server=True) == "51cba57125523ce4b9db67714a90bf6e"


def _payload(data: bytes) -> bytes:
    return data[5 : len(data) - data[4]]


@pytest.mark.parametrize(
    "bad",
    [
        b"\0\0\0\0\4",  # no room for the padding
        b"\0\0\0\x0c\x0c" + bytes(11),  # all of it is padding
        b"\0\0\0\x0c\x03" + bytes(11),  # too little padding
        (MAX_PACKET + 1).to_bytes(4) + b"\x08",
    ],
)
def test_no_packet(bad: bytes) -> None:
    played = assert_any_cut(Ssh, [(C, b"SSH-2.0-a\r\n" + bad + kexinit())])
    assert played.kinds() == ["banner", "malformed"]
    assert played.dissector.attrs["unframed"] is True
    assert played.dissector.opaque


@pytest.mark.parametrize("payload", [b"\x14" + bytes(15), b"\x14" + bytes(16) + b"\xff" * 40, b"\x1f\0\0\0\x09ssh"])
def test_packet_that_does_not_fit(payload: bytes) -> None:
    played = assert_any_cut(Ssh, [(S, b"SSH-2.0-a\r\n" + packet(payload) + NEWKEYS)])
    assert [(m.kind, m.flags) for m in played.messages] == [
        ("banner", ()), ("malformed", ("malformed",)), ("newkeys", ()),
    ]  # fmt: skip


def test_trailing_bytes_are_malformed() -> None:
    with pytest.raises(ValueError, match="behind"):
        parse_kexinit(_payload(kexinit()) + b"x")
    with pytest.raises(ValueError, match="ends behind"):
        parse_host_key(b"\x1f" + string("ssh-rsa"))


def test_endless_greeting() -> None:
    for whose in (C, S):
        played = play(Ssh, [(whose, b"x" * MAX_LINES * 2)], split=1000)
        assert played.kinds() == ["malformed"]
        assert played.dissector.held == 0
    played = play(Ssh, [(S, b"line\r\n" * MAX_LINES)], split=1000)
    assert played.kinds() == ["malformed"]


def test_version_1_is_not_read() -> None:
    played = assert_any_cut(Ssh, [(S, b"SSH-1.5-old\n" + bytes(20))])
    assert played.kinds() == ["banner"]
    assert Ssh.detect(b"", b"SSH-1.99-both\r\n") is Match.YES


def test_gap() -> None:
    for number, (whose, data) in enumerate(HANDSHAKE):
        assert isinstance(data, bytes)
        lost: list[Turn] = [*HANDSHAKE[:number], (whose, data[:7]), (whose, Gap(5)), (whose, data[12:])]
        played = play(Ssh, [*lost, *HANDSHAKE[number + 1 :]])
        assert played.dissector.opaque
        assert "unframed" not in played.dissector.attrs


def test_wrong_direction() -> None:
    assert_survives(Ssh, [(direction.other, what) for direction, what in HANDSHAKE], split=3)


def test_detection() -> None:
    assert Ssh.detect(b"SSH-2.0-x", b"") is Ssh.detect(b"", b"SSH-2.0-x") is Match.YES
    assert Ssh.detect(b"SSH", b"") is Ssh.detect(b"", b"S") is Match.MORE
    assert Ssh.detect(b"SSH-RELAYED-1\r\n", b"") is Ssh.detect(b"", b"") is Match.NO
    assert Ssh.detect(b"SSH-2.0-x", b"hello\r\n") is Match.YES
    played = assert_any_cut(Conversation, HANDSHAKE, step=7)
    assert played.dissector.protocol == "ssh"
    first: list[Turn] = [(S, b"SSH-2.0-server_2\r\n"), (C, b"SSH-2.0-client_1\r\n"), (S, kexinit()), (C, kexinit())]
    assert assert_any_cut(Conversation, first, step=7).dissector.protocol == "ssh"
