"""The data folder: its disk, the journal's room, the keys. Reads; makes nothing."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from appliance.config import Settings
from appliance.doctor.finding import Check, Finding, Level
from appliance.errors import DamagedEvidence, MalformedInput, Refused, Unavailable
from appliance.identity.ca import RENEW_BEFORE
from appliance.journal import JournalKey, set_aside
from appliance.overview import Said, number, value
from appliance.wire.drain import check_bounds

INODES = 10_000  # free ones under which a busy store runs out soon
MEMORY_SYSTEMS = {"tmpfs", "ramfs", "overlay"}  # what they hold is gone with the machine, or the container
SECRETS = ("ca.key", "api.key")


def folder(settings: Settings) -> Iterator[Finding]:
    path = settings.data
    if not path.exists():
        yield Finding(Check.DATA, "", Level.WARN, f"{path} does not exist yet", "the first start makes it")
        return
    if not path.is_dir():
        yield Finding(Check.DATA, "", Level.FAIL, f"{path} is not a folder", "set data to one, or to a new path")
        return
    if not path.is_absolute():
        text = f"{path} is counted from where each process is started"
        yield Finding(Check.DATA, "", Level.WARN, text, "set data to a path that begins with /")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        text = f"{path} has mode {mode:o}: others see what is in it"
        yield Finding(Check.DATA, "", Level.WARN, text, f"chmod 700 {path}")
    elif not os.access(path, os.W_OK) and os.geteuid() == 0:
        yield Finding(Check.DATA, "", Level.FAIL, f"{path} cannot be written", "mount its file system for writing")
    else:
        yield Finding(Check.DATA, "", Level.OK, str(path))


def disk(settings: Settings) -> Iterator[Finding]:
    """Room and inodes where the data folder is, or will be."""
    at = next(parent for parent in (settings.data, *settings.data.parents) if parent.exists())
    has, least = shutil.disk_usage(at), settings.journal.min_free_bytes
    text = f"{has.free >> 20} MiB free, traffic stalls below {least >> 20} MiB"
    if has.free < least:
        yield Finding(Check.DISK, "room", Level.FAIL, text, "free space, or lower journal.min_free_bytes")
    elif has.free < 2 * least:
        yield Finding(Check.DISK, "room", Level.WARN, text, "free space soon")
    else:
        yield Finding(Check.DISK, "room", Level.OK, text)
    if settings.journal.max_bytes + least > has.total:
        text = f"the journal may grow to {settings.journal.max_bytes >> 20} MiB, the disk has {has.total >> 20} MiB"
        yield Finding(
            Check.DISK, "journal", Level.WARN, text, "lower journal.max_bytes: the disk is what stalls traffic"
        )
    inodes = os.statvfs(at)
    if inodes.f_files and inodes.f_favail < INODES:
        text = f"{inodes.f_favail} inodes free"
        yield Finding(Check.DISK, "inodes", Level.WARN, text, "remove small files, or make a file system with more")
    else:
        yield Finding(Check.DISK, "inodes", Level.OK, f"{inodes.f_favail} free" if inodes.f_files else "not limited")
    kind = _kind(at)
    if kind in MEMORY_SYSTEMS:
        text = f"{at} is on {kind}: what is recorded ends with the machine or container"
        yield Finding(Check.DISK, "file system", Level.WARN, text, "set data to a folder on a disk")


def _kind(path: Path) -> str:
    """Type of the file system that `path` is on, by the longest mount point (proc(5), mounts)."""
    found, depth = "", -1
    real = path.resolve()
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines():
            fields = line.split()
            if len(fields) > 2 and real.is_relative_to(fields[1]) and len(Path(fields[1]).parts) >= depth:
                found, depth = fields[2], len(Path(fields[1]).parts)
    return found


def journal(settings: Settings, said: Said | None) -> Iterator[Finding]:
    """Its bounds, and its room as the wire process says it. `said`: None: this user may not see that."""
    try:
        check_bounds(settings.journal, settings.wire.ring_bytes)
    except MalformedInput as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding(Check.JOURNAL, "bounds", Level.FAIL, what.removeprefix("journal: "), remedy)
    if said is None:
        yield Finding(Check.JOURNAL, "", Level.UNKNOWN, "its room cannot be seen", "run it as root")
        return
    wire = said.get("wire")
    used, room = number(wire, "journal", "bytes"), number(wire, "journal", "room")
    if used is None or room is None:
        yield Finding(Check.JOURNAL, "", Level.WARN, "nothing is known of it", "start 'verbatim wire'")
        return
    text = f"{int(used) >> 20} MiB used, {int(room) >> 20} MiB until traffic stalls"
    if wire is not None and not wire.live:
        text = f"{text}, as 'verbatim wire' said {max(0.0, wire.age):.0f} s ago"
        yield Finding(Check.JOURNAL, "", Level.UNKNOWN, text, "start 'verbatim wire'")
    elif value(wire, ("journal", "stalled")):
        remedy = "free disk space, or see why 'verbatim record' lags"
        yield Finding(Check.JOURNAL, "", Level.FAIL, f"traffic is stalled: {text}", remedy)
    elif room < used:
        remedy = "see why 'verbatim record' lags, before traffic stalls"
        yield Finding(Check.JOURNAL, "", Level.WARN, f"more than half full: {text}", remedy)
    else:
        yield Finding(Check.JOURNAL, "", Level.OK, text)


def aside(settings: Settings) -> Iterator[Finding]:
    """What could not be read, and is kept for people to look at."""
    kept = set_aside(settings.data)
    if kept.parts:
        where = " and ".join(map(str, kept.folders))
        text = f"{kept.parts} parts ({kept.size} bytes) could not be read and are kept in {where}"
        remedy = "see 'verbatim events --kind journal-gap' and the disk's health; then keep them elsewhere"
        yield Finding(Check.JOURNAL, "damaged", Level.WARN, text, remedy)
    for path in kept.streams:
        text = f"{path} is a journal of another format version"
        remedy = "read it with the version of Verbatim that wrote it, then keep it elsewhere"
        yield Finding(Check.JOURNAL, path.name, Level.WARN, text, remedy)


def journal_key(settings: Settings) -> Iterator[Finding]:
    path = settings.data / "keys" / "journal.key"
    if not path.exists() and not os.environ.get("CREDENTIALS_DIRECTORY"):
        sealed = any((settings.data / "journal").glob("*/stream"))
        level, text = (Level.FAIL, "is gone: the journal cannot be read") if sealed else (Level.WARN, "is not made yet")
        remedy = "restore keys/journal.key from its backup" if sealed else "the first start makes it"
        yield Finding(Check.JOURNAL_KEY, "", level, text, remedy)
        return
    try:
        key = JournalKey.load(settings.data)
    except Unavailable as error:
        what, _, remedy = str(error).partition("; ")
        denied = isinstance(error.__cause__, PermissionError)
        yield Finding(Check.JOURNAL_KEY, "", Level.UNKNOWN if denied else Level.FAIL, what, remedy)
    except (Refused, DamagedEvidence, MalformedInput) as error:
        what, _, remedy = str(error).partition("; ")
        yield Finding(Check.JOURNAL_KEY, "", Level.FAIL, what, remedy)
    else:
        yield Finding(Check.JOURNAL_KEY, "", Level.OK, f"key {key.key_id.hex()}, for the appliance's user only")


def authority(settings: Settings, now: datetime | None = None) -> Iterator[Finding]:
    """The CA's and the API's keys and certificates."""
    keys, now = settings.data / "keys", now or datetime.now(UTC)
    key, certificate = keys / "ca.key", keys / "ca.crt"
    if not key.exists() and not certificate.exists():
        yield Finding(Check.CA, "", Level.WARN, "there is none yet", "the first start makes it")
        return
    if not (key.exists() and certificate.exists()):
        remedy = "restore the other from its backup, or remove both and have agents trust a new CA"
        yield Finding(Check.CA, "", Level.FAIL, "only one of ca.key and ca.crt is there", remedy)
        return
    for name in SECRETS:
        path = keys / name
        if path.exists() and (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
            text = f"{path} has mode {mode:o}: other users can act as this gateway"
            yield Finding(Check.CA, name, Level.FAIL, text, f"chmod 600 {path}")
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        secret = serialization.load_pem_private_key(key.read_bytes(), None)
    except PermissionError:
        raise
    except (ValueError, TypeError, OSError) as error:
        yield Finding(
            Check.CA, "", Level.FAIL, f"does not read: {error}", "restore ca.key and ca.crt from their backup"
        )
        return
    if secret.public_key() != found.public_key():
        remedy = "restore the pair from its backup, or remove both and have agents trust a new CA"
        yield Finding(Check.CA, "", Level.FAIL, "ca.key is not the key of ca.crt", remedy)
        return
    yield _lifetime("", found, now, RENEW_BEFORE * 12, "have agents trust the new one after 'verbatim ca rotate'")
    yield from _served(keys, found, now)


def _served(keys: Path, signer: x509.Certificate, now: datetime) -> Iterator[Finding]:
    """What the API shows to agents: read, signed by the CA, with its key. Anything else is made anew at its start."""
    leaf, key = keys / "api.crt", keys / "api.key"
    if not leaf.exists():
        return
    remedy = "restart 'verbatim api', which makes a new pair"
    try:
        served = x509.load_pem_x509_certificate(leaf.read_bytes())
        secret = serialization.load_pem_private_key(key.read_bytes(), None)
        served.verify_directly_issued_by(signer)
    except FileNotFoundError:
        fault = "api.key is gone"
    except InvalidSignature:
        fault = "api.crt is not signed by ca.crt: agents will not believe it"
    except PermissionError:
        raise
    except (ValueError, TypeError, OSError) as error:
        fault = f"api.crt or api.key does not read: {error}"
    else:
        fault = "" if secret.public_key() == served.public_key() else "api.key is not the key of api.crt"
    if fault:
        yield Finding(Check.CA, "API", Level.FAIL, fault, remedy)
        return
    yield _lifetime("API", served, now, timedelta(days=7), remedy)


def _lifetime(about: str, certificate: x509.Certificate, now: datetime, early: timedelta, remedy: str) -> Finding:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        return Finding(Check.CA, about, Level.FAIL, f"valid only from {begins:%Y-%m-%d %H:%M}", "set the clock")
    if now >= ends:
        return Finding(Check.CA, about, Level.FAIL, f"ended on {ends:%Y-%m-%d}", remedy)
    if now >= ends - early:
        return Finding(Check.CA, about, Level.WARN, f"ends on {ends:%Y-%m-%d}", remedy)
    return Finding(Check.CA, about, Level.OK, f"valid until {ends:%Y-%m-%d}")
