"""A bench for the capture program: state in, packet in; verdict, mark, records and counters out.

Each bench has its own maps, ring and program; packets run through BPF_PROG_TEST_RUN. The interfaces are a veth pair in
a network namespace that belongs to one thread of the test process and goes with it, whatever happens.
"""

import ctypes
import mmap
import os
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_network
from typing import Any, TypeVar

from scapy.layers.l2 import Ether

from appliance import config
from appliance.wire import abi, bpf, loader, program

T = TypeVar("T")

AGENT_MAC, UPSTREAM_MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:99"
CLONE_NEWNET = 0x40000000
CONTEXT_BYTES = 192  # struct __sk_buff
HEADER = abi.Record.LAYOUT.size
TC_ACT_OK, TC_ACT_SHOT = 0, 2


class Namespace:
    """A network namespace held by one thread; `run` calls a function there."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "netns", self._unshare)
        self.thread_id = self.run(threading.get_native_id)  # to ip(8) as good as a process id

    @staticmethod
    def _unshare() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare: run the tests as root")

    def run(self, function: Callable[[], T]) -> T:
        return self._thread.submit(function).result()

    def ip(self, *arguments: str) -> str:
        command = ["ip", *arguments]
        return self.run(lambda: subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def index(self, name: str) -> int:
        return int(self.ip("-o", "link", "show", "dev", name).split(":")[0])

    def close(self) -> None:
        self._thread.shutdown()


@cache
def instructions() -> bytes:
    return program.compiled(program.source_folder())


@dataclass(frozen=True, slots=True)
class Recorded:
    header: abi.Record
    data: bytes

    @property
    def kind(self) -> abi.Kind:
        return abi.Kind(self.header.kind)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`verdict`: forward (recorded, marked), refuse (marked to be answered), steer (marked, for a relay), drop, or pass
    (to the stack, unmarked).
    `frame`: what the program made of it."""

    verdict: str
    records: list[Recorded]
    frame: bytes

    @property
    def packet(self) -> Recorded:
        (found,) = (record for record in self.records if record.kind is abi.Kind.PACKET)
        return found

    @property
    def reason(self) -> abi.Reason:
        (found,) = (record for record in self.records if record.kind is abi.Kind.REFUSAL)
        return abi.Reason(found.header.reason)


class Ring:
    """Reads the ring as its documentation says: positions on pages of their own, records padded to 8."""

    def __init__(self, fd: int, size: int) -> None:
        self._size = size
        self._consumer = mmap.mmap(fd, mmap.PAGESIZE)
        self._rest = mmap.mmap(fd, mmap.PAGESIZE + 2 * size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)

    def drain(self, limit: int | None = None) -> list[Recorded]:
        """Take the records out, all or the oldest `limit`."""
        (position,) = struct.unpack_from("<Q", self._consumer)
        (end,) = struct.unpack_from("<Q", self._rest)
        found: list[Recorded] = []
        while position < end and len(found) != limit:
            at = mmap.PAGESIZE + position % self._size
            (word,) = struct.unpack_from("<I", self._rest, at)
            if word >> 31:  # another CPU is still at it
                break
            length = word & 0x3FFFFFFF
            if not word >> 30:
                header = abi.Record.unpack(self._rest[at + 8 : at + 8 + HEADER])
                assert HEADER + header.length <= length
                found.append(Recorded(header, self._rest[at + 8 + HEADER : at + 8 + HEADER + header.length]))
            position += (length + 8 + 7) // 8 * 8
        struct.pack_into("<Q", self._consumer, 0, position)
        return found

    @property
    def fill(self) -> int:
        """Bytes that it holds."""
        return int(struct.unpack_from("<Q", self._rest)[0] - struct.unpack_from("<Q", self._consumer)[0])

    def close(self) -> None:
        self._consumer.close()
        self._rest.close()


