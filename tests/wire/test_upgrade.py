"""Another program, ring or layout of records takes over while traffic flows: no instant without a record."""

import json
import os
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest

from appliance import config
from appliance.journal import Damage, Frame, FrameKind, JournalKey, Reader
from appliance.model import EventRow, Row
from appliance.session.assembler import Assembler
from appliance.wire import former, loader, program
from appliance.wire.abi import ABI, Kind, Side
from tests.lab.wait import until
from tests.wire.net import UPSTREAM, Net, Wire, inside, sh
from tests.wire.test_daemon import connection, exchange, lease

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces, BPF and nftables")

OTHER = """
import sys
from pathlib import Path
from appliance.wire import abi
abi.ABI = int(sys.argv[4])
from appliance import config
from appliance.wire import daemon, program
program.source_folder = lambda: Path(sys.argv[3])
daemon.run(config.load(Path(sys.argv[1])))
"""
UDP = '[[rules]]\nto = "0.0.0.0/0"\nprotocol = "udp"\n'
ROOMY = "segment_bytes = 8388608\nmax_bytes = 167772160\n"
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
NUMBER = struct.Struct(">I")


@dataclass
class Release(Wire):
    """A wire process of another release: `sources` of the program and the version of its records."""

    sources: Path | None = None
    abi: int = ABI
    ring: int = 1 << 24

    def command(self, function: str) -> list[str]:
        command = super().command(function)
        self.config.write_text(self.config.read_text().replace("ring_bytes = 1048576", f"ring_bytes = {self.ring}"))
        if self.sources is None:
            return command
        start = command.index("-c")
        return [*command[:start], "-c", OTHER, *command[start + 2 :], str(self.sources), str(self.abi)]


@pytest.fixture
def wire(net: Net, tmp_path: Path) -> Iterator[Release]:
    made = Release(net, tmp_path / "data", journal=ROOMY)
    made.rules += UDP
    try:
        yield made
    finally:
        made.sources = None
        made.teardown()
        assert not former.folders(made.bpffs)


def changed(folder: Path, what: str, into: str) -> Path:
    """The program's sources with one word replaced."""
    shutil.copytree(program.source_folder(), folder)
    for path in folder.glob("*.[ch]"):
        text = path.read_text()
        if what in text:
            path.write_text(text.replace(what, into))
            return folder
    raise AssertionError(f"{what} is in no source")


class Datagrams:
    """Numbered datagrams from the agent to the upstream host, without a pause, until the block is left."""

    def __init__(self, net: Net, pause: float = 0.001) -> None:
        self.sent = 0
        self.got: list[int] = []
        self._pause = pause
        self._stop = threading.Event()
        self._receiver = inside(net.upstream, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        self._receiver.bind((UPSTREAM, 0))
        self._receiver.settimeout(1)
        self.port = self._receiver.getsockname()[1]
        self._sender = inside(net.agent, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._threads = [threading.Thread(target=one) for one in (self._send, self._receive)]

    def __enter__(self) -> "Datagrams":
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.got) > 20, "datagrams arrive")
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._sender.close()
        self._receiver.close()

    def _send(self) -> None:
        while not self._stop.is_set():
            self._sender.sendto(NUMBER.pack(self.sent) + bytes(60), (UPSTREAM, self.port))
            self.sent += 1
            time.sleep(self._pause)

    def _receive(self) -> None:
        try:
            while not (self._stop.is_set() and len(self.got) >= self.sent):
                self.got.append(NUMBER.unpack_from(self._receiver.recv(100))[0])
        except TimeoutError:
            return


def recorded(wire: Wire, port: int) -> list[int]:
    found = ((r, data) for r, data in wire.records() if r.kind == Kind.PACKET and r.destination_port == port)
    return [NUMBER.unpack_from(data, record.header)[0] for record, data in found]


def program_ids(wire: Wire) -> set[str]:
    shown = [
        sh("tc", "filter", "show", "dev", dev, "ingress", netns=wire.net.gateway) for dev in ("agents0", "upstream0")
    ]
    assert all(text.count("direct-action") == 1 for text in shown)
    return {word for text in shown for word in text.split(" id ")[1].split()[:1]}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_new_program_over_the_old_one_leaves_no_instant_unrecorded(
    wire: Release, tmp_path: Path, how: signal.Signals
) -> None:
    """Datagrams are not sent again: each has to pass, and has to be on record once, through old or new program."""
    lease(wire.start())
    data = os.urandom(300_000)
    with connection(wire.net) as (agent, upstream, port), Datagrams(wire.net) as datagrams:
        before = program_ids(wire)
        assert exchange(agent, upstream, data)
        wire.stop(how)
        assert exchange(agent, upstream, data)
        wire.sources = changed(
            tmp_path / "bpf", "skb->mark = MARK_RECORDED;", "skb->mark = MARK_RECORDED; bump(71, 1);"
        )
        wire.start()
        after = program_ids(wire)
        assert len(before) == len(after) == 1
        assert before != after
        assert exchange(agent, upstream, data)
        seen = len(datagrams.got)
        until(lambda: len(datagrams.got) > seen + 100, "more datagrams")
    assert datagrams.got == list(range(datagrams.sent))
    until(lambda: len(recorded(wire, datagrams.port)) >= datagrams.sent, "journaled")
    assert recorded(wire, datagrams.port) == datagrams.got
    until(lambda: sha256(wire.stream(port, Side.CLIENT)).digest() == sha256(3 * data).digest(), "journaled")
    assert not {"ring-replaced", "ring-created"} & set(wire.events()[1:])


