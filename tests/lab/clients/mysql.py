"""MySQL and MariaDB by PyMySQL and SQLAlchemy. Settings: host, port, user, password, database; ca ("": no TLS)."""

import tempfile
from typing import Any

import pymysql
import sqlalchemy as sa

from tests.lab.clients import Settings, Told, serve
from tests.lab.clients.postgres import orm

LOADED = [(f"loaded ümlaut {number}", number) for number in range(3)]


def _tls(settings: Settings) -> dict[str, Any]:
    return {"ssl": {"ca": settings["ca"], "check_hostname": True}} if settings["ca"] else {"ssl_disabled": True}


def by_pymysql(settings: Settings) -> Told:
    own = {name: settings[name] for name in ("host", "port", "user", "password", "database")}
    told: Told = {}
    with (
        pymysql.connect(
            **own, **_tls(settings), charset="utf8mb4", local_infile=True, connect_timeout=10
        ) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT id, name, notes FROM customers WHERE country IN %s ORDER BY id", [("DK", "JP", "GB")])
        told["select"] = [list(row) for row in cursor.fetchall()]
        cursor.execute("SELECT price, ordered, receipt, weight FROM orders WHERE id IN (10, 11) ORDER BY id")
        told["types"] = [[None if value is None else str(value) for value in row] for row in cursor.fetchall()]
        told["inserted"] = cursor.executemany("INSERT INTO audit (what) VALUES (%s)", ["bound Ω", "second"])
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".tsv") as file:
            file.writelines(f"{what}\n" for what, _ in LOADED)
            file.flush()
            load = "LOAD DATA LOCAL INFILE %s INTO TABLE audit CHARACTER SET utf8mb4 (what)"
            told["loaded"] = cursor.execute(load, [file.name])
        connection.commit()
        cursor.execute("SELECT what FROM audit WHERE what LIKE 'loaded%' ORDER BY what")
        told["kept"] = [row[0] for row in cursor.fetchall()]
        try:
            cursor.execute("SELECT nonsense FROM customers")
        except pymysql.err.OperationalError as error:
            told["error"] = list(error.args)
    return told


def by_sqlalchemy(settings: Settings) -> Told:
    url = sa.URL.create(
        "mysql+pymysql",
        settings["user"],
        settings["password"],
        settings["host"],
        settings["port"],
        settings["database"],
        {"charset": "utf8mb4"},
    )
    engine = sa.create_engine(url, connect_args=_tls(settings))
    try:
        return orm(engine)
    finally:
        engine.dispose()


if __name__ == "__main__":
    serve({"pymysql": by_pymysql, "sqlalchemy": by_sqlalchemy})
