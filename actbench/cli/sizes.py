"""Amounts of memory as people write them."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from actbench.errors import UsageError

LARGEST_BYTES: Final = 2**60
_UNITS: Final = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
_SIZE: Final = re.compile(r"(\d{1,20}(?:\.\d{1,20})?(?:e\d{1,2})?) ?([A-Za-z]*)", re.ASCII)


def read_size(option: str, text: str) -> int:
    """The bytes that `text` names: `12GB` (10^9 each), `12GiB` (2^30 each), K, M and T likewise, or `1.5e9`.

    A part of a byte is left out. Raises `UsageError` for anything else, and for less than 1 byte or more than 2^60.
    """
    found = _SIZE.fullmatch(text)
    factor = found and _UNITS.get(found[2])
    if not (found and factor):
        raise UsageError(
            f"{option} {text[:40]} is not an amount of memory: write 12GB (10^9 bytes), 12GiB (2^30 bytes), 800MiB or "
            "bytes, as 1.5e9."
        )
    size = int(Fraction(found[1]) * factor)
    if not 1 <= size <= LARGEST_BYTES:
        raise UsageError(f"{option} {text[:40]} is not between 1 byte and 2^60 bytes: write such as 12GB.")
    return size
