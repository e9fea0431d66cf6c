"""Redis 7 on ports 6379 (clear text) and 6380 (TLS). The default user and the user `app` have passwords."""

import secrets
from typing import ClassVar

from tests.lab.services.base import Opening, Service

USER = "app"
PORT = 6379
TLS_PORT = 6380


class Redis(Service):
    name: ClassVar[str] = "redis"
    number: ClassVar[int] = 12
    openings: ClassVar = (Opening("tcp", PORT), Opening("tcp", TLS_PORT))

    user: ClassVar[str] = USER
    port: ClassVar[int] = PORT
    tls_port: ClassVar[int] = TLS_PORT
    default_password: str  # of the default user: AUTH with a password only
    password: str  # of `app`

    def start(self) -> None:
        self.default_password, self.password = secrets.token_urlsafe(18), secrets.token_urlsafe(18)
        self.site.secrets.update((self.default_password, self.password))
        certificate, key = self.certificate("redis")
        v4, v6 = self.addresses
        config = self.folder / "redis.conf"
        config.touch(0o600)
        config.write_text(
            "\n".join(
                [
                    f"bind {v4} {v6}",
                    f"port {PORT}",
                    f"tls-port {TLS_PORT}",
                    f"tls-cert-file {certificate}",
                    f"tls-key-file {key}",
                    f"tls-ca-cert-file {self.site.pki.certificate}",
                    "tls-auth-clients no",
                    f"dir {self.folder}",
                    'save ""',
                    f"requirepass {self.default_password}",
                    f"user {USER} on >{self.password} ~* &* +@all",
                ]
            )
            + "\n"
        )
        self.host.run(["chown", "-R", "redis:redis", self.folder])
        self.processes.append(self.host.popen(["redis-server", config], user="redis"))

    def ready(self) -> bool:
        return self.listening(PORT, TLS_PORT)
