"""nginx on many ports, each with TLS of another kind: what a client must refuse, and what it has to cope with."""

from pathlib import Path
from typing import ClassVar

from tests.lab import nginx
from tests.lab.pki import Pki
from tests.lab.services.base import Opening, Service

TLS13, TLS12 = 443, 1243  # that version only
EXPIRED, MISNAMED, UNTRUSTED = 8001, 8002, 8003  # wrong certificates
CLIENT_CERTIFICATE = 8004  # wants one of the lab's authority, and answers with its subject
PORTS = (TLS13, TLS12, EXPIRED, MISNAMED, UNTRUSTED, CLIENT_CERTIFICATE)

SERVER = """
    server {{
        listen {v4}:{port} ssl;
        listen [{v6}]:{port} ssl;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        {more}
        location / {{ return 200 "$ssl_protocol $ssl_session_reused $ssl_client_s_dn\\n"; }}
    }}
"""


class Tls(Service):
    name: ClassVar[str] = "tls"
    number: ClassVar[int] = 43
    openings: ClassVar = tuple(Opening("tcp", port) for port in PORTS)

    client: tuple[Path, Path]  # certificate and key that `CLIENT_CERTIFICATE` takes

    def start(self) -> None:
        pki, v4, v6 = self.site.pki, *self.addresses
        own = self.certificate()
        self.client = pki.issue("lab-client", (), client=True)
        shown = {
            TLS13: (*own, "ssl_protocols TLSv1.3;"),
            TLS12: (*own, "ssl_protocols TLSv1.2;"),
            EXPIRED: (*pki.issue(self.fqdn, self.addresses, file="expired", days=(-9, -2)), ""),
            MISNAMED: (*pki.issue("elsewhere.test", (), file="misnamed"), ""),
            UNTRUSTED: (*Pki(self.folder / "other").issue(self.fqdn, self.addresses), ""),
            CLIENT_CERTIFICATE: (*own, f"ssl_client_certificate {pki.certificate}; ssl_verify_client on;"),
        }
        servers = "".join(
            SERVER.format(v4=v4, v6=v6, port=port, certificate=certificate, key=key, more=more)
            for port, (certificate, key, more) in shown.items()
        )
        http = f"    ssl_session_cache shared:lab:1m;\n{servers}"
        self.processes.append(self.host.popen(nginx.command(self.folder, http)))

    def ready(self) -> bool:
        return self.listening(*PORTS)
