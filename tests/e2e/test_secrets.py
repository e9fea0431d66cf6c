"""Nothing that opens a door lies in the appliance's folder: not in its files, and not in what its store gives out.

The file's name puts it last, so that it looks at what all other end-to-end tests left, too.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from appliance import config
from appliance.store.client import Store, open_store
from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.task import Task

GROUP = 32 << 20  # bytes of sessions that are read at a time
FORM = b"grant_type=client_credentials&client_id=agent-one"  # passes beside a secret, and is kept


def found_in(named: Iterable[tuple[str, bytes]], words: Sequence[bytes]) -> dict[bytes, str]:
    """The words that are there, each with the name of what holds it."""
    return {word: name for name, data in named for word in words if word in data}


def found_in_files(lab: Lab, folder: Path, secrets: Iterable[str]) -> list[str]:
    """Files that hold one of the secrets, by grep: there may be a gigabyte, and a hundred secrets."""
    done = lab.gateway.run(
        [
            "grep",
            "--recursive",
            "--files-with-matches",
            "--text",
            "--no-messages",
            "--fixed-strings",
            "--file=-",
            folder,
        ],
        input="\n".join(secrets) + "\n",
        env={"LC_ALL": "C"},
        check=False,
        timeout=100,
    )
    assert done.code in (0, 1, 2), done.output  # 2: a file went while it was looked at
    return sorted(str(Path(line).relative_to(folder)) for line in done.output.splitlines())


def stored(store: Store) -> Iterator[tuple[str, bytes]]:
    """Everything that the store holds, by table and session; in few queries, since other tests leave much."""
    for table in ("sessions", "messages", "findings", "events", "audit"):
        for row in store.select(f"SELECT * FROM {table}"):
            yield f"{table} {row.get('session_id', '')}", _bytes(row)
    for ids in _groups(store):
        rows = store.select(
            "SELECT session_id, direction, copy, offset, data FROM chunks WHERE session_id IN {ids:Array(UUID)} "
            "ORDER BY session_id, direction, copy, offset",
            {"ids": ids},
            binary=("data",),
        )
        for key, chunks in groupby(rows, lambda row: (row["session_id"], row["direction"], row["copy"])):
            yield " ".join(map(str, key)), b"".join(chunk["data"] for chunk in chunks)


def _groups(store: Store) -> Iterator[list[str]]:
    """Sessions with bytes, as many as may be read at a time."""
    group: list[str] = []
    size = 0
    for row in store.select("SELECT session_id, sum(size) AS bytes FROM chunks GROUP BY session_id"):
        if group and size + row["bytes"] > GROUP:
            yield group
            group, size = [], 0
        group.append(str(row["session_id"]))
        size += row["bytes"]
    yield group


def given_out(appliance: Appliance, sessions: Iterable[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """What the API says of these sessions, by name, and of what happened."""
    yield "events", _bytes(appliance.events())
    for session in sessions:
        name = session["session_id"]
        yield f"{name} session", _bytes(session)
        yield f"{name} messages", _bytes(appliance.messages(session))
        for direction in ("client", "server"):
            yield f"{name} {direction}", appliance.stream(session, direction)


def _bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str).encode()


def test_no_secret_at_rest(task: Task, lab: Lab, appliance: Appliance) -> None:
    base = f"http://{lab.web.addresses[0]}"
    # Secrets that really passed in clear text, in every place where they may stand.
    task.psql("SELECT 1", host=lab.db.addresses[0], user=lab.db.legacy)
    task.curl("-H", f"Authorization: Bearer {task.token}", f"{base}/app/chunks?n=3")
    task.curl("-u", f"shop:{lab.db.password}", f"{base}/index.html")
    form = f"{FORM.decode()}&client_secret={lab.idp.secrets['agent-one']}"
    task.curl("--data", form, f"{base}/app/echo")
    sessions = task.sessions(3, protocol="http1") + task.sessions(1, protocol="postgres")

    basic = _basic("shop", lab.db.password)
    lab.secrets.add(basic)
    assert {task.token, lab.db.password, basic, lab.idp.secrets["agent-one"]} <= lab.secrets
    words = [FORM, *(secret.encode() for secret in lab.secrets)]

    def everything() -> dict[bytes, str]:
        with open_store(config.load(appliance.config), "reader", embed=False) as store:
            return found_in(stored(store), words)

    # What is looked for can be found: each search finds what may be there, and nothing else.
    assert list(found_in(given_out(appliance, sessions), words)) == [FORM]
    assert list(lab.gateway.call(everything)) == [FORM]
    assert found_in_files(lab, appliance.data, lab.secrets) == []
    wanted = [lab.idp.secrets["agent-one"]]
    assert found_in_files(lab, lab.folder / "services", wanted) == ["idp/settings.json"]


def _basic(user: str, password: str) -> str:
    """As in RFC 7617 section 2."""
    return b64encode(f"{user}:{password}".encode()).decode()


def test_folder_is_for_root_only(lab: Lab, appliance: Appliance) -> None:
    """Another user of the gateway can read none of it but certificates."""
    listed = lab.gateway.run(["find", appliance.data, "-type", "f", "-readable"], user="nobody", check=False).output
    assert [Path(line).name for line in listed.splitlines() if not line.endswith(".crt")] == []
