"""News of a real namespace: once for each change, and for those that were missed."""

import os
import select
import socket
from collections.abc import Iterator

import pytest

from appliance.wire.news import RTMGRP_LINK, News
from tests.wire.net import Net, inside, sh

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces")


@pytest.fixture
def net() -> Iterator[Net]:
    net = Net()
    try:
        yield net.create()
    finally:
        net.remove()


@pytest.fixture
def news(net: Net) -> Iterator[News]:
    made = inside(net.gateway, lambda: News(socket.NETLINK_ROUTE, RTMGRP_LINK))
    yield made
    made.close()


def change(net: Net, times: int = 1) -> None:
    script = "".join(f"link set agents0 txqueuelen {2 + number}\n" for number in range(times))
    sh("sh", "-c", f"printf '{script}' | ip -batch -", netns=net.gateway)


def test_a_change_is_news_once(net: Net, news: News) -> None:
    assert not news.heard()
    change(net)
    assert select.select([news], [], [], 5)[0]
    assert news.heard()
    assert not news.heard()


def test_what_was_missed_is_news(net: Net, news: News) -> None:
    change(net, 1000)  # more than the socket holds
    assert news.heard()
    while news.heard():
        pass
    change(net)
    assert news.heard()
