"""Compares kernels with reference.py bit for bit, outputs between guard bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from actbench.quant import philox, reference
from actbench.quant.cuda.launch import (
    BANDS,
    PRODUCT_THREADS,
    THREADS,
    Launch,
    fits_tile,
    partial_shape,
    plan_dequantize,
    plan_dequantize_rectified,
    plan_dequantize_unproject,
    plan_keep_where,
    plan_norm_gradient,
    plan_norm_sums,
    plan_pack_mask,
    plan_pack_positive,
    plan_pass_rectified,
    plan_project_quantize,
    plan_projection,
    plan_quantize,
    plan_quantize_rectified,
    plan_scale_where,
    plan_sparse_product,
    plan_unpack_mask,
)
from actbench.quant.layout import BlockCode, Layout, RectifiedLayout, mask_bytes
from actbench.quant.levels import level_table

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BITS = (1, 2, 4, 8)
# Bits and levels of rectified codes; edges on a grid of their own as well.
RECTIFIED: tuple[tuple[float, tuple[float, ...]], ...] = (
    (1.6, (0.0, 1.0)),
    (2, (0.0, 1.0, 2.0)),
    (2, (0.0, 0.8, 2.0)),
    (4, tuple(map(float, range(15)))),
    (4, (0.0, *(level + 0.03 * level * (14 - level) / 14 for level in range(1, 14)), 14.0)),
    (8, tuple(map(float, range(255)))),
)
_GUARD_BYTES = 64
_GUARD = 0xA5


class Runs(Protocol):
    def run(self, launches: list[Launch]) -> None: ...


class Guarded:
    """A tensor of `numel` entries with guard bytes before and after it."""

    def __init__(self, numel: int, dtype: torch.dtype) -> None:
        size = numel * dtype.itemsize
        self._bytes = torch.full((size + 2 * _GUARD_BYTES,), _GUARD, dtype=torch.uint8)
        self.tensor = self._bytes[_GUARD_BYTES : _GUARD_BYTES + size].view(dtype)

    def assert_intact(self) -> None:
        size = self.tensor.numel() * self.tensor.element_size()
        around = torch.cat((self._bytes[:_GUARD_BYTES], self._bytes[_GUARD_BYTES + size :]))
        assert bool((around == _GUARD).all()), "bytes outside of an output were written to"


def make_values(kind: str, numel: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Values [numel] of a kind that a block may be made of."""
    noise = torch.randn(numel, generator=torch.Generator().manual_seed(seed))
    marks = torch.rand(numel, generator=torch.Generator().manual_seed(seed + 1))
    if kind == "constant":
        noise = torch.full((numel,), -3.7)
    elif kind == "zeros":
        noise = torch.where(marks < 0.5, 0.0, -0.0)
    elif kind == "subnormal":
        noise = noise * 2.0**-127
    elif kind == "tiny and large":
        noise = torch.where(marks < 0.5, noise * 2.0**-130, noise)
    elif kind == "huge":
        noise = noise.sign() * torch.finfo(dtype).max * (1 - 0.6 * marks)
    elif kind == "broken":
        strange = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf, 3e38, -3e38])
        noise = torch.where(marks < 0.02, strange[(marks * 1e4).long() % 6], noise)
    elif kind == "integers":
        noise = (noise * 4).round()
    return noise.to(dtype)


@dataclass(frozen=True)
class EdgeCase:
    """A block that only exact arithmetic rounds right: the noise of `stream` is an end of [0, 1) at one value."""

    name: str
    x: Tensor
    levels: tuple[float, ...]
    stream: int
    block_length: int = 64
    bits: int = 2


EDGE_SEED = 7
# With that seed the uniform number of this stream and element is 0, and 1 - 2**-24.
_NO_NOISE = 169_043, 40
_FULL_NOISE = 44_412, 13
_UNIFORM = (0.0, 1.0, 2.0, 3.0)
# The last bin's float32 width times its float32 inverse is 1 - 2**-24.
_SHORT_OF_ONE = (0.0, 1.0, 3.0 - 1.1015625, 3.0)
# 3 times the bfloat16 scale 1.484375, whose float32 inverse is rounded up: t = 3.0000002.
_BEYOND = 4.453125


