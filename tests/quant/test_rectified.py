"""Rectified codes: a ReLU's exact mask and its unbiased output in one, which serves batch norm's backward as well."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actbench.quant import Dropped, Rectifier, reference
from actbench.quant.cpu import backend as cpu
from actbench.quant.cpu import rectified_loops
from actbench.quant.layout import BlockCode, RectifiedLayout
from tests.quant.cuda import parity

How = tuple[float, tuple[float, ...]]
ULP = 2.0**-24
"""Largest relative error of a float32 rounding."""

lengths = st.one_of(st.sampled_from((1, 3, 5, 8, 13, 40, 64, 100, 128, 1000, 1025, 4097)), st.integers(1, 5000))
dtypes = st.sampled_from(parity.DTYPES)
hows = st.sampled_from(parity.RECTIFIED)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    # So that tensors of a test's size are shared at all.
    monkeypatch.setattr(cpu, "_VALUES_A_THREAD", 64)
    yield
    torch.set_num_threads(before)


def check_on_cpu(case: parity.Rectified) -> None:
    """The CPU's codes, scales, values and gradients are the oracle's."""
    x, flags = case.x, torch.zeros(2, 1, dtype=torch.int32)
    actual = cpu.quantize_rectified(x, case.code, case.seed, case.stream, flags[0])
    expected = reference.quantize_rectified(x, case.code, case.seed, case.stream, flags[1])
    for one, other, what in zip(actual, expected, ("codes", "scales"), strict=True):
        parity.assert_same(one, other, what)
    assert flags[0] == flags[1]
    values = cpu.dequantize_rectified(expected[0], expected[1], x.numel(), case.code, x.dtype, *case.dropped)
    oracle = reference.dequantize_rectified(expected[0], expected[1], x.numel(), case.code, x.dtype, *case.dropped)
    parity.assert_same(values, oracle, "values")
    passed = cpu.pass_rectified(-x, expected[0], case.code, *case.dropped)
    parity.assert_same(passed, reference.pass_rectified(-x, expected[0], case.code, *case.dropped), "gradients")


@pytest.mark.usefixtures("threads")
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    block_length=lengths,
    blocks=st.integers(0, 40),
    rest=st.integers(0, 40),
    how=hows,
    dtype=dtypes,
    kind=st.sampled_from(parity.KINDS),
    kept=st.sampled_from((None, 0.7, 0.0)),
    factor=st.sampled_from((2.0, 1 / 0.7, 1e-39)),
    seed=st.integers(-(2**63), 2**64 - 1),
)
def test_the_cpus_codes_and_estimates_are_the_oracles(
    block_length: int,
    blocks: int,
    rest: int,
    how: How,
    dtype: torch.dtype,
    kind: str,
    kept: float | None,
    factor: float,
    seed: int,
) -> None:
    numel = min(blocks * block_length, 20_000) + rest
    x = parity.make_values(kind, numel, dtype, blocks)
    mask = None if kept is None else parity.make_mask(numel, kept)
    check_on_cpu(parity.Rectified(x, block_length, *how, mask, factor, seed))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", parity.RECTIFIED_EDGE_CASES)
def test_the_edges_of_float32_are_rectified_on_the_cpu_as_in_the_oracle(name: str) -> None:
    check_on_cpu(parity.RECTIFIED_EDGE_CASES[name])


@pytest.mark.parametrize("how", parity.RECTIFIED, ids=str)
def test_a_piece_may_end_anywhere_in_a_block_on_the_cpu(how: How) -> None:
    piece = rectified_loops.PIECE
    for numel in (piece - 1, piece, 3 * piece + 5, 2**17 + 1):
        x = parity.make_values("normal", numel, torch.float32, 1)
        check_on_cpu(parity.Rectified(x, 2 * piece + 1, *how, parity.make_mask(numel), 2.0))


@pytest.mark.usefixtures("threads")
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 300),
    width=st.one_of(st.sampled_from((1, 5, 8, 13, 100, 128)), st.integers(1, 200)),
    block_length=lengths,
    how=hows,
    dtype=dtypes,
    kind=st.sampled_from(("normal", "zeros", "subnormal", "tiny and large", "integers")),
    kept=st.sampled_from((None, 0.7)),
)
def test_the_cpus_norms_are_the_oracles(
    rows: int, width: int, block_length: int, how: How, dtype: torch.dtype, kind: str, kept: float | None
) -> None:
    y = parity.make_values("normal", rows * width, torch.float32, 1)
    gradient = parity.make_values(kind, rows * width, dtype, 2).view(rows, width)
    case = parity.Rectified(y, block_length, *how, None if kept is None else parity.make_mask(y.numel(), kept), 1.25)
    packed = reference.quantize_rectified(y, case.code, 7, 3)
    sums = cpu.norm_sums(gradient, packed[0], packed[1], case.code, *case.dropped)
    parity.assert_same_sums(sums, gradient, packed, case, max(rectified_loops.PIECE // width, 1))
    coefficients = parity.make_values("normal", 4 * width, torch.float32, 3).view(4, width)
    actual = cpu.norm_gradient(gradient, packed[0], packed[1], case.code, coefficients, *case.dropped)
    expected = reference.norm_gradient(gradient, packed[0], packed[1], case.code, coefficients, *case.dropped)
    parity.assert_same(actual, expected, "gradients")


@pytest.mark.parametrize("how", parity.RECTIFIED, ids=str)
@pytest.mark.parametrize("dtype", parity.DTYPES, ids=str)
def test_the_mask_is_exact(how: How, dtype: torch.dtype) -> None:
    bits, levels = how
    x = torch.randn(1003, generator=torch.Generator().manual_seed(1)).to(dtype)
    # What may be taken for the wrong side of 0; the tiniest of each sign and what has less than half a level.
    x[:6] = torch.tensor([0.0, -0.0, -torch.inf, 1e-7, -1e-7, -1.0], dtype=dtype)
    x[6] = torch.finfo(dtype).smallest_normal / 4
    x[7] = -x[6]
    kept = torch.rand(1003, generator=torch.Generator().manual_seed(2)) < 0.7
    gradient = torch.randn(1003, generator=torch.Generator().manual_seed(3)).to(dtype)
    # Nothing of what is stopped gets through, however large.
    gradient[0], gradient[1], gradient[2] = torch.inf, torch.nan, torch.inf
    for seed in range(20):
        code = BlockCode(100, bits, levels)
        codes, _ = cpu.quantize_rectified(x, code, seed, 0)
        passed = cpu.pass_rectified(gradient, codes, code)
        assert torch.equal(passed, gradient.masked_fill(x <= 0, 0))
        passed = cpu.pass_rectified(gradient, codes, code, reference.pack_mask(kept), 2.0)
        assert torch.equal(passed, (2 * gradient).masked_fill((x <= 0) | ~kept, 0))


def read(x: Tensor, length: int, how: How, seed: int) -> Tensor:
    packed = cpu.quantize_rectified(x, BlockCode(length, *how), seed, 0)
    return cpu.dequantize_rectified(packed[0], packed[1], x.numel(), BlockCode(length, *how), torch.float32).double()


def neighbours(x: Tensor, length: int, how: How) -> tuple[Tensor, Tensor]:
    """For every value, in float64, the two values between which its ReLU is rounded."""
    _, scale = cpu.quantize_rectified(x, BlockCode(length, *how), 0, 0)
    s = scale.double().repeat_interleave(length)[: x.numel()]
    edges = torch.tensor(how[1], dtype=torch.float32).double()
    t = torch.where(s > 0, x.double().clamp(min=0) / s, 0)
    lower = torch.bucketize(t, edges[1:-1], right=True)
    return edges[lower] * s, edges[lower + 1] * s


@pytest.mark.parametrize("how", parity.RECTIFIED, ids=str)
@pytest.mark.parametrize("length", [1, 7, 64, 1000])
def test_unbiased_with_the_analytic_variance(how: How, length: int) -> None:
    """Rounding y onto l or h has mean y and variance (y - l)(h - y), the scale's rounding included."""
    x = torch.randn(1003, generator=torch.Generator().manual_seed(int(how[0])))
    y, draws = x.clamp(min=0).double(), 400
    values = torch.stack([read(x, length, how, seed) for seed in range(draws)])
    assert bool((values[:, x <= 0] == 0).all())
    low, high = neighbours(x, length, how)
    variance = ((y - low) * (high - y)).clamp(min=0)
    # Uniforms are multiples of 2**-24 and t has float32's relative error: both shift the mean by under 2**-22 bins.
    slack = (high - low) * 2.0**-22 + values.abs().amax(0) * 2.0**-22
    error = values.mean(0) - y
    # Bernstein's inequality, as in test_reference.py, of probability 2 exp(-16) to fail for a value.
    c = 16
    bound = (2 * c * variance / draws).sqrt() + (high - low) * 2 * c / 3 / draws
    assert bool((error.abs() <= bound + slack).all())
    assert abs(float(error.sum())) <= 5 * float((variance.sum() / draws).sqrt()) + float(slack.sum())
    squared = ((values - y) ** 2).mean(0).sum()
    spread = (variance * (high - low) ** 2).sum().div(draws).sqrt()
    assert abs(float(squared - variance.sum())) <= 5 * float(spread) + float((slack * (high - low)).sum())


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_broken_block_reads_back_as_nan_and_no_other_does(wrong: float) -> None:
    x, flag = torch.arange(24, dtype=torch.float32), torch.zeros(1, dtype=torch.int32)
    x[9] = wrong
    codes, scale = cpu.quantize_rectified(x, BlockCode(8, 2, (0, 1, 2)), 0, 0, flag)
    assert flag.item() == 1
    found = cpu.dequantize_rectified(codes, scale, 24, BlockCode(8, 2, (0, 1, 2)), torch.float32)
    assert found.isnan().tolist() == [8 <= i < 16 for i in range(24)]
    # A dropout after it has not let everything through: what it dropped is 0 all the same.
    mask = reference.pack_mask(torch.arange(24) % 2 == 0)
    found = cpu.dequantize_rectified(codes, scale, 24, BlockCode(8, 2, (0, 1, 2)), torch.float32, mask, 2.0)
    assert found.isnan().tolist() == [8 <= i < 16 and i % 2 == 0 for i in range(24)]


