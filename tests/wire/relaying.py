"""A relay of the plainest kind, as a process of its own in the gateway's network namespace.

It echoes what agents send, or passes it on to the server that they meant, from the gateway's own address or theirs.
Commands come on standard input, one word a line; what it does it says on standard output, a JSON object a line.
"""

import json
import os
import select
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from appliance.wire.abi import Flow, Leg
from appliance.wire.steering import Steering, flow_key
from tests.lab.wait import until
from tests.wire.net import ROOT, Net

IPV6_TRANSPARENT = 75  # linux/in6.h


def transparent(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)
    return sock


def listeners(port: int = 0) -> list[socket.socket]:
    """For both families, at one port."""
    found = []
    for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        sock = transparent(family)
        sock.bind((everywhere, port))
        sock.listen(64)
        port = sock.getsockname()[1]
        found.append(sock)
    return found


def counts(one: Flow | Leg | None) -> dict[str, Any]:
    if one is None:
        return {}
    sides = {"client": one.client, "server": one.server}
    return {"start": one.start, "end": getattr(one, "end", 0), "lease": getattr(one, "lease", 0)} | {
        name: {
            "packets": side.packets,
            "bytes": side.bytes,
            "sent": side.next - side.isn,
            "acked": side.acked - side.isn,
        }
        for name, side in sides.items()
    }


class Stub:
    def __init__(self, bpffs: Path, way: str, proxy: str) -> None:
        self.way = way
        self.steering = Steering(bpffs)
        self.sockets = listeners()
        self.lock = threading.Lock()
        self.agents: list[socket.socket] = []
        for sock in self.sockets:
            threading.Thread(target=self.accept, args=(sock,), daemon=True).start()
        if proxy:
            host, _, port = proxy.rpartition(":")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            own = socket.create_server((host.strip("[]"), int(port)), family=family)
            threading.Thread(target=self.accept, args=(own,), daemon=True).start()

    def say(self, what: str, **more: Any) -> None:
        with self.lock:
            print(json.dumps({"what": what, **more}), flush=True)

    def accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, peer = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(sock, peer), daemon=True).start()

    def serve(self, agent: socket.socket, peer: Any) -> None:
        server = agent.getsockname()
        self.agents.append(agent)
        said = {"peer": peer[:2], "server": server[:2], "lease": self.steering.lease(peer[0])}
        self.say("accepted", **said, flow=counts(self.steering.flow(*peer[:2], *server[:2])))
        leg: dict[str, Any] = {}
        try:
            if self.way == "echo":
                while data := agent.recv(65536):
                    agent.sendall(data)
            else:
                leg = self.pass_on(agent, peer, server)
        except OSError as error:
            said["error"] = error.strerror
        flow = counts(self.steering.flow(*peer[:2], *server[:2]))
        agent.close()
        self.say("closed", **said, flow=flow, leg=leg)

    def pass_on(self, agent: socket.socket, peer: Any, server: Any) -> dict[str, Any]:
        out = transparent(agent.family)
        own = self.way == "agent"
        if own:
            out.bind((peer[0], 0))
        else:
            with socket.socket(agent.family, socket.SOCK_DGRAM) as probe:  # which address the routes choose
                probe.connect(server[:2])
                out.bind((probe.getsockname()[0], 0))
        key = flow_key(*out.getsockname()[:2], *server[:2])
        self.steering.put_leg(key, transparent=own)
        out.settimeout(10)
        try:
            out.connect(server[:2])
            while data := agent.recv(65536):
                out.sendall(data)
                agent.sendall(out.recv(65536))
            out.shutdown(socket.SHUT_WR)
            while out.recv(65536):
                pass
        finally:
            out.close()
            leg = counts(self.steering.take_leg(key))
        return leg

    def run(self) -> None:
        self.say("ready", port=self.sockets[0].getsockname()[1])
        for line in sys.stdin:
            match line.strip():
                case "register":
                    self.steering.register(self.sockets[0].getsockname()[1])
                case "unregister":
                    self.steering.unregister()
                case "tend":
                    self.say("tended", lost=self.steering.tend())
                    continue
                case "shout":
                    self.agents[-1].send(b"unasked")
                case "hang-up":
                    self.agents[-1].shutdown(socket.SHUT_RDWR)
                case "deafen":
                    for sock in self.sockets:
                        sock.shutdown(socket.SHUT_RDWR)
                        sock.close()
            self.say("done")


@dataclass
class Relay:
    """Context manager: a stub that runs in `net`'s gateway. `way`: echo, or whose address the server sees."""

    net: Net
    bpffs: Path
    way: str = "echo"
    proxy: str = ""
    said: list[dict[str, Any]] = field(default_factory=list)
    unread: bytes = b""
    process: Any = None

    def __enter__(self) -> Self:
        enter = ["nsenter", f"--net=/run/netns/{self.net.gateway}"]
        command = [*enter, sys.executable, "-m", "tests.wire.relaying", str(self.bpffs), self.way, self.proxy]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.hear("ready")
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()

    def hear(self, what: str) -> dict[str, Any]:
        """The next thing of this kind that it says, and has not been heard."""

        def look() -> dict[str, Any] | None:
            while select.select([self.process.stdout], [], [], 0)[0]:
                data = os.read(self.process.stdout.fileno(), 65536)
                assert data, "the relay ended"
                *lines, self.unread = (self.unread + data).split(b"\n")
                self.said += map(json.loads, lines)
            found = next((one for one in self.said if one["what"] == what), None)
            if found is not None:
                self.said.remove(found)
            return found

        return until(look, f"the relay says {what}", 15)

    def do(self, command: str) -> dict[str, Any]:
        self.process.stdin.write(command.encode() + b"\n")
        return self.hear("done")

    def registered(self) -> Self:
        self.do("register")
        return self


if __name__ == "__main__":
    Stub(Path(sys.argv[1]), sys.argv[2], sys.argv[3]).run()
