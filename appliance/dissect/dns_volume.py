"""How much a DNS conversation could carry besides lookups: raw data for findings, no verdict.

Of each message (`sizes`): bytes of the names asked for, their labels, the longest of these, bytes of all records and of
the types that hold free text (TXT, NULL, and what is not known). Of the session, under `lookups`: the sums, how many
different names (counted up to `MAX_NAMES`), and the entropy of the labels' characters in bits per character, letter
case set aside: words have about 4, base32 near 5, base64 near 6 on long input.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

MAX_NAMES = 256  # different names told apart in one session
MAX_TYPES = 32  # record types told apart in one session
_CHARACTERS: Final = re.compile(r"\\\d{3}|\\.|[^\\]", re.DOTALL)
_FREE: Final = re.compile(r"TXT|NULL|SPF|TYPE\d+")


def characters(name: str) -> list[str]:
    """A name in presentation format, one string a byte; "." between labels only."""
    return _CHARACTERS.findall(name)


def label_sizes(name: str) -> list[int]:
    """Bytes of each label; none for the root."""
    sizes = [0]
    for character in characters(name):
        if character == ".":
            sizes.append(0)
        else:
            sizes[-1] += 1
    return [] if sizes == [0, 0] or sizes == [0] else sizes


def entropy(counts: Mapping[Any, int]) -> float:
    """Shannon's, in bits per symbol; 0.0 of nothing."""
    total = sum(counts.values())
    return round(-sum(count / total * math.log2(count / total) for count in counts.values()), 3) + 0.0 if total else 0.0


def sizes_of(questions: list[dict[str, str]], record_bytes: int, free_bytes: int) -> dict[str, int]:
    """The attribute `sizes` of a message."""
    labels = [size for question in questions for size in label_sizes(question["name"])]
    return {
        "names": sum(labels),
        "labels": len(labels),
        "longest_label": max(labels, default=0),
        "records": record_bytes,
        "free": free_bytes,
    }


def is_free(kind: str) -> bool:
    """Whether records of this type hold what anybody likes."""
    return bool(_FREE.fullmatch(kind))


class Lookups:
    """Sums of one session."""

    def __init__(self) -> None:
        self._sums: Counter[str] = Counter()
        self._longest = {"longest_name": 0, "longest_label": 0}
        self._names: set[bytes] = set()
        self._more_names = False
        self._types: Counter[str] = Counter()
        self._characters: Counter[str] = Counter()

    def add(self, response: bool, size: int, attrs: Mapping[str, Any]) -> None:
        """One message of `size` bytes with these attributes."""
        sizes = attrs["sizes"]
        self._sums["responses" if response else "queries"] += 1
        self._sums["response_bytes" if response else "query_bytes"] += size
        self._sums["record_bytes"] += sizes["records"]
        self._sums["free_bytes"] += sizes["free"]
        self._sums["nxdomain"] += response and attrs["rcode"] == "NXDOMAIN"
        if response:
            return
        self._sums["name_bytes"] += sizes["names"]
        for question in attrs["questions"]:
            name = question["name"].lower()
            parts = characters(name)
            self._characters.update(parts)
            self._longest["longest_name"] = max(self._longest["longest_name"], len(parts))
            kind = question["type"]
            self._types[kind if kind in self._types or len(self._types) < MAX_TYPES else "others"] += 1
            digest = blake2b(name.encode("ascii", "replace"), digest_size=8).digest()
            if digest not in self._names:
                self._more_names = self._more_names or len(self._names) >= MAX_NAMES
                if len(self._names) < MAX_NAMES:
                    self._names.add(digest)
        self._longest["longest_label"] = max(self._longest["longest_label"], sizes["longest_label"])

    def to_attrs(self) -> dict[str, Any]:
        """JSON values; {} while nothing was said."""
        if not self._sums:
            return {}
        letters = {character: count for character, count in self._characters.items() if character != "."}
        names: dict[str, Any] = {"different_names": len(self._names)}
        if self._more_names:
            names["more_names"] = True
        fields = ("queries", "responses", "query_bytes", "response_bytes", "name_bytes", "record_bytes", "free_bytes")
        return {
            "lookups": {
                **{name: self._sums[name] for name in (*fields, "nxdomain")},
                **names,
                **self._longest,
                "types": dict(sorted(self._types.items())),
                "entropy": entropy(letters),
            }
        }
