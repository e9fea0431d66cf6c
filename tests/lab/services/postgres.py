"""PostgreSQL 15 with a small shop in it: customers and orders; one server without TLS, and one with it.

The user `shop` logs in by SCRAM-SHA-256, the user `older` by MD5, and the user `legacy` by a password in clear text, as
old programs still do. All three may read and write the shop.
"""

import secrets
import signal
from pathlib import Path
from typing import ClassVar

from tests.lab.services.base import Opening, Service

BIN = Path("/usr/lib/postgresql/15/bin")
USER = "shop"
OLDER = "older"
LEGACY = "legacy"
DATABASE = "shop"

SCHEMA = """
CREATE TABLE customers (
    id integer PRIMARY KEY, name text NOT NULL, email text NOT NULL UNIQUE, country char(2) NOT NULL,
    notes text, profile jsonb NOT NULL DEFAULT '{}', since date NOT NULL
);
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer integer NOT NULL REFERENCES customers,
    item text NOT NULL, quantity integer NOT NULL, price numeric(10,2) NOT NULL, paid boolean NOT NULL,
    ordered timestamptz NOT NULL, receipt bytea
);
INSERT INTO customers VALUES
    (1, 'Ada Lovelace', 'ada@example.org', 'GB', 'likes punch cards', '{"tier": "gold", "tags": ["a"]}', '2019-12-10'),
    (2, 'Søren Ødegård', 'soren@example.org', 'DK', NULL, '{"tier": "silver"}', '2020-05-05'),
    (3, 'محمد الخوارزمي', 'algo@example.org', 'IQ', E'first line\\nsecond line', '{}', '2021-01-31'),
    (4, '山田 太郎', 'taro@example.org', 'JP', '', '{"tier": "gold"}', '2022-08-08'),
    (5, 'Grace Hopper', 'grace@example.org', 'US', 'found a moth', '{"tier": "bronze", "moth": true}', '2023-09-09');
INSERT INTO orders (customer, item, quantity, price, paid, ordered, receipt)
    SELECT 1 + n % 5, (ARRAY['compiler', 'abacus', 'relay', 'lamp'])[1 + n % 4], 1 + n % 7, (n * 7 % 500) + 0.99,
           n % 3 <> 0, '2026-01-01T00:00:00Z'::timestamptz + n * interval '37 minutes',
           CASE WHEN n % 10 = 0 THEN sha256(n::text::bytea) END
    FROM generate_series(1, 400) AS n;
CREATE TABLE audit (at timestamptz NOT NULL DEFAULT now(), what text NOT NULL);
"""


class Postgres(Service):
    name: ClassVar[str] = "db"
    number: ClassVar[int] = 10
    openings: ClassVar = (Opening("tcp", 5432),)
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # "fast": does not wait for clients that were cut off

    user: ClassVar[str] = USER
    older: ClassVar[str] = OLDER
    legacy: ClassVar[str] = LEGACY
    database: ClassVar[str] = DATABASE
    password: str  # of all users

    def start(self) -> None:
        self.password = secrets.token_urlsafe(18)
        self.site.secrets.add(self.password)
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        self.host.run(["chown", "-R", "postgres:postgres", self.folder])
        self.host.run(
            [
                *(
                    BIN / "initdb",
                    "--pgdata",
                    data,
                    "--no-sync",
                    "--no-instructions",
                    "--encoding=UTF8",
                    "--locale=C.UTF-8",
                ),
                *("--auth-local=peer", "--auth-host=scram-sha-256"),
            ],
            user="postgres",
        )
        hba = ["local all postgres peer"]
        for network in ("0.0.0.0/0", "::0/0"):
            hba += [f"host all {LEGACY} {network} password", f"host all {OLDER} {network} md5"]
            hba += [f"host all all {network} scram-sha-256"]
        (data / "pg_hba.conf").write_text("\n".join(hba) + "\n")
        settings = {
            "listen_addresses": ",".join(self.addresses),
            "unix_socket_directories": str(self.folder),
            "password_encryption": "scram-sha-256",
            "fsync": "off",
            "full_page_writes": "off",
            "autovacuum": "off",
            "max_connections": "60",
            "TimeZone": "UTC",
        } | self.more_settings()
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        self.processes.append(self.host.popen([BIN / "postgres", "-D", data, *options], user="postgres"))

    def more_settings(self) -> dict[str, str]:
        return {}

    def ready(self) -> bool:
        probe = ["psql", "-X", "-h", str(self.folder), "-d", "postgres", "-Atqc", "SELECT 1"]
        if self.host.run(probe, user="postgres", check=False).code:
            return False
        if DATABASE not in self.superuser("postgres", "SELECT datname FROM pg_database"):
            for role, kept in ((USER, "scram-sha-256"), (LEGACY, "scram-sha-256"), (OLDER, "md5")):
                create = f"CREATE ROLE {role} LOGIN PASSWORD '{self.password}'"
                self.superuser("postgres", f"SET password_encryption = '{kept}'; {create}")
            self.superuser("postgres", f"GRANT {USER} TO {LEGACY}, {OLDER}; CREATE DATABASE {DATABASE} OWNER {USER}")
            self.superuser(DATABASE, f"SET ROLE {USER};{SCHEMA}")
        return self.listening(5432)

    def superuser(self, database: str, sql: str) -> str:
        """Run SQL as the superuser on the server's own host, not over the network; what psql printed."""
        command = ["psql", "-X", "-h", str(self.folder), "-d", database, "-v", "ON_ERROR_STOP=1", "-Atq"]
        return self.host.run(command, input=sql, user="postgres").output


class TlsPostgres(Postgres):
    """The same with TLS, for those who ask for it. A server of its own: clients ask wherever TLS is offered."""

    name: ClassVar[str] = "tlsdb"
    number: ClassVar[int] = 13

    def more_settings(self) -> dict[str, str]:
        certificate, key = self.certificate("postgres")
        return {"ssl": "on", "ssl_cert_file": str(certificate), "ssl_key_file": str(key)}
