"""MariaDB 10.11 with the same small shop as PostgreSQL. TLS for those who ask for it; LOAD DATA LOCAL is allowed.

The user `app` logs in by mysql_native_password, the user `edapp` by ed25519.
"""

import secrets
from pathlib import Path
from typing import ClassVar

from tests.lab.services.base import Opening, Service

USER = "app"
ED25519_USER = "edapp"
DATABASE = "shop"
SYSTEM_USER = "mysql"

SCHEMA = r"""
CREATE TABLE customers (
    id int PRIMARY KEY, name varchar(80) NOT NULL, email varchar(80) NOT NULL UNIQUE, country char(2) NOT NULL,
    notes text, profile json NOT NULL, since date NOT NULL
);
CREATE TABLE orders (
    id bigint unsigned AUTO_INCREMENT PRIMARY KEY, customer int NOT NULL REFERENCES customers (id),
    item varchar(40) NOT NULL, quantity int NOT NULL, price decimal(10,2) NOT NULL, paid boolean NOT NULL,
    ordered datetime(6) NOT NULL, receipt varbinary(64), weight double
);
INSERT INTO customers VALUES
    (1, 'Ada Lovelace', 'ada@example.org', 'GB', 'likes punch cards', '{"tier": "gold", "tags": ["a"]}', '2019-12-10'),
    (2, 'Søren Ødegård', 'soren@example.org', 'DK', NULL, '{"tier": "silver"}', '2020-05-05'),
    (3, 'محمد الخوارزمي', 'algo@example.org', 'IQ', 'first line\nsecond line', '{}', '2021-01-31'),
    (4, '山田 太郎', 'taro@example.org', 'JP', '', '{"tier": "gold"}', '2022-08-08'),
    (5, 'Grace Hopper', 'grace@example.org', 'US', 'found a moth', '{"tier": "bronze", "moth": true}', '2023-09-09');
INSERT INTO orders (customer, item, quantity, price, paid, ordered, receipt, weight)
    SELECT 1 + seq % 5, ELT(1 + seq % 4, 'compiler', 'abacus', 'relay', 'lamp'), 1 + seq % 7, (seq * 7 % 500) + 0.99,
           seq % 3 <> 0, TIMESTAMP '2026-01-01 00:00:00' + INTERVAL seq * 37 MINUTE,
           IF(seq % 10 = 0, UNHEX(SHA2(seq, 256)), NULL), IF(seq % 2 = 0, seq / 3e0, NULL)
    FROM seq_1_to_400;
CREATE TABLE audit (at timestamp NOT NULL DEFAULT current_timestamp, what text NOT NULL);
"""


class MariaDb(Service):
    name: ClassVar[str] = "mariadb"
    number: ClassVar[int] = 11
    openings: ClassVar = (Opening("tcp", 3306),)

    user: ClassVar[str] = USER
    ed25519_user: ClassVar[str] = ED25519_USER
    database: ClassVar[str] = DATABASE
    password: str  # of both users

    @property
    def _socket(self) -> Path:
        return self.folder / "socket"

    def start(self) -> None:
        self.password = secrets.token_urlsafe(18)
        self.site.secrets.add(self.password)
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        scratch = self.folder / "tmp"  # a server that starts removes all temporary tables that it finds
        scratch.mkdir(mode=0o700)
        certificate, key = self.certificate(SYSTEM_USER)
        self.host.run(["chown", "-R", f"{SYSTEM_USER}:{SYSTEM_USER}", self.folder])
        v4, v6 = self.addresses
        config = self.folder / "my.cnf"
        settings = {
            "datadir": data,
            "tmpdir": scratch,
            "socket": self._socket,
            "pid_file": self.folder / "pid",
            "bind_address": f"{v4},{v6}",
            "ssl_cert": certificate,
            "ssl_key": key,
            "tls_version": "TLSv1.2,TLSv1.3",
            "plugin_load_add": "auth_ed25519",
            "local_infile": 1,
            "character_set_server": "utf8mb4",
            "default_time_zone": "+00:00",
            "innodb_flush_log_at_trx_commit": 0,
            "innodb_doublewrite": 0,
            "innodb_buffer_pool_size": "16M",
            "innodb_log_file_size": "8M",
            "max_connections": 60,
            "max_allowed_packet": "64M",
        }
        config.write_text("[mariadbd]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
        install = ["mariadb-install-db", f"--defaults-file={config}", "--skip-test-db", "--skip-name-resolve"]
        self.host.run([*install, "--auth-root-authentication-method=socket"], user=SYSTEM_USER, timeout=60)
        self.processes.append(self.host.popen(["mariadbd", f"--defaults-file={config}"], user=SYSTEM_USER))

    def ready(self) -> bool:
        if self.host.run([*self._client(), "-e", "SELECT 1"], check=False).code:
            return False
        if DATABASE not in self.superuser("SHOW DATABASES"):
            self.superuser(
                f"""
                CREATE USER {USER} IDENTIFIED VIA mysql_native_password USING PASSWORD('{self.password}');
                CREATE USER {ED25519_USER} IDENTIFIED VIA ed25519 USING PASSWORD('{self.password}');
                CREATE DATABASE {DATABASE};
                GRANT ALL ON {DATABASE}.* TO {USER}, {ED25519_USER};
                USE {DATABASE};
                """
                + SCHEMA
            )
        return self.listening(3306)

    def superuser(self, sql: str) -> str:
        """Run SQL as the superuser on the server's own host, not over the network; what the client printed."""
        return self.host.run(self._client(), input=sql).output

    def _client(self) -> list[str]:
        own = ["mariadb", "--no-defaults", f"--socket={self._socket}", "--user=root"]
        return [*own, "--default-character-set=utf8mb4", "--batch", "--skip-column-names"]
