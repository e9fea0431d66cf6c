"""How much a side channel could carry: numbers, no verdict."""

import math
from collections.abc import Mapping
from typing import Any


def entropy(counts: Mapping[Any, int]) -> float:
    """Shannon's, in bits per symbol; 0.0 of nothing."""
    total = sum(counts.values())
    return round(-sum(count / total * math.log2(count / total) for count in counts.values()), 3) + 0.0 if total else 0.0
