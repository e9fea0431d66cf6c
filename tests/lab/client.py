"""An agent's own program: psycopg with bind values, prepared statements, COPY and an error that it survives.

    python -m tests.lab.client HOST DATABASE USER        password in PGPASSWORD

Prints one JSON object: what it sent and what it got, as the oracle of what must have been recorded.
"""

import json
import sys
from typing import Any

import psycopg

COUNTRIES = ("DK", "JP", "GB")
COPIED = [("copied ümlaut", "1"), ("copied\ttab", "2"), ("copied\\backslash", "3")]


def work(connection: "psycopg.Connection[Any]") -> dict[str, Any]:
    told: dict[str, Any] = {}
    with connection.cursor() as cursor:
        sql = "SELECT id, name, profile->>'tier' FROM customers WHERE country = %s AND id >= %s ORDER BY id"
        # The same statement three times: bound without a name, then prepared.
        told["select"] = [
            {
                "parameters": [country, "1"],
                "rows": [list(row) for row in _texts(cursor.execute(sql, (country, 1), prepare=True))],
            }
            for country in COUNTRIES
        ]
    with connection.cursor(binary=True) as cursor:
        cursor.execute(
            "SELECT id, price, paid, ordered, receipt, item FROM orders WHERE id = ANY(%s) ORDER BY id", ([10, 11],)
        )
        told["binary"] = [list(row) for row in _texts(cursor)]
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO audit (what) VALUES (%s), (%s)", ("bound value Ω", "second"))
        told["inserted"] = cursor.rowcount
        with cursor.copy("COPY audit (what) FROM STDIN") as copy:
            for what, number in COPIED:
                copy.write_row([f"{what} {number}"])
        told["copied_in"] = [f"{what} {number}" for what, number in COPIED]
        with cursor.copy("COPY (SELECT what FROM audit WHERE what LIKE 'copied%' ORDER BY what) TO STDOUT") as copy:
            told["copied_out"] = [row[0] for row in copy.rows()]
    connection.commit()
    try:
        connection.execute("SELECT nonsense FROM customers")
    except psycopg.errors.UndefinedColumn as error:
        told["error"] = {"sqlstate": error.sqlstate, "message": error.diag.message_primary}
    connection.rollback()
    return told


def _texts(rows: Any) -> list[tuple[Any, ...]]:
    return [tuple(value if value is None or isinstance(value, str) else str(value) for value in row) for row in rows]


def main(host: str, database: str, user: str) -> None:
    with psycopg.connect(host=host, dbname=database, user=user, connect_timeout=10) as connection:
        print(json.dumps(work(connection), ensure_ascii=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
