"""The quantizer in plain torch, on any device: the oracle that every backend's results are equal to, bit for bit.

Blocks hold G values x. The minimum m is rounded to bfloat16 downwards and the scale s = (max - m) / B upwards
*before* anything is quantized, so m and m + B·s enclose the block and what is read back is unbiased. Then
t = (x - m)·(1 / s), code = i + [u < (t - e_i)·(1 / (e_{i+1} - e_i))] on the level table e, and x̂ = m + e_code·s;
each operation is one float32 rounding.

A block with a NaN, an infinity or a range beyond float32 is broken: it has NaN as minimum and scale, is read back as
NaN, and sets `broken`, an int32 [1] in host memory (pinned for a GPU, whose kernels write to it), where one is given.
A block whose range is below 2**-80 counts as constant.

A rectified code is one of a ReLU's output: 0 where it is not above 0, else 1 + the code of stochastic rounding onto a
level table e_0 = 0 … e_B = B whose scale is s = max / B, rounded to bfloat16 upwards; it reads as 0 or e_(code - 1)·s.
The mask is exact and the value unbiased. A block with a NaN or the infinity above is broken: its scale is NaN.

A projection multiplies by signs alone, whose products are exact; its sums are float32 sums in the order of the summed
dimension, so that they too are the same everywhere, and are then multiplied by the float32 of 1/√R.
"""

from __future__ import annotations

import torch
from torch import Tensor

from actbench.quant import philox
from actbench.quant.layout import BlockCode
from actbench.scheme import TRIT_BITS

_CHUNK_ELEMENTS = 2**20
_SMALLEST_RANGE = 2.0**-80
_SMALLEST_NORMAL = 2.0**-126