@pytest.mark.parametrize("value", [-torch.inf, -1.0, -0.0, 2.0**-81])
def test_a_block_without_a_maximum_to_speak_of_reads_back_as_zeros(value: float) -> None:
    flag = torch.zeros(1, dtype=torch.int32)
    codes, scale = cpu.quantize_rectified(torch.full((40,), value), BlockCode(8, 1.6, (0.0, 1.0)), 0, 0, flag)
    assert flag.item() == 0
    assert torch.equal(scale, torch.zeros(5, dtype=torch.bfloat16))
    assert (cpu.pass_rectified(torch.ones(40), codes, BlockCode(8, 1.6, (0.0, 1.0))) != 0).all() == (value > 0)
    assert torch.equal(
        cpu.dequantize_rectified(codes, scale, 40, BlockCode(8, 1.6, (0.0, 1.0)), torch.float32), torch.zeros(40)
    )


@pytest.mark.parametrize(("bits", "last"), [(1.6, 2 + 3 * 1), (2, 2 | 1 << 2), (4, 2 | 1 << 4), (8, 1)])
def test_codes_lie_lowest_first(bits: float, last: int) -> None:
    """The bytes by paper and pencil: the maximum has the top code, 0 none, and a positive value of no size code 1."""
    per_byte = {1.6: 5, 2: 4, 4: 2, 8: 1}[bits]
    levels = (0.0, 1.0) if bits == 1.6 else (0.0, 1.0, 2.0)
    x = torch.zeros(2 * per_byte)
    top = len(levels)
    x[0], x[-per_byte] = 1.0, 1.0
    if per_byte > 1:
        x[-per_byte + 1] = 2.0**-60
    codes, scale = cpu.quantize_rectified(x, BlockCode(2 * per_byte, bits, levels), 0, 0)
    assert scale.item() == 1 / (top - 1)
    assert codes.tolist() == [top, last + (top - 2 if per_byte > 1 else top - 1)]
    assert codes.numel() == RectifiedLayout(x.numel(), 1, bits).code_bytes


