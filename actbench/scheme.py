"""What is kept of an activation: a scheme is a value, read from and written as text."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from actbench.errors import SchemeError

LEVELS: Final = ("uniform", "clipped-normal")
TRIT_BITS: Final = 1.6
"""Bits of a code of three symbols, five to a byte."""
DROPOUTS: Final = ("bit", "seed")
BITS: Final = (1, 2, 4, 8)
RECTIFIED_BITS: Final = (TRIT_BITS, 2, 4, 8)
"""A rectified code has a symbol for the mask and at least two for the values."""
UNQUANTIZED: Final = ("fp32", "bf16", "checkpoint", "offload")
"""Schemes without bits and options: their names say all."""
NAMES: Final = (
    "fp32", "exact", "blockwise", "blockwise-vm", "derived", "derived-lean", "derived-fine",
    "int8", "int4", "bf16", "checkpoint", "offload",
)  # fmt: skip
PAPERS: Final = ("exact", "blockwise", "blockwise-vm")
"""The papers' schemes, which keep what the authors keep, in the units that they keep it in."""
DERIVED: Final = ("derived", "derived-lean", "derived-fine")
"""Schemes that keep each activation once and derive from it whatever else backward asks."""
UNTOUCHED: Final = 32
"""The bits of a call that keeps its input as it is, among calls that quantize theirs."""
PROJECTED: Final = ("linear", "matmul", "mm", "addmm")
OPERATIONS: Final = (*PROJECTED, "batch_norm", "aggregate")
"""Operations whose calls keep a quantized input, projected or not."""
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
class Override:
    """What one call of an operation does otherwise than its scheme says; None is what the scheme says.

    `call` counts the operation's calls of a forward pass from 1, those alone whose input is kept. `bits` may also be
    32: that call's input is kept as it is. Raises `SchemeError` for values that no call has.
    """

    operation: str
    call: int
    bits: int | None = None
    block: Block | None = None
    projection: int | None = None
    levels: str | None = None

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            near = difflib.get_close_matches(self.operation, OPERATIONS, n=1)
            hint = f"did you mean '{near[0]}'" if near else f"an override is of {', '.join(OPERATIONS)}"
            raise SchemeError(f"no call of '{self.operation}' is quantized: {hint}.")
        if not 1 <= self.call <= LARGEST:
            raise SchemeError(f"{self.place} is no call: they count from 1 to {LARGEST}.")
        if self.bits == UNTOUCHED and self.given() != {"bits": UNTOUCHED}:
            raise SchemeError(f"{self.place} with bits={UNTOUCHED} is kept as it is: give it nothing else.")
        if self.bits not in (None, UNTOUCHED):
            _check_choice("bits", self.bits, BITS)
        if self.projection is not None:
            if self.operation not in PROJECTED:
                raise SchemeError(f"projection={self.projection} is not possible: {self.place} is never projected.")
            _check_size("projection", self.projection)
        if self.levels is not None:
            _check_choice("levels", self.levels, LEVELS)

    @property
    def place(self) -> str:
        """The call, as the text has it: linear2."""
        return f"{self.operation}{self.call}"

    def given(self) -> dict[str, Any]:
        """What is not as the scheme says, by name."""
        return {key: getattr(self, key) for key in _OF_CALLS if getattr(self, key) is not None}

    def __str__(self) -> str:
        return f"{self.place}:{','.join(f'{key}={value}' for key, value in self.given().items())}"


