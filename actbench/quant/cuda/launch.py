"""Which kernel runs with which grid and arguments: all of a launch but the GPU, so that the CPU emulator proves it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, gcd, lcm
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actbench.quant.layout import CODES_A_BYTE, BlockCode

Argument = np.generic | npt.NDArray[Any]
"""A scalar, or a structure that a kernel takes by value as an array of one entry; pointers are uint64."""

THREADS = 256
"""Threads of a CTA, the most that the kernels are compiled for."""

PRODUCT_THREADS = 128
"""The same of the kernels that multiply by a projection."""

BANDS = 16
"""Bands of rows that a thread of batch norm's kernels goes over; see norm.cu."""

_TYPES = {torch.float32: "float", torch.float16: "Float16", torch.bfloat16: "BFloat16"}
_ENTRIES = {torch.float32: "unsigned", torch.float16: "unsigned short", torch.bfloat16: "unsigned short"}
_INDICES = {torch.int32: "int", torch.int64: "long long"}
_OCTET = 8
_LONGEST_IN_REGISTERS = 1024
_WARP = 32
_OCTETS_DEQUANTIZED = 2
_MASK_PIECE = 16
_OCTETS_MASKED = 2
_TRITS = 5
_MOST_VALUES_OF_TILE = 4096
_OCTETS_RECTIFIED = 2
_SIGNS_OF_WARP = 256
_ROWS_OF_THREAD = 4
_COLUMN_PAIR = 16
_MOST_COLUMN_PAIRS = 8
_ROWS_OF_STRIP = 128


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
    code: BlockCode,
    seed: int,
    stream: int,
    broken: Tensor | None = None,
    threads: int = THREADS,
) -> list[Launch]:
    """Launches that quantize `x` into `codes`, `minimum` and `scale`, in this order; none for an empty `x`.

    They set `broken` as in reference.py. `threads`, a power of two from 32 to 256, has no influence on the result.
    """
    numel = x.numel()
    if numel == 0:
        return []
    dtype = _TYPES[x.dtype]
    blocks = -(-numel // code.block_length)
    shape = np.int64(numel), np.int32(code.block_length)
    noise = _unsigned(seed), _unsigned(stream), _bins(code.levels)
    outputs = _pointer(codes), _pointer(minimum), _pointer(scale)
    flag = _pointer_or_null(broken)
    if code.block_length % _OCTET == 0 and code.block_length <= _LONGEST_IN_REGISTERS:
        octets = code.block_length // _OCTET
        held = 1 if octets == 1 else 2 if octets <= 4 else 4
        lane_bits = _bits_of(-(-octets // held))
        return [
            Launch(
                "quantize.cu",
                f"quantize_blocks<{dtype}, {int(code.bits)}, {held}>",
                -(-blocks // (threads >> lane_bits)),
                threads,
                (_pointer(x), *outputs, flag, *shape, np.int32(lane_bits), *noise),
            )
        ]
    # A warp goes over up to 1,024 values by itself; beyond that it takes the whole CTA.
    lane_bits = (
        _bits_of(threads) if code.block_length > _LONGEST_IN_REGISTERS else _lane_bits_in_warp(code.block_length)
    )
    return [
        Launch(
            "quantize.cu",
            f"find_ranges<{dtype}>",
            -(-blocks // (threads >> lane_bits)),
            threads,
            (_pointer(x), *outputs[1:], flag, *shape, np.int32(lane_bits), np.float32(2 ** int(code.bits) - 1)),
        ),
        Launch(
            "quantize.cu",
            f"encode<{dtype}, {int(code.bits)}>",
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
    code: BlockCode,
    threads: int = THREADS,
) -> list[Launch]:
    """Launches that write the values of `codes`, `minimum` and `scale` to `out`."""
    if out.numel() == 0:
        return []
    shape = np.int64(out.numel()), np.int32(code.block_length)
    return [
        Launch(
            "dequantize.cu",
            f"dequantize<{_TYPES[out.dtype]}, {int(code.bits)}>",
            -(-out.numel() // (threads * _OCTET * _OCTETS_DEQUANTIZED)),
            threads,
            (_pointer(codes), _pointer(minimum), _pointer(scale), _pointer(out), *shape, _edges(code.levels)),
        )
    ]


def plan_project_quantize(
    x: Tensor,
    u: Tensor | None,
    codes: Tensor,
    minimum: Tensor,
    scale: Tensor,
    projected: int,
    code: BlockCode,
    seed: int,
    sign_stream: int,
    stream: int,
    broken: Tensor | None = None,
    threads: int = PRODUCT_THREADS,
) -> list[Launch]:
    """Launches that quantize `x` [n, width] times a projection into `codes`, `minimum` and `scale`.

    The product goes through `u`, float32 [n, projected], which may be None where `fits_tile` says so. `threads` may be
    32, 64 or 128, without influence on the result.
    """
    rows, width = x.shape
    if rows == 0:
        return []
    row_groups, column_pairs = _tile(projected, threads)
    shape = np.int64(rows), np.int32(width), np.int32(projected)
    tile = np.int32(row_groups), np.int32(column_pairs), _factor(projected), _unsigned(seed), _unsigned(sign_stream)
    if u is None:
        tile_rows = _rows_at_once(projected, code.block_length, threads)
        flag = _pointer_or_null(broken)
        return [
            Launch(
                "project.cu",
                f"project_quantize<{_TYPES[x.dtype]}, {int(code.bits)}>",
                -(-rows // tile_rows),
                threads,
                (
                    _pointer(x),
                    _pointer(codes),
                    _pointer(minimum),
                    _pointer(scale),
                    flag,
                    *shape,
                    np.int32(code.block_length),
                    np.int32(_lane_bits_in_warp(code.block_length)),
                    np.int32(tile_rows),
                    *tile,
                    _unsigned(stream),
                    _bins(code.levels),
                ),
            )
        ]
    down, across = -(-rows // (_ROWS_OF_THREAD * row_groups)), -(-projected // (_COLUMN_PAIR * column_pairs))
    return [
        Launch(
            "project.cu",
            f"project<{_TYPES[x.dtype]}>",
            down * across,
            threads,
            (_pointer(x), _pointer(u), *shape, *tile),
        ),
        *plan_quantize(u, codes, minimum, scale, code, seed, stream, broken),
    ]


def fits_tile(projected: int, block_length: int, threads: int = PRODUCT_THREADS) -> bool:
    """Whether `plan_project_quantize` can do with one kernel: a CTA's rows of x P can be whole blocks and octets."""
    return _rows_at_once(projected, block_length, threads) > 0


def plan_dequantize_unproject(
    codes: Tensor,
    minimum: Tensor,
    scale: Tensor,
    out: Tensor,
    projected: int,
    code: BlockCode,
    seed: int,
    sign_stream: int,
    threads: int = PRODUCT_THREADS,
) -> list[Launch]:
    """Launches that write the values of `codes`, `minimum` and `scale` times the transposed projection to `out`."""
    if out.numel() == 0:
        return []
    rows, width = out.shape
    row_groups, column_pairs = _tile(width, threads)
    tile_rows = _ROWS_OF_THREAD * row_groups
    strip_rows = max(_ROWS_OF_STRIP // tile_rows, 1) * tile_rows
    return [
        Launch(
            "unproject.cu",
            f"dequantize_unproject<{_TYPES[out.dtype]}, {int(code.bits)}>",
            -(-rows // strip_rows) * -(-width // (_COLUMN_PAIR * column_pairs)),
            threads,
            (
                _pointer(codes),
                _pointer(minimum),
                _pointer(scale),
                _pointer(out),
                np.int64(rows),
                np.int32(width),
                np.int32(projected),
                np.int32(code.block_length),
                np.int32(strip_rows),
                np.int32(row_groups),
                np.int32(column_pairs),
                _factor(projected),
                _unsigned(seed),
                _unsigned(sign_stream),
                _edges(code.levels),
            ),
        )
    ]


def plan_quantize_rectified(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    code: BlockCode,
    seed: int,
    stream: int,
    broken: Tensor | None = None,
    threads: int = THREADS,
) -> list[Launch]:
    """Launches that write rectified codes of `x` to `codes` and `scale`, in this order; else as `plan_quantize`."""
    numel = x.numel()
    if numel == 0:
        return []
    dtype, symbols = _TYPES[x.dtype], _symbols(code.bits)
    flag = _pointer_or_null(broken)
    shape = np.int64(numel), np.int32(code.block_length)
    whole = lcm(_OCTET, CODES_A_BYTE[code.bits])
    blocks, unit = -(-numel // code.block_length), lcm(whole, code.block_length)
    launches = []
    if unit > _MOST_VALUES_OF_TILE:
        lane_bits = (
            _bits_of(threads) if code.block_length > _LONGEST_IN_REGISTERS else _lane_bits_in_warp(code.block_length)
        )
        launches.append(
            Launch(
                "rectify.cu",
                f"find_scales<{dtype}>",
                -(-blocks // (threads >> lane_bits)),
                threads,
                (_pointer(x), _pointer(scale), flag, *shape, np.int32(lane_bits), np.float32(symbols - 2)),
            )
        )
        unit = whole
    tile = max(threads * _OCTET // unit, 1) * unit
    launches.append(
        Launch(
            "rectify.cu",
            f"quantize_rectified<{dtype}, {symbols}>",
            -(-numel // tile),
            threads,
            (
                _pointer(x),
                _pointer(codes),
                _pointer(scale),
                flag,
                *shape,
                np.int32(_lane_bits_in_warp(code.block_length)),
                np.int32(tile),
                np.int32(not launches),
                _unsigned(seed),
                _unsigned(stream),
                _bins(code.levels, _table_size(code.bits)),
            ),
        )
    )
    return launches


def plan_dequantize_rectified(
    codes: Tensor,
    scale: Tensor,
    out: Tensor,
    code: BlockCode,
    mask: Tensor | None = None,
    factor: float = 1.0,
    threads: int = THREADS,
) -> list[Launch]:
    """Launches that write the values of `codes` and `scale`, after a dropout's `mask`, to `out`."""
    if out.numel() == 0:
        return []
    pointers = _pointer(codes), _pointer(scale), _pointer_or_null(mask), _pointer(out)
    rest = np.int64(out.numel()), np.int32(code.block_length), np.float32(factor), _estimates(code.levels, code.bits)
    name = f"dequantize_rectified<{_TYPES[out.dtype]}, {_symbols(code.bits)}>"
    return [Launch("rectified.cu", name, _rectified_grid(out.numel(), threads), threads, (*pointers, *rest))]


def plan_pass_rectified(
    gradient: Tensor,
    codes: Tensor,
    out: Tensor,
    code: BlockCode,
    mask: Tensor | None = None,
    factor: float = 1.0,
    threads: int = THREADS,
) -> list[Launch]:
    """Launches that write what `codes` and a dropout's `mask` pass on of `gradient` to `out`."""
    numel = gradient.numel()
    if numel == 0:
        return []
    pointers = _pointer(gradient), _pointer(codes), _pointer_or_null(mask), _pointer(out)
    name = f"pass_rectified<{_TYPES[gradient.dtype]}, {_symbols(code.bits)}>"
    rest = np.int64(numel), np.float32(factor)
    return [Launch("rectified.cu", name, _rectified_grid(numel, threads), threads, (*pointers, *rest))]


def partial_shape(rows: int, width: int, threads: int = THREADS) -> tuple[int, int, int, int]:
    """Shape of the float32 sums that `plan_norm_sums` leaves: those of a column are along the first and third one."""
    bands_at_once = threads // _octets_of_band(width)[1]
    rows_of_band = _OCTET // gcd(width, _OCTET)
    return -(-rows // (rows_of_band * bands_at_once * BANDS)), 4, rows_of_band, width


def plan_norm_sums(
    gradient: Tensor,
    codes: Tensor,
    scale: Tensor,
    partial: Tensor,
    code: BlockCode,
    mask: Tensor | None = None,
    factor: float = 1.0,
    threads: int = THREADS,
) -> list[Launch]:
    """Launches that write Σ g, Σ g ŷ, Σ ŷ and the count of positive ŷ over some rows each to `partial`.

    Its shape is `partial_shape`, so that `threads` has an influence on which rows are summed together.
    """
    if gradient.numel() == 0:
        return []
    pointers = _pointer(gradient), _pointer(codes), _pointer(scale), _pointer_or_null(mask), _pointer(partial)
    return _plan_norm("norm_sums", gradient, pointers, False, code, factor, threads)


def plan_norm_gradient(
    gradient: Tensor,
    codes: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    out: Tensor,
    code: BlockCode,
    mask: Tensor | None = None,
    factor: float = 1.0,
    threads: int = THREADS,
) -> list[Launch]:
    """Launches that write a g - b - c ŷ where ŷ is positive, d elsewhere, to `out`; `coefficients` are [4, C]."""
    if gradient.numel() == 0:
        return []
    pointers = _pointer(gradient), _pointer(codes), _pointer(scale), _pointer_or_null(mask)
    outputs = _pointer(coefficients), _pointer(out)
    kernel = "norm_gradient"
    return _plan_norm(kernel, gradient, (*pointers, *outputs), True, code, factor, threads)


def plan_pack_positive(x: Tensor, packed: Tensor, threads: int = THREADS) -> list[Launch]:
    """Launches that write to `packed` which values of `x` are not at or below 0."""
    return _plan_octets_masked("pack_positive", x, (_pointer(x), _pointer(packed)), (), threads)


def plan_keep_where(values: Tensor, packed: Tensor, out: Tensor, threads: int = THREADS) -> list[Launch]:
    """Launches that write `values` to `out` where their bit is set, 0 elsewhere."""
    pointers = _pointer(values), _pointer(packed), _pointer(out)
    return _plan_octets_masked("keep_where", values, pointers, (), threads)


def plan_scale_where(
    values: Tensor, packed: Tensor, factor: float, out: Tensor, threads: int = THREADS
) -> list[Launch]:
    """Launches that write `values` times `factor` to `out` where their bit is set, times 0 elsewhere."""
    pointers = _pointer(values), _pointer(packed), _pointer(out)
    return _plan_octets_masked("scale_where", values, pointers, (np.float32(factor),), threads)


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
    magnitude = torch.tensor(out.shape[1] ** -0.5, dtype=torch.float32, device="cpu").to(out.dtype)
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


def plan_sparse_product(
    crow: Tensor, col: Tensor, values: Tensor, x: Tensor, out: Tensor, threads: int = THREADS
) -> list[Launch]:
    """Launches that write the CSR matrix of `crow`, `col` (int32 or int64) and `values` times `x` to `out` [n, C]."""
    if out.numel() == 0:
        return []
    rows, width = out.shape
    lane_bits = _lane_bits_in_warp(width)
    pointers = _pointer(crow), _pointer(col), _pointer(values), _pointer(x), _pointer(out)
    return [
        Launch(
            "sparse.cu",
            f"multiply_rows<{_INDICES[crow.dtype]}>",
            -(-rows // (threads >> lane_bits)),
            threads,
            (*pointers, np.int64(rows), np.int32(width), np.int32(lane_bits)),
        )
    ]


def _plan_mask(kernel: str, source: Tensor, target: Tensor, numel: int, threads: int) -> list[Launch]:
    if numel == 0:
        return []
    grid = -(-numel // (threads * _MASK_PIECE))
    return [Launch("mask.cu", kernel, grid, threads, (_pointer(source), _pointer(target), np.int64(numel)))]


def _plan_octets_masked(
    kernel: str, values: Tensor, pointers: tuple[Argument, ...], rest: tuple[Argument, ...], threads: int
) -> list[Launch]:
    numel = values.numel()
    if numel == 0:
        return []
    grid = -(-numel // (threads * _OCTET * _OCTETS_MASKED))
    name = f"{kernel}<{_TYPES[values.dtype]}>"
    return [Launch("mask.cu", name, grid, threads, (*pointers, np.int64(numel), *rest))]


def _plan_norm(
    kernel: str,
    gradient: Tensor,
    pointers: tuple[Argument, ...],
    takes_width: bool,
    code: BlockCode,
    factor: float,
    threads: int,
) -> list[Launch]:
    rows, width = gradient.shape
    octets, lanes = _octets_of_band(width)
    shape = np.int64(gradient.numel()), np.int64(octets * _OCTET), *((np.int32(width),) if takes_width else ())
    return [
        Launch(
            "norm.cu",
            f"{kernel}<{_TYPES[gradient.dtype]}, {_symbols(code.bits)}>",
            partial_shape(rows, width, threads)[0] * -(-octets // lanes),
            threads,
            (
                *pointers,
                *shape,
                np.int32(lanes),
                np.int32(code.block_length),
                np.float32(factor),
                _estimates(code.levels, code.bits),
            ),
        )
    ]


def _octets_of_band(width: int) -> tuple[int, int]:
    """Octets of the fewest rows that are whole ones, and how many of them a CTA takes, at most a warp."""
    octets = width // gcd(width, _OCTET)
    # As many in every CTA as can be, so that the last one is not nearly idle.
    return octets, -(-octets // -(-octets // _WARP))


def _rectified_grid(numel: int, threads: int) -> int:
    return -(-numel // (threads * _OCTET * _OCTETS_RECTIFIED))


def _symbols(bits: float) -> int:
    return 3 if CODES_A_BYTE[bits] == _TRITS else 1 << int(bits)


def _table_size(bits: float) -> int:
    """Entries of a table of rectified codes in a kernel, where trits have 2 bits."""
    return 1 << ceil(bits)


def _tile(columns: int, threads: int) -> tuple[int, int]:
    """`Tile` of product.cuh for a product of `columns`: its groups of rows and pairs of groups of columns."""
    pairs = -(-columns // _COLUMN_PAIR)
    # As many pairs in every tile as can be, so that the last tile is not nearly empty.
    column_pairs = -(-pairs // -(-pairs // _MOST_COLUMN_PAIRS))
    return threads // 4 // column_pairs * 2, column_pairs


def _rows_at_once(projected: int, block_length: int, threads: int) -> int:
    """Rows of x P that one CTA quantizes, as many as fit; 0 if none, or if they do not fit in width."""
    if projected > _COLUMN_PAIR * _MOST_COLUMN_PAIRS:
        return 0
    row_groups, _ = _tile(projected, threads)
    unit = lcm(projected, block_length, _OCTET) // projected
    return _ROWS_OF_THREAD * row_groups // unit * unit


def _factor(projected: int) -> np.float32:
    return np.float32(projected**-0.5)


def _lane_bits_in_warp(block_length: int) -> int:
    return _bits_of(min(-(-block_length // _OCTET), _WARP))


def _pointer(tensor: Tensor) -> np.uint64:
    return np.uint64(tensor.data_ptr())


def _pointer_or_null(tensor: Tensor | None) -> np.uint64:
    return np.uint64(0) if tensor is None else _pointer(tensor)


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


def _estimates(levels: tuple[float, ...], bits: float) -> npt.NDArray[Any]:
    """What every rectified code stands for, in units of the scale."""
    return _edges((0.0, *levels, *(_table_size(bits) - 1 - len(levels)) * (0.0,)))


@lru_cache(maxsize=256)
def _bins(levels: tuple[float, ...], size: int | None = None) -> npt.NDArray[Any]:
    """`Table` of rounding.cuh, of `size` entries: a bin's lower edge and inverse width; the rest is out of reach."""
    edges = np.array(levels, dtype=np.float32)
    table = np.zeros((), dtype=[("bins", np.float32, (size or len(levels), 2))])
    table["bins"][:, 0] = np.inf
    table["bins"][: len(levels) - 1, 0] = edges[:-1]
    table["bins"][: len(levels) - 1, 1] = np.float32(1) / np.diff(edges)
    return table
