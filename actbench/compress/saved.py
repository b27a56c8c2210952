"""How a linear or batch-norm input is kept and used again: packed, with noise regenerated from its seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actbench.quant import Packing, dequantize, projection, quantize
from actbench.quant.layout import projected_width
from actbench.quant.packed import Packed
from actbench.scheme import Scheme


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


@dataclass(frozen=True)
class Kept:
    """A matrix [rows, width] that was kept, projected to `packing.shape[1]` columns where that is fewer."""

    width: int
    packing: Packing
    noise: Noise

    @staticmethod
    def of(rows: int, width: int, dtype: torch.dtype, scheme: Scheme, noise: Noise, ratio: int) -> Kept:
        """How `scheme` keeps such a matrix under projection ratio `ratio` (1: not projected)."""
        shape = torch.Size((rows, projected_width(width, ratio)))
        return Kept(width, Packing.of(shape, dtype, scheme), noise)

    def pack(self, x: Tensor) -> Packed:
        """Pack `x` [rows, width]."""
        if self._projected:
            x = x @ self._projection(x)
        return quantize(x, self.packing, self.noise.seed, self.noise.rounding_stream)

    def recover(self, packed: Packed) -> Tensor:
        """An unbiased estimate of x, [rows, width]."""
        estimate = dequantize(packed, self.packing)
        return estimate @ self._projection(estimate).t() if self._projected else estimate

    def left_product(self, left: Tensor, packed: Packed) -> Tensor:
        """`left` [n, rows] times the estimate of x, without ever forming it: (left û) Pᵀ."""
        estimate = dequantize(packed, self.packing)
        product = left @ estimate.to(left.dtype)
        return product @ self._projection(product).t() if self._projected else product

    @property
    def _projected(self) -> bool:
        return self.packing.shape[1] != self.width

    def _projection(self, like: Tensor) -> Tensor:
        return projection(self.width, self.packing.shape[1], self.noise.seed, self.noise.projection_stream, like)
