"""The credentials that the gateway uses upstream: kept sealed in `DATA/secrets/`, one file `NAME.sealed` each.

The key is `$CREDENTIALS_DIRECTORY/secrets.key` (systemd credentials), else `DATA/keys/secrets.key`, made at the first
secret. Losing it loses the secrets and nothing else. Relays read (`Secrets.get`), the command line writes; all changes
replace whole files, one writer at a time.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.config import Settings
from appliance.errors import Refused, Unavailable, VerbatimError
from appliance.identity.credential import NAME, Kind, Secret, check_name
from appliance.identity.sealing import MAX_FILE, Sealed, SealingKey, check_key, seal, unseal
from appliance.identity.staged import locked, replace_together
from appliance.journal.key import KEY_BYTES, is_credential, key_path, make_key, read_key

KEY = "secrets.key"
SUFFIX = ".sealed"

Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class _Read:
    """What a file held when it looked so: inode, size, time of its last change."""

    seen: tuple[int, int, int]
    sealed: Sealed


class Secrets:
    """Reads, for the life of a process; a file that changed is read again. Thread-safe as far as dicts are."""

    def __init__(self, data: Path, clock: Clock = time.time_ns) -> None:
        """`clock` gives the Unix time in ns, against which the grace of former values runs."""
        self._data = data
        self._clock = clock
        self._read: dict[str, _Read] = {}

    @classmethod
    def open(cls, settings: Settings, clock: Clock = time.time_ns) -> "Secrets":
        return cls(settings.data, clock)

    def get(self, name: str, *kinds: Kind) -> Secret:
        """The secret `name`, one of `kinds` if any are given; with its former value while that may be used.

        Raises `Unavailable` when there is none or the key is missing, `Refused` when it is of another kind or sealed
        with another key, `DamagedEvidence` when its file is not as it was written.
        """
        path = _path(self._data, name)
        try:
            seen = _look(path)
        except FileNotFoundError:
            self._read.pop(name, None)
            raise _none(name) from None
        held = self._read.get(name)
        if held is None or held.seen != seen:
            with _opened(self._data) as key:
                sealed = _present(self._data, key, name)
                held = self._read[name] = _Read(_look(path), sealed)
        secret = held.sealed.secret
        if kinds and secret.kind not in kinds:
            raise Refused(f"secret {name}: of kind {secret.kind}, needed is {' or '.join(kinds)}; name another one")
        if secret.former is not None and self._clock() >= held.sealed.former_until_ns:
            return replace(secret, former=None)
        return secret

    def all(self) -> tuple[list[Secret], dict[str, str]]:
        """Every secret by name, and of those that cannot be read, why."""
        found: list[Secret] = []
        faults: dict[str, str] = {}
        for name in names(self._data):
            try:
                found.append(self.get(name))
            except VerbatimError as error:
                faults[name] = str(error)
        return found, faults


def names(data: Path) -> list[str]:
    found = (path.name.removesuffix(SUFFIX) for path in (data / "secrets").glob(f"*{SUFFIX}"))
    return sorted(name for name in found if NAME.fullmatch(name))


def add(data: Path, secret: Secret, now_ns: int, uid: int) -> Secret:
    """Keep a secret of a new name, set by the user `uid`. Raises `Refused` when there is one of that name."""
    with locked(data / "secrets"):
        if _path(data, secret.name).exists():
            raise Refused(f"secret {secret.name}: is there already; rotate it, or remove it first")
        if not names(data):
            make_key(data, KEY)
        key = _only_key(data)
        set_now = replace(secret, generation=1, set_ns=now_ns, uid=uid, former=None)
        _write(data, key, {secret.name: Sealed(set_now)}, now_ns)
        return set_now


def renew(data: Path, secret: Secret, now_ns: int, uid: int, keep_former_ns: int) -> Secret:
    """Put `secret` in the place of that of its name; the former value may be used for `keep_former_ns` more."""
    with locked(data / "secrets"):
        key = _only_key(data)
        before = _present(data, key, secret.name).secret
        if before.kind is not secret.kind:
            raise Refused(f"secret {secret.name}: is of kind {before.kind}; remove it first to set one of another kind")
        former = replace(before, former=None) if keep_former_ns else None
        set_now = replace(secret, generation=before.generation + 1, set_ns=now_ns, uid=uid, former=former)
        _write(data, key, {secret.name: Sealed(set_now, now_ns + keep_former_ns)}, now_ns)
        return set_now


def remove(data: Path, name: str) -> None:
    """Its file is gone then; a file system may keep the sealed bytes. One that is not readable is removed, too."""
    with locked(data / "secrets") as folder:
        if not _path(data, name).exists():
            raise _none(name)
        replace_together(folder, {_path(data, name).name: None})


def rekey(data: Path) -> tuple[SealingKey, SealingKey]:
    """Seal every secret with a new key, all or none, and drop the former: the former and the new key.

    Raises `Refused` when systemd gives the key.
    """
    path = key_path(data, KEY)
    if is_credential(path):
        raise Refused(f"{path}: systemd gives this key; remove the secrets, give it another key, and set them anew")
    with _opened(data) as former:
        fresh = SealingKey(os.urandom(KEY_BYTES))
        kept = {name: _present(data, former, name) for name in names(data)}
        files = {_path(data, name).name: seal(fresh, sealed) for name, sealed in kept.items()}
        replace_together(data / "secrets", {**files, f"../keys/{KEY}": fresh.secret})
        return former, fresh


def _write(data: Path, key: SealingKey, fresh: dict[str, Sealed], now_ns: int) -> None:
    """Needs the lock. What others had before, and may no longer be used, is dropped on the occasion."""
    for name in names(data):
        if name not in fresh and (old := _forgotten(data, key, name, now_ns)) is not None:
            fresh[name] = old
    replace_together(data / "secrets", {_path(data, name).name: seal(key, each) for name, each in fresh.items()})


def _forgotten(data: Path, key: SealingKey, name: str, now_ns: int) -> Sealed | None:
    try:
        sealed = _present(data, key, name)
    except VerbatimError:  # it says so itself when it is needed
        return None
    if sealed.secret.former is None or now_ns < sealed.former_until_ns:
        return None
    return Sealed(replace(sealed.secret, former=None))


@contextmanager
def _opened(data: Path) -> Iterator[SealingKey]:
    """The key, and the lock: no file changes meanwhile."""
    with locked(data / "secrets"):
        yield _key(data)


def _key(data: Path) -> SealingKey:
    return SealingKey(read_key(data, KEY, "key of the secrets", "remove the secrets and set them anew"))


def _only_key(data: Path) -> SealingKey:
    """To seal with. Raises `Refused` when what is there was sealed with another one: no two keys are ever in use."""
    key = _key(data)
    for name in names(data):
        check_key(key, name, _read_file(_path(data, name)))
    return key


def _present(data: Path, key: SealingKey, name: str) -> Sealed:
    try:
        return unseal(key, name, _read_file(_path(data, name)))
    except FileNotFoundError:
        raise _none(name) from None


def _path(data: Path, name: str) -> Path:
    return data / "secrets" / f"{check_name(name)}{SUFFIX}"


def _read_file(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_FILE + 1)


def _look(path: Path) -> tuple[int, int, int]:
    seen = path.stat()
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


def _none(name: str) -> Unavailable:
    return Unavailable(f"secret {name}: there is none; make it with 'verbatim secret set {name}'")
