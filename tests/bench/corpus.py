"""`python -m tests.bench.corpus DATA COPIES`: multiply the messages of a store until there are so many copies of them.

In a process of its own, which owns the store meanwhile; it says how many messages and bytes there are then. Copies are
of other sessions and of other hours, and what tells one message from another in them (account, order and item numbers)
differs too, so that the text index has to hold as many words as it would of real traffic.
"""

import json
import sys
from pathlib import Path

from appliance.store import engine
from tests.bench.journals import T0

HOURS = 6  # between two copies: four of them share a day, and so a partition
# An exact order number, account or item gets the copy's number in front of it.
VARIED = r"""replaceRegexpAll({}, '(aid = |/v1/[a-z]+/|"(?:order|id)":\\s?|[a-z]+-)([0-9]{{3,}})', '\\1{copy}\\2')"""
FIRST = f"started < fromUnixTimestamp64Nano({T0 + HOURS * 3600 * 10**9})"  # what was recorded
MOVED = "{} + INTERVAL {hours} HOUR"
SESSION = "reinterpretAsUUID(reverse(unhex(lower(hex(MD5(concat(toString(session_id), '{copy}')))))))"


def copied(table: str, columns: list[str], copy: int) -> str:
    """INSERT SELECT of the first rows of a table, as another copy."""
    changed = {
        "session_id": SESSION.format(copy=copy),
        **{name: MOVED.format(name, hours=HOURS * copy) for name in ("started", "ended", "ts", "end_ts")},
        **{name: VARIED.format(name, copy=copy) for name in ("search_text", "attrs")},
        "fields": f"mapApply((k, v) -> (k, {VARIED.format('v', copy=copy)}), fields)",
        "client_address": f"replaceOne(client_address, '10.0.', '10.{copy % 200}.')",
    }
    if table == "sessions":
        del changed["attrs"], changed["fields"]
    values = ", ".join(changed.get(name, f"`{name}`") for name in columns)
    names = ", ".join(f"`{name}`" for name in columns)
    return f"INSERT INTO {table} ({names}) SELECT {values} FROM {table} WHERE {FIRST}"


def main(data: Path, copies: int) -> None:
    handle = engine.create(data, 4 * 2**30)
    handle.run("SET async_insert = 0")
    made = int(handle.run("SELECT count() FROM messages")) // int(
        handle.run(f"SELECT count() FROM messages WHERE {FIRST}")
    )
    columns = {
        table: handle.run(
            "SELECT name FROM system.columns WHERE database = currentDatabase() "
            f"AND table = '{table}' AND default_kind = '' ORDER BY position"
        )
        .decode()
        .split()
        for table in ("sessions", "messages")
    }
    for copy in range(made, copies):
        for table, names in columns.items():
            handle.run(copied(table, names, copy))
    messages = int(handle.run("SELECT count() FROM messages"))
    size = handle.run("SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase()")
    print(json.dumps({"messages": messages, "bytes": int(size)}))
    handle.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
