import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from actbench.quant import reference
from actbench.quant.layout import BlockCode
from actbench.quant.levels import level_table
from actbench.scheme import BITS, LEVELS

Read = Callable[[int], Tensor]


def round_trip(x: Tensor, length: int, bits: int, levels: str, seed: int, stream: int = 0) -> Tensor:
    table = level_table(levels, bits, length)
    packed = reference.quantize(x, BlockCode(length, bits, table), seed, stream)
    return reference.dequantize(*packed, x.numel(), BlockCode(length, bits, table), x.dtype)


def bins(x: Tensor, length: int, bits: int, levels: str) -> tuple[Tensor, Tensor]:
    """For every value, in float64, the two values between which it is rounded."""
    table = level_table(levels, bits, length)
    _, minimum, scale = reference.quantize(x, BlockCode(length, bits, table), 0, 0)
    edges = torch.tensor(table, dtype=torch.float64)
    block = torch.arange(x.numel()) // length
    m, s = minimum.double()[block], scale.double()[block]
    t = torch.where(s > 0, (x.double() - m) / s, 0)
    low = torch.bucketize(t, edges[1:-1], right=True)
    return m + edges[low] * s, m + edges[low + 1] * s


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("length", [1, 7, 64, 1000])
def test_unbiased_with_the_analytic_variance(bits: int, levels: str, length: int) -> None:
    """Rounding x onto l or h has mean x and variance (x - l)(h - x), metadata rounding included."""
    x = torch.randn(1003, generator=torch.Generator().manual_seed(bits))
    draws = 400
    values = torch.stack([round_trip(x, length, bits, levels, seed) for seed in range(draws)]).double()
    low, high = bins(x, length, bits, levels)
    variance = ((x.double() - low) * (high - x.double())).clamp(min=0)
    # Uniforms are multiples of 2**-24 and t has float32's relative error: both shift the mean by under 2**-22 bins.
    slack = (high - low) * 2.0**-22 + values.abs().amax(0) * 2.0**-22
    error = values.mean(0) - x.double()
    # Bernstein's inequality, since one of the two ends may be too rare for a normal law: a mean of n terms of variance
    # V and range w is off by more than √(2 V c / n) + 2 w c / 3 n with probability 2 exp(-c) at most.
    c = 16
    bound = (2 * c * variance / draws).sqrt() + (high - low) * 2 * c / 3 / draws
    assert bool((error.abs() <= bound + slack).all())
    assert abs(float(error.sum())) <= 5 * float((variance.sum() / draws).sqrt()) + float(slack.sum())
    # The mean squared error of all draws is a sum of independent terms of known mean; 5 of its standard errors, each
    # term being at most (h - l)² and so of variance at most variance · (h - l)².
    squared = ((values - x.double()) ** 2).mean(0).sum()
    spread = (variance * (high - low) ** 2).sum().div(draws).sqrt()
    assert abs(float(squared - variance.sum())) <= 5 * float(spread) + float((slack * (high - low)).sum())


@given(
    st.integers(1, 300),
    st.integers(1, 320),
    st.sampled_from(BITS),
    st.sampled_from(LEVELS),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 2**64 - 1),
    st.floats(-1e4, 1e4),
)
def test_values_land_on_an_edge_of_their_own_bin(
    numel: int, length: int, bits: int, levels: str, dtype: torch.dtype, seed: int, shift: float
) -> None:
    x = (torch.randn(numel, generator=torch.Generator().manual_seed(numel)) * 3 + shift).to(dtype)
    found = round_trip(x, length, bits, levels, seed).double()
    low, high = bins(x.float(), length, bits, levels)
    # The result is rounded to its dtype; edges and t are float32, so off by 2**-24 of the block's range each, and a
    # value that near to an edge may sit on its far side.
    slack = (high.abs() + low.abs()) * torch.finfo(dtype).eps + float(x.max() - x.min()) * 2.0**-22
    distance = torch.minimum((found - low).abs(), (found - high).abs())
    at_edge = torch.minimum((x.double() - low).abs(), (high - x.double()).abs()) <= slack
    assert bool(((distance <= slack) | at_edge).all())


@given(st.integers(0, 10**6), st.sampled_from(BITS), st.floats(-(2.0**100), 2.0**100, width=32))
def test_a_block_of_maxima_never_overflows_into_its_neighbour(seed: int, bits: int, value: float) -> None:
    """Codes of the maximum stay at the top, so the zeros packed beside them read back as zeros' own codes."""
    x = torch.tensor([value] * 7 + [0.0] + [value] * 7 + [0.0], dtype=torch.float32)
    table = level_table("uniform", bits, 8)
    codes, minimum, scale = reference.quantize(x, BlockCode(8, bits, table), seed, 0)
    found = reference.dequantize(codes, minimum, scale, 16, BlockCode(8, bits, table), torch.float32)
    step = scale.float().repeat_interleave(8)
    # Ranges below 2**-80 count as constant.
    assert bool(((found - x).abs() <= step * (1 + 2.0**-20) + 2.0**-80).all())
    top = minimum.float() + (2**bits - 1) * scale.float()
    assert bool((top >= max(value, 0.0) - abs(value) * 2.0**-23 - 2.0**-80).all())
    assert bool((minimum.float() <= min(value, 0.0) + 2.0**-126).all())