def _place(value: float, stream_element: tuple[int, int], top: float, numel: int = 64) -> Tensor:
    x = torch.zeros(numel)
    x[0] = top
    x[stream_element[1]] = value
    return x


EDGE_CASES = (
    EdgeCase("a subnormal value is above the minimum", _place(1e-40, _NO_NOISE, 1.0), _UNIFORM, _NO_NOISE[0]),
    EdgeCase("t is subnormal", _place(1e-20, _NO_NOISE, 1e20), _UNIFORM, _NO_NOISE[0]),
    EdgeCase("t underflows", _place(1e-30, _NO_NOISE, 1e30), _UNIFORM, _NO_NOISE[0]),
    EdgeCase("the part of a bin underflows", _place(1e-23, _NO_NOISE, 3e22), (0.0, 2.5, 2.75, 3.0), _NO_NOISE[0]),
    EdgeCase("the inverse scale is subnormal", _place(1e38, _NO_NOISE, 3.3e38), _UNIFORM, _NO_NOISE[0]),
    EdgeCase("a value on the minimum stays there", _place(0.0, _NO_NOISE, 1.0), _UNIFORM, _NO_NOISE[0]),
    EdgeCase("the maximum is not quite reached", _place(3.0, _FULL_NOISE, 3.0), _SHORT_OF_ONE, _FULL_NOISE[0]),
    EdgeCase("t beyond the top is clamped", _place(_BEYOND, _FULL_NOISE, _BEYOND), _SHORT_OF_ONE, _FULL_NOISE[0]),
    EdgeCase("minimum is the largest subnormal, raised", torch.tensor([-1.17e-38, -1.1754e-38] * 32), _UNIFORM, 0),
    EdgeCase("minimum is subnormal and negative", _place(-1e-39, _NO_NOISE, 1.0), _UNIFORM, _NO_NOISE[0]),
)


@dataclass(frozen=True)
class Rectified:
    """Everything that the functions of rectified codes take; `mask` are the bits of a dropout, if there is one."""

    x: Tensor
    block_length: int
    bits: float
    levels: tuple[float, ...]
    mask: Tensor | None = None
    factor: float = 1.0
    seed: int = 7
    stream: int = 3

    @property
    def code(self) -> BlockCode:
        return BlockCode(self.block_length, self.bits, self.levels)

    @property
    def dropped(self) -> tuple[Tensor | None, float]:
        return self.mask, self.factor


_TWO_BITS = 2, (0.0, 1.0, 2.0)
# As for _SHORT_OF_ONE.
_SHORT_OF_TWO = 2, (0.0, 2.0 - 1.1015625, 2.0)
_SHORT_OF_14 = 4, (*map(float, range(13)), 14.0 - 1.1015625, 14.0)
# 14 times the bfloat16 scale 1.3046875, whose float32 inverse is rounded up: t = 14.000001.
_BEYOND_14 = 18.265625


def _rectified_edge(x: Tensor, how: tuple[float, tuple[float, ...]], stream: int = 0) -> Rectified:
    return Rectified(x, 64, *how, seed=EDGE_SEED, stream=stream)


RECTIFIED_EDGE_CASES = {
    "a subnormal value is positive": _rectified_edge(_place(1e-40, _NO_NOISE, 1.0), _TWO_BITS, _NO_NOISE[0]),
    "t is subnormal": _rectified_edge(_place(1e-20, _NO_NOISE, 1e20), _TWO_BITS, _NO_NOISE[0]),
    "the inverse scale is subnormal": _rectified_edge(_place(1e38, _NO_NOISE, 3.3e38), _TWO_BITS, _NO_NOISE[0]),
    "the maximum is not quite reached": _rectified_edge(_place(2.0, _FULL_NOISE, 2.0), _SHORT_OF_TWO, _FULL_NOISE[0]),
    "t beyond the top is clamped": _rectified_edge(
        _place(_BEYOND_14, _FULL_NOISE, _BEYOND_14), _SHORT_OF_14, _FULL_NOISE[0]
    ),
    "the largest maximum that counts as 0": _rectified_edge(
        _place(2.0**-81, _FULL_NOISE, 2.0**-80 - 2.0**-104), _TWO_BITS
    ),
    "the smallest maximum that does not": _rectified_edge(_place(2.0**-81, _FULL_NOISE, 2.0**-80), _TWO_BITS),
    "the infinity below is no maximum": _rectified_edge(_place(-torch.inf, _FULL_NOISE, 1.0), _TWO_BITS),
    "a scale beyond bfloat16": _rectified_edge(torch.full((64,), torch.finfo(torch.float32).max), (1.6, (0.0, 1.0))),
    "a NaN with its sign set": _rectified_edge(torch.full((64,), -1, dtype=torch.int32).view(torch.float32), _TWO_BITS),
}

