"""Cases of `tests/vectors/tcp`: what a hostile end sends, step by step, and what the Linux end read of it.

A file is an object of cases by the name of the fault. A case has `steps`, the `received` bytes, the `ending` as the
Linux end saw it (`open`, `eof`, `reset`) and the `findings` of the recording. Texts may be `["x", 1000]`: repeated.

A step sends one segment. Its fields, all optional:
    data, flags ("A" by default; scapy's letters), window, urgent
    seq     offset from the byte after the SYN (default: behind what was sent last), or "edge+N": the last window's end
    ack     offset in the other direction (default: what was received)
    raw_ack the acknowledgement number itself
    stamp   of a time stamp option, relative to `stamped` of the case: that of the SYN
    options more TCP options, in hexadecimal
    ip      {ttl, options (hex), length (added to the real one), checksum}
    tcp     {checksum, offset}; checksum: a number, or "pseudo": as if a network card were to complete it
    vlans   tags around the packet
    pad     bytes behind the IP packet
or does something else: {"do": "sync"} waits until both ends have seen everything; "read": the Linux end reads; "say":
it writes `data`; "accept": it accepts.

Of the case: `handshake` (default true), `syn` (hex of the SYN's options), `first` (fields of the SYN), `isn`, `server`
(plain, fast_open, small, inline), `family`, `hostile` ("server": the Linux end connects), `reads` (it reads before each
urgent byte), `uncompared` (texts that need not be kept: the garbage of keep-alives).
"""

import contextlib
import json
import socket
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.utils import checksum as internet_checksum

from tests.bpf.test_live import AGENT, SERVER, SERVER6
from tests.session.hostile.rig import CLIENT, CLIENT6, RAW_SERVER, Reply, Rig, pinned

VECTORS = Path(__file__).parents[2] / "vectors" / "tcp"
ISN = 0x1000_0000
FIN, SYN, RST, ACK = 1, 2, 4, 16
PORTS = count(10_000)
Case = dict[str, Any]


def load() -> dict[str, Case]:
    """All cases, by file and name."""
    return {
        f"{path.stem}-{name}": case
        for path in sorted(VECTORS.glob("*.json"))
        for name, case in json.loads(path.read_text()).items()
    }


def text(value: str | list[Any]) -> bytes:
    """The bytes of a case's text."""
    if isinstance(value, str):
        return value.encode("latin-1")
    repeated: bytes = value[0].encode("latin-1") * value[1]
    return repeated


