"""Which kernel runs with which grid and arguments: all of a launch but the GPU, so that the CPU emulator proves it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Argument = np.generic | npt.NDArray[Any]
"""A scalar, or a structure that a kernel takes by value as an array of one entry; pointers are uint64."""

THREADS = 256
"""Threads of a CTA, the most that the kernels are compiled for."""

_TYPES = {torch.float32: "float", torch.float16: "Float16", torch.bfloat16: "BFloat16"}
_ENTRIES = {torch.float32: "unsigned", torch.float16: "unsigned short", torch.bfloat16: "unsigned short"}
_OCTET = 8
_LONGEST_IN_REGISTERS = 1024
_WARP = 32
_OCTETS_DEQUANTIZED = 2
_MASK_PIECE = 16
_SIGNS_OF_WARP = 256


@dataclass(frozen=True)
class Launch:
    """A kernel of `source`, by its C++ name, over `grid` CTAs of `threads` threads."""

    source: str
    kernel: str
    grid: int
    threads: int
    arguments: tuple[Argument, ...]


def plan_quantize(
    x: Tensor,
    codes: Tensor,
    minimum: Tensor,
    scale: Tensor,
    block_length: int,
    bits: int,
    levels: tuple[float, ...],
    seed: int,
    stream: int,
    threads: int = THREADS,
) -> list[Launch]:
    """Launches that quantize `x` into `codes`, `minimum` and `scale`, in this order; none for an empty `x`.

    `threads`, a power of two from 32 to 256, has no influence on the result.
    """
    numel = x.numel()
    if numel == 0:
        return []
    dtype = _TYPES[x.dtype]
    blocks = -(-numel // block_length)
    shape = np.int64(numel), np.int32(block_length)
    noise = _unsigned(seed), _unsigned(stream), _bins(levels)
    outputs = _pointer(codes), _pointer(minimum), _pointer(scale)
    if block_length % _OCTET == 0 and block_length <= _LONGEST_IN_REGISTERS:
        octets = block_length // _OCTET
        held = 1 if octets == 1 else 2 if octets <= 4 else 4
        lane_bits = _bits_of(-(-octets // held))
        return [
            Launch(
                "quantize.cu",
                f"quantize_blocks<{dtype}, {bits}, {held}>",
                -(-blocks // (threads >> lane_bits)),
                threads,
                (_pointer(x), *outputs, *shape, np.int32(lane_bits), *noise),
            )
        ]
    # A warp goes over up to 1,024 values by itself; beyond that it takes the whole CTA.
    long = block_length > _LONGEST_IN_REGISTERS
    lane_bits = _bits_of(threads if long else min(-(-block_length // _OCTET), _WARP))
    return [
        Launch(
            "quantize.cu",
            f"find_ranges<{dtype}>",
            -(-blocks // (threads >> lane_bits)),
            threads,
            (_pointer(x), *outputs[1:], *shape, np.int32(lane_bits), np.float32(2**bits - 1)),
        ),
        Launch(
            "quantize.cu",
            f"encode<{dtype}, {bits}>",
            -(-numel // (threads * _OCTET)),
            threads,
            (_pointer(x), *outputs, *shape, *noise),
        ),
    ]


def plan_dequantize(
    codes: Tensor,
    minimum: Tensor,
    scale: Tensor,
    out: Tensor,
    block_length: int,
    bits: int,
    levels: tuple[float, ...],
    threads: int = THREADS,
) -> list[Launch]:
    """Launches that write the values of `codes`, `minimum` and `scale` to `out`."""
    if out.numel() == 0:
        return []
    shape = np.int64(out.numel()), np.int32(block_length)
    return [
        Launch(
            "dequantize.cu",
            f"dequantize<{_TYPES[out.dtype]}, {bits}>",
            -(-out.numel() // (threads * _OCTET * _OCTETS_DEQUANTIZED)),
            threads,
            (_pointer(codes), _pointer(minimum), _pointer(scale), _pointer(out), *shape, _edges(levels)),
        )
    ]


def plan_pack_mask(mask: Tensor, packed: Tensor, threads: int = THREADS) -> list[Launch]:
    """Launches that write the bits of the boolean `mask` to `packed`."""
    return _plan_mask("pack_mask", mask, packed, mask.numel(), threads)


def plan_unpack_mask(packed: Tensor, mask: Tensor, threads: int = THREADS) -> list[Launch]:
    """Launches that write the bits of `packed` to the boolean `mask`."""
    return _plan_mask("unpack_mask", packed, mask, mask.numel(), threads)


def plan_projection(out: Tensor, seed: int, stream: int, threads: int = THREADS) -> list[Launch]:
    """Launches that fill `out` [width, projected] with ±1/√projected."""
    if out.numel() == 0:
        return []
    magnitude = torch.tensor(out.shape[1] ** -0.5, dtype=torch.float32).to(out.dtype)
    pattern = magnitude.view(torch.uint32 if out.dtype == torch.float32 else torch.uint16).numpy()
    return [
        Launch(
            "projection.cu",
            f"fill_projection<{_ENTRIES[out.dtype]}>",
            -(-out.numel() // (threads // _WARP * _SIGNS_OF_WARP)),
            threads,
            (_pointer(out), np.int64(out.numel()), pattern, _unsigned(seed), _unsigned(stream)),
        )
    ]


def kernel_names() -> list[tuple[str, str]]:
    """Source and name of every kernel that a plan may ask for."""
    types, widths = _TYPES.values(), (1, 2, 4, 8)
    names = [("quantize.cu", f"find_ranges<{dtype}>") for dtype in types]
    for dtype, bits in product(types, widths):
        names += [("quantize.cu", f"quantize_blocks<{dtype}, {bits}, {held}>") for held in (1, 2, 4)]
        names += [("quantize.cu", f"encode<{dtype}, {bits}>"), ("dequantize.cu", f"dequantize<{dtype}, {bits}>")]
    names += [("mask.cu", "pack_mask"), ("mask.cu", "unpack_mask")]
    return names + [("projection.cu", f"fill_projection<{entry}>") for entry in ("unsigned", "unsigned short")]


def _plan_mask(kernel: str, source: Tensor, target: Tensor, numel: int, threads: int) -> list[Launch]:
    if numel == 0:
        return []
    grid = -(-numel // (threads * _MASK_PIECE))
    return [Launch("mask.cu", kernel, grid, threads, (_pointer(source), _pointer(target), np.int64(numel)))]


def _pointer(tensor: Tensor) -> np.uint64:
    return np.uint64(tensor.data_ptr())


def _unsigned(number: int) -> np.uint64:
    return np.uint64(number & 0xFFFF_FFFF_FFFF_FFFF)


def _bits_of(lanes: int) -> int:
    """Exponent of the smallest power of two that is not below `lanes`."""
    return (lanes - 1).bit_length()


@lru_cache(maxsize=256)
def _edges(levels: tuple[float, ...]) -> npt.NDArray[Any]:
    table = np.zeros((), dtype=[("edge", np.float32, (len(levels),))])
    table["edge"] = levels
    return table


@lru_cache(maxsize=256)
def _bins(levels: tuple[float, ...]) -> npt.NDArray[Any]:
    """`Table` of quantize.cu: a bin's lower edge and inverse width; the top edge becomes out of reach."""
    edges = np.array(levels, dtype=np.float32)
    table = np.zeros((), dtype=[("bins", np.float32, (len(levels), 2))])
    table["bins"][:-1, 0] = edges[:-1]
    table["bins"][-1, 0] = np.inf
    table["bins"][:-1, 1] = np.float32(1) / np.diff(edges)
    return table