def test_empty() -> None:
    codes, scale = cpu.quantize_rectified(torch.empty(0, 16), BlockCode(16, 1.6, (0.0, 1.0)), 0, 0)
    assert (codes.numel(), scale.numel()) == (0, 0)
    assert cpu.dequantize_rectified(codes, scale, 0, BlockCode(16, 1.6, (0.0, 1.0)), torch.float32).numel() == 0
    assert cpu.pass_rectified(torch.empty(0, 16), codes, BlockCode(16, 1.6, (0.0, 1.0))).shape == (0, 16)


@dataclass(frozen=True)
class Norm:
    """Batch norm, ReLU and dropout, by float64 torch: what comes out on the way, and the gradients that are right."""

    gradient: Tensor
    x_hat: Tensor
    y: Tensor
    weight: Tensor
    bias: Tensor
    inverse_std: Tensor
    dropped: Dropped | None
    passed: Tensor
    by_x: Tensor
    by_weight: Tensor
    by_bias: Tensor


def make_norm(rows: int, width: int, drops: bool) -> Norm:
    generator = torch.Generator().manual_seed(rows + width)
    x = torch.randn(rows, width, generator=generator) * 3 + 1
    weight = torch.randn(width, generator=generator).abs() + 0.3
    weight[::3] *= -1
    bias = torch.randn(width, generator=generator) / 2
    gradient = torch.randn(rows, width, generator=generator)
    kept = torch.rand(rows, width, generator=generator) < 0.6
    leaves = [each.double().requires_grad_() for each in (x, weight, bias)]
    y = F.batch_norm(leaves[0], None, None, leaves[1], leaves[2], training=True, eps=1e-5)
    out = F.relu(y) * (kept.double() * 2 if drops else 1)
    by_x, by_weight, by_bias = torch.autograd.grad(out, leaves, gradient.double())
    variance, mean = torch.var_mean(x.double(), 0, correction=0)
    inverse_std = (variance + 1e-5).rsqrt()
    return Norm(
        gradient,
        (x.double() - mean) * inverse_std,
        y.detach(),
        weight,
        bias,
        inverse_std,
        Dropped(reference.pack_mask(kept), 2.0) if drops else None,
        gradient.double() * (y.detach() > 0) * (kept.double() * 2 if drops else 1),
        by_x,
        by_weight,
        by_bias,
    )