KINDS = ("normal", "constant", "zeros", "subnormal", "tiny and large", "huge", "broken", "integers")


def assert_same(actual: Tensor, expected: Tensor, what: str) -> None:
    """Equal bits, except that any NaN equals any other."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.element_size()]
    same = actual.view(integers) == expected.view(integers)
    if expected.is_floating_point():
        same |= actual.isnan() & expected.isnan()
    where = (~same).nonzero().flatten().tolist()
    assert not where, f"{what} differ at {where[:8]}: {actual[where[:4]]} instead of {expected[where[:4]]}"


def make_outputs(numel: int, block_length: int, bits: int) -> tuple[Guarded, ...]:
    """Codes, minima, scales and the broken flag, which is 0."""
    layout = Layout(numel, block_length, bits)
    flag = Guarded(1, torch.int32)
    flag.tensor.zero_()
    metadata = (Guarded(layout.blocks, torch.bfloat16) for _ in range(2))
    return Guarded(layout.code_bytes, torch.uint8), *metadata, flag


def assert_same_packed(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Codes, minima, scales and the broken flag are the same."""
    for place, what in ((1, "minima"), (2, "scales"), (0, "codes"), (3, "broken flags")):
        assert_same(actual[place], expected[place], what)


def check_quantize(
    machine: Runs,
    x: Tensor,
    block_length: int,
    bits: int,
    table: str | tuple[float, ...] = "uniform",
    seed: int = 7,
    stream: int = 3,
    threads: int = THREADS,
) -> None:
    """Quantize and dequantize `x`; codes, minimum, scale and values are those of the reference."""
    levels = level_table(table, bits, block_length) if isinstance(table, str) else table
    outputs = make_outputs(x.numel(), block_length, bits)
    codes, minimum, scale, flag = (output.tensor for output in outputs)
    machine.run(
        plan_quantize(x, codes, minimum, scale, BlockCode(block_length, bits, levels), seed, stream, flag, threads)
    )
    expected_flag = torch.zeros(1, dtype=torch.int32)
    expected = reference.quantize(x, BlockCode(block_length, bits, levels), seed, stream, expected_flag)
    assert_same_packed((codes, minimum, scale, flag), (*expected, expected_flag))
    out = Guarded(x.numel(), x.dtype)
    machine.run(plan_dequantize(*expected, out.tensor, BlockCode(block_length, bits, levels), threads))
    values = reference.dequantize(*expected, x.numel(), BlockCode(block_length, bits, levels), x.dtype)
    assert_same(out.tensor, values, "values")
    for output in (*outputs, out):
        output.assert_intact()


def check_mask(machine: Runs, mask: Tensor, threads: int = THREADS) -> None:
    """Pack and unpack `mask`; both are those of the reference."""
    packed, out = Guarded(mask_bytes(mask.numel()), torch.uint8), Guarded(mask.numel(), torch.bool)
    machine.run(plan_pack_mask(mask, packed.tensor, threads))
    assert_same(packed.tensor, reference.pack_mask(mask), "packed masks")
    machine.run(plan_unpack_mask(packed.tensor, out.tensor, threads))
    assert_same(out.tensor, mask, "masks")
    packed.assert_intact()
    out.assert_intact()


