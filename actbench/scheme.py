"""What is kept of an activation: a scheme is a value, read from and written as text."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final

from actbench.errors import SchemeError

LEVELS: Final = ("uniform", "clipped-normal")
DROPOUTS: Final = ("bit", "seed")
BITS: Final = (1, 2, 4, 8)
NAMES: Final = ("fp32", "exact", "blockwise", "blockwise-vm")
LARGEST: Final = 2**20
"""Largest block size and projection ratio."""
ROW_BLOCK_CAP: Final = 1024
"""Longest block, in elements, that the authors form from several rows (their `clip(G/R · w, w, 1024)`)."""


def _check_size(name: str, size: int) -> None:
    if not 1 <= size <= LARGEST:
        raise SchemeError(f"{name}={size} is not a whole number from 1 to {LARGEST}.")


@dataclass(frozen=True)
class Block:
    """A block's size: `size` elements or, `in_rows`, that many rows of the stored tensor.

    Blocks of several rows follow i-EXACT's code: at most 1,024 elements, rounded to whole rows, at least one row.
    """

    size: int
    in_rows: bool = False

    def __post_init__(self) -> None:
        _check_size("block", self.size)

    def length(self, row_length: int) -> int:
        """Elements in one block of a tensor whose rows have `row_length` elements."""
        if not self.in_rows:
            return self.size
        rows = round(min(self.size * row_length, ROW_BLOCK_CAP) / row_length)
        return max(rows, 1) * row_length

    def __str__(self) -> str:
        return f"{self.size}r" if self.in_rows else str(self.size)


@dataclass(frozen=True)
class Scheme:
    """How activations are kept for backward; raises `SchemeError` for values that no scheme has.

    `name` is one of the papers' four. `bits` is None where activations are kept as they are (FP32); the other fields
    then mean nothing. `projection` is the projection ratio D/R of linear inputs (1: none), `block` the quantization
    block, `levels` the name of the level table. `dropout` says how a dropout's mask is kept: a "bit" an element, or the
    "seed" that it is drawn from again where that is smaller. `str(scheme)` gives the text that `Scheme.parse` reads.
    """

    name: str
    bits: int | None = None
    block: Block = Block(1, in_rows=True)
    projection: int = 1
    levels: str = "uniform"
    dropout: str = "bit"

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            near = difflib.get_close_matches(self.name, NAMES, n=1)
            hint = f"did you mean '{near[0]}'" if near else f"the schemes are {', '.join(NAMES)}"
            raise SchemeError(f"unknown scheme '{self.name}': {hint}; a scheme is NAME or NAME:key=value,….")
        if (self.bits is None) != (self.name == "fp32"):
            raise SchemeError(f"scheme '{self.name}' with bits={self.bits} is not possible: fp32 alone has no bits.")
        if self.bits is not None and self.bits not in BITS:
            raise SchemeError(f"bits={self.bits} is not possible: bits is one of {', '.join(map(str, BITS))}.")
        _check_size("projection", self.projection)
        if self.levels not in LEVELS:
            raise SchemeError(f"levels={self.levels} is unknown: levels is one of {', '.join(LEVELS)}.")
        if self.dropout not in DROPOUTS:
            raise SchemeError(f"dropout={self.dropout} is unknown: dropout is one of {', '.join(DROPOUTS)}.")

    @property
    def compresses(self) -> bool:
        """Whether anything is kept in another form than FP32 keeps it."""
        return self.bits is not None

    @staticmethod
    def parse(text: str) -> Scheme:
        """The scheme that `text` names: `NAME` or `NAME:key=value,…`, keys bits, block, projection, levels, dropout.

        Raises `SchemeError`, one sentence, for an unknown name, key or value.
        """
        name, colon, rest = text.strip().partition(":")
        base = NAMED.get(name) or Scheme(name)
        if not colon:
            return base
        if not base.compresses:
            raise SchemeError(f"scheme '{text}' has options, but {name} keeps activations as they are: write '{name}'.")
        values: dict[str, Any] = {field.name: getattr(base, field.name) for field in fields(base)}
        given: set[str] = set()
        for item in rest.split(","):
            key, equals, value = (part.strip() for part in item.partition("="))
            if key not in _READERS or not equals:
                raise SchemeError(f"'{item}' in scheme '{text}' is not one of {', '.join(_READERS)} with a =value.")
            if key in given:
                raise SchemeError(f"scheme '{text}' gives {key} twice: keep one.")
            given.add(key)
            values[key] = _READERS[key](value)
        return Scheme(**values)

    def __str__(self) -> str:
        base = NAMED[self.name]
        changed = [f"{key}={getattr(self, key)}" for key in _READERS if getattr(self, key) != getattr(base, key)]
        return f"{self.name}:{','.join(changed)}" if changed else self.name

    def as_record(self) -> dict[str, Any]:
        """The scheme as JSON values; `name` is the whole text."""
        record: dict[str, Any] = {"name": str(self), "bits": self.bits}
        if self.compresses:
            record |= {"block": str(self.block), "projection": self.projection}
            record |= {"levels": self.levels, "dropout": self.dropout}
        return record


def _read_whole(text: str, name: str) -> int:
    # Few digits, since int() refuses thousands of them.
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST))):
        raise SchemeError(f"{name}={text[:20]} is not a whole number from 1 to {LARGEST}.")
    return int(text)


def _read_block(text: str) -> Block:
    return Block(_read_whole(text.removesuffix("r"), "block"), in_rows=text.endswith("r"))


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "bits": lambda text: _read_whole(text, "bits"),
    "block": _read_block,
    "projection": lambda text: _read_whole(text, "projection"),
    "levels": str,
    "dropout": str,
}

NAMED: Final = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp32"),
        Scheme("exact", bits=2, block=Block(1, in_rows=True), projection=8),
        Scheme("blockwise", bits=2, block=Block(64, in_rows=True), projection=8),
        Scheme("blockwise-vm", bits=2, block=Block(64, in_rows=True), projection=8, levels="clipped-normal"),
    )
}
"""The schemes of the two papers; every other one is one of them with options."""
