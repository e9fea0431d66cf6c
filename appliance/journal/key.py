"""The journal key: 32 random bytes from which every segment's key is derived.

`$CREDENTIALS_DIRECTORY/journal.key` (systemd credentials) wins over `DATA/keys/journal.key`. Losing the key loses what
the journal holds and the store does not have yet; nothing else.
"""

import os
import stat
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.errors import DamagedEvidence, MalformedInput, Refused, Unavailable

KEY_BYTES = 32
KEY_ID_BYTES = 8
_NAME = "journal.key"
_WHAT = "journal key"


@dataclass(frozen=True)
class JournalKey:
    """Secret of all journal streams below one DATA folder. Raises `MalformedInput` unless it has 32 bytes."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise MalformedInput(
                f"journal key: {len(self.secret)} bytes instead of {KEY_BYTES}; restore the key file from its backup"
            )

    @cached_property
    def key_id(self) -> bytes:
        """8 bytes that name the key without telling anything about it."""
        return HKDF(SHA256(), KEY_ID_BYTES, salt=None, info=b"verbatim journal key id").derive(self.secret)

    @classmethod
    def load(cls, data: Path) -> Self:
        """Read the key. Raises `Unavailable` when there is none, `Refused` when others may read it."""
        return cls(read_key(data, _NAME, _WHAT, "start the recorder, which makes one"))

    @classmethod
    def load_or_create(cls, data: Path) -> Self:
        """Read the key; make one at the first start. Two processes that start at once get the same key."""
        make_key(data, _NAME)
        return cls.load(data)


def read_key(data: Path, name: str, what: str, first: str) -> bytes:
    """The 32 bytes of a key file, called `what` in messages; `first` is how one is made.

    Raises `Unavailable` when there is none, `Refused` when others may read it, `DamagedEvidence` when it has another
    size.
    """
    path = key_path(data, name)
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            secret = file.read(KEY_BYTES + 1)
    except FileNotFoundError as error:
        raise Unavailable(f"{path}: there is no {what}; restore it from its backup, or {first}") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}; let the appliance's user read it") from error
    if mode & 0o077 and not is_credential(path):
        raise Refused(f"{path}: other users may read the {what} (mode {mode:03o}); chmod 600 it")
    if len(secret) != KEY_BYTES:
        raise DamagedEvidence(f"{path}: not {KEY_BYTES} bytes; restore the {what} from its backup")
    return secret


def make_key(data: Path, name: str) -> None:
    """Make a key file where there is none. Of several processes that do so at once, one makes it."""
    path = key_path(data, name)
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f".{name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(os.urandom(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        path.hardlink_to(fresh)
    except FileExistsError:  # another process was first
        pass
    finally:
        fresh.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make creations and renames in `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def key_path(data: Path, name: str) -> Path:
    """Where a key file is: among the credentials that systemd gives, else in `DATA/keys/`."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and (given := Path(credentials) / name).exists():
        return given
    return data / "keys" / name


def is_credential(path: Path) -> bool:
    """systemd guards its credentials folder itself (mode 0440 inside a private mount)."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    return bool(credentials) and path.parent == Path(credentials or "")
