"""The lab's name server: dnsmasq, authoritative for the lab's domain and nothing else."""

import socket
from typing import ClassVar

from tests.lab.services.base import DOMAIN, Opening, Service

PROBE = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03dns\x03lab\x04test\x00\x00\x01\x00\x01"  # dns.lab.test A


class Dns(Service):
    name: ClassVar[str] = "dns"
    number: ClassVar[int] = 53
    openings: ClassVar = (Opening("udp", 53), Opening("tcp", 53))

    def start(self) -> None:
        v4, v6 = self.addresses
        records = [f"host-record={name},{a},{aaaa}" for name, (a, aaaa) in self.site.names.items()]
        config = self.folder / "dnsmasq.conf"
        config.write_text(
            "\n".join(
                [
                    "keep-in-foreground",
                    "log-facility=-",
                    "user=root",
                    f"pid-file={self.folder / 'dnsmasq.pid'}",
                    "bind-interfaces",
                    f"listen-address={v4},{v6}",
                    "no-hosts",
                    "no-resolv",
                    f"local=/{DOMAIN}/",
                    f"cname=shop.{DOMAIN},web.{DOMAIN}",
                    f"txt-record=about.{DOMAIN},a lab of Verbatim",
                    *records,
                ]
            )
        )
        self.processes.append(self.host.popen(["dnsmasq", f"--conf-file={config}"]))

    def ready(self) -> bool:
        def ask() -> bool:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                asking.settimeout(1)
                asking.connect((self.addresses[0], 53))
                try:
                    asking.send(PROBE)
                    return asking.recv(512)[:2] == PROBE[:2]
                except OSError:
                    return False

        return self.host.call(ask)
