"""Quantize and read back a tensor under a scheme, on the backend of its device."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actbench.quant import cpu
from actbench.quant.layout import Layout
from actbench.quant.levels import level_table
from actbench.scheme import Scheme

Packed = tuple[Tensor, Tensor, Tensor]
"""Codes uint8 [⌈numel·bits/8⌉], minimum and scale bfloat16 [blocks]."""


def bits_and_block(shape: torch.Size, scheme: Scheme) -> tuple[float, int]:
    """Bits of a code and elements of a block under `scheme`, for a tensor whose rows are its last dimension.

    No block is longer than the tensor, so that levels are those of the block's own length.
    """
    if scheme.bits is None:
        raise ValueError("fp32 packs nothing")
    length = scheme.block.length(max(shape[-1], 1) if shape else 1)
    return scheme.bits, max(min(length, shape.numel()), 1)


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
        bits, length = bits_and_block(shape, scheme)
        # Trits are for rectified codes.
        bits = math.ceil(bits)
        return Packing(shape, dtype, bits, length, level_table(scheme.levels, bits, length))

    @property
    def layout(self) -> Layout:
        """The bytes that the packed tensors take."""
        return Layout(self.shape.numel(), self.block_length, self.bits)


@dataclass(frozen=True)
class Projection:
    """A random projection P [width, projected] of Philox (`seed`, `stream`): entries ±1/√projected, E[P Pᵀ] = I."""

    width: int
    projected: int
    seed: int
    stream: int

    def matrix(self, like: Tensor) -> Tensor:
        """P in `like`'s dtype and on its device."""
        matrix: Tensor = backend(like).projection(
            self.width, self.projected, self.seed, self.stream, like.dtype, like.device
        )
        return matrix


def quantize(
    x: Tensor,
    packing: Packing,
    seed: int,
    stream: int,
    projection: Projection | None = None,
    broken: Tensor | None = None,
) -> Packed:
    """Pack `x` (float32, float16 or bfloat16) or x P, with rounding noise of (seed, stream).

    `broken`, int32 [1] in host memory, pinned where `x` is on a GPU, becomes 1 if a block has a NaN, an infinity or a
    range beyond float32; on a GPU not before the kernels have run.
    """
    x, rest = x.contiguous(), (packing.block_length, packing.bits, packing.levels)
    packed: Packed
    if projection is None:
        packed = backend(x).quantize(x, *rest, seed, stream, broken)
    else:
        packed = backend(x).project_quantize(
            x, projection.projected, *rest, projection.seed, projection.stream, stream, broken
        )
    return packed


def dequantize(packed: tuple[Tensor, ...], packing: Packing, projection: Projection | None = None) -> Tensor:
    """An unbiased estimate of what was packed, in its shape and dtype; with `projection`, of x [rows, width]."""
    rest = packing.block_length, packing.bits, packing.levels, packing.dtype
    if projection is None:
        values: Tensor = backend(packed[0]).dequantize(*packed, packing.shape.numel(), *rest)
        return values.view(packing.shape)
    estimate: Tensor = backend(packed[0]).dequantize_unproject(
        *packed, packing.shape[0], projection.width, projection.projected, *rest, projection.seed, projection.stream
    )
    return estimate


def pack_positive(x: Tensor) -> Tensor:
    """Where `x` is not at or below 0, as bits: uint8 [⌈numel/8⌉]."""
    packed: Tensor = backend(x).pack_positive(x.contiguous())
    return packed


def pack_mask(mask: Tensor) -> Tensor:
    """A boolean tensor (on a CPU also int32, for != 0) as bits: uint8 [⌈numel/8⌉]."""
    packed: Tensor = backend(mask).pack_mask(mask.contiguous())
    return packed


def unpack_mask(packed: Tensor, shape: torch.Size) -> Tensor:
    """The boolean tensor of `shape` that `pack_mask` packed."""
    mask: Tensor = backend(packed).unpack_mask(packed, shape.numel())
    return mask.view(shape)


def keep_where(values: Tensor, packed: Tensor) -> Tensor:
    """`values` where their bit in `packed` is set, 0 elsewhere."""
    kept: Tensor = backend(values).keep_where(values.contiguous(), packed)
    return kept


def scale_where(values: Tensor, packed: Tensor, factor: float) -> Tensor:
    """`values` times `factor` where their bit in `packed` is set, times 0 elsewhere."""
    scaled: Tensor = backend(values).scale_where(values.contiguous(), packed, factor)
    return scaled


def draw_mask(numel: int, p: float, generator: torch.Generator) -> Tensor:
    """Bits of what `torch.empty(numel).bernoulli_(p, generator=generator)` draws on a CPU: uint8 [⌈numel/8⌉].

    Not while another thread draws from `generator`, unless by this function.
    """
    packed: Tensor = (replaced() or cpu).draw_mask(numel, p, generator)
    return packed


_instead = threading.local()


@contextmanager
def instead(other: Any) -> Iterator[None]:
    """While open, in this thread, `other` has the functions of every backend."""
    before, _instead.backend = replaced(), other
    try:
        yield
    finally:
        _instead.backend = before


def replaced() -> Any:
    """What is in the place of every backend; None if nothing is."""
    return getattr(_instead, "backend", None)


def backend(tensor: Tensor) -> Any:
    """The module whose functions work on tensors of `tensor`'s device."""
    if (other := replaced()) is not None:
        return other
    if not tensor.is_cuda:
        return cpu
    from actbench.quant import cuda

    return cuda