def test_a_ring_of_another_size_takes_over_and_the_former_one_is_drained_first(wire: Release) -> None:
    lease(wire.start())
    before, meanwhile, after = (os.urandom(200_000) for _ in range(3))
    with connection(wire.net) as (agent, upstream, port), Datagrams(wire.net) as datagrams:
        assert exchange(agent, upstream, before)
        wire.stop(signal.SIGKILL)
        assert exchange(agent, upstream, meanwhile)  # into the ring that is replaced
        wire.ring = 1 << 23
        wire.start()
        assert exchange(agent, upstream, after)
        seen = len(datagrams.got)
        until(lambda: len(datagrams.got) > seen + 100, "more datagrams")
    until(lambda: wire.stream(port, Side.CLIENT) == before + meanwhile + after, "journaled")
    assert datagrams.got == list(range(datagrams.sent))
    assert sorted(recorded(wire, datagrams.port)) == datagrams.got
    assert "ring-replaced" in wire.events()
    rows = assembled(wire)
    assert [row.kind for row in rows if isinstance(row, EventRow) and row.kind in ("ring-lost", "journal-gap")] == []


def test_records_of_another_version_are_kept_and_the_gap_is_told(wire: Release, tmp_path: Path) -> None:
    """An upgrade that changes the layout of records: what the old one recorded is journaled as it is."""
    wire.sources, wire.abi = changed(tmp_path / "bpf", "#define WIRE_ABI 1", "#define WIRE_ABI 0"), 0
    lease(wire.start())
    with connection(wire.net) as (agent, upstream, _):
        assert exchange(agent, upstream, b"journaled by the old release")
        wire.stop(signal.SIGKILL)
        assert exchange(agent, upstream, b"left in the ring by the old release")
        wire.sources = None
        wire.start()
        assert exchange(agent, upstream, b"recorded by the new release")
        assert not former.folders(wire.bpffs)
        payloads = b"".join(frame.payload for frame in wire.frames() if frame.kind is FrameKind.SPAN)
        assert b"left in the ring by the old release" in payloads
        until(
            lambda: (
                b"recorded by the new release" in b"".join(f.payload for f in wire.frames() if f.kind is FrameKind.SPAN)
            ),
            "journaled",
        )
    said = next(
        json.loads(f.payload) for f in wire.frames() if f.kind is FrameKind.EVENT and b"ring-replaced" in f.payload
    )
    assert (said["version"], said["left"]) == (0, 0)
    assert said["to"] > said["from"]
    assert "records of version 0: read them with the release that wrote them" in said["text"]
    rows = assembled(wire)
    gaps = [row for row in rows if isinstance(row, EventRow) and row.kind == "journal-gap"]
    assert gaps
    assert all("not a record of version 1" in row.text for row in gaps)


def test_a_start_that_dies_before_the_former_ring_is_drained_loses_nothing(wire: Release) -> None:
    lease(wire.start())
    with connection(wire.net) as (agent, upstream, port):
        wire.stop(signal.SIGKILL)
        assert exchange(agent, upstream, b"left in the ring")
        wire.ring = 1 << 23
        wire.command("run")  # writes the settings
        loader.open_program(config.load(wire.config).wire).close()  # and then it died
        assert former.folders(wire.bpffs)
        assert exchange(agent, upstream, b", and more")
        wire.start()
        assert exchange(agent, upstream, b" by the next")
    until(lambda: wire.stream(port, Side.CLIENT) == b"left in the ring, and more by the next", "journaled")


def assembled(wire: Wire) -> list[Row]:
    """What the recorder makes of the journal."""
    found: list[Frame | Damage] = []
    with Reader(wire.data / "journal" / "wire", JournalKey.load(wire.data)) as reader:
        while (item := reader.read()) is not None:
            found.append(item)
        stream = reader.stream
    assert stream is not None
    machine = Assembler(stream, config.Record(), "gw")
    return [row for one in found for row in machine.feed(one)]
