"""Creation and check of the tables (`schema.sql`), the same on chDB and on a ClickHouse server."""

from collections.abc import Callable
from importlib.resources import files

from appliance.errors import Unavailable

DATABASE = "verbatim"  # of the embedded store; a server's is named in its URL
VERSION = 1  # raised by every change of schema.sql
VERSION_ONCE = f"SELECT {VERSION} WHERE {VERSION} NOT IN (SELECT version FROM schema_version)"  # noqa: S608


def statements() -> list[str]:
    """The statements of `schema.sql`, without comments, in order."""
    text = (files("appliance.store") / "schema.sql").read_text("utf-8")
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
    return [statement.strip() for statement in lines.split(";\n") if statement.strip()]


def create(run: Callable[[str], object]) -> None:
    """Create what is missing, by `run` (one statement, in the store's database). Harmless when repeated."""
    for statement in statements():
        run(statement)
    run(f"INSERT INTO schema_version (version) SETTINGS async_insert = 0 {VERSION_ONCE}")


def check(version: int, where: str) -> None:
    """Raise `Unavailable` unless `version`, the highest one recorded in the store (0: none), is this release's."""
    if version == VERSION:
        return
    remedy = "run this release's `verbatim store` with an account that may create tables"
    if version > VERSION:
        remedy = "use the release that wrote it, or a newer one"
    raise Unavailable(f"store at {where} has schema version {version}, this release needs {VERSION}; {remedy}")
