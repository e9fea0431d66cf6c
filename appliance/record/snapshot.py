"""The recorder's state on the disk: one file, replaced as a whole, for the appliance alone."""

import os
from pathlib import Path
from typing import Any

import structlog

from appliance.errors import DamagedEvidence
from appliance.journal.key import sync_folder
from appliance.session import state

log = structlog.get_logger()


class Snapshot:
    """`form`: that of the state (`StreamAssembler.FORM`). `fault`: why the last one could not be written; the one
    before it stays.
    """

    def __init__(self, path: Path, form: str) -> None:
        self.path = path
        self._form = form
        self.fault = ""

    def write(self, content: object) -> None:
        """Replace it, through to the disk. Raises `OSError`."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            state.dump(content, file, self._form)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        sync_folder(self.path.parent)
        self.fault = ""

    def give_up(self, error: OSError) -> None:
        """It could not be written."""
        text = f"{self.path}: {error.strerror}; make room: until then the journal keeps what was read"
        if text != self.fault:
            log.error("snapshot-failed", reason=text)
        self.fault = text
        self.path.with_suffix(".new").unlink(missing_ok=True)

    def load(self) -> Any:
        """What was written last; None: nothing that can be used."""
        try:
            with self.path.open("rb") as file:
                return state.load(file, self._form)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.error("snapshot-unused", reason=error.strerror)
        except DamagedEvidence as error:
            log.error("snapshot-unused", reason=str(error))
        return None

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