@dataclass(frozen=True)
class Scheme:
    """How activations are kept for backward; raises `SchemeError` for values that no scheme has.

    `name` is one of `NAMES`. `bits` is None where nothing is quantized; `name` then says all, and the other fields mean
    nothing. `projection` is the projection ratio D/R of linear inputs (1: none), `block` the quantization block,
    `levels` the name of the level table. Those of `DERIVED` take 1.6 bits too, project nothing and have no overrides.
    `dropout` says how a dropout's mask is kept: a "bit" an element, or the "seed" that it is drawn from again where
    that is smaller. `overrides` are of single calls; those that change nothing are dropped. `str(scheme)` gives the
    text that `Scheme.parse` reads.
    """

    name: str
    bits: float | None = None
    block: Block = Block(1, in_rows=True)
    projection: int = 1
    levels: str = "uniform"
    dropout: str = "bit"
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            near = difflib.get_close_matches(self.name, NAMES, n=1)
            hint = f"did you mean '{near[0]}'" if near else f"the schemes are {', '.join(NAMES)}"
            raise SchemeError(f"unknown scheme '{self.name}': {hint}; a scheme is NAME or NAME:key=value,….")
        if (self.bits is None) != (self.name in UNQUANTIZED):
            raise SchemeError(
                f"scheme '{self.name}' with bits={self.bits} is not possible: {', '.join(UNQUANTIZED)} alone have none."
            )
        if self.bits is not None:
            _check_choice("bits", self.bits, RECTIFIED_BITS if self.derives else BITS)
        _check_size("projection", self.projection)
        if self.derives and (self.projection != 1 or self.overrides):
            what = f"projection={self.projection}" if self.projection != 1 else self.overrides[0].place
            raise SchemeError(f"{what} is not possible: {self.name} keeps an activation once for several calls.")
        _check_choice("levels", self.levels, LEVELS)
        _check_choice("dropout", self.dropout, DROPOUTS)
        if self.overrides:
            object.__setattr__(self, "overrides", self._canonical())

    def _canonical(self) -> tuple[Override, ...]:
        """The overrides that change something, in order."""
        if self.bits is None:
            raise SchemeError(f"{self.overrides[0].place} cannot be overridden: {self.name} quantizes nothing.")
        changing: list[Override] = []
        for override in sorted(self.overrides, key=lambda each: (each.operation, each.call)):
            given = {key: value for key, value in override.given().items() if value != getattr(self, key)}
            if changing and changing[-1].place == override.place:
                raise SchemeError(f"{override.place} is overridden twice: keep one.")
            if given:
                changing.append(Override(override.operation, override.call, **given))
        return tuple(changing)

    @property
    def compresses(self) -> bool:
        """Whether anything is quantized."""
        return self.bits is not None

    @property
    def derives(self) -> bool:
        """Whether each activation is kept once, for all that backward asks of it."""
        return self.name in DERIVED

    @property
    def keeps_inputs(self) -> bool:
        """Whether what is quantized are the inputs of calls, each by itself."""
        return self.compresses and not self.derives

    @property
    def is_papers(self) -> bool:
        """Whether it keeps what the papers' code keeps: data too, and a norm's input in its own units."""
        return self.name in PAPERS

    def for_call(self, operation: str, call: int, of_data: bool = False) -> Scheme:
        """The scheme of the `call`-th call (from 1) of `operation`: this one, another one, or FP32.

        Data (`of_data`) stays anyway, and none but the papers' keeps a code of it on top.
        """
        if of_data and not self.is_papers:
            return NAMED["fp32"]
        for override in self.overrides:
            if (override.operation, override.call) == (operation, call):
                if override.bits == UNTOUCHED:
                    return NAMED["fp32"]
                return replace(self, overrides=(), **override.given())
        return self

    @staticmethod
    def parse(text: str) -> Scheme:
        """The scheme that `text` names: `NAME` or `NAME:key=value,…`, keys bits, block, projection, levels, dropout.

        Each `/CALL:key=value,…` after that is for one call, as linear2 or batch_norm1, and has no dropout. Raises
        `SchemeError`, one sentence, for an unknown name, key, call or value.
        """
        whole, *parts = text.strip().split("/")
        name, colon, rest = (part.strip() for part in whole.partition(":"))
        base = NAMED.get(name) or Scheme(name)
        if not base.compresses and (colon or parts):
            raise SchemeError(f"scheme '{text}' has options, but {name} quantizes nothing: write '{name}'.")
        values: dict[str, Any] = {field.name: getattr(base, field.name) for field in fields(base)}
        if colon:
            values |= _read_options(rest, text, _READERS)
        overrides = tuple(_read_override(part, text) for part in parts)
        return Scheme(**values | {"overrides": overrides})

    def __str__(self) -> str:
        base = NAMED[self.name]
        changed = [f"{key}={getattr(self, key)}" for key in _READERS if getattr(self, key) != getattr(base, key)]
        whole = f"{self.name}:{','.join(changed)}" if changed else self.name
        return "/".join((whole, *map(str, self.overrides)))

    def as_record(self) -> dict[str, Any]:
        """The scheme as JSON values; `name` is the whole text."""
        record: dict[str, Any] = {"name": str(self), "bits": self.bits}
        if self.compresses:
            record |= {"block": str(self.block), "projection": self.projection}
            record |= {"levels": self.levels, "dropout": self.dropout}
        if self.overrides:
            record["overrides"] = [
                {"operation": override.operation, "call": override.call}
                | {key: str(value) if key == "block" else value for key, value in override.given().items()}
                for override in self.overrides
            ]
        return record


