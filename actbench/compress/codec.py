"""How a linear or batch-norm input is kept and used again: packed, with noise regenerated from its seed."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

import torch
from torch import Tensor

from actbench.errors import NonFiniteError
from actbench.quant import Packing, Projection, dequantize, quantize
from actbench.quant.layout import mask_bytes, projected_width
from actbench.scheme import Scheme

GENERATOR_BYTES: Final = {"cpu": 5056, "cuda": 16}
"""What torch's generator of a device takes to be set back: a Mersenne twister's state, or a seed and an offset."""
_WATCHED: Final = 2**14


@dataclass(frozen=True)
class Noise:
    """Where one kept tensor's random numbers come from: its own pair of Philox streams."""

    seed: int
    index: int

    @property
    def projection_stream(self) -> int:
        """Stream of the projection's signs."""
        return 2 * self.index

    @property
    def rounding_stream(self) -> int:
        """Stream of the rounding."""
        return 2 * self.index + 1


def keeps_seed(numel: int, scheme: Scheme, device: str) -> bool:
    """Whether `scheme` keeps the seed of a dropout of `numel` elements instead of its bits."""
    return scheme.dropout == "seed" and GENERATOR_BYTES[device] < mask_bytes(numel)


def dropout_bytes(numel: int, scheme: Scheme, device: str) -> int:
    """What `scheme` keeps of a dropout of `numel` elements."""
    return GENERATOR_BYTES[device] if keeps_seed(numel, scheme, device) else mask_bytes(numel)


def is_smaller(rows: int, width: int, dtype: torch.dtype, scheme: Scheme, ratio: int) -> bool:
    """Whether a matrix [rows, width] takes less packed by `scheme` than as it is.

    Rows of few elements do not if each is a block, nor does a matrix shorter than one. Blocks of a length that somebody
    has asked for, and that the matrix has, are what was asked for.
    """
    shape = torch.Size((rows, projected_width(width, ratio)))
    if not scheme.block.in_rows and shape.numel() >= scheme.block.size:
        return True
    return Packing.of(shape, dtype, scheme).layout.total_bytes < rows * width * dtype.itemsize


class Watch:
    """Knows which of the tensors that were kept could not be packed, and their names.

    The quantizer itself notices a block that it cannot pack and sets the tensor's flag, which lies in host memory on
    every device: nothing is read twice and nobody waits for a GPU. Of all watches the last 16,384 tensors have flags.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[str, int], tuple[int, str]] = {}
        self._kinds: set[str] = set()
        if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
            # Pinned memory cannot be had while a CUDA graph is captured.
            _flags("cuda")

    @contextmanager
    def packing(self, name: str, device: torch.device) -> Iterator[Tensor]:
        """A flag for packing the tensor `name`; on a CPU raises as `check` when that is done, and forgets the name."""
        flag = self.flag(name, device)
        yield flag
        if device.type == "cpu":
            self.check()
            self._names.pop((device.type, int(flag.storage_offset())), None)

    def flag(self, name: str, device: torch.device) -> Tensor:
        """int32 [1], to become 1 if the tensor `name` cannot be packed on `device`."""
        kind = device.type
        flags, number = _flags(kind), next(_numbers)
        slot = number % _WATCHED
        flags[slot] = 0
        _holders(kind)[slot] = number
        self._names[kind, slot] = number, name
        self._kinds.add(kind)
        return flags[slot : slot + 1]

    def check(self) -> None:
        """Raise `NonFiniteError` with the name of the first tensor whose flag is set, and forget them all."""
        if not any(_flags(kind).any() for kind in tuple(self._kinds)):
            return
        if "cuda" in self._kinds and not torch.cuda.is_current_stream_capturing():
            # What spoiled one tensor spoils those after it, whose kernels may still have to say so.
            torch.cuda.synchronize()
        found = []
        # Of a copy, since another thread may keep something meanwhile.
        for (kind, slot), (number, name) in list(self._names.items()):
            if _holders(kind)[slot] != number:
                self._names.pop((kind, slot), None)
            elif _flags(kind)[slot]:
                _flags(kind)[slot] = 0
                found.append((number, name))
        if not found:
            return
        _, name = min(found)
        raise NonFiniteError(
            f"{name} cannot be kept for backward: it has a NaN, an infinity or a range beyond float32; "
            "look at the data, or lower the learning rate."
        )


_numbers = itertools.count()


@cache
def _holders(kind: str) -> array[int]:
    """The number of the tensor that each flag is of."""
    return array("q", bytes(8 * _WATCHED))


@cache
def _flags(kind: str) -> Tensor:
    """Flags of the tensors on devices of a kind; never freed, since a kernel may be late to write to one."""
    return torch.zeros(_WATCHED, dtype=torch.int32, device="cpu", pin_memory=kind == "cuda")


class Keeping(Protocol):
    """How a matrix x [rows, width] is read from the tensors that are kept for it."""

    def recover(self, packed: tuple[Tensor, ...]) -> Tensor:
        """x or an unbiased estimate of it. Raises `NonFiniteError` if it is known that there is none."""

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """`left` [n, rows] times x or the estimate, times `scale`; x, if not projected, may be seen with other rows.

        Raises as `recover`.
        """


@dataclass(frozen=True)
class Kept:
    """A matrix [rows, width] that was kept, projected to `packing.shape[1]` columns where that is fewer.

    `name` says which one it is to a user, `watch` is told if it cannot be packed.
    """

    width: int
    packing: Packing
    noise: Noise
    name: str
    watch: Watch

    @staticmethod
    def of(
        rows: int,
        width: int,
        dtype: torch.dtype,
        scheme: Scheme,
        noise: Noise,
        ratio: int,
        name: str = "a matrix",
        watch: Watch | None = None,
    ) -> Kept:
        """How `scheme` keeps such a matrix under projection ratio `ratio` (1: not projected)."""
        shape = torch.Size((rows, projected_width(width, ratio)))
        return Kept(width, Packing.of(shape, dtype, scheme), noise, name, watch or Watch())

    @property
    def projection(self) -> Projection | None:
        """The projection that x went through before it was packed."""
        projected = self.packing.shape[1]
        if projected == self.width:
            return None
        return Projection(self.width, projected, self.noise.seed, self.noise.projection_stream)

    def pack(self, x: Tensor) -> tuple[Tensor, ...]:
        """Pack `x` [rows, width]. On a CPU raises `NonFiniteError` if that cannot be done."""
        with self.watch.packing(self.name, x.device) as flag:
            return quantize(x, self.packing, self.noise.seed, self.noise.rounding_stream, self.projection, flag)

    def recover(self, packed: tuple[Tensor, ...]) -> Tensor:
        """An unbiased estimate of x, [rows, width]. Raises `NonFiniteError` if it is known that there is none."""
        self.watch.check()
        return dequantize(packed, self.packing, self.projection)

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """`left` [n, rows] times the estimate of x, never formed, times `scale`: (left û) Pᵀ. Raises as `recover`."""
        self.watch.check()
        values = dequantize(packed, self.packing).to(left.dtype)
        if self.projection:
            product = left @ values
            del values
            product = product @ self.projection.matrix(product).t()
        else:
            product = left @ values.reshape(left.shape[1], -1)
        return product if scale == 1 else product * scale
