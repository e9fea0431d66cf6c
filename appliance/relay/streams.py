"""The journal streams of relays: one writer each, the first that is free; and an end for those whose writer died."""

import re
from pathlib import Path
from typing import Final

import msgspec
import structlog

from appliance.config import Settings
from appliance.errors import DamagedEvidence, Refused, Unavailable
from appliance.journal import Cursor, Frame, FrameKind, JournalKey, Reader, Writer

MAX_STREAMS: Final = 256
log = structlog.get_logger()
_NAME: Final = re.compile(r"relay-\d{1,3}")


def take(settings: Settings) -> tuple[Writer, str]:
    """A writer of the first stream that nobody writes, and its name. Raises `Unavailable`."""
    key = JournalKey.load_or_create(settings.data)
    for number in range(MAX_STREAMS):
        name = f"relay-{number}"
        try:
            return Writer(settings.data / "journal" / name, key, settings=settings.journal), name
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
            with Writer(folder, key, settings=settings.journal) as writer:
                if not _is_closed(folder, key):
                    close(writer, folder.name, time_ns)
                    ended.append(folder.name)
        except Refused:  # somebody writes it
            continue
        except (Unavailable, DamagedEvidence) as error:
            log.error("stream-unusable", stream=folder.name, reason=str(error))
    return ended


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
