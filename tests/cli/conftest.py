"""A capture with one HTTP conversation, ingested into a data folder of its own by the real command."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import wrpcap

from appliance import cli

REQUEST = b"GET /customers HTTP/1.1\r\nHost: shop.example\r\nAuthorization: Bearer opensesame\r\n\r\n"
BODY = bytes(range(256)) * 20
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY

Verbatim = Callable[..., subprocess.CompletedProcess[bytes]]
InProcess = Callable[..., tuple[int, str]]


def conversation() -> list[Packet]:
    """Handshake, request, response, orderly end; a packet each 10 ms."""
    there = Ether() / IP(src="10.0.0.5", dst="192.0.2.7") / TCP(sport=40000, dport=80)
    back = Ether() / IP(src="192.0.2.7", dst="10.0.0.5") / TCP(sport=80, dport=40000)
    asked, answered = 1001 + len(REQUEST), 5001 + len(RESPONSE)
    steps = [
        (there, "S", 1000, 0, b""),
        (back, "SA", 5000, 1001, b""),
        (there, "A", 1001, 5001, b""),
        (there, "PA", 1001, 5001, REQUEST),
        (back, "PA", 5001, asked, RESPONSE),
        (there, "FA", asked, answered, b""),
        (back, "FA", answered, asked + 1, b""),
        (there, "A", asked + 1, answered + 1, b""),
    ]
    packets = []
    for number, (base, flags, seq, ack, data) in enumerate(steps):
        packet = base.copy()
        packet[TCP].flags, packet[TCP].seq, packet[TCP].ack = flags, seq, ack
        packet = packet / data if data else packet
        packet.time = 1_790_000_000 + number / 100
        packets.append(packet)
    return packets


@pytest.fixture(scope="session")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("capture") / "shop.pcap"
    wrpcap(str(path), conversation())
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, capture: Path) -> Path:
    """A data folder that holds the conversation."""
    folder = tmp_path_factory.mktemp("evidence") / "data"
    said = run(
        "ingest", str(capture), "--identity", "subject=alice,issuer=https://idp", "--data", str(folder), "--json"
    )
    assert said.returncode == 0, said.stderr
    return folder


@pytest.fixture
def verbatim(data: Path) -> Verbatim:
    """Runs a verb on that folder."""
    return lambda *arguments: run(*arguments, "--data", str(data))


def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-m", "appliance", *arguments], capture_output=True, timeout=100)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    """Runs a verb here, with `given` as standard input, where many are tried: exit code and standard error."""

    def call(*arguments: str, given: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["verbatim", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return call


def objects(said: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    """The output of `--json`: an object a line and nothing else."""
    assert said.returncode == 0, said.stderr
    return [json.loads(line) for line in said.stdout.splitlines()]