def name_of(text: str) -> str:
    """The name that the text of a scheme begins with, known or not."""
    return text.partition("/")[0].partition(":")[0].strip()


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise SchemeError(f"{name}={value} is not possible: {name} is one of {', '.join(map(str, choices))}.")


def _read_options(text: str, whole: str, readers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The values of `key=value,…`."""
    given: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if key not in readers or not equals:
            raise SchemeError(f"'{item}' in scheme '{whole}' is not one of {', '.join(readers)} with a =value.")
        if key in given:
            raise SchemeError(f"scheme '{whole}' gives {key} twice: keep one.")
        given[key] = readers[key](value)
    return given


def _read_override(text: str, whole: str) -> Override:
    place, _, rest = (part.strip() for part in text.partition(":"))
    operation = place.rstrip("0123456789")
    if operation == place:
        raise SchemeError(f"'{text}' in scheme '{whole}' names no call: write /CALL:key=value,…, as /linear2:bits=4.")
    number = place.removeprefix(operation)
    if len(number) > len(str(LARGEST)):
        raise SchemeError(f"{operation}{number[:20]} is no call: they count from 1 to {LARGEST}.")
    return Override(operation, int(number), **_read_options(rest, whole, _OF_CALLS))


def _read_whole(text: str, name: str) -> int:
    # Few digits, since int() refuses thousands of them.
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(LARGEST))):
        raise SchemeError(f"{name}={text[:20]} is not a whole number from 1 to {LARGEST}.")
    return int(text)


def _read_block(text: str) -> Block:
    return Block(_read_whole(text.removesuffix("r"), "block"), in_rows=text.endswith("r"))


def _read_bits(text: str) -> float:
    return TRIT_BITS if text == str(TRIT_BITS) else _read_whole(text, "bits")


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "bits": _read_bits,
    "block": _read_block,
    "projection": lambda text: _read_whole(text, "projection"),
    "levels": str,
    "dropout": str,
}

_OF_CALLS: Final = {key: read for key, read in _READERS.items() if key != "dropout"}
"""A dropout, whose mask is no quantized input, has no call of its own in a scheme."""

NAMED: Final = {
    scheme.name: scheme
    for scheme in (
        Scheme("fp32"),
        Scheme("exact", bits=2, block=Block(1, in_rows=True), projection=8),
        Scheme("blockwise", bits=2, block=Block(64, in_rows=True), projection=8),
        Scheme("blockwise-vm", bits=2, block=Block(64, in_rows=True), projection=8, levels="clipped-normal"),
        Scheme("derived", bits=2, block=Block(128), levels="clipped-normal", dropout="seed"),
        Scheme("derived-lean", bits=TRIT_BITS, block=Block(128), levels="clipped-normal", dropout="seed"),
        Scheme("derived-fine", bits=4, block=Block(128), dropout="seed"),
        # A block per row as EXACT's: what the bits alone change is then what the table shows.
        Scheme("int8", bits=8, block=Block(1, in_rows=True)),
        Scheme("int4", bits=4, block=Block(1, in_rows=True)),
        Scheme("bf16"),
        Scheme("checkpoint"),
        Scheme("offload"),
    )
}
"""The two papers' schemes, ours, and what a user would pick instead; every other one is one of them with options."""
