"""Capture files, by the very same path as live traffic: packets -> records -> journal -> recorder -> store.

In: a pcap or pcapng file of any size, and who its sessions belong to. Out: rows in the store, by way of a journal
stream of its own whose id is the first 16 bytes of the file's SHA-256; so the same file gives the same sessions, and is
taken once. Never here: an exception because of a packet's bytes; a packet that is left out in silence.

A crash at any moment is repaired by running the same command again:

    journal/ingest-<id>.partial   the file is being read; made anew, nothing of it was stored
    journal/ingest-<id>           complete (renamed); the recorder goes on where its snapshot says
    state/ingested/<sha256>.json  the store has everything; the journal is removed
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from appliance.config import Journal, Settings
from appliance.errors import DamagedEvidence, MalformedInput, Refused, Unavailable
from appliance.ingest.capture import Capture
from appliance.ingest.identity import parse_identity
from appliance.ingest.spans import write
from appliance.ingest.summary import Summary
from appliance.journal import JournalFull, JournalKey, Writer
from appliance.journal.key import sync_folder
from appliance.model import Identity

__all__ = ["Summary", "ingest", "parse_identity"]

Progress = Callable[[int, int], None]

_BLOCK: Final = 2**20
_HASHED, _READ = 0.1, 0.4  # shares of the work, for the progress bar
_SEGMENT: Final = 2**22, 2**26
_SUMMARY: Final = "summary.json"


def ingest(path: Path, settings: Settings, *, identity: Identity | None, progress: Progress) -> Summary:
    """Take a capture file into the store of `settings`. `progress(done, total)`: bytes.

    Raises `MalformedInput` when it is no capture, `Refused` when it is being ingested by another process, `Unavailable`
    when disk or store fail; after that, the same call goes on.
    """
    with Capture(path) as capture:
        size = path.stat().st_size
        before = _version(path)

        def advance(share: float) -> None:
            progress(int(size * min(share, 1.0)), size)

        sha256 = _sha256(path, lambda read: advance(_HASHED * read / size))
        marker = settings.data / "state" / "ingested" / f"{sha256}.json"
        folder = settings.data / "journal" / f"ingest-{sha256[:16]}"
        with _alone(settings.data / "state" / f"ingest-{sha256[:16]}.lock", path):
            known = _read_summary(marker)
            if known is not None:
                shutil.rmtree(folder, ignore_errors=True)
                advance(1)
                return known.again()
            if not folder.exists():
                _journal(
                    capture,
                    folder,
                    settings,
                    sha256,
                    identity,
                    before,
                    lambda read: advance(_HASHED + _READ * read / size),
                )
            summary = _read_summary(folder / _SUMMARY)
            if summary is None:
                raise Unavailable(
                    f"{folder / _SUMMARY}: it cannot be read; remove the folder {folder} and ingest again"
                )
            _drain(
                folder, settings, lambda done, total: advance(_HASHED + _READ + (0.5 * done / total if total else 0))
            )
            _write_durably(marker, summary.encode())
            shutil.rmtree(folder, ignore_errors=True)
            advance(1)
            return summary


def _journal(
    capture: Capture,
    folder: Path,
    settings: Settings,
    sha256: str,
    identity: Identity | None,
    before: tuple[int, int, int],
    progress: Callable[[int], None],
) -> None:
    """Make the stream's folder, all or nothing."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    size = capture.path.stat().st_size
    limits = Journal(
        segment_bytes=min(max(2 * size, _SEGMENT[0]), _SEGMENT[1]),
        max_bytes=2**62,
        min_free_bytes=settings.journal.min_free_bytes,
        durability="fsync",  # what has its final name is whole, even after a power failure
    )
    try:
        with Writer(
            partial, JournalKey.load_or_create(settings.data), bytes.fromhex(sha256)[:16], settings=limits
        ) as writer:
            summary = write(capture, writer, sha256=sha256, node=settings.node, identity=identity, progress=progress)
        if _version(capture.path) != before:
            raise MalformedInput(f"{capture.path}: it changed while it was read; ingest it when it is complete")
        _write_durably(partial / _SUMMARY, summary.encode())
        partial.rename(folder)
        sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, JournalFull):
            raise Unavailable(
                f"{capture.path}: the disk of {settings.data} has too little room to ingest it; "
                f"make room for twice its size ({2 * size} bytes), or lower journal.min_free_bytes"
            ) from error
        raise


def _drain(folder: Path, settings: Settings, progress: Progress) -> None:
    from appliance import record  # the recorder loads the store, which a file that is no capture need not wait for
    from appliance.store.client import open_store

    try:
        with open_store(settings, "writer") as store:
            record.drain(settings, folder, store, progress)
    except DamagedEvidence:  # the capture file is still there: the next call makes the very same journal again
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _sha256(path: Path, progress: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    read = 0
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                read += len(block)
                progress(read)
    except OSError as error:
        raise MalformedInput(f"{path}: {error.strerror}; name a readable capture file") from error
    return digest.hexdigest()


def _version(path: Path) -> tuple[int, int, int]:
    """Changes when the file does."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@contextmanager
def _alone(lock: Path, path: Path) -> Iterator[None]:
    lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Refused(f"{path}: another process is ingesting this file; wait for it") from error
        yield
    finally:
        os.close(file)


def _read_summary(path: Path) -> Summary | None:
    try:
        return Summary.decode(path.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _write_durably(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_folder(path.parent)
