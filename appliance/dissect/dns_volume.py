"""How much a DNS conversation could carry besides lookups: raw data for findings, no verdict.

Of each message (`sizes`): bytes of the names asked for, their labels, the longest of these, bytes of all records and of
the types that hold free text (TXT, NULL, and what is not known). Of the session, under `lookups`: the sums, how many
different names (counted up to `MAX_NAMES`), and the entropy of the labels' characters in bits per character, letter
case set aside: words have about 4, base32 near 5, base64 near 6 on long input.

Names come as the labels that were on the wire, and how often each was asked for: a message may ask thousands of times
for one name by a pointer of two bytes.
"""

import re
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from appliance.dissect.volume import entropy

Labels = tuple[bytes, ...]

MAX_NAMES = 256  # different names told apart in one session
MAX_TYPES = 32  # record types told apart in one session
_ENTRY = 96  # bytes in memory of an entry of a table, about
_FREE: Final = re.compile(r"TXT|NULL|SPF|TYPE\d+")


def sizes_of(asked: Mapping[Labels, int], record_bytes: int, free_bytes: int) -> dict[str, int]:
    """The attribute `sizes` of a message."""
    return {
        "names": sum(times * len(b"".join(labels)) for labels, times in asked.items()),
        "labels": sum(times * len(labels) for labels, times in asked.items()),
        "longest_label": max((max(map(len, labels), default=0) for labels in asked), default=0),
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
        self._characters: Counter[int] = Counter()

    @property
    def held(self) -> int:
        """Bytes in memory, roughly."""
        return _ENTRY * (len(self._names) + len(self._types) + len(self._characters))

    def add(self, response: bool, size: int, attrs: Mapping[str, Any], asked: Mapping[Labels, int]) -> None:
        """One message of `size` bytes with these attributes, which asked for these names."""
        sizes = attrs["sizes"]
        self._sums["responses" if response else "queries"] += 1
        self._sums["response_bytes" if response else "query_bytes"] += size
        self._sums["record_bytes"] += sizes["records"]
        self._sums["free_bytes"] += sizes["free"]
        self._sums["nxdomain"] += response and attrs["rcode"] == "NXDOMAIN"
        if response:
            return
        self._sums["name_bytes"] += sizes["names"]
        for labels, times in asked.items():
            self._add_name(labels, times)
        for question in attrs["questions"]:
            kind = question["type"]
            self._types[kind if kind in self._types or len(self._types) < MAX_TYPES else "others"] += 1
        self._longest["longest_label"] = max(self._longest["longest_label"], sizes["longest_label"])

    def _add_name(self, labels: Labels, times: int) -> None:
        lower = b"".join(labels).lower()
        if times == 1:
            self._characters.update(lower)
        else:
            self._characters.update({byte: count * times for byte, count in Counter(lower).items()})
        self._longest["longest_name"] = max(self._longest["longest_name"], len(lower) + max(len(labels) - 1, 0) or 1)
        where = bytes(map(len, labels))
        digest = blake2b(where + b"\0" + lower, digest_size=8).digest()
        if digest not in self._names:
            self._more_names = self._more_names or len(self._names) >= MAX_NAMES
            if len(self._names) < MAX_NAMES:
                self._names.add(digest)

    def to_attrs(self) -> dict[str, Any]:
        """JSON values; {} while nothing was said."""
        if not self._sums:
            return {}
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
                "entropy": entropy(self._characters),
            }
        }