def quantize(
    x: Tensor,
    code: BlockCode,
    seed: int,
    stream: int,
    broken: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize contiguous `x` (float32, float16 or bfloat16, any shape) with stochastic rounding.

    Returns packed codes uint8 [⌈numel·bits/8⌉] and the blocks' minimum and scale, bfloat16 [blocks].
    """
    values = x.reshape(-1)
    edges, inverse_widths = _tables(code.levels, x.device)
    # Whole multiples of 8 blocks start on a byte and on a Philox group, whatever bits and block length.
    rows = max(_CHUNK_ELEMENTS // code.block_length // 8 * 8, 8)
    parts = [
        _quantize_chunk(chunk, start * rows * code.block_length, code, edges, inverse_widths, seed, stream)
        for start, chunk in enumerate(values.split(rows * code.block_length))
    ]
    codes, minimum, scale = (torch.cat(part) for part in zip(*parts, strict=True))
    if broken is not None and scale.isnan().any():
        broken.fill_(1)
    return codes, minimum, scale


def dequantize(
    codes: Tensor,
    minimum: Tensor,
    scale: Tensor,
    numel: int,
    code: BlockCode,
    dtype: torch.dtype,
) -> Tensor:
    """The values that `quantize` packed, `dtype` [numel]."""
    edges, _ = _tables(code.levels, codes.device)
    bits = int(code.bits)
    out = torch.empty(numel, dtype=dtype, device=codes.device)
    rows = max(_CHUNK_ELEMENTS // code.block_length // 8 * 8, 8)
    for block in range(0, max(minimum.numel(), 1), rows):
        first = block * code.block_length
        last = min(first + rows * code.block_length, numel)
        symbols = _unpack_bits(codes[first * bits // 8 : -(-last * bits // 8)], bits)[: last - first]
        grid = _in_blocks(edges[symbols.to(torch.int64)], code.block_length)
        grid.mul_(scale[block : block + rows, None].to(torch.float32))
        grid.add_(minimum[block : block + rows, None].to(torch.float32))
        out[first:last] = grid.view(-1)[: last - first]
    return out


def project_quantize(
    x: Tensor,
    projected: int,
    code: BlockCode,
    seed: int,
    sign_stream: int,
    stream: int,
    broken: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize x P of `x` [rows, width], P the projection [width, projected] of (`seed`, `sign_stream`).

    Blocks are formed of x P [rows, projected], which stays float32 for an `x` of any dtype.
    """
    signs = philox.signs(seed, sign_stream, x.shape[1] * projected, x.device).view(-1, projected)
    u = _signed_product(x, signs, projected)
    return quantize(u, code, seed, stream, broken)


def dequantize_unproject(
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
    """What `project_quantize` packed, read back and times Pᵀ: `dtype` [rows, width]."""
    u = dequantize(codes, minimum, scale, rows * projected, code, torch.float32)
    signs = philox.signs(seed, sign_stream, width * projected, codes.device).view(width, projected)
    return _signed_product(u.view(rows, projected), signs.t(), projected).to(dtype)


def quantize_rectified(
    x: Tensor,
    code: BlockCode,
    seed: int,
    stream: int,
    broken: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rectified codes of contiguous `x` (float32, float16 or bfloat16, any shape), a ReLU's input or output.

    Returns packed codes uint8 [⌈numel·bits/8⌉] and the blocks' scales, bfloat16 [blocks].
    """
    values = x.reshape(-1)
    edges, inverse_widths = _tables(code.levels, x.device)
    # Whole multiples of 40 blocks start on a byte, of trits too, and on a Philox group.
    rows = max(_CHUNK_ELEMENTS // code.block_length // 40 * 40, 40)
    parts = [
        _rectify_chunk(chunk, start * rows * code.block_length, code, edges, inverse_widths, seed, stream)
        for start, chunk in enumerate(values.split(rows * code.block_length))
    ]
    codes, scale = (torch.cat(part) for part in zip(*parts, strict=True))
    if broken is not None and scale.isnan().any():
        broken.fill_(1)
    return codes, scale


def dequantize_rectified(
    codes: Tensor,
    scale: Tensor,
    numel: int,
    code: BlockCode,
    dtype: torch.dtype,
    mask: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """The values that `quantize_rectified` packed, `dtype` [numel]: the estimate of a ReLU's output.

    With `mask`, bits of a dropout that came after, that of the dropout's output: times the float32 of `factor` where
    its bit is set, 0 elsewhere.
    """
    edges, _ = _tables((0.0, *code.levels), codes.device)
    symbols = _unpack_codes(codes, code.bits)[:numel].to(torch.int64)
    values = edges[symbols] * scale.to(torch.float32).repeat_interleave(code.block_length)[:numel]
    if mask is not None:
        values = torch.where(unpack_mask(mask, numel), values * torch.tensor(factor, dtype=torch.float32), 0)
    return values.to(dtype)


def pass_rectified(
    gradient: Tensor, codes: Tensor, code: BlockCode, mask: Tensor | None = None, factor: float = 1.0
) -> Tensor:
    """Contiguous `gradient` by a ReLU's output, or by that of the dropout after it, as gradient by the ReLU's input.

    Exact: times the float32 of `factor` where the code is not 0 and, with `mask`, its bit is set; 0 elsewhere.
    """
    numel = gradient.numel()
    passed = _unpack_codes(codes, code.bits)[:numel] != 0
    if mask is not None:
        passed &= unpack_mask(mask, numel)
    scaled = gradient.to(torch.float32) * torch.tensor(factor, dtype=torch.float32)
    return torch.where(passed.view(gradient.shape), scaled, 0).to(gradient.dtype)


def norm_sums(
    gradient: Tensor,
    codes: Tensor,
    scale: Tensor,
    code: BlockCode,
    mask: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """What batch norm's backward needs of every column, float64 [4, C]: Σ g, Σ g ŷ, Σ ŷ and how many ŷ are positive.

    `gradient` [N, C] is as in `pass_rectified`, g what that makes of it, ŷ the estimate of the ReLU's output. Each
    product is a float32; the order of the sums is free.
    """
    numel = gradient.numel()
    g = pass_rectified(gradient.to(torch.float32), codes, code, mask, factor)
    y = dequantize_rectified(codes, scale, numel, code, torch.float32).view(g.shape)
    positive = (_unpack_codes(codes, code.bits)[:numel] != 0).view(g.shape)
    return torch.stack([part.sum(0, dtype=torch.float64) for part in (g, g * y, y, positive)])


def norm_gradient(
    gradient: Tensor,
    codes: Tensor,
    scale: Tensor,
    code: BlockCode,
    coefficients: Tensor,
    mask: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Gradient by a batch norm's input, the gradient's dtype [N, C]: of `gradient` and the codes as in `norm_sums`.

    `coefficients` are float32 [4, C], a, b, c, d: a g - b - c ŷ where ŷ is positive and d elsewhere, each operation one
    float32 rounding.
    """
    a, b, c, d = coefficients
    numel = gradient.numel()
    g = pass_rectified(gradient.to(torch.float32), codes, code, mask, factor)
    y = dequantize_rectified(codes, scale, numel, code, torch.float32).view(g.shape)
    positive = (_unpack_codes(codes, code.bits)[:numel] != 0).view(g.shape)
    return torch.where(positive, a * g - b - c * y, d).to(gradient.dtype)


def pack_positive(x: Tensor) -> Tensor:
    """Bits of ¬(x <= 0), lowest first: uint8 [⌈numel/8⌉]; a NaN's bit is set."""
    return pack_mask(~(x <= 0))


def keep_where(values: Tensor, packed: Tensor) -> Tensor:
    """Contiguous `values` (float32, float16 or bfloat16) where their bit is set, 0 elsewhere."""
    return values.masked_fill(~unpack_mask(packed, values.numel()).view(values.shape), 0)


def scale_where(values: Tensor, packed: Tensor, factor: float) -> Tensor:
    """Contiguous `values` times the float32 of `factor` where their bit is set, times 0 elsewhere.

    One rounding, to the values' dtype; an infinity times 0 is NaN.
    """
    mask = unpack_mask(packed, values.numel()).view(values.shape)
    return (values.to(torch.float32) * (mask.to(torch.float32) * factor)).to(values.dtype)


def pack_mask(mask: Tensor) -> Tensor:
    """Bits of a boolean or int32 tensor, lowest first: uint8 [⌈numel/8⌉]."""
    return _pack_bits((mask != 0).reshape(-1).view(torch.uint8), 1)


def unpack_mask(packed: Tensor, numel: int) -> Tensor:
    """The mask that `pack_mask` packed: bool [numel]."""
    return _unpack_bits(packed, 1)[:numel].view(torch.bool)


def sparse_product(crow: Tensor, col: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """The CSR matrix of `crow` [n + 1], `col` [E] and `values` [E] times `x` [m, C], float32: [n, C].

    Each product and each sum is rounded, in the order of the row's entries.
    """
    out = x.new_zeros(crow.numel() - 1, x.shape[1])
    degree = crow.diff()
    for turn in range(int(degree.max()) if degree.numel() else 0):
        rows = (degree > turn).nonzero().view(-1)
        entries = crow[rows] + turn
        out[rows] += values[entries].unsqueeze(1) * x[col[entries]]
    return out


def projection(width: int, projected: int, seed: int, stream: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The random projection P: `dtype` [width, projected], entries ±1/√projected, E[P Pᵀ] = I."""
    return philox.signs(seed, stream, width * projected, device).view(width, projected).mul_(projected**-0.5).to(dtype)


def _signed_product(x: Tensor, signs: Tensor, projected: int) -> Tensor:
    """float32 [n, R] of `x` [n, D] times `signs` [D, R], summed in the order of D, over √projected."""
    total = torch.zeros(x.shape[0], signs.shape[1], dtype=torch.float32, device=x.device)
    for column, sign in zip(x.to(torch.float32).unbind(1), signs, strict=True):
        total.add_(column.unsqueeze(1) * sign)
    return total.mul_(projected**-0.5)


def _tables(levels: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    edges = torch.tensor(levels, dtype=torch.float32, device="cpu")
    return edges.to(device), (1 / edges.diff()).to(device)


def _number(value: float, like: Tensor) -> Tensor:
    """`value` on the device of `like`: to divide by a Python number torch's CUDA multiplies by its reciprocal."""
    return torch.tensor(value, dtype=like.dtype, device="cpu").to(like.device)


def _in_blocks(values: Tensor, block_length: int) -> Tensor:
    """`values` as [blocks, block_length]; a short last block is filled up with its own last value."""
    missing = -values.numel() % block_length
    if missing:
        values = torch.cat((values, values[-1:].expand(missing)))
    return values.view(-1, block_length)


def _quantize_chunk(
    values: Tensor,
    first: int,
    code: BlockCode,
    edges: Tensor,
    inverse_widths: Tensor,
    seed: int,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    numel = values.numel()
    if numel == 0:
        nothing = values.new_empty(0, dtype=torch.bfloat16)
        return values.new_empty(0, dtype=torch.uint8), nothing, nothing.clone()
    top = 2 ** int(code.bits) - 1
    grid = _in_blocks(values.to(torch.float32), code.block_length)
    low, high = torch.aminmax(grid, dim=1, keepdim=True)
    minimum, scale = _round_range(low, high, top)
    inverse_scale = torch.where(scale > 0, 1 / scale, 0)
    t = (grid - minimum).mul_(inverse_scale).clamp_(0, top).nan_to_num_(0).view(-1)[:numel]
    lower = torch.bucketize(t, edges[1:-1], right=True)
    t = t.sub_(edges[lower]).mul_(inverse_widths[lower])
    up = philox.uniform(seed, stream, first, numel, values.device) < t
    codes = _pack_bits(lower.add_(up).to(torch.uint8), int(code.bits))
    return codes, _to_bfloat16(minimum), _to_bfloat16(scale)


def _rectify_chunk(
    values: Tensor,
    first: int,
    code: BlockCode,
    edges: Tensor,
    inverse_widths: Tensor,
    seed: int,
    stream: int,
) -> tuple[Tensor, Tensor]:
    numel, top = values.numel(), edges.numel() - 1
    if numel == 0:
        return values.new_empty(0, dtype=torch.uint8), values.new_empty(0, dtype=torch.bfloat16)
    grid = _in_blocks(values.to(torch.float32), code.block_length)
    high = grid.amax(dim=1, keepdim=True).clamp_min(0)
    step = high / _number(top, high)
    scale = (step.contiguous().view(torch.int32) + 0xFFFF & -0x10000).view(torch.float32)
    scale = torch.where(high < _SMALLEST_RANGE, 0.0, scale)
    scale = torch.where(torch.isfinite(high) & torch.isfinite(scale), scale, torch.nan)
    inverse_scale = torch.where(scale > 0, 1 / scale, 0)
    t = (grid * inverse_scale).clamp_(0, top).nan_to_num_(0).view(-1)[:numel]
    lower = torch.bucketize(t, edges[1:-1], right=True)
    t = t.sub_(edges[lower]).mul_(inverse_widths[lower])
    up = philox.uniform(seed, stream, first, numel, values.device) < t
    positive = (values > 0) & ~scale.isnan().expand_as(grid).reshape(-1)[:numel]
    codes = torch.where(positive, lower.add_(up).add_(1), 0).to(torch.uint8)
    return _pack_codes(codes, code.bits), _to_bfloat16(scale)


def _round_range(low: Tensor, high: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """float32 minimum and scale that are bfloat16 numbers and enclose [low, high]."""
    bits = low.contiguous().view(torch.int32)
    # Truncation rounds towards zero, so a negative number needs its magnitude raised first.
    raised = torch.where(bits < 0, bits + 0xFFFF, bits)
    minimum = (raised & -0x10000).view(torch.float32)
    minimum = torch.where(minimum.abs() < _SMALLEST_NORMAL, 0.0, minimum)
    span = high - minimum
    step = span / _number(top, span)
    scale = (step.contiguous().view(torch.int32) + 0xFFFF & -0x10000).view(torch.float32)
    scale = torch.where(span < _SMALLEST_RANGE, 0.0, scale)
    broken = ~(torch.isfinite(span) & torch.isfinite(scale) & torch.isfinite(low))
    nan = torch.full_like(low, torch.nan)
    return torch.where(broken, nan, minimum), torch.where(broken, nan, scale)


def _to_bfloat16(values: Tensor) -> Tensor:
    """`values`, which are bfloat16 numbers or NaN, in a row; of a NaN's many patterns the usual one."""
    flat = values.view(-1).to(torch.bfloat16)
    flat.view(torch.int16)[flat.isnan()] = 0x7FC0
    return flat


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


def _pack_codes(codes: Tensor, bits: float) -> Tensor:
    """As `_pack_bits`; trits as digits of base 3."""
    if bits != TRIT_BITS:
        return _pack_bits(codes, int(bits))
    digits = torch.cat((codes, codes.new_zeros(-codes.numel() % 5))).view(-1, 5)
    packed: Tensor = (digits * digits.new_tensor([1, 3, 9, 27, 81])).sum(1, dtype=torch.uint8)
    return packed


def _unpack_codes(packed: Tensor, bits: float) -> Tensor:
    if bits != TRIT_BITS:
        return _unpack_bits(packed, int(bits))
    digits = packed.unsqueeze(1) // packed.new_tensor([1, 3, 9, 27, 81]) % 3
    return digits.view(-1)