def boottime() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass
class Bench:
    namespace: Namespace
    agent: int
    upstream: int
    settings: config.Wire = field(default_factory=lambda: config.Wire(ring_bytes=2**18, max_flows=64))

    def __post_init__(self) -> None:
        self.maps = loader.create_maps(self.settings)
        self.fd = loader.load(instructions(), self.maps)
        self.ring = Ring(self.maps["ring"], self.settings.ring_bytes)
        self.role(self.agent, abi.Role.AGENT)
        self.role(self.upstream, abi.Role.UPSTREAM)
        for everywhere in ("0.0.0.0/0", "::/0"):
            self.network(everywhere, self.agent)

    def close(self) -> None:
        self.ring.close()
        for fd in (self.fd, *self.maps.values()):
            os.close(fd)

    def map(self, name: str) -> bpf.Map:
        return bpf.Map(self.maps[name])

    # ---- state in

    def role(self, ifindex: int, role: abi.Role) -> None:
        self.map("interfaces").update(struct.pack("<I", ifindex), struct.pack("<I", role))

    def local(self, address: str) -> None:
        self.map("locals").update(abi.pack_address(address), bytes(4))

    def network(self, network: str, ifindex: int) -> None:
        """The routes lead there for these addresses."""
        parsed = ip_network(network)
        bits = parsed.prefixlen + (96 if parsed.version == 4 else 0)
        key = abi.NetworkKey(bits, abi.pack_address(parsed.network_address))
        self.map("networks").update(key.pack(), struct.pack("<I", ifindex))

    def lease(self, address: str, number: int = 7, seconds: float = 60.0, ifindex: int = 0, link: str = "") -> None:
        value = abi.LeaseValue(
            number, boottime() + round(seconds * 1e9), ifindex, bytes.fromhex(link.replace(":", "")) or bytes(6)
        )
        self.map("leases").update(abi.pack_address(address), value.pack())

    def forget_shares(self) -> None:
        """What an owner has in the ring is not known until it opens its next flow: so nobody has too much of it."""
        for owner in list(self.map("quotas").keys()):
            self.map("quotas").delete(owner)

    def revoke(self, address: str) -> None:
        assert self.map("leases").delete(abi.pack_address(address))

    def _rule_key(self, to: str, protocol: int, port: int) -> bytes:
        network = ip_network(to)
        prefix = network.prefixlen + (96 if network.version == 4 else 0)
        address = abi.pack_address(network.network_address)
        return abi.RuleKey(32 + prefix, network.version, protocol, port.to_bytes(2, "big"), address).pack()

    def rule(
        self,
        to: str,
        lane: abi.Lane = abi.Lane.TAP,
        protocol: int = 0,
        port: int = 0,
        *,
        unbound: bool = False,
        number: int = 1,
    ) -> None:
        network = ip_network(to)
        prefix = network.prefixlen + (96 if network.version == 4 else 0)
        self.map("rules").update(
            self._rule_key(to, protocol, port), abi.RuleValue(number, lane, unbound, prefix).pack()
        )

    def remove_rule(self, to: str) -> None:
        assert self.map("rules").delete(self._rule_key(to, 0, 0))

    def set(
        self,
        *,
        stalled: int = 0,
        refusal_interval: int = 10**9,
        ports: Sequence[int] = (),
        rules: int = 0,
        proxies: Sequence[int] = (),
        **more: float,
    ) -> None:
        """What the wire process tells the program; `more`: of `config.Wire`, what is not left as it is."""
        changed = self.settings.model_copy(update={"refusal_interval": refusal_interval / 1e9} | more)
        value = loader.settings_value(changed, ports, stalled=bool(stalled), rules=rules, proxies=proxies)
        self.map("settings").update(bytes(4), value)

    # ---- packet in

    def send(self, packet: Any, ifindex: int | None = None, *, gso: int = 0, mark: int = 0) -> Outcome:
        """Let a packet arrive: an IP packet (addressed to the interface's own MAC), or a whole frame."""
        arriving = self.agent if ifindex is None else ifindex
        if not isinstance(packet, (bytes, Ether)):
            packet = Ether(dst=AGENT_MAC if arriving == self.agent else UPSTREAM_MAC, src=PEER_MAC) / packet
        frame = bytes(packet)
        context = bytearray(CONTEXT_BYTES)
        struct.pack_into("<I", context, 8, mark)
        struct.pack_into("<I", context, 40, arriving)
        if gso:
            struct.pack_into("<I", context, 164, -(-len(frame) // gso))
            struct.pack_into("<I", context, 176, gso)
        done = self.namespace.run(lambda: bpf.run_once(self.fd, frame, bytes(context)))
        (marked,) = struct.unpack_from("<I", done.context, 8)
        verdicts = {
            (TC_ACT_OK, abi.MARK_RECORDED): "forward",
            (TC_ACT_OK, abi.MARK_REFUSED): "refuse",
            (TC_ACT_OK, abi.MARK_STEERED): "steer",
            (TC_ACT_SHOT, 0): "drop",
            (TC_ACT_OK, 0): "pass",
        }
        return Outcome(verdicts[done.result, marked], self.ring.drain() if not self.hold else [], done.packet)

    def receive(self, packet: Any, **more: Any) -> Outcome:
        """The same from upstream."""
        return self.send(packet, self.upstream, **more)

    hold: bool = False  # True: what is recorded stays in the ring

    # ---- state out

    def counters(self) -> dict[str, int]:
        """What is not 0, by lower-case name."""
        names: dict[int, str] = {reason: reason.name.lower() for reason in abi.Reason}
        names |= {counter: counter.name.lower() for counter in abi.Counter}
        counts = self.map("counters")
        totals = {
            name: sum(struct.unpack("<Q", value)[0] for value in counts.lookup_percpu(struct.pack("<I", index)))
            for index, name in names.items()
        }
        return {name: total for name, total in totals.items() if total}

    def flows(self) -> Iterator[tuple[abi.FlowKey, abi.Flow]]:
        for key, value in self.map("flows").items():
            yield abi.FlowKey.unpack(key), abi.Flow.unpack(value)

    def flow(self) -> abi.Flow:
        ((_, flow),) = self.flows()
        return flow
