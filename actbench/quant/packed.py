"""Quantize and read back a tensor under a scheme, on the backend of its device."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from actbench.quant.backend import Backend, Packed, Replacement
from actbench.quant.cpu import backend as cpu
from actbench.quant.layout import BlockCode, Layout
from actbench.quant.levels import level_table
from actbench.scheme import Scheme


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
    code: BlockCode

    @staticmethod
    def of(shape: torch.Size, dtype: torch.dtype, scheme: Scheme) -> Packing:
        """How `scheme` packs a tensor of this shape; its rows are its last dimension."""
        bits, length = bits_and_block(shape, scheme)
        # Trits are for rectified codes.
        bits = math.ceil(bits)
        return Packing(shape, dtype, BlockCode(length, bits, level_table(scheme.levels, bits, length)))

    @property
    def layout(self) -> Layout:
        """The bytes that the packed tensors take."""
        return self.code.layout(self.shape.numel())


@dataclass(frozen=True)
class Projection:
    """A random projection P [width, projected] of Philox (`seed`, `stream`): entries ±1/√projected, E[P Pᵀ] = I."""

    width: int
    projected: int
    seed: int
    stream: int

    def matrix(self, like: Tensor) -> Tensor:
        """P in `like`'s dtype and on its device."""
        shape, noise = (self.width, self.projected), (self.seed, self.stream)
        return backend(like).projection(*shape, *noise, like.dtype, like.device)


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
    x = x.contiguous()
    if projection is None:
        return backend(x).quantize(x, packing.code, seed, stream, broken)
    noise = projection.seed, projection.stream, stream
    return backend(x).project_quantize(x, projection.projected, packing.code, *noise, broken)


def dequantize(packed: tuple[Tensor, ...], packing: Packing, projection: Projection | None = None) -> Tensor:
    """An unbiased estimate of what was packed, in its shape and dtype; with `projection`, of x [rows, width]."""
    codes, minimum, scale = packed
    code, dtype = packing.code, packing.dtype
    if projection is None:
        values = backend(codes).dequantize(codes, minimum, scale, packing.shape.numel(), code, dtype)
        return values.view(packing.shape)
    shape, noise = (packing.shape[0], projection.width, projection.projected), (projection.seed, projection.stream)
    return backend(codes).dequantize_unproject(codes, minimum, scale, *shape, code, dtype, *noise)


def pack_positive(x: Tensor) -> Tensor:
    """Where `x` is not at or below 0, as bits: uint8 [⌈numel/8⌉]."""
    return backend(x).pack_positive(x.contiguous())


def pack_mask(mask: Tensor) -> Tensor:
    """A boolean tensor (on a CPU also int32, for != 0) as bits: uint8 [⌈numel/8⌉]."""
    return backend(mask).pack_mask(mask.contiguous())


def unpack_mask(packed: Tensor, shape: torch.Size) -> Tensor:
    """The boolean tensor of `shape` that `pack_mask` packed."""
    return backend(packed).unpack_mask(packed, shape.numel()).view(shape)


def keep_where(values: Tensor, packed: Tensor) -> Tensor:
    """`values` where their bit in `packed` is set, 0 elsewhere."""
    return backend(values).keep_where(values.contiguous(), packed)


def scale_where(values: Tensor, packed: Tensor, factor: float) -> Tensor:
    """`values` times `factor` where their bit in `packed` is set, times 0 elsewhere."""
    return backend(values).scale_where(values.contiguous(), packed, factor)


def draw_mask(numel: int, p: float, generator: torch.Generator) -> Tensor:
    """Bits of what `torch.empty(numel).bernoulli_(p, generator=generator)` draws on a CPU: uint8 [⌈numel/8⌉].

    Not while another thread draws from `generator`, unless by this function.
    """
    other = replaced()
    return cpu.draw_mask(numel, p, generator) if other is None else other.draw_mask(numel, p, generator)


_instead = threading.local()


@contextmanager
def instead(other: Replacement) -> Iterator[None]:
    """While open, in this thread, `other` has the functions of every backend."""
    before, _instead.backend = replaced(), other
    try:
        yield
    finally:
        _instead.backend = before


def replaced() -> Replacement | None:
    """What is in the place of every backend; None if nothing is."""
    replacement: Replacement | None = getattr(_instead, "backend", None)
    return replacement


def backend(tensor: Tensor) -> Backend:
    """The module whose functions work on tensors of `tensor`'s device."""
    if (other := replaced()) is not None:
        return other
    if not tensor.is_cuda:
        return cpu
    from actbench.quant.cuda import backend as cuda

    return cuda
