"""Logs of every process: one JSON object a line on stderr, so that stdout stays free for what a command answers.

    {"event": "store-refuses", "level": "error", "timestamp": "2026-11-23T13:26:49.123456Z", "process": "record", ...}

`event` is a name that never changes its meaning; the README lists all of them. Other fields are that event's own; where
it is about another process, `process` names that one. A log line names things and reasons. Captured bytes, tokens and
passwords never go into one.
"""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]


def configure(level: Level = "info", process: str = "") -> None:
    """Set up structlog for this process; lines below `level` are dropped before they are rendered."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _naming(process),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    if not any(isinstance(handler, _Libraries) for handler in logging.getLogger().handlers):
        logging.getLogger().addHandler(_Libraries(logging.WARNING))


class _Libraries(logging.Handler):
    """What libraries have to say becomes a line of ours, so that every line is JSON."""

    def emit(self, record: logging.LogRecord) -> None:
        said = structlog.get_logger()
        said.log(
            record.levelno, "library-message", library=record.name, text=record.getMessage(), exc_info=record.exc_info
        )


def _naming(process: str) -> Processor:
    """Adds the process's name to lines that name none."""

    def name(logger: WrappedLogger, method: str, line: EventDict) -> EventDict:
        if process:
            line.setdefault("process", process)
        return line

    return name