def rectifier_of(norm: Norm, how: How, length: int = 128) -> Rectifier:
    return Rectifier(norm.y.shape, torch.float32, BlockCode(length, *how))


def float32_additions(norm: Norm) -> int:
    """The most float32 additions that a term of `norm_sums` goes through on a CPU."""
    return max(rectified_loops.PIECE // norm.y.shape[1], 1)


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize(("rows", "width"), [(500, 24), (63, 130)])
def test_batch_norms_backward_is_that_of_float64_but_for_the_level_spacing(rows: int, width: int, drops: bool) -> None:
    norm = make_norm(rows, width, drops)
    rectifier = rectifier_of(norm, parity.RECTIFIED[-1])
    codes = rectifier.quantize(norm.y.float(), 7, 3)
    by_x, by_weight, by_bias = rectifier.norm_backward(
        norm.gradient, codes, norm.dropped, norm.weight, norm.bias, norm.inverse_std
    )
    γ, β, inverse = norm.weight.double(), norm.bias.double(), norm.inverse_std
    g, y, alive = norm.passed, norm.y.clamp(min=0), norm.y > 0
    # A level at most, and y's own rounding to float32.
    scale = codes[1].double().repeat_interleave(rectifier.code.block_length)[: y.numel()].view(y.shape)
    off_y = alive * (scale + y * ULP)
    room = (float32_additions(norm) + 4) * ULP
    off_g = room * g.abs().sum(0)
    off_gx = ((g.abs() * off_y).sum(0) + room * (g.abs() * (y + off_y)).sum(0) + β.abs() * off_g) / γ.abs()
    assert bool(((by_bias.double() - norm.by_bias).abs() <= off_g).all())
    assert bool(((by_weight.double() - norm.by_weight).abs() <= off_gx + norm.by_weight.abs() * ULP).all())
    # Where y > 0 x̂ is known to a level; elsewhere the gradient is the one for their mean, which is known from the rest.
    beyond = rows - alive.sum(0)
    below = (norm.x_hat * ~alive).sum(0) / beyond
    x_hat = torch.where(alive, norm.x_hat, below)
    off_below = (off_y.sum(0) + room * (y + off_y).sum(0)) / (beyond * γ.abs())
    off_x_hat = torch.where(alive, off_y / γ.abs(), off_below)
    sum_gx = norm.by_weight
    expected = γ * inverse * (g - norm.by_bias / rows - x_hat * sum_gx / rows)
    assert torch.allclose(expected[alive], norm.by_x[alive], rtol=1e-9, atol=1e-12)
    off = off_g + off_x_hat * (sum_gx.abs() + off_gx) + x_hat.abs() * off_gx
    # Two roundings for a product of a coefficient and two for the differences; the offset is a difference of two terms.
    terms = g.abs() + (norm.by_bias.abs() + 2 * (x_hat.abs() + (β / γ).abs()) * (sum_gx.abs() + off_gx)) / rows
    bound = (γ * inverse).abs() * (off / rows + 5 * ULP * terms)
    assert bool(((by_x.double() - expected).abs() <= bound).all())
    # 8 bits say something: the noise that they leave is small beside the gradient itself.
    assert float(bound.norm()) < 0.05 * float(norm.by_x.norm())


@pytest.mark.parametrize("how", parity.RECTIFIED[:3], ids=str)
def test_weights_and_biases_have_unbiased_gradients(how: How) -> None:
    norm, draws = make_norm(300, 24, True), 400
    rectifier = rectifier_of(norm, how)
    y = norm.y.float()
    found = [
        rectifier.norm_backward(
            norm.gradient, rectifier.quantize(y, seed, 0), norm.dropped, norm.weight, norm.bias, norm.inverse_std
        )[1:]
        for seed in range(draws)
    ]
    by_weight, by_bias = (torch.stack(each).double() for each in zip(*found, strict=True))
    γ, β, g = norm.weight.double(), norm.bias.double(), norm.passed
    low, high = (each.view(y.shape) for each in neighbours(y.view(-1), rectifier.code.block_length, how))
    alive = norm.y > 0
    variance = (alive * g**2 * (y.double() - low) * (high - y.double()).clamp(min=0)).sum(0) / γ**2
    room = (float32_additions(norm) + 4) * ULP
    # Float sums, and uniforms and t to 2**-22 of a bin as above.
    slack = ((room + 4 * ULP) * g.abs() * (high + β.abs())).sum(0) / γ.abs()
    # Each mean has 24 columns' chance to be off: 5 standard errors of a sum of a hundred terms a draw and 400 draws.
    error = by_weight.mean(0) - norm.by_weight
    assert bool((error.abs() <= 5 * (variance / draws).sqrt() + slack).all())
    # Which is not for want of noise: the draws' variance is the analytic one, to 5 standard errors of a normal's.
    assert bool(((by_weight.var(0) - variance).abs() <= 5 * (2 / (draws - 1)) ** 0.5 * variance).all())
    assert bool(((by_bias - norm.by_bias).abs() <= room * g.abs().sum(0)).all())


@pytest.mark.parametrize("how", parity.RECTIFIED, ids=str)
@pytest.mark.parametrize("drops", [False, True])
def test_the_inputs_gradient_sums_to_0_in_every_column(how: How, drops: bool) -> None:
    """As it does without codes, since a batch norm's output does not change when a constant is added to its input."""
    norm = make_norm(400, 24, drops)
    rectifier = rectifier_of(norm, how)
    codes = rectifier.quantize(norm.y.float(), 7, 3)
    assert bool((norm.y <= 0).any(0).all())
    by_x, by_weight, _ = rectifier.norm_backward(
        norm.gradient, codes, norm.dropped, norm.weight, norm.bias, norm.inverse_std
    )
    y, γ, β = rectifier.dequantize(codes).double(), norm.weight.double(), norm.bias.double()
    a, c = γ * norm.inverse_std, norm.inverse_std * by_weight.double() / len(y)
    # Terms of the column's sum: a g, b = a ḡ - c β and c ŷ where ŷ > 0, d = -b - c m elsewhere, m the mean of y there.
    alive = norm.y > 0
    m = β - (y.sum(0) - alive.sum(0) * β) / (~alive).sum(0)
    b = (a * norm.passed.mean(0)).abs() + (c * β).abs()
    terms = (a * norm.passed).abs() + b + (c * torch.where(alive, y, m)).abs()
    # Of each term a rounding of the coefficient, one of the product and two of differences; the sums' own roundings
    # come in by Σ g and Σ ŷ.
    room = (float32_additions(norm) + 5) * ULP
    assert bool((by_x.double().sum(0).abs() <= room * terms.sum(0)).all())
    assert float((room * terms.sum(0)).max()) < 1e-2 * float(by_x.abs().sum(0).min())


@pytest.mark.parametrize("tiny", [0.0, 1e-30, -1e-12, 1e-4])
def test_a_channel_whose_weight_is_next_to_nothing_has_finite_gradients(tiny: float) -> None:
    norm = make_norm(300, 24, True)
    weight = norm.weight.clone()
    weight[5], weight[6] = tiny, tiny
    bias = norm.bias.clone()
    # One of the two is all positive and one all 0.
    bias[5], bias[6] = 0.5, -0.5
    y = norm.x_hat * weight.double() + bias.double()
    rectifier = rectifier_of(norm, parity.RECTIFIED[1])
    codes = rectifier.quantize(y.float(), 7, 3)
    found = rectifier.norm_backward(norm.gradient, codes, norm.dropped, weight, bias, norm.inverse_std)
    for each in found:
        assert bool(each.isfinite().all())
    by_x, by_weight, by_bias = found
    # The channel that is all 0 takes part in nothing.
    assert not by_x[:, 6].any()
    assert not by_weight[6]
    assert not by_bias[6]
    if tiny == 0:
        assert not by_x[:, 5].any()
        assert not by_weight[5]