def make_csr(rows: int, columns: int, seed: int, index: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """crow, col and values of a matrix with empty rows, a full one, and entries in no order, some of them twice."""
    generator = torch.Generator().manual_seed(seed)
    degree = torch.randint(0, 6, (rows,), generator=generator) * (torch.rand(rows, generator=generator) < 0.7)
    degree[rows // 2 : rows // 2 + 1] = 3 * columns
    if not columns:
        degree.zero_()
    crow = torch.cat((torch.zeros(1, dtype=torch.int64), degree.cumsum(0)))
    col = torch.randint(0, max(columns, 1), (int(crow[-1]),), generator=generator)
    return crow.to(index), col.to(index), torch.randn(col.numel(), generator=generator)


def check_sparse_product(machine: Runs, csr: tuple[Tensor, Tensor, Tensor], x: Tensor, threads: int = THREADS) -> None:
    """Multiply; the product is that of the reference, bit for bit."""
    rows, width = csr[0].numel() - 1, x.shape[1]
    out = Guarded(rows * width, torch.float32)
    machine.run(plan_sparse_product(*csr, x, out.tensor.view(rows, width), threads))
    expected = reference.sparse_product(*csr, x)
    assert_same(out.tensor, expected.reshape(-1), "products")
    out.assert_intact()


def check_projection(
    machine: Runs,
    width: int,
    projected: int,
    dtype: torch.dtype,
    seed: int = 7,
    stream: int = 3,
    threads: int = THREADS,
) -> None:
    """Fill a projection; it is that of the reference."""
    out = Guarded(width * projected, dtype)
    machine.run(plan_projection(out.tensor.view(width, projected), seed, stream, threads))
    expected = reference.projection(width, projected, seed, stream, dtype, torch.device("cpu"))
    assert_same(out.tensor, expected.reshape(-1), "entries")
    out.assert_intact()


def check_project(
    machine: Runs,
    x: Tensor,
    projected: int,
    block_length: int,
    bits: int,
    table: str = "uniform",
    seed: int = 7,
    sign_stream: int = 11,
    stream: int = 3,
    threads: int = PRODUCT_THREADS,
) -> None:
    """Quantize x P in every way that can be launched, and read it back; results are those of the reference."""
    rows, width = x.shape
    levels = level_table(table, bits, block_length)
    code = BlockCode(block_length, bits, levels)
    expected_flag = torch.zeros(1, dtype=torch.int32)
    expected = reference.project_quantize(x, projected, code, seed, sign_stream, stream, expected_flag)
    product = Guarded(rows * projected, torch.float32)
    for u in (product.tensor, None) if fits_tile(projected, block_length, threads) else (product.tensor,):
        outputs = make_outputs(rows * projected, block_length, bits)
        codes, minimum, scale, flag = (output.tensor for output in outputs)
        packed = codes, minimum, scale
        launches = plan_project_quantize(x, u, *packed, projected, code, seed, sign_stream, stream, flag, threads)
        machine.run(launches)
        assert_same_packed((*packed, flag), (*expected, expected_flag))
        for output in outputs:
            output.assert_intact()
    # Codes alone would hide sums in another order.
    signs = philox.signs(seed, sign_stream, width * projected, x.device).view(width, projected)
    assert_same(product.tensor, reference._signed_product(x, signs, projected).view(-1), "products")
    product.assert_intact()
    out = Guarded(rows * width, x.dtype)
    machine.run(
        plan_dequantize_unproject(*expected, out.tensor.view(rows, width), projected, code, seed, sign_stream, threads)
    )
    shape = rows, width, projected
    values = reference.dequantize_unproject(*expected, *shape, code, x.dtype, seed, sign_stream)
    assert_same(out.tensor, values.reshape(-1), "values")
    out.assert_intact()


def check_masked(machine: Runs, x: Tensor, mask: Tensor, factor: float, threads: int = THREADS) -> None:
    """Pack which of `x` are positive; keep and scale `x` where `mask` says so; all as the reference does."""
    positive = Guarded(mask_bytes(x.numel()), torch.uint8)
    machine.run(plan_pack_positive(x, positive.tensor, threads))
    assert_same(positive.tensor, reference.pack_positive(x), "packed masks")
    packed = reference.pack_mask(mask)
    kept, scaled = Guarded(x.numel(), x.dtype), Guarded(x.numel(), x.dtype)
    machine.run(plan_keep_where(x, packed, kept.tensor, threads))
    assert_same(kept.tensor, reference.keep_where(x, packed), "kept values")
    machine.run(plan_scale_where(x, packed, factor, scaled.tensor, threads))
    assert_same(scaled.tensor, reference.scale_where(x, packed, factor), "scaled values")
    for output in (positive, kept, scaled):
        output.assert_intact()


def make_mask(numel: int, kept: float = 0.7) -> Tensor:
    """Bits of `numel` values, `kept` of which are set."""
    return reference.pack_mask(torch.rand(numel, generator=torch.Generator().manual_seed(4)) < kept)


def check_rectified(machine: Runs, case: Rectified, threads: int = THREADS) -> None:
    """Pack rectified codes and read them back as values and as a gradient's mask; all as the reference does."""
    x, layout = case.x, RectifiedLayout(case.x.numel(), case.block_length, case.bits)
    codes, scale = Guarded(layout.code_bytes, torch.uint8), Guarded(layout.blocks, torch.bfloat16)
    flag, expected_flag = Guarded(1, torch.int32), torch.zeros(1, dtype=torch.int32)
    flag.tensor.zero_()
    noise = case.seed, case.stream
    machine.run(plan_quantize_rectified(x, codes.tensor, scale.tensor, case.code, *noise, flag.tensor, threads))
    expected = reference.quantize_rectified(x, case.code, *noise, expected_flag)
    assert_same(scale.tensor, expected[1], "scales")
    assert_same(codes.tensor, expected[0], "codes")
    assert_same(flag.tensor, expected_flag, "broken flags")
    out, passed = Guarded(x.numel(), x.dtype), Guarded(x.numel(), x.dtype)
    machine.run(plan_dequantize_rectified(expected[0], expected[1], out.tensor, case.code, *case.dropped, threads))
    values = reference.dequantize_rectified(expected[0], expected[1], x.numel(), case.code, x.dtype, *case.dropped)
    assert_same(out.tensor, values, "values")
    # The negative too, so that a gradient has all signs where the codes are positive.
    gradient = torch.where(torch.arange(x.numel()).view(x.shape) % 2 == 0, x, -x)
    machine.run(plan_pass_rectified(gradient, expected[0], passed.tensor, case.code, *case.dropped, threads))
    expected_passed = reference.pass_rectified(gradient, expected[0], case.code, *case.dropped)
    assert_same(passed.tensor, expected_passed.view(-1), "gradients")
    for output in (codes, scale, flag, out, passed):
        output.assert_intact()


def assert_same_sums(
    actual: Tensor, gradient: Tensor, packed: tuple[Tensor, Tensor], case: Rectified, additions: int
) -> None:
    """Sums of `norm_sums` are as near to the oracle's as `additions` float32 additions of each term leave them."""
    expected = reference.norm_sums(gradient, packed[0], packed[1], case.code, *case.dropped)
    sizes = reference.norm_sums(gradient.abs(), packed[0], packed[1], case.code, case.mask, abs(case.factor))
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    # Each float32 addition is off by 2**-24 of what it makes, at most the sum of all sizes so far.
    room = additions * 2.0**-24 / (1 - additions * 2.0**-24)
    # The oracle adds in float64 itself.
    room += len(gradient) * 2.0**-52
    near = (actual - expected).abs() <= room * sizes
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    where = (~(near | same)).nonzero().tolist()
    assert not where, f"sums differ at {where[:8]}: {actual[~(near | same)][:4]}"
    assert_same(actual[3].contiguous(), expected[3].contiguous(), "counts")


def check_norm(machine: Runs, gradient: Tensor, case: Rectified, threads: int = THREADS) -> None:
    """Batch norm's sums and gradient by rectified codes of `case.x`; as the reference's but for the sums' order."""
    rows, width = gradient.shape
    packed = reference.quantize_rectified(case.x, case.code, case.seed, case.stream)
    shape = partial_shape(rows, width, threads)
    partial = Guarded(torch.Size(shape).numel(), torch.float32)
    machine.run(plan_norm_sums(gradient, packed[0], packed[1], partial.tensor, case.code, *case.dropped, threads))
    sums = partial.tensor.view(shape).sum((0, 2), dtype=torch.float64)
    assert_same_sums(sums, gradient, packed, case, BANDS + threads)
    coefficients = make_values("normal", 4 * width, torch.float32, 9).view(4, width)
    out = Guarded(rows * width, gradient.dtype)
    machine.run(
        plan_norm_gradient(
            gradient, packed[0], packed[1], coefficients, out.tensor, case.code, *case.dropped, threads=threads
        )
    )
    expected = reference.norm_gradient(gradient, packed[0], packed[1], case.code, coefficients, *case.dropped)
    assert_same(out.tensor, expected.view(-1), "gradients")
    partial.assert_intact()
    out.assert_intact()
