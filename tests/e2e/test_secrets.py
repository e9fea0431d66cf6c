"""Nothing that opens a door lies in the appliance's folder: not in its files, and not in what its store gives out.

The file's name puts it last, so that it looks at what all other end-to-end tests left, too.
"""

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

from tests.lab import Lab
from tests.lab.appliance import Appliance
from tests.lab.task import Task

PIECE = 1 << 20  # bytes of a file that are looked at in one go


def found_in_files(folder: Path, secrets: list[bytes]) -> list[str]:
    """Files that hold one of the secrets. Pieces overlap, so that none hides between two."""
    overlap = max(map(len, secrets))
    guilty = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            rest = b""
            while piece := file.read(PIECE):
                if any(secret in rest + piece for secret in secrets):
                    guilty.append(str(path.relative_to(folder)))
                    break
                rest = piece[-overlap:]
    return guilty


def given_out(appliance: Appliance) -> dict[str, bytes]:
    """Everything that can be read from the store, by name."""
    found: dict[str, bytes] = {"events": _bytes(appliance.events())}
    for session in appliance.sessions():
        name = session["session_id"]
        found[f"{name} session"] = _bytes(session)
        found[f"{name} messages"] = _bytes(appliance.messages(session))
        for direction in ("client", "server"):
            found[f"{name} {direction}"] = appliance.stream(session, direction)
    return found


def _bytes(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def test_no_secret_at_rest(task: Task, lab: Lab, appliance: Appliance) -> None:
    base = f"http://{lab.web.addresses[0]}"
    # Secrets that really passed in clear text, in every place where they may stand.
    task.psql("SELECT 1", host=lab.db.addresses[0], user=lab.db.legacy)
    task.curl("-H", f"Authorization: Bearer {task.token}", f"{base}/app/chunks?n=3")
    task.curl("-u", f"shop:{lab.db.password}", f"{base}/index.html")
    form = f"grant_type=client_credentials&client_id=agent-one&client_secret={lab.idp.secrets['agent-one']}"
    task.curl("--data", form, f"{base}/app/echo")
    task.sessions(3, protocol="http1")
    task.sessions(1, protocol="postgres")

    lab.secrets.add(_basic("shop", lab.db.password))
    secrets = [secret.encode() for secret in lab.secrets]
    assert len(secrets) > 20
    guilty = [name for name, data in given_out(appliance).items() if any(secret in data for secret in secrets)]
    assert guilty == []
    assert found_in_files(appliance.data, secrets) == []
    # What is looked for can be found: the same search finds what may be there.
    assert found_in_files(lab.folder / "services", [lab.idp.secrets["agent-one"].encode()]) == ["idp/settings.json"]


def _basic(user: str, password: str) -> str:
    """As in RFC 7617 section 2."""
    return b64encode(f"{user}:{password}".encode()).decode()


def test_folder_is_for_root_only(lab: Lab, appliance: Appliance) -> None:
    """Another user of the gateway can read none of it but certificates."""
    listed = lab.gateway.run(["find", appliance.data, "-type", "f", "-readable"], user="nobody", check=False).output
    assert [Path(line).name for line in listed.splitlines() if not line.endswith(".crt")] == []
