"""Numbers of a tiny run, read back as what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final


class AmbiguousError(Exception):
    """One number of a tiny run stands for two things: other sizes tell them apart."""


@dataclass(frozen=True, eq=False)
class Size:
    """`factor` times `parts`: names of quantities, or functions of sizes."""

    factor: int
    parts: tuple[str | Function, ...] = ()


@dataclass(frozen=True, eq=False)
class Function:
    """A whole number that `of` makes of `sizes`."""

    of: Callable[..., int]
    sizes: tuple[Size, ...] = field(repr=False)


class Values:
    """What the quantities are, by name, and so what every size is."""

    def __init__(self, quantities: Mapping[str, int]) -> None:
        self.quantities = quantities
        self._known: dict[Size, int] = {}

    def at(self, size: Size) -> int:
        """The number that `size` is here."""
        found = self._known.get(size)
        if found is None:
            found = self._known[size] = size.factor * prod(map(self._part, size.parts))
        return found

    def _part(self, part: str | Function) -> int:
        return self.quantities[part] if isinstance(part, str) else part.of(*map(self.at, part.sizes))


_PRIMES: Final = (
    401,
    409,
    419,
    421,
    431,
    433,
    439,
    443,
    449,
    457,
    461,
    463,
    467,
    479,
    487,
    491,
    499,
    503,
    509,
    521,
    541,
)
"""What is invented: larger than a network's own constants, most of which are heads or round."""


class Reader:
    """Reads numbers of a run whose quantities are `tiny`: distinct, most of them primes.

    Two readings of one number are the same if they are so wherever `others` are the quantities.
    """

    def __init__(self, tiny: Mapping[str, int], others: Sequence[Mapping[str, int]]) -> None:
        self._others = [Values(each) for each in others]
        self._known = {number: Size(1, (name,)) for name, number in tiny.items()}
        self._sizes: dict[int, Size] = {}
        self._products: dict[tuple[Size, ...], Size] = {}
        self._expected: dict[int, Size] = {}

    def define(self, of: Callable[..., int], *numbers: int) -> int:
        """Let what `of` makes of `numbers` be read as that; returns it. Raises `AmbiguousError`."""
        number, size = of(*numbers), self.of(of, *numbers)
        known = self._known.setdefault(number, self._sizes.get(number, size))
        if not self._agree(known, size):
            raise AmbiguousError(f"{number} is two things")
        return number

    def invent(self, of: Callable[..., int], *numbers: int) -> int:
        """A number that is read as what `of` makes of `numbers`, and as nothing else: a prime that none has yet."""
        size = self.of(of, *numbers)
        for number, known in self._known.items():
            if self._agree(known, size):
                return number
        number = next(prime for prime in _PRIMES if prime not in self._known and prime not in self._sizes)
        self._known[number] = size
        return number

    def _agree(self, first: Size, second: Size) -> bool:
        return all(values.at(first) == values.at(second) for values in self._others)

    def of(self, function: Callable[..., int], *numbers: int) -> Size:
        """What `function` makes of `numbers`."""
        return Size(1, (Function(function, tuple(map(self.read, numbers))),))

    def expect(self, of: Callable[..., int], *numbers: int) -> None:
        """Let what `of` makes of `numbers` be read as that by `expected`, until the next that makes the same number."""
        self._expected[of(*numbers)] = self.of(of, *numbers)

    def expected(self, number: int) -> Size:
        """What `number` was expected as, or else as `read`."""
        return self._expected.get(number) or self.read(number)

    def read(self, number: int) -> Size:
        """What `number` stands for; a constant if it is none of what is known, nor a product of that."""
        size = self._sizes.get(number)
        if size is None:
            size = self._sizes[number] = self._known.get(number) or self._factored(number)
        return size

    def product(self, sizes: tuple[Size, ...]) -> Size:
        """Their product; the same object for the same ones."""
        found = self._products.get(sizes)
        if found is None:
            parts = tuple(part for size in sizes for part in size.parts)
            found = self._products[sizes] = Size(prod(size.factor for size in sizes), parts)
        return found

    def _factored(self, number: int) -> Size:
        for known in sorted(self._known, reverse=True):
            if known < number and number % known == 0:
                return self.product((self._known[known], self.read(number // known)))
        return Size(number)
