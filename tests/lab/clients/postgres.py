"""PostgreSQL by psycopg, asyncpg and SQLAlchemy. Settings: host, port, user, password, database; ca ("": no TLS)."""

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any

import asyncpg
import psycopg
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from tests.lab import client
from tests.lab.clients import Settings, Told, serve

COUNTRIES = ("DK", "JP", "GB")


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    country: Mapped[str]


class Audit(Base):
    __tablename__ = "audit"
    what: Mapped[str] = mapped_column(primary_key=True)  # SQLAlchemy wants one; the table has none


def orm(engine: sa.Engine) -> Told:
    """What SQLAlchemy does with the shop, on whichever database."""
    told: Told = {}
    with Session(engine) as session:
        found = session.scalars(sa.select(Customer).where(Customer.country.in_(COUNTRIES)).order_by(Customer.id))
        told["customers"] = [[one.id, one.name, one.country] for one in found]
        session.add_all([Audit(what=f"by SQLAlchemy {number}") for number in range(3)])
        session.commit()
        counted = sa.select(sa.func.count()).select_from(Audit).where(Audit.what.like("by SQLAlchemy%"))
        told["audited"] = session.scalar(counted)
        try:
            session.execute(sa.text("SELECT nonsense FROM customers"))
        except sa.exc.DBAPIError as error:
            told["error"] = str(error.orig)
    return told


def by_sqlalchemy(settings: Settings) -> Told:
    query = {"sslmode": "verify-full", "sslrootcert": settings["ca"]} if settings["ca"] else {"sslmode": "disable"}
    url = sa.URL.create(
        "postgresql+psycopg",
        settings["user"],
        settings["password"],
        settings["host"],
        settings["port"],
        settings["database"],
        query,
    )
    engine = sa.create_engine(url)
    try:
        return orm(engine)
    finally:
        engine.dispose()


def by_psycopg(settings: Settings) -> Told:
    tls = {"sslmode": "verify-full", "sslrootcert": settings["ca"]} if settings["ca"] else {"sslmode": "disable"}
    with psycopg.connect(
        host=settings["host"],
        port=settings["port"],
        user=settings["user"],
        password=settings["password"],
        dbname=settings["database"],
        connect_timeout=10,
        **tls,
    ) as connection:
        return client.work(connection)


def by_asyncpg(settings: Settings) -> Told:
    return asyncio.run(_asyncpg(settings))


async def _asyncpg(settings: Settings) -> Told:
    trust: Any = ssl.create_default_context(cafile=settings["ca"]) if settings["ca"] else False
    connection = await asyncpg.connect(
        host=settings["host"],
        port=settings["port"],
        user=settings["user"],
        password=settings["password"],
        database=settings["database"],
        ssl=trust,
        timeout=10,
    )
    told: Told = {}
    try:
        sql = "SELECT id, name FROM customers WHERE country = $1 AND id >= $2 ORDER BY id"
        statement = await connection.prepare(sql)
        told["select"] = [
            {"parameters": [country, 1], "rows": _lists(await statement.fetch(country, 1))} for country in COUNTRIES
        ]
        async with connection.transaction():
            await connection.executemany("INSERT INTO audit (what) VALUES ($1)", [("by asyncpg Ω",), ("second",)])
            cursor = connection.cursor("SELECT item, quantity FROM orders WHERE id <= 12 ORDER BY id", prefetch=5)
            told["cursor"] = [list(row) async for row in cursor]
        told["copied"] = await connection.copy_records_to_table(
            "audit", records=[(f"copied {number}",) for number in range(3)], columns=["what"]
        )
        try:
            await connection.execute("SELECT nonsense FROM customers")
        except asyncpg.UndefinedColumnError as error:
            told["error"] = {"sqlstate": error.sqlstate, "message": error.message}
    finally:
        await connection.close(timeout=10)
    return told


def _lists(rows: Sequence[Any]) -> list[list[Any]]:
    return [list(row) for row in rows]


if __name__ == "__main__":
    serve({"psycopg": by_psycopg, "asyncpg": by_asyncpg, "sqlalchemy": by_sqlalchemy})
