"""Norms' gradients whatever the scales of rows, channels and γ: the bound of docs/method.md, "Norms"."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actbench
from actbench.compress import Ledger
from actbench.quant.levels import level_table
from actbench.scheme import Scheme

# Single functions, and what is left to torch by design: that nothing is compressed is told, and no fault.
pytestmark = pytest.mark.filterwarnings("ignore:.*compressed nothing:UserWarning")

SCHEMES = ["int4", "int8", "derived", "derived-lean", "derived-fine", "int4:block=24,levels=clipped-normal"]
SMALLEST = 2.0**-100
"""An eps that counts beside no variance here."""


@dataclass(frozen=True)
class Norm:
    """A norm of `shape`, whose groups are what it averages over the dimensions `over`."""

    shape: tuple[int, ...]
    over: tuple[int, ...]
    apply: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    affine: int


def batch_norm(shape: tuple[int, ...]) -> Norm:
    over = tuple(each for each in range(len(shape)) if each != 1)
    return Norm(shape, over, lambda x, w, b, eps: F.batch_norm(x, None, None, w, b, True, 0.1, eps), shape[1])


def layer_norm(shape: tuple[int, ...], last: int = 1) -> Norm:
    normalized = shape[-last:]
    return Norm(
        shape,
        tuple(range(len(shape) - last, len(shape))),
        lambda x, w, b, eps: F.layer_norm(x, normalized, w.view(normalized), b.view(normalized), eps),
        math.prod(normalized),
    )


def group_norm(shape: tuple[int, ...]) -> Norm:
    return Norm(shape, (1, 2), lambda x, w, b, eps: F.group_norm(x, 1, w, b, eps), shape[1])


NORMS = {
    "batch norm": batch_norm((96, 24)),
    "batch norm of one channel": batch_norm((96, 1)),
    "batch norm, 1-d with a length": batch_norm((12, 24, 7)),
    "batch norm, 2-d": batch_norm((6, 12, 4, 4)),
    "batch norm, 2-d of 1 x 1": batch_norm((40, 12, 1, 1)),
    "batch norm, 3-d": batch_norm((4, 6, 3, 4, 2)),
    "layer norm": layer_norm((80, 24)),
    "layer norm of long rows": layer_norm((5, 300)),
    "layer norm of three dimensions": layer_norm((8, 9, 24)),
    "layer norm over two": layer_norm((20, 6, 5), last=2),
    # No rule of ours covers these: they are exact.
    "instance norm": Norm(
        (10, 6, 20), (2,), lambda x, w, b, eps: F.instance_norm(x, None, None, w, b, True, 0.1, eps), 6
    ),
    "group norm": group_norm((10, 6, 20)),
    "RMS norm": Norm((80, 24), (1,), lambda x, w, b, eps: F.rms_norm(x, (24,), w, eps), 24),
}


def gradients(
    norm: Norm, x: Tensor, weight: Tensor, scheme: str, seed: int = 0, eps: float = SMALLEST
) -> tuple[Tensor, Tensor]:
    """By x and by γ, of a fixed gradient."""
    g = torch.randn(norm.shape, generator=torch.Generator().manual_seed(5))
    leaf, bias = x.clone().requires_grad_(), torch.zeros(norm.affine, requires_grad=True)
    weight = weight.clone().requires_grad_()
    with actbench.compress(scheme, seed=seed):
        out = norm.apply(leaf * 1, weight, bias, eps)
    by_x, by_weight = torch.autograd.grad(out, (leaf, weight), g)
    return by_x, by_weight


def spread_of_rounding(norm: Norm, text: str) -> float:
    """c: the mean variance of u over a group, at most 2.6 G h² / B²."""
    scheme = Scheme.parse(text)
    assert scheme.bits is not None
    bits = max(math.ceil(scheme.bits), 2)
    row = math.prod(norm.shape[1:]) if norm.shape[0] != math.prod(norm.shape) else 1
    length = min(scheme.block.length(row), math.prod(norm.shape))
    table = torch.tensor(level_table(scheme.levels, bits, length))
    widest = float(table.diff().max())
    return 2.6 * length * widest**2 / float(2**bits - 1) ** 2


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NORMS)
def test_the_scale_of_a_group_changes_no_code(name: str, scheme: str) -> None:
    """Powers of two from 2⁻²⁰ to 2²⁰ by row or channel: γ's gradient is the same to the bit, x's goes by the power."""
    norm = NORMS[name]
    torch.manual_seed(0)
    x, weight = torch.randn(norm.shape) + 0.5, torch.rand(norm.affine) + 0.5
    group = [1 if each in norm.over else size for each, size in enumerate(norm.shape)]
    power = torch.randint(-20, 21, group).float().exp2()
    by_x, by_weight = gradients(norm, x, weight, scheme)
    by_scaled, by_weight_of_scaled = gradients(norm, x * power, weight, scheme)
    assert torch.equal(by_weight, by_weight_of_scaled)
    assert torch.equal(by_scaled * power, by_x)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_noise_is_bounded_on_any_scale(eps: float, name: str, scheme: str) -> None:
    """Scales from 1e-6 to 1e6, by group and off their centre: 4c(1 + √c)² ‖γ g‖² / σ² of x's gradient, c M ‖g‖² of γ's.

    Also where eps is large beside a variance. FP32 itself is off by the rounding of M sums of M terms.
    """
    norm = NORMS[name]
    torch.manual_seed(1)
    group = [1 if each in norm.over else size for each, size in enumerate(norm.shape)]
    scale = 10 ** (torch.rand(group) * 12 - 6)
    x, weight = (torch.randn(norm.shape) + 3 * torch.randn(group)) * scale, torch.rand(norm.affine) + 0.5
    g = torch.randn(norm.shape, generator=torch.Generator().manual_seed(5))
    exact = [each.double() for each in gradients(norm, x, weight, "fp32", eps=eps)]
    drawn = [[each.double() for each in gradients(norm, x, weight, scheme, seed, eps)] for seed in range(8)]
    count = math.prod(norm.shape[each] for each in norm.over)
    c, values = spread_of_rounding(norm, scheme), x.double()
    variance = values.square().mean(norm.over, keepdim=True)
    if name != "RMS norm":
        variance = values.var(norm.over, correction=0, keepdim=True)
    by_channel = (len(norm.over) == 1 and norm.over[0] == 0) or name.startswith("batch")
    shape = (1, -1, *[1] * (len(norm.shape) - 2)) if by_channel or name in ("instance norm", "group norm") else None
    sized = weight.double().view(shape) if shape else weight.double().view(norm.shape[-len(norm.over) :])
    passed = (sized * g).square().sum(norm.over, keepdim=True) / (variance + eps)
    off = torch.stack([(one[0] - exact[0]).square().sum(norm.over, keepdim=True) for one in drawn]).mean(0)
    rounding = (16 * count * 2.0**-24) ** 2 * (1 + values.abs().amax(norm.over, keepdim=True) ** 2 / (variance + eps))
    # The mean of 8 draws of something that is at most 4 times as large as its expectation at most.
    assert bool((off <= 4 * (4 * c * (1 + math.sqrt(c)) ** 2 + rounding) * passed).all())
    by_weight = torch.stack([(one[1] - exact[1]).square() for one in drawn]).mean(0)
    others = math.prod(norm.shape) / norm.affine
    whole = float(g.square().sum(tuple(range(g.dim()))) / norm.affine)
    assert bool((by_weight <= 16 * (c + float(rounding.max())) * others * whole).all())


@pytest.mark.parametrize("scheme", ["int4", "derived", "derived-fine"])
@pytest.mark.parametrize("tail", ["relu", "gelu"])
@pytest.mark.parametrize("gamma", [0.0, 1e-12, -1e-12, 1e-6, -1e-3, 1e-2, 0.1, 1.0])
def test_a_small_weight_has_its_gradient(gamma: float, tail: str, scheme: str) -> None:
    """γ of every other channel: x̂ is not read by dividing by it, so that the mean of draws is FP32's gradient.

    Within 6 of their standard errors and the rounding of sums of 200 terms; and the noise is below the bound of a code
    of x̂, or of y's code where the guard lets it through (docs/derived.md, "Small γ").
    """
    torch.manual_seed(0)
    rows, width, draws = 200, 16, 40
    x, g = torch.randn(rows, width) * 3 + 1, torch.randn(rows, width)
    weight = torch.where(torch.arange(width) % 2 == 0, gamma, torch.linspace(-1.5, 1.5, width) + 0.11)
    bias = torch.linspace(1, 0.2, width)
    follows: dict[str, Callable[[Tensor], Tensor]] = {"relu": lambda y: F.relu(y), "gelu": lambda y: F.gelu(y)}

    def by_weight(scheme: str, seed: int = 0) -> Tensor:
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        with actbench.compress(scheme, seed=seed):
            out = follows[tail](F.batch_norm(x, None, None, w, b, training=True))
        return torch.autograd.grad(out, w, g)[0].double()

    exact = by_weight("fp32")
    drawn = torch.stack([by_weight(scheme, seed) for seed in range(draws)])
    error = drawn.std(0) / draws**0.5
    size = g.double().norm(dim=0) * rows**0.5
    slack = rows * 2.0**-23 * size
    assert bool(((drawn.mean(0) - exact).abs() <= 6 * error + slack).all())
    apart, length = 8.0, 128
    c = (apart**2 * (2 * length + 1) / 4) / (3 if scheme == "derived" else 14) ** 2
    assert bool(((drawn - exact).square().mean(0) <= 4 * c * size**2).all())


def test_a_bound_that_says_something() -> None:
    """Beside the bound, what is measured: at equal scales 4 bits' noise is a hundredth of the gradient at most."""
    norm = NORMS["batch norm"]
    torch.manual_seed(0)
    x, weight = torch.randn(norm.shape), torch.ones(norm.affine)
    exact = gradients(norm, x, weight, "fp32")[0]
    for scheme in ("int4", "derived-fine"):
        found = gradients(norm, x, weight, scheme)[0]
        assert float((found - exact).square().sum() / exact.square().sum()) < 1e-2


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_frozen_batch_norm_on_columns_of_any_scale(scheme: str) -> None:
    """In evaluation x̂ = (x - running mean) / running σ may have any scale: γ's noise is below c M ‖g‖² of its own."""
    torch.manual_seed(0)
    rows, width = 120, 24
    scale = torch.logspace(-6, 6, width)
    norm = nn.BatchNorm1d(width).eval()
    x, g = ((torch.randn(rows, width) + 2) * scale).requires_grad_(), torch.randn(rows, width)
    found = []
    for each in ("fp32", scheme):
        with actbench.compress(each, seed=0):
            out = norm(x)
        found.append(torch.autograd.grad(out, (x, norm.weight, norm.bias), g))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][2], found[1][2], rtol=0, atol=rows * 2.0**-23 * float(g.abs().sum(0).max()))
    c = spread_of_rounding(batch_norm((rows, width)), scheme)
    own = g.norm(dim=0) * x.detach().std(0, correction=0) * rows**0.5
    slack = rows * 2.0**-23 * (g * x.detach()).abs().sum(0)
    assert bool(((found[0][1] - found[1][1]).abs() <= 6 * math.sqrt(c) * own + slack).all())


def test_constant_groups_have_a_gradient() -> None:
    """A column without a spread: x̂ is 0, and what is kept is a constant block or a part of one."""
    for scheme in ("fp32", *SCHEMES):
        x = torch.randn(60, 5)
        x[:, 2] = 7.0
        x.requires_grad_()
        norm = nn.BatchNorm1d(5)
        with actbench.compress(scheme):
            out = norm(x)
        out.sum().backward()
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
        assert norm.weight.grad is not None
        assert abs(float(norm.weight.grad[2])) < 1e-3


@pytest.mark.parametrize("scheme", [*SCHEMES, "exact", "blockwise", "blockwise-vm"])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_a_batch_norm_of_images_keeps_no_more_than_fp32(size: int, scheme: str) -> None:
    norm = nn.BatchNorm2d(32)
    found = []
    for each in ("fp32", scheme):
        x = torch.randn(8, 32, size, size, requires_grad=True) * 1
        with actbench.compress(each), Ledger([*norm.parameters(), *norm.buffers()]) as ledger:
            out = norm(x)
        assert out.requires_grad
        found.append(ledger.total_bytes)
    assert found[1] <= found[0]