def test_hundreds_of_seeds_at_the_maximum() -> None:
    x = torch.full((64,), math.pi)
    table = level_table("uniform", 2, 64)
    for seed in range(500):
        codes, minimum, scale = reference.quantize(x, BlockCode(64, 2, table), seed, 1)
        found = reference.dequantize(codes, minimum, scale, 64, BlockCode(64, 2, table), torch.float32)
        assert float((found - x).abs().max()) <= float(scale.float().max()) * (1 + 2.0**-20)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_block_that_is_not_finite_reads_back_as_nan_and_no_other_does(wrong: float) -> None:
    x = torch.arange(24, dtype=torch.float32)
    x[9] = wrong
    found = round_trip(x, 8, 2, "uniform", 0)
    assert found.isnan().tolist() == [8 <= i < 16 for i in range(24)]


def test_a_range_beyond_float32_is_not_a_number_either() -> None:
    x = torch.tensor([-3e38, 3e38, 0.0, 1.0])
    assert round_trip(x, 2, 2, "uniform", 0).isnan().tolist() == [True, True, False, False]


@pytest.mark.parametrize("value", [0.0, 1.0, -0.0, 1e-40, 2.0**-100, -7.25, 3.0e38])
def test_constants_that_bfloat16_holds_come_back_exactly(value: float) -> None:
    x = torch.full((40,), value).bfloat16().float()
    x = torch.where(x.abs() < 2.0**-126, 0.0, x)
    assert torch.equal(round_trip(x, 16, 2, "uniform", 3), x)


def test_empty() -> None:
    codes, minimum, scale = reference.quantize(torch.empty(0, 16), BlockCode(16, 2, (0, 1, 2, 3)), 0, 0)
    assert (codes.numel(), minimum.numel(), scale.numel()) == (0, 0, 0)
    assert reference.dequantize(codes, minimum, scale, 0, BlockCode(16, 2, (0, 1, 2, 3)), torch.float32).numel() == 0


def test_the_chunk_size_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5000)
    table = level_table("clipped-normal", 4, 37)
    whole = reference.quantize(x, BlockCode(37, 4, table), 11, 3)
    monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", 300)
    pieces = reference.quantize(x, BlockCode(37, 4, table), 11, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))
    read = reference.dequantize(*pieces, 5000, BlockCode(37, 4, table), torch.float32)
    monkeypatch.undo()
    assert torch.equal(read, reference.dequantize(*whole, 5000, BlockCode(37, 4, table), torch.float32))


@given(st.integers(0, 200), st.integers(0, 2**32))
def test_masks_come_back(numel: int, seed: int) -> None:
    mask = torch.rand(numel, generator=torch.Generator().manual_seed(seed)) < 0.5
    assert torch.equal(reference.unpack_mask(reference.pack_mask(mask), numel), mask)


def test_projection_is_the_identity_on_average() -> None:
    """Off the diagonal (P Pᵀ)_kd is a mean of R products of signs, of variance 1/R; on it, it is 1."""
    draws, width, projected = 2000, 12, 3
    total = torch.zeros(width, width, dtype=torch.float64)
    for stream in range(draws):
        p = reference.projection(width, projected, 1, stream, torch.float32, torch.device("cpu")).double()
        total += p @ p.t()
    mean = total / draws
    # Each diagonal entry is R squares of the float32 nearest to 1/√R.
    assert torch.allclose(mean.diagonal(), torch.ones(width, dtype=torch.float64), atol=2.0**-22)
    off = mean - torch.diag(mean.diagonal())
    assert float(off.abs().max()) < 5 * (projected * draws) ** -0.5


class _DividesAsCuda(TorchFunctionMode):
    """torch on CUDA multiplies by the reciprocal of a Python number that it is to divide by."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ in ("div", "div_", "__truediv__", "__itruediv__", "true_divide"):
            x, by, *_ = args
            if isinstance(by, int | float):
                return torch.mul(x, float(1 / torch.tensor(by, dtype=x.dtype)))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_result_depends_on_how_a_device_divides_by_a_number(bits: int) -> None:
    # Enough blocks for a span whose step comes to lie on either side of a bfloat16 number.
    x = torch.randn(2**18, generator=torch.Generator().manual_seed(bits))
    top = 2**bits - 1
    rectified = tuple(map(float, range(top)))

    def compute() -> tuple[Tensor, ...]:
        table = level_table("uniform", bits, 8)
        packed = reference.quantize(x, BlockCode(8, bits, table), 1, 0)
        codes, scale = reference.quantize_rectified(x, BlockCode(8, bits, rectified), 1, 0)
        projected = reference.project_quantize(x.view(-1, 64), 8, BlockCode(8, bits, table), 1, 2, 3)
        read = reference.dequantize(*packed, x.numel(), BlockCode(8, bits, table), torch.float32)
        return *packed, codes, scale, *projected, read

    expected = compute()
    with _DividesAsCuda():
        assert not torch.equal(x / top, x / torch.tensor(float(top)))
        assert all(map(torch.equal, compute(), expected))


def test_a_sparse_product_is_that_of_float64_within_its_roundings() -> None:
    dense = torch.randn(60, 50) * (torch.rand(60, 50) < 0.2)
    dense[7], dense[8] = 1.5, 0
    matrix, x = dense.to_sparse_csr(), torch.randn(50, 9)
    product = reference.sparse_product(matrix.crow_indices(), matrix.col_indices(), matrix.values(), x)
    # Each of n products, and each of their sums, is rounded: n + 1 half units of the sum of magnitudes at most.
    entries = (dense != 0).sum(1, keepdim=True)
    bound = (entries + 1) * 2.0**-24 * 1.001 * (dense.abs().double() @ x.abs().double())
    assert ((product.double() - dense.double() @ x.double()).abs() <= bound).all()
