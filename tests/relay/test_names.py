"""The host that the first bytes of HTTP/1 name, and whether more of them are needed to tell."""

import pytest

from appliance.relay.names import authorities, authority, names_host

HEAD = b"GET / HTTP/1.1\r\nAccept: */*\r\nHost: A.example.com:8080\r\n\r\n"


def test_a_head_in_pieces() -> None:
    assert authority(HEAD) == "a.example.com"
    assert names_host(HEAD)
    for cut in range(1, len(HEAD) - 1):
        assert not names_host(HEAD[:cut]), HEAD[:cut]


@pytest.mark.parametrize(
    "prefix", [b"\x16\x03\x01", b"SSH-2.0-x\r\n", b"SET a b\r\n", b"*1\r\n", b"PING\r\n", b"\0\0\0\x08"]
)
def test_nothing_is_waited_for_where_it_is_not_http(prefix: bytes) -> None:
    assert names_host(prefix)
    assert not authority(prefix)


@pytest.mark.parametrize(
    ("said", "hosts"),
    [
        (b"GET http://a.example.com/ HTTP/1.1\r\nHost: b.example.com\r\n\r\n", ["a.example.com", "b.example.com"]),
        (b"GET http://me:you@a.example.com:80/ HTTP/1.1\r\n\r\n", ["a.example.com"]),
        (b"GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n", ["a", "b"]),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", ["a"]),
        (b"GET / HTTP/1.1\r\nHost:\r\n a\r\n\r\n", ["a"]),
        (b"GET / HTTP/1.1\nHost:a:80\n\nHost: body\n", ["a"]),
        (b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", ["2001:db8::1"]),
        (b"GET / HTTP/1.1\r\nX-Host: a\r\n\r\n", []),
    ],
)
def test_every_host_that_a_request_may_be_for(said: bytes, hosts: list[str]) -> None:
    assert authorities(said) == hosts
