"""Quantize and read back a tensor under a scheme, on the backend of its device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actbench.quant import reference
from actbench.quant.layout import Layout
from actbench.quant.levels import level_table
from actbench.scheme import Scheme

Packed = tuple[Tensor, Tensor, Tensor]
"""Codes uint8 [⌈numel·bits/8⌉], minimum and scale bfloat16 [blocks]."""


@dataclass(frozen=True)
class Packing:
    """What is needed to read packed tensors back, besides themselves."""

    shape: torch.Size
    dtype: torch.dtype
    bits: int
    block_length: int
    levels: tuple[float, ...]

    @staticmethod
    def of(shape: torch.Size, dtype: torch.dtype, scheme: Scheme) -> Packing:
        """How `scheme` packs a tensor of this shape; its rows are its last dimension."""
        if scheme.bits is None:
            raise ValueError("fp32 packs nothing")
        length = scheme.block.length(max(shape[-1], 1) if shape else 1)
        # No block is longer than the tensor, so the levels are those of the block's own length.
        length = max(min(length, shape.numel()), 1)
        return Packing(shape, dtype, scheme.bits, length, level_table(scheme.levels, scheme.bits, length))

    @property
    def layout(self) -> Layout:
        """The bytes that the packed tensors take."""
        return Layout(self.shape.numel(), self.block_length, self.bits)


def quantize(x: Tensor, packing: Packing, seed: int, stream: int) -> Packed:
    """Pack `x` (float32, float16 or bfloat16) with rounding noise of (seed, stream)."""
    packed: Packed = _backend(x).quantize(
        x.contiguous(), packing.block_length, packing.bits, packing.levels, seed, stream
    )
    return packed


def dequantize(packed: Packed, packing: Packing) -> Tensor:
    """An unbiased estimate of what was packed, in its shape and dtype."""
    values: Tensor = _backend(packed[0]).dequantize(
        *packed, packing.shape.numel(), packing.block_length, packing.bits, packing.levels, packing.dtype
    )
    return values.view(packing.shape)


def pack_mask(mask: Tensor) -> Tensor:
    """A boolean tensor as bits: uint8 [⌈numel/8⌉]."""
    packed: Tensor = _backend(mask).pack_mask(mask.contiguous())
    return packed


def unpack_mask(packed: Tensor, shape: torch.Size) -> Tensor:
    """The boolean tensor of `shape` that `pack_mask` packed."""
    mask: Tensor = _backend(packed).unpack_mask(packed, shape.numel())
    return mask.view(shape)


def projection(width: int, projected: int, seed: int, stream: int, like: Tensor) -> Tensor:
    """The random projection P [width, projected] of (seed, stream), in `like`'s dtype and on its device."""
    matrix: Tensor = _backend(like).projection(width, projected, seed, stream, like.dtype, like.device)
    return matrix


def _backend(tensor: Tensor) -> Any:
    if not tensor.is_cuda:
        return reference
    from actbench.quant import cuda

    return cuda
