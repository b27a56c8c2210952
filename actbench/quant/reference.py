"""The quantizer in plain torch, on any device: the oracle of every other backend, and the CPU backend.

Blocks hold G values x. The minimum m is rounded to bfloat16 downwards and the scale s = (max - m) / B upwards
*before* anything is quantized, so m and m + B·s enclose the block and what is read back is unbiased. Then
t = (x - m)·(1 / s), code = i + [u < (t - e_i)·(1 / (e_{i+1} - e_i))] on the level table e, and x̂ = m + e_code·s;
each operation is one float32 rounding.

A block with a NaN, an infinity or a range beyond float32 has NaN as minimum and scale and is read back as NaN. A
block whose range is below 2**-80 counts as constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actbench.quant import philox

_CHUNK_ELEMENTS = 2**20
_SMALLEST_RANGE = 2.0**-80
_SMALLEST_NORMAL = 2.0**-126


def quantize(
    x: Tensor, block_length: int, bits: int, levels: tuple[float, ...], seed: int, stream: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize contiguous `x` (float32, float16 or bfloat16, any shape) with stochastic rounding.

    Returns packed codes uint8 [⌈numel·bits/8⌉] and the blocks' minimum and scale, bfloat16 [blocks].
    """
    values = x.reshape(-1)
    edges, inverse_widths = _tables(levels, x.device)
    # Whole multiples of 8 blocks start on a byte and on a Philox group, whatever bits and block length.
    rows = max(_CHUNK_ELEMENTS // block_length // 8 * 8, 8)
    parts = [
        _quantize_chunk(chunk, start * rows * block_length, block_length, bits, edges, inverse_widths, seed, stream)
        for start, chunk in enumerate(values.split(rows * block_length))
    ]
    codes, minimum, scale = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(minimum), torch.cat(scale)


def dequantize(
    codes: Tensor,
    minimum: Tensor,
    scale: Tensor,
    numel: int,
    block_length: int,
    bits: int,
    levels: tuple[float, ...],
    dtype: torch.dtype,
) -> Tensor:
    """The values that `quantize` packed, `dtype` [numel]."""
    edges, _ = _tables(levels, codes.device)
    out = torch.empty(numel, dtype=dtype, device=codes.device)
    rows = max(_CHUNK_ELEMENTS // block_length // 8 * 8, 8)
    for block in range(0, max(minimum.numel(), 1), rows):
        first = block * block_length
        last = min(first + rows * block_length, numel)
        code = _unpack_bits(codes[first * bits // 8 : -(-last * bits // 8)], bits)[: last - first]
        grid = _in_blocks(edges[code.to(torch.int64)], block_length)
        grid.mul_(scale[block : block + rows, None].to(torch.float32))
        grid.add_(minimum[block : block + rows, None].to(torch.float32))
        out[first:last] = grid.view(-1)[: last - first]
    return out


def pack_mask(mask: Tensor) -> Tensor:
    """Bits of a boolean tensor, lowest first: uint8 [⌈numel/8⌉]."""
    return _pack_bits(mask.reshape(-1).view(torch.uint8), 1)


def unpack_mask(packed: Tensor, numel: int) -> Tensor:
    """The mask that `pack_mask` packed: bool [numel]."""
    return _unpack_bits(packed, 1)[:numel].view(torch.bool)


def projection(width: int, projected: int, seed: int, stream: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The random projection P: `dtype` [width, projected], entries ±1/√projected, E[P Pᵀ] = I."""
    return philox.signs(seed, stream, width * projected, device).view(width, projected).mul_(projected**-0.5).to(dtype)


def _tables(levels: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    edges = torch.tensor(levels, dtype=torch.float32)
    return edges.to(device), (1 / edges.diff()).to(device)


def _in_blocks(values: Tensor, block_length: int) -> Tensor:
    """`values` as [blocks, block_length]; a short last block is filled up with its own last value."""
    missing = -values.numel() % block_length
    if missing:
        values = torch.cat((values, values[-1:].expand(missing)))
    return values.view(-1, block_length)


def _quantize_chunk(
    values: Tensor,
    first: int,
    block_length: int,
    bits: int,
    edges: Tensor,
    inverse_widths: Tensor,
    seed: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    numel = values.numel()
    if numel == 0:
        nothing = values.new_empty(0, dtype=torch.bfloat16)
        return values.new_empty(0, dtype=torch.uint8), nothing, nothing.clone()
    top = 2**bits - 1
    grid = _in_blocks(values.to(torch.float32), block_length)
    low, high = torch.aminmax(grid, dim=1, keepdim=True)
    minimum, scale = _round_range(low, high, top)
    inverse_scale = torch.where(scale > 0, 1 / scale, 0)
    t = (grid - minimum).mul_(inverse_scale).clamp_(0, top).nan_to_num_(0).view(-1)[:numel]
    lower = torch.bucketize(t, edges[1:-1], right=True)
    t = t.sub_(edges[lower]).mul_(inverse_widths[lower])
    up = philox.uniform(seed, stream, first, numel, values.device) < t
    codes = _pack_bits(lower.add_(up).to(torch.uint8), bits)
    return codes, minimum.view(-1).to(torch.bfloat16), scale.view(-1).to(torch.bfloat16)


def _round_range(low: Tensor, high: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """float32 minimum and scale that are bfloat16 numbers and enclose [low, high]."""
    bits = low.contiguous().view(torch.int32)
    # Truncation rounds towards zero, so a negative number needs its magnitude raised first.
    raised = torch.where(bits < 0, bits + 0xFFFF, bits)
    minimum = (raised & -0x10000).view(torch.float32)
    minimum = torch.where(minimum.abs() < _SMALLEST_NORMAL, 0.0, minimum)
    span = high - minimum
    step = span / top
    scale = (step.contiguous().view(torch.int32) + 0xFFFF & -0x10000).view(torch.float32)
    scale = torch.where(span < _SMALLEST_RANGE, 0.0, scale)
    broken = ~(torch.isfinite(span) & torch.isfinite(scale) & torch.isfinite(low))
    nan = torch.full_like(low, torch.nan)
    return torch.where(broken, nan, minimum), torch.where(broken, nan, scale)


def _pack_bits(codes: Tensor, bits: int) -> Tensor:
    per_byte = 8 // bits
    missing = -codes.numel() % per_byte
    if missing:
        codes = torch.cat((codes, codes.new_zeros(missing)))
    columns = codes.view(-1, per_byte)
    packed: Tensor = columns[:, 0].clone()
    for i in range(1, per_byte):
        packed |= columns[:, i] << i * bits
    return packed


def _unpack_bits(packed: Tensor, bits: int) -> Tensor:
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes: Tensor = packed.unsqueeze(1) >> shifts
    return codes.bitwise_and_(2**bits - 1).view(-1)