@dataclass
class Flow:
    """One case in the making."""

    name: str
    case: Case
    port: int
    isn: int
    other_isn: int | None = None
    acked: int = 0  # what the Linux end acknowledged, offset
    edge: int = 0  # right edge of its window, offset
    scale: int = 0
    heard: int = 0  # offset up to which its bytes came
    stamp: int = 1
    sent: int = 0
    replies: list[Reply] = field(default_factory=list)
    end: socket.socket | None = None  # Linux's
    received: bytes = b""
    ending: str = "open"

    @property
    def hostile_server(self) -> bool:
        return bool(self.case.get("hostile") == "server")

    def take(self, reply: Reply) -> None:
        self.replies.append(reply)
        if reply.flags & RST:
            return
        if reply.flags & SYN:
            self.other_isn = reply.seq
            self.scale = reply.scale or 0
        assert self.other_isn is not None
        length = len(reply.data) + (reply.flags & FIN)
        self.heard = max(self.heard, (reply.seq - self.other_isn - 1 + length) & 0xFFFFFFFF if length else 0)
        if reply.flags & ACK:
            acked = (reply.ack - self.isn - 1) & 0xFFFFFFFF
            self.acked = max(self.acked, acked if acked < 1 << 31 else 0)
            window = reply.window << (0 if reply.flags & SYN else self.scale)
            self.edge = max(self.edge, self.acked + window)

    def frame(self, rig: Rig, step: Case) -> bytes:
        """The frame of one step."""
        data = text(step.get("data", ""))
        flags = step.get("flags", "A")
        place = step.get("seq", self.sent)
        if isinstance(place, str):
            place = self.edge + int(place.removeprefix("edge") or 0)
        if "seq" not in step or place + len(data) > self.sent:
            self.sent = place + len(data)
        seq = (self.isn + 1 + place) & 0xFFFFFFFF
        ack = 0
        if "A" in flags and self.other_isn is not None:
            ack = (self.other_isn + 1 + step.get("ack", self.heard)) & 0xFFFFFFFF
        ack = step.get("raw_ack", ack)
        options = bytes.fromhex(step.get("options") or (self.case.get("syn", "") if "S" in flags else ""))
        if "stamp" in step:
            options += (
                b"\1\1\x08\x0a"
                + ((self.case.get("stamped", 0x7000_0000) + step["stamp"]) & 0xFFFFFFFF).to_bytes(4, "big")
                + bytes(4)
            )
        options += b"\1" * (-len(options) % 4)
        port = self.case.get("port") or SERVERS[self.case.get("server", "plain")]
        here, there = (port, self.port) if self.hostile_server else (self.port, port)
        how = step.get("tcp", {})
        segment = TCP(
            sport=here, dport=there, seq=seq, ack=ack, flags=flags, window=step.get("window", 65535),
            urgptr=step.get("urgent", 0), dataofs=how.get("offset", 5 + len(options) // 4),
        )  # fmt: skip
        whole = bytearray(bytes(segment)[:20] + options + data)
        whole[16:18] = b"\0\0"
        return self._wrap(rig, bytes(whole), step)

    def _wrap(self, rig: Rig, segment: bytes, step: Case) -> bytes:
        outer, how = step.get("ip", {}), step.get("tcp", {})
        device, raw = ("servers", rig.upstream) if self.hostile_server else ("agents", rig.agent)
        if self.case.get("family") == 6:
            ip = IPv6(src=CLIENT6, dst=SERVER6, nh=6, hlim=outer.get("ttl", 64), plen=len(segment))
        else:
            pair = (RAW_SERVER, self.case["client"]) if self.hostile_server else (CLIENT, SERVER)
            options = bytes.fromhex(outer.get("options", ""))
            ip = IP(src=pair[0], dst=pair[1], ttl=outer.get("ttl", 64), proto=6, ihl=5 + len(options) // 4)
            ip.len = 20 + len(options) + len(segment) + outer.get("length", 0)
        pseudo = ip_pseudo(ip, len(segment))
        sum_ = how.get("checksum")
        if sum_ == "pseudo":
            sum_ = internet_checksum(pseudo) ^ 0xFFFF
        elif sum_ is None:
            sum_ = internet_checksum(pseudo + segment)
        segment = segment[:16] + sum_.to_bytes(2, "big") + segment[18:]
        packet = bytes(ip)[: 40 if self.case.get("family") == 6 else 20]
        if self.case.get("family") != 6:
            packet = packet[:10] + b"\0\0" + packet[12:] + options
            sum_ = outer.get("checksum", internet_checksum(packet))
            packet = packet[:10] + sum_.to_bytes(2, "big") + packet[12:]
        link: Any = Ether(dst=rig.macs[device], src=raw.mac, type=0x86DD if self.case.get("family") == 6 else 0x0800)
        tags = step.get("vlans", [])
        for tag in tags:
            link = link / Dot1Q(vlan=tag)
        if tags:
            link.lastlayer().type = link.type
            link.type = 0x8100
        return bytes(link) + packet + segment + bytes(step.get("pad", 0))


def ip_pseudo(ip: Any, length: int) -> bytes:
    """The pseudo-header that TCP's checksum begins with (RFC 9293 section 3.1, RFC 8200 section 8.1)."""
    if ip.version == 6:
        return socket.inet_pton(10, ip.src) + socket.inet_pton(10, ip.dst) + length.to_bytes(4, "big") + b"\0\0\0\6"
    return socket.inet_aton(ip.src) + socket.inet_aton(ip.dst) + b"\0\6" + length.to_bytes(2, "big")


SERVERS = {"plain": 7001, "fast_open": 7002, "small": 7003, "inline": 7004}


class Linux:
    """The real end: listeners of each kind, and what came in."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.listeners: list[socket.socket] = []
        rig.network.upstream.run(self._listen)

    def _listen(self) -> None:
        Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("514")  # servers, without asking for a cookie
        for kind, port in SERVERS.items():
            listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            if kind == "small":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            elif kind == "inline":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            elif kind == "fast_open":
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 1024)
            listener.bind(("::", port))
            listener.listen(4096)
            listener.setblocking(False)
            self.listeners.append(listener)

    def accept(self, flows: dict[int, Flow]) -> None:
        """Take what is complete."""
        for listener in self.listeners:
            while True:
                try:
                    end, address = listener.accept()
                except BlockingIOError:
                    break
                end.setblocking(False)
                flow = flows.get(address[1])
                if flow is None or flow.end is not None:
                    end.close()
                else:
                    flow.end = end

    @staticmethod
    def connect(rig: Rig, flow: Flow) -> None:
        """The Linux end begins (its SYN goes out at once)."""
        end = rig.network.agent.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        end.setblocking(False)
        end.bind((flow.case["client"], flow.port))
        with contextlib.suppress(BlockingIOError):
            end.connect((RAW_SERVER, SERVERS["plain"]))
        flow.end = end

    @staticmethod
    def read(flow: Flow) -> None:
        if flow.end is None or flow.ending != "open":
            return
        while True:
            try:
                data = flow.end.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                flow.ending = "reset"
                return
            if not data:  # Linux tells of a reset behind the FIN only when asked
                flow.ending = "reset" if flow.end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) else "eof"
                return
            flow.received += data

    def close(self) -> None:
        for listener in self.listeners:
            listener.close()


def run(rig: Rig, linux: Linux, cases: dict[str, Case]) -> list[Flow]:
    """Play all cases at the same time; then the Linux ends say all they know, and close their half."""
    flows: dict[int, Flow] = {}
    for name, case in cases.items():
        port = next(PORTS)
        flows[port] = Flow(name, {"client": AGENT} | case, port, case.get("isn", ISN))
    pinned(lambda: _play(rig, linux, flows))
    return list(flows.values())


def _play(rig: Rig, linux: Linux, flows: dict[int, Flow]) -> None:
    for flow in flows.values():
        if flow.hostile_server:
            linux.connect(rig, flow)
    _sync(rig, linux, flows)
    opening: dict[int, list[Case]] = {0: [{"flags": "S", "seq": -1}], 1: [{"flags": "SA", "seq": -1}]}
    starting = [flow for flow in flows.values() if flow.case.get("handshake", True)]
    for flow in starting:
        for step in opening[flow.hostile_server]:
            _send(rig, flow, step | flow.case.get("first", {}))
            flow.sent = 0
    _sync(rig, linux, flows)
    for flow in starting:
        if not flow.hostile_server:
            _send(rig, flow, {"stamp": 0} if "stamped" in flow.case else {})
    _sync(rig, linux, flows)
    scripts = {port: list(flow.case["steps"]) for port, flow in flows.items()}
    while any(scripts.values()):
        for port, script in scripts.items():
            while script:
                step = script.pop(0)
                if "do" not in step:
                    _send(rig, flows[port], step)
                    continue
                _act(flows[port], step)
                break
        _sync(rig, linux, flows)
    for flow in flows.values():
        linux.read(flow)
    _goodbye(rig, linux, flows)


def _act(flow: Flow, step: Case) -> None:
    if step["do"] == "read":
        Linux.read(flow)
    elif step["do"] == "say":
        assert flow.end is not None
        flow.end.send(text(step["data"]))


def _send(rig: Rig, flow: Flow, step: Case) -> None:
    raw = rig.upstream if flow.hostile_server else rig.agent
    raw.sender.send(flow.frame(rig, step))


def _sync(rig: Rig, linux: Linux, flows: dict[int, Flow]) -> None:
    hostile = {flow.hostile_server for flow in flows.values()}
    for side in hostile:
        rig.barrier(side)
    linux.accept(flows)
    for raw in (rig.agent, rig.upstream):
        for reply in raw.replies():
            flow = flows.get(reply.source if raw is rig.upstream else reply.port)
            if flow is not None:
                flow.take(reply)
    rig.drain()


def _goodbye(rig: Rig, linux: Linux, flows: dict[int, Flow]) -> None:
    for flow in flows.values():
        if flow.end is not None and flow.ending != "reset":
            with contextlib.suppress(OSError):
                flow.end.shutdown(socket.SHUT_WR)
    _sync(rig, linux, flows)
    for flow in flows.values():
        last = next((reply for reply in reversed(flow.replies) if reply.flags & FIN), None)
        if last is not None:
            _send(rig, flow, {"seq": (last.ack - flow.isn - 1) & 0xFFFFFFFF, "raw_ack": last.seq + len(last.data) + 1})
    _sync(rig, linux, flows)
    rig.pass_time(5)
    rig.pass_time(1_000_000)  # what is still open ends by its silence
    for flow in flows.values():
        if flow.end is not None:
            flow.end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            flow.end.close()
    rig.barrier()
    rig.drop()
    for raw in (rig.agent, rig.upstream):
        raw.replies()
