"""How what databases are told and tell reads in messages, and how much of it they may repeat."""

MAX_REPEATED = 16384  # characters of SQL, and bytes of bind values, that every execution of them repeats
MAX_BRIEF = 256  # characters of SQL that every execution repeats in any case, see `Repeats`
FREE_REPEATED = 1 << 20
REPEATED_PER_BYTE = 32


def text(raw: bytes, codec: str = "utf-8") -> str:
    """Bytes of text; what is not valid in the encoding shows as `\\xNN`, so that different bytes stay different."""
    return raw.decode(codec, "backslashreplace")


def hexadecimal(raw: bytes) -> str:
    """Like PostgreSQL's output of a `bytea`: `\\x` and two digits a byte."""
    return "\\x" + raw.hex()


class Repeats:
    """How much messages may say again of what an earlier one said: a few bytes must not become many characters.

    `FREE_REPEATED` characters, and `REPEATED_PER_BYTE` for each byte of the direction so far.
    """

    def __init__(self) -> None:
        self._said = 0

    def allow(self, size: int, offset: int) -> bool:
        """Whether `size` characters more may be repeated by a message that ends at `offset`."""
        if self._said + size > FREE_REPEATED + REPEATED_PER_BYTE * offset:
            return False
        self._said += size
        return True
