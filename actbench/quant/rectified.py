"""Rectified codes under a scheme, on the backend of their device: one code for a ReLU's mask and its output's value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actbench.quant.backend import RectifiedCodes
from actbench.quant.layout import BlockCode, RectifiedLayout
from actbench.quant.levels import rectified_level_table
from actbench.quant.packed import backend, bits_and_block
from actbench.scheme import Scheme


@dataclass(frozen=True)
class Dropped:
    """A dropout that came after a ReLU: bits of what survived, uint8 [⌈numel/8⌉], and the `factor` that scaled it."""

    mask: Tensor
    factor: float


@dataclass(frozen=True)
class Rectifier:
    """How the codes of one ReLU [rows, width] are packed and read; the codes themselves are not part of it."""

    shape: torch.Size
    dtype: torch.dtype
    code: BlockCode

    @staticmethod
    def of(shape: torch.Size, dtype: torch.dtype, scheme: Scheme) -> Rectifier:
        """How `scheme` packs a ReLU of this shape; its rows are its last dimension."""
        bits, length = bits_and_block(shape, scheme)
        return Rectifier(shape, dtype, BlockCode(length, bits, rectified_level_table(scheme.levels, bits, length)))

    @property
    def layout(self) -> RectifiedLayout:
        """The bytes that the codes take."""
        return self.code.rectified_layout(self.shape.numel())

    def quantize(self, x: Tensor, seed: int, stream: int, broken: Tensor | None = None) -> RectifiedCodes:
        """Codes of `x`, the ReLU's input or output, with rounding noise of (seed, stream); `broken` as in `quantize`.

        A block is broken by a NaN or the infinity above.
        """
        return backend(x).quantize_rectified(x.contiguous(), self.code, seed, stream, broken)

    def dequantize(self, codes: RectifiedCodes, dropped: Dropped | None = None) -> Tensor:
        """An unbiased estimate of the ReLU's output, or of the dropout's after it, in its shape and dtype."""
        numel, last = self.shape.numel(), _last(dropped)
        return backend(codes[0]).dequantize_rectified(*codes, numel, self.code, self.dtype, *last).view(self.shape)

    def passed(self, gradient: Tensor, codes: RectifiedCodes, dropped: Dropped | None = None) -> Tensor:
        """The gradient by the ReLU's input of that by its output, or by the dropout's after it: exact."""
        return backend(gradient).pass_rectified(gradient.contiguous(), codes[0], self.code, *_last(dropped))

    def norm_backward(
        self,
        gradient: Tensor,
        codes: RectifiedCodes,
        dropped: Dropped | None,
        weight: Tensor,
        bias: Tensor,
        inverse_std: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Backward of batch norm, y = γ x̂ + β, ReLU and dropout at once; weight γ, bias β and inverse_std are [C].

        `gradient` [N, C] is by the ReLU's output or, with `dropped`, by the dropout's. Returns gradients by batch
        norm's input, γ and β, from the ReLU's codes alone. Where y > 0 they have an unbiased estimate of x̂. Elsewhere
        x̂ is taken for the mean that makes the column's sum 0, as it is: that touches one term alone, x̂ Σ g x̂ / N,
        since no gradient comes from there. γ's and β's gradients are unbiased; the input's has, where y <= 0, a bias
        of (x̂ - x̄) γ Σ g x̂ / (N σ), x̄ the mean of those n x̂. Since x̂ meets itself in the sum, it also has γ / (N σ)
        times the variance v of x̂'s estimate: -g v where y > 0 and Σ g v / n elsewhere.
        """
        rows = self.shape[0]
        rest = (*codes, self.code)
        gradient = gradient.contiguous()
        tail = _last(dropped)
        sums = backend(gradient).norm_sums(gradient, *rest, *tail)
        γ, β, inverse = weight.double(), bias.double(), inverse_std.double()
        sum_g, sum_gy, sum_y, positive = sums
        # Σ g x̂, and 0 for a channel of γ = 0, of whose x̂ y knows nothing.
        sum_gx = torch.where(γ == 0, 0, (sum_gy - β * sum_g) / γ)
        beyond = rows - positive
        mean_below = β - torch.where(beyond > 0, (sum_y - positive * β) / beyond.clamp_min(1), 0)
        slope = torch.where(γ == 0, 0, inverse * sum_gx / rows)
        offset = γ * inverse * sum_g / rows - slope * β
        coefficients = torch.stack((γ * inverse, offset, slope, -(offset + slope * mean_below))).float()
        by_x = backend(gradient).norm_gradient(gradient, *rest, coefficients, *tail)
        return by_x, sum_gx.to(weight.dtype), sum_g.to(bias.dtype)


def _last(dropped: Dropped | None) -> tuple[Tensor | None, float]:
    return (None, 1.0) if dropped is None else (dropped.mask, dropped.factor)
