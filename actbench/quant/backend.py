"""What every backend of the quantizer can do; reference.py says of each operation what it gives, bit for bit."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from actbench.quant.layout import BlockCode

Packed = tuple[Tensor, Tensor, Tensor]
"""Codes uint8 [⌈numel·bits/8⌉], minimum and scale bfloat16 [blocks]."""
RectifiedCodes = tuple[Tensor, Tensor]
"""Packed codes uint8 [⌈numel·bits/8⌉] and scales bfloat16 [blocks]."""


class Backend(Protocol):
    """The operations on tensors of one kind of device."""

    def quantize(self, x: Tensor, code: BlockCode, seed: int, stream: int, broken: Tensor | None = None) -> Packed:
        """Codes, minima and scales of `x`."""

    def dequantize(
        self, codes: Tensor, minimum: Tensor, scale: Tensor, numel: int, code: BlockCode, dtype: torch.dtype
    ) -> Tensor:
        """[numel]: what `quantize` packed."""

    def project_quantize(
        self,
        x: Tensor,
        projected: int,
        code: BlockCode,
        seed: int,
        sign_stream: int,
        stream: int,
        broken: Tensor | None = None,
    ) -> Packed:
        """Those of x P."""

    def dequantize_unproject(
        self,
        codes: Tensor,
        minimum: Tensor,
        scale: Tensor,
        rows: int,
        width: int,
        projected: int,
        code: BlockCode,
        dtype: torch.dtype,
        seed: int,
        sign_stream: int,
    ) -> Tensor:
        """[rows, width]: what `project_quantize` packed, times Pᵀ."""

    def projection(
        self, width: int, projected: int, seed: int, stream: int, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """P, [width, projected]."""

    def quantize_rectified(
        self, x: Tensor, code: BlockCode, seed: int, stream: int, broken: Tensor | None = None
    ) -> RectifiedCodes:
        """Codes and scales of what is positive in `x`."""

    def dequantize_rectified(
        self,
        codes: Tensor,
        scale: Tensor,
        numel: int,
        code: BlockCode,
        dtype: torch.dtype,
        mask: Tensor | None = None,
        factor: float = 1.0,
    ) -> Tensor:
        """[numel]: what `quantize_rectified` packed, and a dropout made of it."""

    def pass_rectified(
        self, gradient: Tensor, codes: Tensor, code: BlockCode, mask: Tensor | None = None, factor: float = 1.0
    ) -> Tensor:
        """`gradient` through a ReLU, and the dropout after it."""

    def norm_sums(
        self,
        gradient: Tensor,
        codes: Tensor,
        scale: Tensor,
        code: BlockCode,
        mask: Tensor | None = None,
        factor: float = 1.0,
    ) -> Tensor:
        """[4, C], float64: what a batch norm's backward needs of every column."""

    def norm_gradient(
        self,
        gradient: Tensor,
        codes: Tensor,
        scale: Tensor,
        code: BlockCode,
        coefficients: Tensor,
        mask: Tensor | None = None,
        factor: float = 1.0,
    ) -> Tensor:
        """[N, C]: the gradient by a batch norm's input."""

    def pack_positive(self, x: Tensor) -> Tensor:
        """Bits of what is not at or below 0."""

    def pack_mask(self, mask: Tensor) -> Tensor:
        """Bits of a mask."""

    def unpack_mask(self, packed: Tensor, numel: int) -> Tensor:
        """The mask, bool [numel]."""

    def keep_where(self, values: Tensor, packed: Tensor) -> Tensor:
        """`values` where their bit is set, 0 elsewhere."""

    def scale_where(self, values: Tensor, packed: Tensor, factor: float) -> Tensor:
        """`values` times `factor` where their bit is set, times 0 elsewhere."""


class Replacement(Backend, Protocol):
    """What may stand in the place of all backends."""

    def draw_mask(self, numel: int, p: float, generator: torch.Generator) -> Tensor:
        """Bits of a dropout's mask."""

    def dense_sum(self, x: Tensor) -> Tensor:
        """A sum that tells what `x` holds."""

    def asymmetry_sums(self, crow: Tensor, col: Tensor, values: Tensor) -> Tensor:
        """Sums that tell what a CSR matrix lacks to be symmetric."""
