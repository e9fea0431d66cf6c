"""A value that does not show itself: neither in logs and tracebacks nor in what is copied to a file or process."""

import hmac
from typing import Any, NoReturn

HIDDEN = "**********"


class SecretText:
    """Text that only `reveal` gives away. Compared in constant time; cannot be pickled, hashed or encoded as JSON."""

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The value itself, for the protocol that needs it and nothing else."""
        return self._text

    def __repr__(self) -> str:
        return f"SecretText({HIDDEN!r})"

    def __str__(self) -> str:
        return HIDDEN

    def __format__(self, spec: str) -> str:
        return format(HIDDEN, spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretText):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def __bool__(self) -> bool:
        return bool(self._text)

    def __copy__(self) -> "SecretText":
        return self

    def __deepcopy__(self, memo: dict[Any, Any]) -> "SecretText":
        return self

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a secret is not pickled")
