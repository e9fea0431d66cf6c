"""Character sets of MySQL and MariaDB as Python's codecs, by collation number and by name.

A collation number above 255 is MariaDB's or MySQL 8's own for UTF-8 in nearly every case, and UTF-8 is what any number
that is not listed is read as. (INFORMATION_SCHEMA.COLLATIONS of MariaDB 10.11 and MySQL 8.4.)
"""

import re
from typing import Final

BINARY = 63  # collation of bytes that are no text

NAMES: Final = {
    "utf8": "utf-8",
    "utf8mb3": "utf-8",
    "utf8mb4": "utf-8",
    "ascii": "ascii",
    "binary": "utf-8",
    "latin1": "cp1252",
    "latin2": "iso8859-2",
    "latin5": "iso8859-9",
    "latin7": "iso8859-13",
    "cp850": "cp850",
    "cp852": "cp852",
    "cp866": "cp866",
    "cp1250": "cp1250",
    "cp1251": "cp1251",
    "cp1256": "cp1256",
    "cp1257": "cp1257",
    "greek": "iso8859-7",
    "hebrew": "iso8859-8",
    "koi8r": "koi8-r",
    "koi8u": "koi8-u",
    "tis620": "cp874",
    "big5": "big5",
    "gb2312": "gb2312",
    "gbk": "gbk",
    "gb18030": "gb18030",
    "sjis": "shift-jis",
    "cp932": "cp932",
    "ujis": "euc-jp",
    "eucjpms": "euc-jp",
    "euckr": "euc-kr",
    "ucs2": "utf-16-be",
    "utf16": "utf-16-be",
    "utf16le": "utf-16-le",
    "utf32": "utf-32-be",
}
_COLLATIONS: Final = {
    "big5": (1, 84),
    "latin2": (2, 9, 21, 27, 77),
    "cp850": (4, 80),
    "latin1": (5, 8, 15, 31, 47, 48, 49, 94),
    "koi8r": (7, 74),
    "ascii": (11, 65),
    "ujis": (12, 91),
    "sjis": (13, 88),
    "cp1251": (14, 23, 50, 51, 52),
    "hebrew": (16, 71),
    "tis620": (18, 89),
    "euckr": (19, 85),
    "latin7": (20, 41, 42, 79),
    "koi8u": (22, 75),
    "gb2312": (24, 86),
    "greek": (25, 70),
    "cp1250": (26, 34, 44, 66, 99),
    "gbk": (28, 87),
    "cp1257": (29, 58, 59),
    "latin5": (30, 78),
    "ucs2": (35, 90, *range(128, 152)),
    "cp866": (36, 68),
    "cp852": (40, 81),
    "utf16": (54, 55, *range(101, 125)),
    "utf16le": (56, 62),
    "cp1256": (57, 67),
    "utf32": (60, 61, *range(160, 184)),
    "cp932": (95, 96),
    "eucjpms": (97, 98),
    "gb18030": (248, 249, 250),
}
CODECS: Final = {number: NAMES[name] for name, numbers in _COLLATIONS.items() for number in numbers}
_SET: Final = re.compile(r"\s*SET\s+(?:NAMES|CHARACTER\s+SET|CHARSET)\s+['\"`]?(\w+)", re.IGNORECASE)


UTF8 = 45  # collation utf8mb4_general_ci


def codec(collation: int) -> str:
    """Python's codec for a collation number."""
    return CODECS.get(collation, "utf-8")


def collation(name: str) -> int:
    """A collation of a character set; those that are not known are taken for UTF-8."""
    numbers: tuple[int, ...] = _COLLATIONS.get(name.lower(), (UTF8,))
    return numbers[0]


def chosen(sql: str) -> int | None:
    """The collation that a statement SET NAMES chooses for the connection, about; None: it is another statement."""
    found = _SET.match(sql, 0, 256)
    return None if found is None else collation(found[1])
