"""The mean of 4,000 backward passes against the exact gradient, within 5 standard errors of the analytic variance."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actbench
from actbench.compress.codec import Noise, Quantized
from actbench.quant.packed import dequantize
from actbench.scheme import Scheme

PASSES = 4000
VARIANCE_EVERY = 10
SCHEMES = ["exact", "blockwise", "blockwise-vm", "blockwise:bits=4,block=33,projection=3,levels=clipped-normal"]
FIRST_ALONE = [SCHEMES[0], *(pytest.param(each, marks=pytest.mark.slow) for each in SCHEMES[1:])]
"""The other schemes' means take their time."""


def rounding_variance(kept: Quantized, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For every stored value of `x`, in float64: its two ends and the variance (x - l)(h - x) between them."""
    stored = x @ kept.projection.matrix(x) if kept.projection else x
    packing = kept.packing
    _, minimum, scale = kept.pack(x)
    block = torch.arange(stored.numel()) // packing.code.block_length
    m, s = minimum.double()[block], scale.double()[block]
    edges = torch.tensor(packing.code.levels, dtype=torch.float64)
    value = stored.reshape(-1).double()
    low = torch.bucketize(torch.where(s > 0, (value - m) / s, 0), edges[1:-1], right=True)
    lower, upper = m + edges[low] * s, m + edges[low + 1] * s
    variance = ((value - lower) * (upper - value)).clamp(min=0)
    return lower.view(stored.shape), upper.view(stored.shape), variance.view(stored.shape)


def kept_as(scheme: Scheme, x: Tensor, seed: int, index: int, projected: bool) -> Quantized:
    ratio = scheme.projection if projected else 1
    return Quantized.of(x.shape[0], x.shape[1], x.dtype, scheme, Noise(seed, index), ratio)


@pytest.mark.parametrize("text", FIRST_ALONE)
def test_weight_gradients_of_a_network(text: str) -> None:
    """Two linear layers with ReLU and dropout between: all that reaches a layer from above is exact.

    Given P the gradient Gᵀ x̂ has mean a P Pᵀ, a = Gᵀ x, and rounding variance Σ_r P_dr² Σ_n G_nh² v_nr; over P the
    mean has variance (‖a_h‖² - a_hd²) / R.
    """
    scheme = Scheme.parse(text)
    torch.manual_seed(0)
    x, target = torch.randn(12, 24), torch.randn(12, 3)
    network = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Dropout(0.25), nn.Linear(16, 3))
    first, last = network[0], network[3]
    taps: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def gradients(seed: int | None) -> list[Tensor]:
        torch.manual_seed(1)
        network.zero_grad()
        with actbench.compress(scheme if seed is not None else "fp32", seed=seed):
            hidden = network[2](network[1](z := first(x)))
            out = last(hidden)
        if seed is None:
            z.register_hook(lambda g: taps.__setitem__(first, (x, g)))
            out.register_hook(lambda g: taps.__setitem__(last, (hidden.detach(), g)))
        F.mse_loss(out, target, reduction="sum").backward()
        return [p.grad.double() for p in network.parameters() if p.grad is not None]

    exact = gradients(None)
    total = [torch.zeros_like(g) for g in exact]
    rounding = {first: torch.zeros_like(exact[0]), last: torch.zeros_like(exact[2])}
    for seed in range(PASSES):
        for sum_, g in zip(total, gradients(seed), strict=True):
            sum_ += g
        if seed % VARIANCE_EVERY:
            continue
        for index, layer in enumerate((first, last)):
            layer_input, g = taps[layer]
            kept = kept_as(scheme, layer_input, seed, index, projected=True)
            # Exact for the projection that was drawn; the mean over them needs fewer than the gradient's.
            _, _, v = rounding_variance(kept, layer_input)
            noise = g.double().square().t() @ v
            rounding[layer] += noise.sum(1, keepdim=True) / v.shape[1] if kept.projection else noise
    for layer, position in ((first, 0), (last, 2)):
        layer_input, g = taps[layer]
        a = g.double().t() @ layer_input.double()
        projected = kept_as(scheme, layer_input, 0, 0, projected=True).packing.shape[1]
        over_projections = (a.square().sum(1, keepdim=True) - a.square()) / projected
        variance = over_projections + rounding[layer] * VARIANCE_EVERY / PASSES
        error = (total[position] / PASSES - exact[position]).abs()
        assert bool((error <= 5 * (variance / PASSES).sqrt()).all())
    for position in (1, 3):
        assert torch.equal(total[position] / PASSES, exact[position])


@pytest.mark.parametrize("text", FIRST_ALONE)
def test_batch_norm(text: str) -> None:
    """∂γ is unbiased; ∂x holds the product of x̂ with a mean over x̂, whose own bias γ g v / (σ N) is known.

    In normalised units x̂_i takes the ends q of its bin with known odds, so every moment below is exact.
    """
    scheme = Scheme.parse(text)
    torch.manual_seed(0)
    rows, width = 40, 6
    x = (torch.randn(rows, width) * 2 + 1).requires_grad_()
    gamma, beta = torch.randn(width, requires_grad=True), torch.randn(width, requires_grad=True)
    g = torch.randn(rows, width)

    def gradients(seed: int | None) -> tuple[Tensor, ...]:
        with actbench.compress(scheme if seed is not None else "fp32", seed=seed):
            out = F.batch_norm(x, None, None, gamma, beta, training=True)
        return torch.autograd.grad(out, (x, gamma, beta), g)

    exact = [t.double() for t in gradients(None)]
    total = [torch.zeros_like(t) for t in exact]
    for seed in range(PASSES):
        for sum_, t in zip(total, gradients(seed), strict=True):
            sum_ += t
    mean = [t / PASSES for t in total]

    kept = kept_as(scheme, x.detach(), 0, 0, projected=False)
    low, high, variance = rounding_variance(kept, x.detach())
    values, upstream = x.detach().double(), g.double()
    center, inverse_std = values.mean(0), (values.var(0, unbiased=False) + 1e-5).rsqrt()
    p_high = ((values - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    low, high, normal = ((t - center) * inverse_std for t in (low, high, values))
    v = variance * inverse_std**2

    assert torch.equal(mean[2], exact[2])
    by_gamma = (upstream.square() * v).sum(0)
    # The exact gradient is itself float32: a sum of 40 products, each rounded.
    slack = (upstream * normal).abs().sum(0) * rows * 2.0**-24
    assert bool(((mean[1] - exact[1]).abs() <= 5 * (by_gamma / PASSES).sqrt() + slack).all())

    # x̂_i · c, c = (g_i x̂_i + S) / N, S the sum over all other rows.
    others = (upstream * normal).sum(0) - upstream * normal
    others_variance = (upstream.square() * v).sum(0) - upstream.square() * v
    moment = torch.zeros_like(v)
    for q, odds in ((low, 1 - p_high), (high, p_high)):
        moment += odds * q**2 * ((upstream * q + others) ** 2 + others_variance) / rows**2
    product_mean = (normal * (upstream * normal + others) + upstream * v) / rows
    product_variance = (moment - product_mean**2).clamp(min=0)
    factor = gamma.detach().double() * inverse_std
    bias = -factor * upstream * v / rows
    slack_x = factor.abs() * (upstream.abs() + normal.abs() * upstream.abs().mean(0)) * rows * 2.0**-23
    bound = 5 * factor.abs() * (product_variance / PASSES).sqrt() + slack_x
    assert bool(((mean[0] - exact[0] - bias).abs() <= bound).all())
    # So the bias is a share v / N of the gradient that comes in, which shrinks with the graph.
    assert bool((bias.abs() <= factor.abs() * upstream.abs() * v.max() / rows).all())


def test_dequantize_is_what_recover_uses_without_projection() -> None:
    x = torch.randn(8, 5)
    kept = kept_as(Scheme.parse("exact"), x, 3, 1, projected=False)
    packed = kept.pack(x)
    assert torch.equal(kept.unpack(packed), dequantize(packed, kept.packing))


def test_a_product_never_needs_the_recovered_matrix() -> None:
    """(left û) Pᵀ and left (û Pᵀ) differ by the rounding of two short sums."""
    torch.manual_seed(0)
    x, left = torch.randn(30, 40), torch.randn(4, 30)
    kept = kept_as(Scheme.parse("exact"), x, 3, 1, projected=True)
    packed = kept.pack(x)
    short, long = kept.left_product(left, packed), left @ kept.unpack(packed)
    bound = (left.abs() @ kept.unpack(packed).abs()) * (30 + 5) * 2.0**-22
    assert bool(((short - long).abs() <= bound + 40 * 2.0**-20).all())
