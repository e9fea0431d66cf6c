"""Why a flow ends before its time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Code = TypeVar("Code")


class Failure(Exception):
    """`reason`: a kebab-case word for findings and counters. `text`: what happened, without bytes of a peer."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text


class Refusal(Failure, Generic[Code]):
    """The agent can be told, in its protocol: `code` is that protocol's for it, `hint` what helps, without a dot."""

    def __init__(self, reason: str, code: Code, text: str, hint: str = "") -> None:
        super().__init__(reason, text)
        self.code = code
        self.hint = hint


@asynccontextmanager
async def within(seconds: float | None, text: str) -> AsyncIterator[None]:
    """What must be over in so many seconds (None: in any). Raises `Failure` saying `text`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Failure("time-out", text) from error
