"""The journal streams of relays: one writer each, the first that is free; and an end for those whose writer died."""

import re
from pathlib import Path
from typing import Final

import msgspec
import structlog

from appliance.config import Settings
from appliance.errors import DamagedEvidence, Refused, Unavailable
from appliance.journal import Cursor, Frame, FrameKind, JournalKey, Reader, Writer, set_foreign_aside

MAX_STREAMS: Final = 256
log = structlog.get_logger()
_NAME: Final = re.compile(r"relay-\d{1,3}")


def take(settings: Settings) -> tuple[Writer, str]:
    """A writer of the first stream that nobody writes, and its name. Raises `Unavailable`."""
    key = JournalKey.load_or_create(settings.data)
    for number in range(MAX_STREAMS):
        name = f"relay-{number}"
        folder = settings.data / "journal" / name
        try:
            _set_foreign_aside(folder)
            return Writer(folder, key, settings=settings.journal), name
        except Refused:
            continue
        except DamagedEvidence as error:  # it stays as it is, for those who look into it
            log.error("stream-unusable", stream=name, reason=str(error))
    raise Unavailable(f"{settings.data / 'journal'}: {MAX_STREAMS} relays write there; end those that are not needed")


def close(writer: Writer, name: str, time_ns: int) -> None:
    """The last frame of a stream for now: whatever is open in it ended. Raises `Unavailable`."""
    writer.append(FrameKind.CLOSE, msgspec.json.encode({"source": name}), time_ns=time_ns)


def end_abandoned(settings: Settings, time_ns: int) -> list[str]:
    """Close the streams whose writers ended without a word, so that nobody waits for what was open in them."""
    key = JournalKey.load_or_create(settings.data)
    ended = []
    for folder in sorted((settings.data / "journal").glob("relay-*")):
        if not _NAME.fullmatch(folder.name):
            continue
        try:
            if _set_foreign_aside(folder):
                continue
            with Writer(folder, key, settings=settings.journal) as writer:
                if not _is_closed(folder, key):
                    close(writer, folder.name, time_ns)
                    ended.append(folder.name)
        except Refused:  # somebody writes it
            continue
        except (Unavailable, DamagedEvidence) as error:
            log.error("stream-unusable", stream=folder.name, reason=str(error))
    return ended


def _set_foreign_aside(folder: Path) -> bool:
    """Whether the stream was one of another format version. Raises `Refused` while a process writes it."""
    found = set_foreign_aside(folder)
    if found is None:
        return False
    aside, version = found
    log.warning("journal-set-aside", stream=folder.name, path=str(aside), version=version)
    return True


def _is_closed(folder: Path, key: JournalKey) -> bool:
    """Is the last frame of the newest segment that has one a CLOSE? Also where there is none at all."""
    segments = sorted((int(path.stem, 16) for path in folder.glob("*.seg")), reverse=True)
    for sequence in segments:
        kind: FrameKind | None = None
        with Reader(folder, key, Cursor(sequence, 0, 0)) as reader:
            while (found := reader.read()) is not None:
                if isinstance(found, Frame):
                    kind = found.kind
        if kind is not None:
            return kind is FrameKind.CLOSE
    return True
