"""The derived schemes, whose every activation is kept once: what their gradients are, and by whom a tensor is used."""

import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GAT, GCN, GCN2Conv, GraphSAGE, SAGEConv

import actbench
from actbench.compress import Ledger
from actbench.compress.ledger import before_closing
from actbench.errors import NonFiniteError, UsageError
from actbench.graphs import gcn_adjacency, mean_adjacency
from actbench.models import Architecture, Model, Network, adjacency_of
from actbench.quant import Rectifier
from actbench.scheme import DERIVED, Scheme
from tests.by_hand.operations import adjacency_entries, operations, predict_saved_bytes

FINE = "derived:bits=8,block=1,levels=uniform"
RELATIVE = 1 / 252
"""A block of one has 254 steps up to its value, that rounded up by 2⁻⁷ at most: a step is less than this share of it.

Values that are not rectified lie between bfloat16 numbers 2⁻⁷ apart, in 255 steps: far closer.
"""
ULP = 2.0**-24
NODES, ROWS, WIDTH = 60, 40, 8


def graph() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    one_way = torch.randint(NODES, (2, 150), generator=generator)
    return torch.randn(NODES, 16, generator=generator), torch.unique(torch.cat((one_way, one_way.flip(0)), 1), dim=1)


def ring(nodes: int) -> Tensor:
    here = torch.arange(nodes)
    return torch.stack((here, (here + 1) % nodes))


def large_floats(ledger: Ledger, numel: int = ROWS * WIDTH) -> list[tuple[str, tuple[int, ...]]]:
    """What was kept as float of `numel` elements at least."""
    return [(e.operation, e.shape) for e in ledger.entries if e.dtype == "float32" and e.saved_bytes >= 4 * numel]


# Forward.


class Modules(nn.Module):
    def __init__(self, *rest: nn.Module) -> None:
        super().__init__()
        self.first, self.rest, self.last = nn.Linear(16, 24), nn.Sequential(*rest), nn.Linear(24, 5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        adjacency = mean_adjacency(edge_index, NODES)
        out: Tensor = self.last(adjacency @ self.rest(self.first(adjacency @ x)))
        return out


class Functional(Modules):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        y = self.rest(self.first(x))
        r = torch.relu_(y)
        d = torch.dropout_(r, 0.4, True)
        out: Tensor = self.last(torch.dropout(d.relu(), 0.1, True))
        return out


class Deep(nn.Module):
    """GCNII of stock layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 24), nn.Linear(24, 5)
        self.convs = nn.ModuleList(GCN2Conv(24, 0.1, 0.5, i + 1) for i in range(2))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = start = self.first(F.dropout(x, 0.2)).relu()
        for conv in self.convs:
            x = conv(F.dropout(x, 0.4), start, edge_index).relu() + x
        out: Tensor = self.last(x)
        return out


class Ours(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.network = Network(architecture, 16, 5)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.network(x, adjacency_of(self.network.architecture.model, edge_index, NODES))
        return out


stock: dict[str, Any] = {"in_channels": 16, "hidden_channels": 24, "num_layers": 3, "out_channels": 5}
stock |= {"dropout": 0.4, "norm": "batch_norm"}
ARCHITECTURES: dict[Model, Architecture] = {
    "sage": Architecture("sage", 3, 24, 0.4, True),
    "gcn": Architecture("gcn", 3, 24, 0.4, True, input_dropout=0.2),
    "gcnii": Architecture("gcnii", 3, 24, 0.4, True, alpha=0.1, theta=0.5, residual=True),
    "gat": Architecture("gat", 3, 8, 0.4, True, heads=3, edge_dropout=0.2),
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "modules": lambda: Modules(nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.4)),
    "modules in place": lambda: Modules(nn.BatchNorm1d(24), nn.ReLU(inplace=True), nn.Dropout(0.4)),
    "cumulative averages": lambda: Modules(nn.BatchNorm1d(24, momentum=None), nn.ReLU()),
    "no affine": lambda: Modules(nn.BatchNorm1d(24, affine=False), nn.ReLU(), nn.Dropout(0.4)),
    "no statistics": lambda: Modules(nn.BatchNorm1d(24, track_running_stats=False), nn.ReLU()),
    "layer norm and ELU": lambda: Modules(nn.LayerNorm(24), nn.ELU(), nn.BatchNorm1d(24), nn.LeakyReLU()),
    "functions in place": lambda: Functional(nn.BatchNorm1d(24)),
    "stock SAGE": lambda: GraphSAGE(**stock, jk="cat"),
    "stock GCN": lambda: GCN(**stock),
    "stock GAT": lambda: GAT(**stock, heads=3),
    "stock GCNII": Deep,
    **{name: (lambda a=a: Ours(a)) for name, a in ARCHITECTURES.items()},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_is_fp32s_bit_for_bit(name: str) -> None:
    """Results of two passes, running statistics, and torch's next random numbers."""
    x, edge_index = graph()
    found = []
    for scheme in ("fp32", *DERIVED):
        torch.manual_seed(7)
        network = NETWORKS[name]()
        outs = []
        for _ in range(2):
            with actbench.compress(scheme):
                outs.append(network(x, edge_index))
        # Stock torch lets nobody drop out in place what its ReLU has kept, so FP32 has no backward here.
        if scheme != "fp32":
            torch.stack(outs).square().mean().backward()
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
        found.append([*(out.detach() for out in outs), *network.state_dict().values(), torch.rand(3)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


# Gradients.

RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "F.relu inplace": lambda x: F.relu(x * 1, inplace=True),
    "torch.relu": torch.relu,
    "Tensor.relu": lambda x: x.relu(),
    "torch.relu_": lambda x: torch.relu_(x * 1),
    "Tensor.relu_": lambda x: (x * 1).relu_(),
    "nn.ReLU": nn.ReLU(inplace=True),
}
DROPOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "F.dropout": lambda x: F.dropout(x, 0.3),
    "F.dropout inplace": lambda x: F.dropout(x * 1, 0.3, inplace=True),
    "torch.dropout": lambda x: torch.dropout(x, 0.3, True),
    "torch.dropout_": lambda x: torch.dropout_(x * 1, 0.3, True),
    "nn.Dropout": nn.Dropout(0.3),
}


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("dropout", DROPOUTS)
def test_backward_of_relu_and_dropout_is_exact(relu: str, dropout: str) -> None:
    """Whatever the codes, the mask's bits or the seed that they are drawn from again."""
    x = torch.randn(400, 128)
    x[0, :5] = torch.tensor([0.0, -0.0, 1e-42, -1e-42, -torch.inf])
    g = torch.randn(400, 128)
    found = []
    for scheme in ("fp32", "derived", "derived:dropout=bit", "derived-lean", "derived-fine:block=3r"):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(3)
        with actbench.compress(scheme):
            out = DROPOUTS[dropout](RELUS[relu](leaf * 1))
        between = torch.rand(5)
        out.backward(g)
        found.append((out.detach(), leaf.grad, between, torch.rand(5)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a is not None
            assert b is not None
            assert torch.equal(a, b)


class Aggregating(nn.Module):
    """Linear layers on data and activations, and on the adjacency's products with them; no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*sizes) for sizes in ((16, 12), (16, 12), (12, 5), (12, 5), (12, 5)))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        a, b, c, d, e = self.layers
        r = F.relu(a(adjacency @ x) + b(x))
        h = F.dropout(r, 0.25)
        out: Tensor = c(adjacency @ h) + d(h) + e(r)
        return out


def gradients(network: nn.Module, scheme: str, seed: int | None, *inputs: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    network.zero_grad()
    with actbench.compress(scheme, seed=seed):
        out = network(*inputs)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def biases(network: nn.Module, all_gradients: list[Tensor]) -> list[Tensor]:
    names = [name for name, _ in network.named_parameters()]
    return [g for name, g in zip(names, all_gradients, strict=True) if name.endswith("bias")]


@pytest.mark.parametrize(("scheme", "normalisation"), [("derived", mean_adjacency), ("derived-lean", gcn_adjacency)])
def test_weight_gradients_without_batch_norm_are_fp32s_on_average(
    scheme: str, normalisation: Callable[[Tensor, int], Tensor]
) -> None:
    """5 standard errors of 200 passes' own spread, 6 with what that is uncertain by; biases and layer 0 are exact.

    Nothing that is kept is used twice, so there is no bias.
    """
    torch.manual_seed(0)
    x, edge_index = graph()
    network, adjacency = Aggregating(), normalisation(edge_index, NODES)
    exact = gradients(network, "fp32", None, x, adjacency)
    drawn = [gradients(network, scheme, seed, x, adjacency) for seed in range(200)]
    for index, expected in enumerate(exact):
        each = torch.stack([of_one[index].double() for of_one in drawn])
        standard_error = each.std(0) / 200**0.5
        # Two orders of summing products over 60 nodes, of as many neighbours at most.
        rounding = 2 * NODES * ULP * float(expected.abs().max()) * 16
        assert bool(((each.mean(0) - expected).abs() <= 6 * standard_error + rounding).all())
        is_estimate = expected.dim() == 2 and expected.shape[1] == 12
        assert float((standard_error > rounding).double().mean()) == (1 if is_estimate else 0)
    for one, other in zip(biases(network, exact), biases(network, drawn[0]), strict=True):
        # ∂r is a sum of three in whatever order; what comes from above is FP32's own.
        assert torch.equal(one, other) or one.shape == (12,)


def test_eight_bits_without_batch_norm_are_within_a_levels_spacing() -> None:
    """ReLU's and dropout's backward are exact, so that weights alone see the codes: |∂W| error ≤ |g|ᵀ |x| / 252."""
    torch.manual_seed(0)
    first, middle, last = nn.Linear(16, 12), nn.Linear(12, 12), nn.Linear(12, 5)
    x = torch.randn(ROWS, 16)
    found: list[Any] = []
    for scheme in ("fp32", FINE):
        torch.manual_seed(1)
        taps: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        for layer in (first, middle, last):
            layer.zero_grad()
        with actbench.compress(scheme):
            inputs = [x]
            outs = [first(x)]
            inputs.append(F.dropout(F.relu(outs[0]), 0.4))
            outs.append(middle(inputs[1]))
            inputs.append(F.relu(outs[1]))
            outs.append(last(inputs[2]))
        for layer, into, out in zip((first, middle, last), inputs, outs, strict=True):
            out.register_hook(lambda g, taps=taps, layer=layer, into=into: taps.__setitem__(layer, (into.detach(), g)))
        outs[-1].square().sum().backward()
        found.append([(*taps[layer], layer.weight.grad, layer.bias.grad) for layer in (first, middle, last)])
    for (into, g, by_weight, by_bias), (_, g2, by_weight2, by_bias2) in zip(*found, strict=True):
        assert torch.equal(g, g2)
        assert torch.equal(by_bias, by_bias2)
        size = g.abs().t() @ into.abs()
        assert bool(((by_weight - by_weight2).abs() <= size * (RELATIVE + 2 * ROWS * ULP)).all())
    assert torch.equal(found[0][0][2], found[1][0][2])


def rounding(rectifier: Rectifier, y: Tensor) -> tuple[Tensor, Tensor]:
    """The variance (y - l)(h - y) of every positive value between its two levels and h - l, in float64; 0 elsewhere."""
    _, scale = rectifier.quantize(y, 0, 1)
    steps = scale.double()[torch.arange(y.numel()) // rectifier.code.block_length].view(y.shape)
    edges = torch.tensor(rectifier.code.levels, dtype=torch.float64)
    t = torch.where(steps > 0, y.double() / steps, 0).clamp(min=0)
    low = torch.bucketize(t, edges[1:-1], right=True)
    variance = (t - edges[low]) * (edges[low + 1] - t) * steps.square()
    width = (edges[low + 1] - edges[low]) * steps
    return torch.where(y > 0, variance, 0), torch.where(y > 0, width, 0)


def test_the_bias_of_batch_norms_backward_is_what_it_says() -> None:
    """Mean of 400 passes against the closed form in float64.

    Within 6 of their standard errors and, for what seldom is rounded the other way, Bernstein's 12 / 400 of the step.
    With S = Σ g x̂, estimated from ŷ, and v the variance of x̂'s estimate: E[x̂ S] = x̂ S + g v of each y > 0; the
    others have x̄ = -Σ₊ x̂ / n₋, and E[x̄ S] = x̄ S - Σ₊ g v / n₋.
    """
    torch.manual_seed(0)
    rows, width, passes = 40, 6, 400
    x = (torch.randn(rows, width) * 2 + 1).requires_grad_()
    # All of one channel are positive, none of another.
    gamma = torch.tensor([1.0, -0.7, 0.6, 2.0, 0.7, -0.7]).requires_grad_()
    beta = torch.tensor([0.2, 0.0, -0.1, 0.5, 3.5, -3.5]).requires_grad_()
    g, scheme = torch.randn(rows, width), "derived:block=6"
    taps: list[Tensor] = []

    def of_pass(seed: int | None) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        with actbench.compress(scheme if seed is not None else "fp32", seed=seed):
            r = F.relu(F.batch_norm(x, None, None, gamma, beta, training=True))
            out = F.dropout(r, 0.25)
        if seed is None:
            taps.extend((r.detach(), torch.autograd.grad(out, r, g, retain_graph=True)[0]))
        return torch.autograd.grad(out, (x, gamma, beta), g)

    exact = of_pass(None)
    drawn = [torch.stack([t.double() for t in each]) for each in zip(*map(of_pass, range(passes)), strict=True)]
    mean, error = [t.mean(0) for t in drawn], [t.std(0) / passes**0.5 for t in drawn]

    values, γ, β = x.detach().double(), gamma.detach().double(), beta.detach().double()
    inverse = (values.var(0, unbiased=False) + 1e-5).rsqrt()
    normal = (values - values.mean(0)) * inverse
    y = γ * normal + β
    alive = y > 0
    assert torch.equal(alive, taps[0] > 0)
    upstream = torch.where(alive, taps[1].double(), 0)
    v, step = rounding(Rectifier.of(x.shape, x.dtype, Scheme.parse(scheme)), y.float())
    v, step = v / γ**2, step / γ.abs()
    total, below = (upstream * normal).sum(0), (~alive).sum(0).clamp(min=1)
    center = -torch.where(alive, normal, 0).sum(0) / below
    product = torch.where(alive, normal * total + upstream * v, center * total - (upstream * v).sum(0) / below)
    expected = γ * inverse * (upstream - (upstream.sum(0) + product) / rows)
    stated = torch.where(alive, 0, (normal - center) * γ * total * inverse / rows)
    # The passes are float32: a column's sum of 40 products, each rounded.
    slack = rows * 2 * ULP * (γ * inverse).abs() * (upstream.abs() + normal.abs() * upstream.abs().mean(0) + 1)
    seldom = 12 / passes * step * (γ * inverse).abs() * drawn[1].abs().amax(0) / rows
    assert bool(((mean[0] - expected).abs() <= 6 * error[0] + seldom + slack).all())
    # So what norm_backward states is all but the variance of a rounding over the number of rows.
    rest = (γ * inverse).abs() * (upstream.abs() * v + (upstream.abs() * v).sum(0) / below) / rows
    assert bool(((expected - exact[0].double() - stated).abs() <= rest + slack).all())
    assert bool(((mean[0] - exact[0].double()).abs() > 6 * error[0] + seldom + slack).any())
    # γ's gradient has no bias, β's no noise.
    slack = rows * 2 * ULP * (upstream * normal).abs().sum(0) * (1 + (β / γ).abs())
    assert bool(((mean[1] - exact[1].double()).abs() <= 6 * error[1] + slack).all())
    assert bool((error[1][:5] > 0).all())
    assert bool(((mean[2] - exact[2].double()).abs() <= rows * 2 * ULP * upstream.abs().sum(0)).all())


def test_a_linear_layer_below_batch_norm_adds_no_bias_to_what_comes_from_above() -> None:
    """Mean over 200 passes of ∂W - (∂z)ᵀ x, ∂z each pass's own; 6 standard errors."""
    torch.manual_seed(0)
    layer, norm, x = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), torch.randn(ROWS, WIDTH)
    leaf, g = x.clone().requires_grad_(), torch.randn(ROWS, WIDTH)
    difference = []
    for seed in range(200):
        layer.zero_grad()
        with actbench.compress("derived:block=8", seed=seed):
            z = layer(F.relu(leaf))
            out = F.relu(norm(z))
        by_z, by_weight, by_bias = torch.autograd.grad(out, (z, layer.weight, layer.bias), g)
        assert torch.equal(by_bias, by_z.sum(0))
        difference.append(by_weight.double() - by_z.double().t() @ x.relu().double())
    drawn = torch.stack(difference)
    standard_error = drawn.std(0) / 200**0.5
    assert bool((drawn.mean(0).abs() <= 6 * standard_error).all())
    assert bool((standard_error > 0).all())


# Consumers of a batch norm's output and of what follows.


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 3


class Unseen(Own):
    """As from an extension: nothing that it does is a torch function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return x * 3


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin, self.other = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4)
        self.wide, self.narrow = nn.Linear(2 * WIDTH, 4), nn.Linear(WIDTH // 2, 4)
        self.data = torch.randn(ROWS, WIDTH)


def _two_ways(m: Layers, r: Tensor) -> Tensor:
    out: Tensor = m.lin(F.dropout(r, 0.4)) + m.other(F.dropout(r, 0.2)) + m.lin(r)
    return out


def _changed(m: Layers, y: Tensor) -> Tensor:
    y[0] = 0
    out: Tensor = m.lin(F.relu(y))
    return out


def _raised(m: Layers, y: Tensor) -> Tensor:
    y += 1
    out: Tensor = m.lin(F.relu(y))
    return out


def _half_rectified(m: Layers, y: Tensor) -> Tensor:
    z = y * 1
    z[:, :4].relu_()
    out: Tensor = m.lin(z)
    return out


def _watched(m: Layers, y: Tensor, watch_y: bool) -> Tensor:
    r = F.relu(y)
    (y if watch_y else r).register_hook(lambda g: g * 3)
    out: Tensor = m.lin(F.dropout(r, 0.4))
    return out


def _watched_before(m: Layers, y: Tensor) -> Tensor:
    y.register_hook(lambda g: g * 3)
    out: Tensor = m.lin(F.relu(y))
    return out


def _looked_at(m: Layers, y: Tensor) -> Tensor:
    with torch.no_grad():
        y.std()
    out: Tensor = m.lin(F.relu(y))
    return out


def _inside(m: Layers, y: Tensor, scheme: str) -> Tensor:
    r = F.relu(y)
    with actbench.compress(scheme):
        s = F.relu(y) + y
    out: Tensor = m.lin(r) + m.other(s)
    return out


def _in_modules(m: Layers, y: Tensor) -> Tensor:
    relu = nn.ReLU()
    relu.register_full_backward_hook(lambda *_: None)
    out: Tensor = m.lin(nn.Dropout(0.4)(relu(y)))
    return out


CONSUMERS: dict[str, Callable[[Layers, Tensor], Tensor]] = {
    "ReLU": lambda m, y: m.lin(F.relu(y)),
    "ReLU and dropout": lambda m, y: m.lin(F.dropout(F.relu(y), 0.4)),
    "both in place": lambda m, y: m.lin(F.dropout(F.relu(y, inplace=True), 0.4, inplace=True)),
    "both functions in place": lambda m, y: m.lin(torch.dropout_(y.relu_(), 0.4, True)),
    "addition": lambda m, y: m.lin(y + m.data),
    "addition and ReLU of it": lambda m, y: m.lin(F.relu(y + m.data)),
    "ReLU, then addition": lambda m, y: m.lin(F.relu(y) + y),
    "ReLU and dropout, then addition": lambda m, y: m.lin(F.dropout(F.relu(y), 0.4)) + m.other(y * 0.5),
    "addition, then ReLU": lambda m, y: m.other(y + m.data) + m.lin(F.relu(y)),
    "concatenation": lambda m, y: m.wide(torch.cat([y, F.relu(y)], 1)),
    "linear": lambda m, y: m.lin(y),
    "two linears": lambda m, y: m.lin(y) + m.other(y),
    "ReLU twice": lambda m, y: m.lin(F.relu(y)) + m.other(F.dropout(F.relu(y), 0.4)),
    "ReLU of ReLU": lambda m, y: m.lin(F.dropout(F.relu(F.relu(y)), 0.4)),
    "two dropouts": lambda m, y: _two_ways(m, F.relu(y)),
    "two dropouts, one of a reshaping": lambda m, y: _two_ways(m, F.relu(y).view(ROWS, WIDTH)),
    "dropout of dropout": lambda m, y: m.lin(F.dropout(F.dropout(F.relu(y), 0.4), 0.2)),
    "jumping connections": lambda m, y: m.wide(torch.cat([r := F.relu(y), F.dropout(r, 0.4)], 1)),
    "dropout alone": lambda m, y: m.lin(F.dropout(y, 0.4)),
    "dropout alone, in place": lambda m, y: m.lin(F.dropout(y, 0.4, inplace=True)),
    "leaky ReLU": lambda m, y: m.lin(F.leaky_relu(y, 0.1)),
    "leaky ReLU in place": lambda m, y: m.lin(F.leaky_relu(y, 0.1, inplace=True)),
    "reshaped ReLU": lambda m, y: m.lin(F.relu(y.view(ROWS // 2, 2, WIDTH)).view(ROWS, WIDTH)),
    "reshaped dropout": lambda m, y: m.lin(F.dropout(F.relu(y).view(-1), 0.4).view(ROWS, WIDTH)),
    "narrow rows": lambda m, y: m.narrow(F.relu(y).view(2 * ROWS, WIDTH // 2)),
    "narrow rows of dropout": lambda m, y: m.narrow(F.dropout(F.relu(y), 0.4).view(2 * ROWS, WIDTH // 2)),
    "both widths of one": lambda m, y: m.lin(z := y + m.data) + m.narrow(z.view(2 * ROWS, WIDTH // 2))[:ROWS],
    "a slice": lambda m, y: m.narrow(F.relu(y)[:, : WIDTH // 2]),
    "chosen rows": lambda m, y: m.lin(y[torch.arange(ROWS).flip(0)]) + m.other(F.relu(y)),
    "transposed": lambda m, y: m.lin(F.relu(y).t().reshape(ROWS, WIDTH)),
    "a change of a row": _changed,
    "an addition in place": _raised,
    "ReLU in place of a part": _half_rectified,
    "hook on ReLU": lambda m, y: _watched(m, y, watch_y=False),
    "hook on batch norm": _watched_before,
    "hook on a module": _in_modules,
    "a function of one's own": lambda m, y: m.lin(Own.apply(y)),  # type: ignore[no-untyped-call]
    "the same and ReLU": lambda m, y: m.lin(F.relu(y)) + m.other(Own.apply(y)),  # type: ignore[no-untyped-call]
    "a function of one's own of ReLU": lambda m, y: m.lin(Own.apply(F.relu(y))),  # type: ignore[no-untyped-call]
    "statistics": _looked_at,
    "an int8 context": lambda m, y: _inside(m, y, "int8:block=1"),
    "an fp32 context": lambda m, y: _inside(m, y, "fp32"),
    "a derived context": lambda m, y: _inside(m, y, FINE),
    "a list": lambda m, y: m.lin(torch.stack([y, F.relu(y)]).sum(0)),
}
KEEPS_FLOATS = ("an fp32 context",)


def consume(consumer: Callable[[Layers, Tensor], Any], scheme: str, after: bool = False) -> Iterator[Any]:
    """Yields the result, the gradient by y, those by z, γ and β and by the layers' weights with a bound of their error,
    and the ledger.

    Of half of the channels all y are positive and of the others none, so that no value takes another's place and
    gradients have no bias. γ is 3/4 to 1.
    """
    torch.manual_seed(0)
    m = Layers()
    z = torch.randn(ROWS, WIDTH, requires_grad=True)
    gamma = torch.linspace(0.75, 1, WIDTH).requires_grad_()
    beta = torch.tensor([3.5, -3.5] * (WIDTH // 2)).requires_grad_()
    by_y: list[Tensor] = []
    bounds = {layer: torch.zeros_like(layer.weight) for layer in m.children() if isinstance(layer, nn.Linear)}

    def look(layer: nn.Module, inputs: tuple[Tensor], out: Tensor) -> None:
        with torch._C.DisableTorchFunction():
            into = inputs[0].detach().clone()

        def add(g: Tensor) -> None:
            assert isinstance(layer, nn.Linear)
            rows = g.abs().reshape(-1, g.shape[-1])
            bounds[layer] += rows.t() @ into.abs().reshape(-1, into.shape[-1])

        out.register_hook(add)

    for layer in bounds:
        layer.register_forward_hook(look)
    torch.manual_seed(5)
    kept = [z, gamma, beta, m.data, *m.parameters()]
    with actbench.compress(scheme, seed=0), Ledger(kept) as ledger:
        y = F.batch_norm(z, None, None, gamma, beta, training=True)
        # Looking must not be taken for a use.
        with torch._C.DisableTorchFunction():
            before = y.detach().clone()
        if scheme == "fp32":
            y.register_hook(lambda g: by_y.append(g.clone()))
        out = consumer(m, y)
        if not after:
            del y
    if after:
        out = out + (y @ torch.ones(WIDTH, 4)).sin()
        del y
    assert bool((before[:, ::2] > 0).all())
    assert bool((before[:, 1::2] < 0).all())
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    weights = [layer.weight for layer in bounds]
    found = torch.autograd.grad(out, (z, gamma, beta, *weights), g, allow_unused=True)
    yield from (out.detach(), by_y, before, z.detach(), gamma.detach(), found, list(bounds.values()), ledger)
    yield torch.rand(3)


def compare(consumer: Callable[[Layers, Tensor], Any], after: bool = False) -> Ledger:
    """Gradients under 8 bits against FP32's: each x̂ is off by |y| / 252 / γ at most; returns the ledger."""
    out, all_by_y, y, z, gamma, exact, sizes, _, rng = consume(consumer, "fp32", after)
    out2, _, _, _, _, found, _, ledger, rng2 = consume(consumer, FINE, after)
    assert torch.equal(out, out2)
    assert torch.equal(rng, rng2)
    by_y = all_by_y[-1].abs()
    inverse_std = (z.var(0, unbiased=False) + 1e-5).rsqrt()
    normal = ((z - z.mean(0)) * inverse_std).abs()
    # The additions that FP32 makes in another order: of the rows, and of what comes to y from several sides.
    rounding = 8 * ROWS * ULP
    off = y.abs().amax(0) * RELATIVE / gamma
    by_gamma = by_y.sum(0) * off + rounding * (by_y * (normal + off)).sum(0)
    size = (by_y * normal).sum(0)
    by_z = gamma * inverse_std * ((normal * by_gamma + off * (size + by_gamma)) / ROWS)
    by_z += rounding * gamma * inverse_std * (by_y + by_y.mean(0) + normal * size / ROWS)
    limits = [by_z, by_gamma, rounding * by_y.sum(0), *(each * (RELATIVE + rounding) for each in sizes)]
    for a, b, limit in zip(exact, found, limits, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert bool(((a - b).abs() <= limit).all())
    assert isinstance(ledger, Ledger)
    return ledger


@pytest.mark.parametrize("name", CONSUMERS)
def test_gradients_whoever_uses_a_batch_norms_output(name: str) -> None:
    ledger = compare(CONSUMERS[name])
    assert name in KEEPS_FLOATS or large_floats(ledger, ROWS * WIDTH // 2) == []


@pytest.mark.parametrize("name", ["ReLU", "addition", "ReLU and dropout, then addition"])
def test_gradients_of_what_is_used_after_the_context_too(name: str) -> None:
    compare(CONSUMERS[name], after=True)


class Holding(TorchFunctionMode):
    """Whatever is made while it is open lives as long as it."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.held.append(out)
        return out


@pytest.mark.parametrize("name", CONSUMERS)
def test_gradients_where_everything_lives_in_backward(name: str) -> None:
    holding = Holding()

    def consumer(m: Layers, y: Tensor) -> Tensor:
        with holding:
            holding.held.append(y)
            return CONSUMERS[name](m, y)

    compare(consumer)
    assert len(holding.held) > 2


def results_on_the_way(skips: bool) -> tuple[list[Tensor], Tensor]:
    """What batch norm, ReLU, dropout and a sparse product make on the way to a loss, taken again if `skips`."""
    torch.manual_seed(0)
    m, x, adjacency = Layers(), torch.randn(ROWS, WIDTH, requires_grad=True), ring_matrix()
    y = F.batch_norm(x, None, None, torch.linspace(0.5, 1, WIDTH).requires_grad_(), torch.zeros(WIDTH), training=True)
    r = F.relu(y)
    d = F.dropout(r, 0.4)
    product = adjacency @ d
    out = m.lin(product)
    if skips:
        out = out + (y + r * d + product)[:, : out.shape[1]]
    return [y, r, d, product], out.square().sum()


def ring_matrix() -> Tensor:
    return mean_adjacency(ring(ROWS), ROWS)


@pytest.mark.parametrize("skips", [False, True])
def test_gradients_by_results_on_the_way(skips: bool) -> None:
    """By one alone, by all at once, by `retain_grad` and by a hook that were set when the forward pass was over."""
    found: dict[str, list[Tensor]] = {}
    for scheme in ("fp32", "derived"):
        with actbench.compress(scheme, seed=0):
            results, loss = results_on_the_way(skips)
        alone = [torch.autograd.grad(loss, each, retain_graph=True)[0] for each in results]
        together = list(torch.autograd.grad(loss, results, retain_graph=True))
        seen: list[Tensor] = []
        for each in results:
            each.retain_grad()
            each.register_hook(lambda g, seen=seen: seen.append(g.clone()))
        loss.backward()
        assert len(seen) == len(results)
        found[scheme] = [*alone, *together, *(each.grad for each in results if each.grad is not None), *seen[::-1]]
    assert len(found["fp32"]) == 4 * 4
    for exact, same in zip(found["fp32"], found["derived"], strict=True):
        # No estimate is on the way to them, only sums of up to five terms in another order.
        assert torch.allclose(exact, same, rtol=0, atol=8 * ULP * float(exact.abs().max()))


def test_a_hook_set_late_changes_the_gradient_of_what_lives() -> None:
    found = []
    for scheme in ("fp32", "derived"):
        torch.manual_seed(0)
        m, x, bias = Layers(), torch.randn(ROWS, WIDTH), torch.zeros(WIDTH, requires_grad=True)
        with actbench.compress(scheme, seed=0):
            y = F.batch_norm(x, None, None, torch.ones(WIDTH, requires_grad=True), bias, training=True)
            out = m.lin(F.dropout(F.relu(y), 0.4))
        y.register_hook(lambda g: g * 3)
        found.append(torch.autograd.grad(out.square().sum(), bias)[0])
    # β's gradient is a sum over rows, and no estimate.
    assert torch.allclose(found[0], found[1], rtol=0, atol=2 * ROWS * ULP * float(found[0].abs().max()))


def test_a_use_that_nothing_sees_is_an_error_in_backward() -> None:
    says = r"made of the input of batch_norm 1 \(float32 \[40, 8\]\) went into an operation that compress cannot see"
    consumers: list[Callable[[Layers, Tensor], Tensor]] = [
        lambda m, y: m.lin(Unseen.apply(y)) + m.other(F.relu(y)),  # type: ignore[no-untyped-call]
        lambda m, y: m.lin(F.relu(y)) + m.other(Unseen.apply(y)),  # type: ignore[no-untyped-call]
    ]
    for consumer in consumers:
        with pytest.raises(UsageError, match=says):
            list(consume(consumer, FINE))
    # Whoever holds it until the context closes has right gradients.
    held: list[Tensor] = []

    def holding(m: Layers, y: Tensor) -> Tensor:
        held.append(y)
        out: Tensor = m.lin(F.relu(y)) + m.other(Unseen.apply(y))  # type: ignore[no-untyped-call]
        return out

    compare(holding)
    # And so has what nothing but the unseen has taken.
    compare(lambda m, y: m.lin(Unseen.apply(y)))  # type: ignore[no-untyped-call]
    compare(lambda m, y: Unseen.apply(y).sum(1))  # type: ignore[no-untyped-call]
    compare(lambda m, y: m.lin(swish(y)))


@torch.jit.script
def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


# What is kept, and what is data.


def kept_bytes(function: Callable[[], Tensor], exclude: list[Tensor], scheme: str = "derived") -> int:
    with actbench.compress(scheme), Ledger(exclude) as ledger:
        out = function()
    assert out.requires_grad
    return ledger.total_bytes


def test_data_is_kept_by_reference_and_its_dropout_exact() -> None:
    layer, narrow = nn.Linear(16, 4), nn.Linear(8, 4)
    x, edge_index = graph()
    adjacency = mean_adjacency(edge_index, NODES)
    exclude = [x, adjacency, *layer.parameters(), *narrow.parameters()]
    functions: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: layer(x),
        "product": lambda: layer(adjacency @ x),
        "product by function": lambda: layer(torch.sparse.mm(adjacency, x)),
        "view": lambda: narrow(x.view(2 * NODES, 8)),
        "slice": lambda: narrow(x[:, :8]),
        "no dropout": lambda: layer(F.dropout(input=x, p=0.5, training=False)),
        "detached": lambda: layer(x.detach()),
        "matmul": lambda: x @ layer.weight.t(),
    }
    found = {name: kept_bytes(function, exclude) for name, function in functions.items()}
    assert found == dict.fromkeys(functions, 0)
    mask_bytes = NODES * 16 // 8
    assert kept_bytes(lambda: layer(d := F.dropout(x, 0.4)) + layer(adjacency @ d), exclude) == mask_bytes
    gradients = []
    for scheme in ("fp32", "derived", "derived-lean"):
        layer.zero_grad()
        torch.manual_seed(0)
        with actbench.compress(scheme):
            out = layer(F.dropout(x, 0.4)) + layer(x)
        out.backward(torch.linspace(-1, 1, NODES * 4).view(NODES, 4))
        assert layer.weight.grad is not None
        gradients.append(layer.weight.grad.clone())
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def _in_place(x: Tensor) -> Tensor:
    made = x * 2
    made.add_(1)
    return made


def _without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 2


MADE: dict[str, Callable[[Tensor], Tensor]] = {
    "a product": lambda x: x * 2,
    "changed in place": _in_place,
    "a slice": lambda x: torch.cat([x, x], 1)[:, :16],
    "a view": lambda x: (x * 2).view(2 * NODES, 8).view(NODES, 16),
    "without gradients": _without_gradients,
    "one of two": lambda x: torch.sort(x, dim=0)[0],
    "dropout of dropout": lambda x: F.dropout(F.dropout(x, 0.2), 0.3),
    "dropout changed in place": lambda x: F.dropout(x, 0.2).mul_(3),
    "detached": lambda x: nn.Linear(16, 16)(x).detach(),
    "detached and dropped out": lambda x: F.dropout(nn.Linear(16, 16)(x).detach()),
    "of frozen layers": lambda x: F.dropout(F.relu(nn.Linear(16, 16).requires_grad_(False)(x))),
    "transposed": lambda x: x.t().contiguous().t().add(1),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_inside_without_a_gradient_is_kept_in_a_code(name: str) -> None:
    x, _ = graph()
    layer = nn.Linear(16, 4)
    g = torch.randn(NODES, 4)
    found = []
    for scheme in ("fp32", FINE):
        torch.manual_seed(0)
        with actbench.compress(scheme), Ledger([x, *layer.parameters()]) as ledger:
            made = MADE[name](x)
            out = layer(made)
        found.append((made, torch.autograd.grad(out, layer.weight, g)[0]))
    assert large_floats(ledger, NODES * 16) == []
    size = g.abs().t() @ found[0][0].abs()
    assert bool(((found[0][1] - found[1][1]).abs() <= size * (RELATIVE + 2 * NODES * ULP)).all())


def test_a_tensor_is_kept_once_for_all_its_readers() -> None:
    layers = [nn.Linear(128, 4) for _ in range(3)]
    x, exclude = torch.randn(64, 128), list[Tensor](p for layer in layers for p in layer.parameters())
    x.requires_grad_()
    adjacency = gcn_adjacency(ring(64), 64)
    exclude += [x, adjacency]
    # 2 bits a value and, for the ReLU, a scale for a block of 128.
    rectified = 64 * 128 // 4 + 64 * 2
    assert kept_bytes(lambda: layers[0](F.relu(x)), exclude) == rectified
    assert kept_bytes(lambda: sum_of(layers, F.relu(x)), exclude) == rectified
    assert kept_bytes(lambda: layers[0](r := F.relu(x)) + layers[1](adjacency @ r), exclude) == rectified
    mask = 64 * 128 // 8
    dropped = kept_bytes(lambda: layers[0](d := F.dropout(F.relu(x))) + layers[1](adjacency @ d), exclude)
    assert dropped == rectified + mask
    # One of another kind has a minimum too.
    assert kept_bytes(lambda: sum_of(layers, x * 2), exclude) == rectified + 64 * 2
    norm = nn.BatchNorm1d(128)
    exclude += [*norm.parameters(), *norm.buffers()]
    inverse_std = 128 * 4
    assert kept_bytes(lambda: layers[0](F.relu(norm(x))), exclude) == rectified + inverse_std
    assert kept_bytes(lambda: layers[0](norm(x).relu_()), exclude) == rectified + inverse_std


def sum_of(layers: list[nn.Linear], x: Tensor) -> Tensor:
    return torch.stack([layer(x) for layer in layers]).sum(0)


def test_a_product_is_not_read_from_what_has_changed_since() -> None:
    x, edge_index = graph()
    adjacency, layer = mean_adjacency(edge_index, NODES), nn.Linear(16, 4)

    def hidden_changed() -> Tensor:
        hidden = x * 2
        product = adjacency @ hidden
        hidden.mul_(-1)
        out: Tensor = layer(product)
        return out

    def activation_changed() -> Tensor:
        hidden = nn.Linear(16, 16)(x) * 1
        product = adjacency @ hidden
        hidden.relu_()
        out: Tensor = layer(product)
        return out

    def product_changed() -> Tensor:
        product = adjacency @ x
        product.mul_(-1)
        out: Tensor = layer(product)
        return out

    def adjacency_changed() -> Tensor:
        mine = mean_adjacency(edge_index, NODES)
        product = mine @ x
        mine.values().mul_(-1)
        out: Tensor = layer(product)
        return out

    for function in (hidden_changed, activation_changed, product_changed, adjacency_changed):
        found = []
        for scheme in ("fp32", FINE):
            torch.manual_seed(0)
            with actbench.compress(scheme):
                out = function()
            found.append(torch.autograd.grad(out, layer.weight, torch.ones_like(out))[0])
        # Of a product that is kept itself: its column sums, of magnitude below 60 times 10.
        assert torch.allclose(found[0], found[1], rtol=0, atol=NODES * 10 * (2.0**-6 / 255 + NODES * ULP))


def test_a_hook_on_a_product_sees_its_gradient() -> None:
    x, edge_index = graph()
    adjacency, layer = mean_adjacency(edge_index, NODES), nn.Linear(16, 4)
    x.requires_grad_()
    found = []
    for scheme in ("fp32", "derived"):
        with actbench.compress(scheme):
            product = adjacency @ x
            product.register_hook(lambda g: g * 3)
            out = layer(product)
        found.append(torch.autograd.grad(out, x, torch.ones_like(out))[0])
    assert torch.allclose(found[0], found[1], rtol=0, atol=2 * NODES * ULP * float(found[0].abs().max()))


@pytest.mark.parametrize("scheme", ["derived", "int4", "int8", "exact", "blockwise-vm", "exact:bits=1"])
def test_elu_keeps_a_code_and_its_gradient_is_unbiased(scheme: str) -> None:
    """The error of 200 passes' mean by Bernstein's inequality, of the variance and the step of rounding."""
    x, g = torch.randn(30, 16), torch.randn(30, 16)
    forms: list[Callable[[Tensor], Tensor]] = [
        F.elu,
        nn.ELU(alpha=0.7),
        lambda t: F.elu(t * 1, 1.5, inplace=True),
        lambda t: F.elu_(t * 1),
    ]
    # A code has a symbol for the mask and two for the values at least.
    rectifier = Rectifier.of(x.shape, x.dtype, Scheme.parse(scheme.replace("bits=1", "bits=2")))
    for form in forms:
        leaf = x.clone().requires_grad_()
        expected = form(leaf)
        (exact,) = torch.autograd.grad(expected, leaf, g)
        drawn = []
        for seed in range(200):
            with actbench.compress(scheme, seed=seed), Ledger() as ledger:
                out = form(leaf)
            drawn.append(torch.autograd.grad(out, leaf, g)[0].double())
        assert torch.equal(out, expected)
        assert ledger.total_bytes == rectifier.layout.total_bytes
        v, step = rounding(rectifier, -expected.detach())
        bound = g.abs() * (6 * (v / 200).sqrt() + 12 / 200 * step + 8 * ULP)
        mean = torch.stack(drawn).mean(0)
        assert bool(((mean - exact).abs() <= bound).all())
        assert bool(((mean - exact).abs() > g.abs() * 8 * ULP).any())
        with actbench.compress(FINE):
            (fine,) = torch.autograd.grad(form(leaf), leaf, g)
        assert bool(((fine - exact).abs() <= g.abs() * (expected.detach().abs() * RELATIVE + 8 * ULP)).all())


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("fp32", 528_384), ("int8", 238_592), ("int4", 189_440), ("derived", 162_304), ("derived-fine", 186_880)],
)
def test_layer_norm_and_elu_keep_a_code_under_every_scheme(scheme: str, expected: int) -> None:
    """By hand: a layer norm its row's 1 / σ and spread, 8 bytes, and codes and 4 bytes a block; an ELU codes and 2."""
    net = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.ELU(), nn.Linear(64, 64))
    x, floats = torch.randn(512, 64), 512 * 64 * 4
    with actbench.compress(scheme), Ledger([x, *net.parameters()]) as ledger:
        out = net(x)
    by_hand = floats + 512 * 8
    if scheme == "fp32":
        by_hand += 3 * floats
    else:
        bits, blocks = {"int8": (8, 512), "int4": (4, 512), "derived": (2, 256), "derived-fine": (4, 256)}[scheme]
        by_hand += 3 * 512 * 64 * bits // 8 + blocks * (4 + 2 + 4)
    assert ledger.total_bytes == by_hand == expected
    out.sum().backward()


@pytest.mark.parametrize("scheme", ["derived", "int4", "exact"])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_an_elus_code_gives_way_where_its_result_stays_in_float(scheme: str, alpha: float) -> None:
    weight = torch.randn(4, 8, 3, requires_grad=True)
    found = []
    for each in ("fp32", scheme):
        x = torch.randn(5, 8, 20, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with actbench.compress(each), Ledger([x, weight]) as ledger:
            out = F.conv1d(F.elu(x * 2, alpha, inplace=True), weight)
        found.append((ledger.total_bytes, torch.autograd.grad(out.square().sum(), (x, weight))))
    assert found[1][0] <= found[0][0]
    for exact, given in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(exact, given, rtol=0, atol=16 * ULP * float(exact.abs().max()))


@pytest.mark.parametrize("shape", [(30, 16), (6, 5, 16)])
def test_layer_norm_keeps_a_code(shape: tuple[int, ...]) -> None:
    norm, g = nn.LayerNorm(16), torch.randn(shape)
    nn.init.normal_(norm.weight)
    x = torch.randn(shape, requires_grad=True)
    found = []
    for scheme in ("fp32", FINE):
        with actbench.compress(scheme), Ledger([x, *norm.parameters()]) as ledger:
            out = norm(x)
        found.append((out, *torch.autograd.grad(out, (x, norm.weight, norm.bias), g)))
    assert torch.equal(found[0][0], found[1][0])
    assert large_floats(ledger, 480) == []
    # As with batch norm, over a row's 16 values; an x is off by 2⁻⁶ / 255 of itself.
    inverse_std = (x.detach().var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt()
    off = x.detach().abs().amax(-1, keepdim=True) * inverse_std * 2.0**-6 / 255
    size = (g * norm.weight.detach()).abs()
    normal = 4.0
    assert bool(((x.detach() - x.detach().mean(-1, keepdim=True)).abs() * inverse_std <= normal).all())
    slack = 64 * ULP
    by_x = inverse_std * (2 * normal * off + off**2 + slack * normal**2) * size.mean(-1, keepdim=True) + slack * size
    assert bool(((found[0][1] - found[1][1]).abs() <= by_x + slack * inverse_std * size * normal).all())
    by_weight = (g.abs() * (off + slack * normal)).reshape(-1, 16).sum(0)
    assert bool(((found[0][2] - found[1][2]).abs() <= by_weight).all())
    assert torch.allclose(found[0][3], found[1][3], rtol=0, atol=30 * ULP * float(g.abs().sum(0).max()))


def test_batch_norm_whose_weight_is_zero_still_learns() -> None:
    """As residual branches begin: y has nothing of x̂, so the input is kept instead; later y is enough."""
    norm, x = nn.BatchNorm1d(WIDTH), torch.randn(ROWS, WIDTH)
    nn.init.zeros_(norm.weight)
    nn.init.ones_(norm.bias)
    g = torch.randn(ROWS, WIDTH)
    x.requires_grad_()
    found = []
    for scheme in ("fp32", FINE):
        with actbench.compress(scheme):
            out = F.relu(norm(x))
        found.append(torch.autograd.grad(out, (norm.weight, x), g))
    normal = 5.0
    off = x.detach().abs().amax(0) * 2.0**-6 / 255 * 2
    assert bool(((found[0][0] - found[1][0]).abs() <= (off + ROWS * normal * ULP) * g.abs().sum(0)).all())
    assert bool((found[0][0] != 0).all())
    assert not bool(found[1][1].any())
    exclude = [x, *norm.parameters(), *norm.buffers()]
    first = kept_bytes(lambda: F.relu(norm(x)), exclude)
    nn.init.constant_(norm.weight, 0.5)
    assert kept_bytes(lambda: F.relu(norm(x)), exclude) < first


@pytest.mark.parametrize("kind", ["evaluation", "three dimensions", "no affine"])
def test_batch_norms_of_other_kinds_keep_their_input(kind: str) -> None:
    shape = (8, WIDTH, 5) if kind == "three dimensions" else (ROWS, WIDTH)
    norm = nn.BatchNorm1d(WIDTH, affine=kind != "no affine").train(kind != "evaluation")
    x, g = torch.randn(shape, requires_grad=True), torch.randn(shape)
    weights = tuple(norm.parameters())
    found = []
    for scheme in ("fp32", FINE):
        with actbench.compress(scheme), Ledger([x, *norm.parameters(), *norm.buffers()]) as ledger:
            out = F.dropout(F.relu(norm(x)), 0.0)
        found.append((out, *torch.autograd.grad(out, (x, *weights), g)))
    assert torch.equal(found[0][0], found[1][0])
    assert large_floats(ledger) == []
    # x within 2⁻⁶ / 255 of itself, and x̂ of 5 at most: each gradient is a mean or sum of g, g x̂ over a column's 40.
    off = 2.0**-6 / 255 * float(x.detach().abs().max()) * 2 + 64 * ULP * 5
    assert torch.allclose(found[0][1], found[1][1], rtol=0, atol=2 * off * (2 * 5 + 1) * float(g.abs().max()))
    for one, other in zip(found[0][2:], found[1][2:], strict=True):
        assert torch.allclose(one, other, rtol=0, atol=off * 40 * float(g.abs().max()))


# Bytes.


@pytest.mark.parametrize("scheme", ["derived", "derived:dropout=bit", "derived-lean", "derived-fine:block=3r"])
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_measured_bytes_are_the_predicted_ones(model: Model, scheme: str) -> None:
    nodes, features, classes = 203, 13, 5
    edge_index = ring(nodes)
    adjacency = adjacency_of(model, edge_index, nodes)
    entries = adjacency_entries(model, edge_index, nodes)
    for norm, dropout, of_input, residual in itertools.product((True, False), (0.0, 0.5), (0.0, 0.3), (False, True)):
        if residual and model != "gcnii":
            continue
        # 203 x 240 bits are more than a generator's state, others are not.
        hidden = 240 if dropout and norm and not of_input and model == "sage" else 21
        shared = replace(ARCHITECTURES[model], hidden=hidden, batch_norm=norm, dropout=dropout, residual=residual)
        architecture = replace(shared, input_dropout=of_input)
        network, x = Network(architecture, features, classes), torch.randn(nodes, features)
        exclude = [x, adjacency, *network.parameters(), *network.buffers()]
        with actbench.compress(scheme), Ledger(exclude) as ledger:
            out = network(x, adjacency)
        trace = operations(architecture, nodes, features, classes, entries)
        assert ledger.total_bytes == predict_saved_bytes(trace, Scheme.parse(scheme), "cpu")
        assert large_floats(ledger, nodes * 21) == [] or model == "gat"
        assert out.requires_grad


def test_bytes_at_arxivs_size() -> None:
    """Two hidden layers of 169,343 x 128: 2-bit codes, a scale for 128 of them, and a dropout's seed or bits."""
    nodes, mebibyte = 169_343, 2**20
    trace = operations(Architecture("sage", 3, 128, 0.5, True), nodes, 128, 40)
    layer = nodes * 128 // 4 + nodes * 2 + 128 * 4
    for device, seed in (("cpu", 5056), ("cuda", 16)):
        found = predict_saved_bytes(trace, Scheme.parse("derived"), device)
        assert found == 2 * (layer + seed)
        assert found <= 11.0 * mebibyte
        in_bits = predict_saved_bytes(trace, Scheme.parse("derived:dropout=bit"), device)
        assert in_bits == 2 * (layer + nodes * 128 // 8)
        lean = predict_saved_bytes(trace, Scheme.parse("derived-lean"), device)
        assert lean == 2 * (-(-nodes * 128 // 5) + nodes * 2 + 128 * 4 + seed)


def test_a_ledger_that_closes_asks_for_what_is_yet_to_be_kept() -> None:
    calls: list[int] = []
    with before_closing(lambda: calls.append(1)):
        with before_closing(lambda: calls.append(2)), Ledger():
            pass
        assert calls == [1, 2]
        with pytest.raises(ZeroDivisionError), Ledger():
            raise ZeroDivisionError
        assert calls == [1, 2]
        others = threading.Thread(target=lambda: Ledger().__enter__().__exit__(None, None, None))
        others.start()
        others.join()
        assert calls == [1, 2]
    with Ledger():
        pass
    assert calls == [1, 2]
    norm, x = nn.BatchNorm1d(128), torch.randn(64, 128, requires_grad=True)
    with actbench.compress("derived"), Ledger([x, *norm.parameters(), *norm.buffers()]) as ledger:
        y = norm(x)
    assert ledger.total_bytes == 64 * 128 // 4 + 2 * 64 * 2 + 128 * 4
    assert y.requires_grad


# Life and order.


class Small(nn.Module):
    def __init__(self, residual: bool = False) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 24), nn.BatchNorm1d(24), nn.Linear(24, 5)
        self.residual = residual
        self.floats: dict[str, Any] = {}

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        z = self.first(adjacency @ x)
        y = self.norm(z)
        r = F.relu(y)
        d = F.dropout(r, 0.4)
        h = adjacency @ (d + y if self.residual else d)
        self.floats = {name: weakref.ref(each) for name, each in {"z": z, "y": y, "r": r, "d": d, "h": h}.items()}
        out: Tensor = self.last(h)
        return out


def inputs() -> tuple[Tensor, Tensor]:
    x, edge_index = graph()
    return x, mean_adjacency(edge_index, NODES)


@pytest.mark.parametrize("residual", [False, True])
def test_floats_die_in_forward_and_codes_in_backward_without_a_collector(residual: bool) -> None:
    network, (x, adjacency) = Small(residual), inputs()
    stays = {each.untyped_storage().data_ptr() for each in (x, adjacency.values(), *network.parameters())}
    stays |= {adjacency.crow_indices().data_ptr(), adjacency.col_indices().data_ptr()}
    kept: list[StorageWeakRef] = []

    def pack(tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            if tensor.layout == torch.strided and tensor.data_ptr() not in stays:
                kept.append(StorageWeakRef(tensor.untyped_storage()))
            return tensor.detach()

    gc.disable()
    try:
        with actbench.compress("derived"), saved_tensors_hooks(pack, lambda tensor: tensor):
            out = network(x, adjacency)
            assert [name for name, reference in network.floats.items() if reference() is not None] == []
        assert any(not reference.expired() for reference in kept)
        # What is kept for a second kind of use hangs on the graph itself.
        loss, node = out.sum(), weakref.ref(out.grad_fn)
        loss.backward()
        alive = sum(not reference.expired() for reference in kept)
        assert alive == 0 or (residual and alive == 3)
        del loss, out
        assert node() is None
        assert all(reference.expired() for reference in kept)
    finally:
        gc.enable()


def test_an_error_in_the_middle_leaves_nothing_behind() -> None:
    network, (x, adjacency) = Small(), inputs()
    context = actbench.compress("derived", seed=3)
    gc.disable()
    try:
        try:
            with context, Ledger():
                network(x, adjacency)
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        assert [name for name, reference in network.floats.items() if reference() is not None] == []
    finally:
        gc.enable()
    with context:
        out = network(x, adjacency)
    out.sum().backward()
    plain = nn.Linear(3, 2)(torch.ones(1, 3)).relu()
    assert type(plain.grad_fn).__name__ == "ReluBackward0"


def test_backward_twice_through_one_graph() -> None:
    for residual in (False, True):
        network, (x, adjacency) = Small(residual), inputs()
        with actbench.compress("derived"):
            out = network(x, adjacency).square().sum()
        parameters = tuple(network.parameters())
        first, second = (torch.autograd.grad(out, parameters, retain_graph=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        # A backward for some alone leaves nothing for the next to stumble over.
        (weight,) = torch.autograd.grad(out, network.last.weight, retain_graph=True)
        (again,) = torch.autograd.grad(out, network.first.weight)
        assert torch.equal(weight, first[4])
        assert torch.equal(again, first[0])
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(out, parameters)


def test_two_models_in_one_context_and_two_contexts_in_a_row_add_up() -> None:
    one, other, (x, adjacency) = Small(), Small(True), inputs()
    alone = []
    torch.manual_seed(0)
    for network, seed in ((one, 4), (other, 4)):
        with actbench.compress("derived", seed=seed):
            loss = network(x, adjacency).square().sum()
        loss.backward()
        alone += [p.grad.clone() for p in network.parameters() if p.grad is not None]
    # In a row, with one backward for both.
    one.zero_grad()
    other.zero_grad()
    torch.manual_seed(0)
    losses = []
    for network in (one, other):
        with actbench.compress("derived", seed=4):
            losses.append(network(x, adjacency).square().sum())
    torch.stack(losses).sum().backward()
    both = [p.grad for network in (one, other) for p in network.parameters()]
    assert all(b is not None and torch.equal(a, b) for a, b in zip(alone, both, strict=True))
    # In one context the second has other noise, and biases of the last layer have none.
    one.zero_grad()
    other.zero_grad()
    torch.manual_seed(0)
    with actbench.compress("derived", seed=4):
        losses = [network(x, adjacency).square().sum() for network in (one, other)]
    torch.stack(losses).sum().backward()
    both = [p.grad for network in (one, other) for p in network.parameters()]
    same = [b is not None and torch.equal(a, b) for a, b in zip(alone, both, strict=True)]
    assert same[:6] == [True] * 6
    assert (same[10], same[11]) == (False, True)


def test_gradients_accumulate() -> None:
    network, (x, adjacency) = Small(), inputs()
    found = []
    for clear in (True, False):
        torch.manual_seed(0)
        network.zero_grad()
        context = actbench.compress("derived", seed=4)
        parts = []
        for _ in range(2):
            with context:
                out = network(x, adjacency)
            out.sum().backward()
            assert network.first.weight.grad is not None
            parts.append(network.first.weight.grad.clone())
            if clear:
                network.zero_grad()
        found.append(parts)
    (first, second), (_, total) = found
    assert not torch.equal(first, second)
    assert torch.equal(total, first + second)


@pytest.mark.parametrize(("outer", "inner"), [("fp32", FINE), ("int4", FINE), (FINE, "int4"), (FINE, "fp32")])
def test_the_innermost_of_nested_contexts_decides(outer: str, inner: str) -> None:
    relu_of = {"fp32": "float32", "int4": "uint8", FINE: "uint8"}
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    found = []
    with actbench.compress(outer):
        first = F.relu(x)
        with actbench.compress(inner), Ledger([x]) as ledger:
            second = F.relu(first * 2)
        third = F.relu(second * 2)
    found = [(e.dtype, e.saved_bytes) for e in ledger.entries if e.operation == "relu"]
    size = {"fp32": 4 * ROWS * WIDTH, "int4": ROWS * WIDTH // 8, FINE: ROWS * WIDTH}[inner]
    assert (relu_of[inner], size) in found
    (by_x,) = torch.autograd.grad(third, x, torch.ones_like(third))
    assert torch.equal(by_x, torch.where(x > 0, 4.0, 0.0))


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_torchs_checkpoint_covers_is_exact(reentrant: bool) -> None:
    """Whole networks, and parts of one that take a batch norm's output from outside of it."""
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    network = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
    for outside in (0, 2):
        found: list[tuple[Tensor, ...]] = []
        for scheme in ("fp32", FINE):
            x.grad = None
            network.zero_grad()
            with actbench.compress(scheme):
                out = checkpoint(network[outside:], network[:outside](x), use_reentrant=reentrant)
            out.square().sum().backward()
            assert x.grad is not None
            found.append((x.grad.clone(), *[each.grad.clone() for each in network[3].parameters()]))
        assert torch.equal(found[0][1], found[1][1])
        if outside:
            # x̂ is off by a 255th of 2⁻⁷ of itself at most, and the input's gradient by what that makes of it.
            size = found[0][0].abs().max() + 1
            assert float((found[0][0] - found[1][0]).abs().max()) <= float(size) * RELATIVE * 5
        else:
            assert torch.equal(found[0][0], found[1][0])


def test_nothing_is_kept_without_gradients() -> None:
    network, (x, adjacency) = Small(True), inputs()
    with actbench.compress("derived"), torch.no_grad(), Ledger() as ledger:
        out = network(x, adjacency)
    assert ledger.total_bytes == 0
    assert not out.requires_grad


def test_frozen_weights_have_no_gradient_and_let_it_pass() -> None:
    network, (x, adjacency) = Small(), inputs()
    network.last.requires_grad_(False)
    network.norm.weight.requires_grad_(False)
    with actbench.compress("derived"), Ledger([x, adjacency, *network.parameters()]) as ledger:
        out = network(x, adjacency)
    out.sum().backward()
    assert network.last.weight.grad is None
    assert network.norm.weight.grad is None
    assert network.norm.bias.grad is not None
    assert network.first.weight.grad is not None
    assert large_floats(ledger, NODES * 16) == []


def test_inputs_that_need_a_gradient() -> None:
    """∂x is exact but for batch norm's; here there is none."""
    x, adjacency = inputs()
    network = Aggregating()
    found = []
    for scheme in ("fp32", "derived"):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(0)
        with actbench.compress(scheme):
            out = network(leaf, adjacency)
        found.append(torch.autograd.grad(out, leaf, torch.linspace(-1, 1, out.numel()).view_as(out))[0])
    assert torch.allclose(found[0], found[1], rtol=0, atol=4 * NODES * ULP * 16 * float(found[0].abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats(dtype: torch.dtype) -> None:
    x = torch.randn(ROWS, WIDTH).to(dtype).requires_grad_()
    norm, last = nn.BatchNorm1d(WIDTH).to(dtype), nn.Linear(WIDTH, 4).to(dtype)
    found: list[Any] = []
    for scheme in ("fp32", FINE):
        torch.manual_seed(0)
        with actbench.compress(scheme), Ledger([x, *norm.parameters(), *norm.buffers(), *last.parameters()]) as ledger:
            y = norm(x)
            out = last(F.dropout(F.relu(y), 0.4)) + last(y)
            del y
        g = torch.ones_like(out)
        found.append((out, *torch.autograd.grad(out, (x, last.weight, last.bias, norm.weight, norm.bias), g)))
    assert torch.equal(found[0][0], found[1][0])
    assert [e.shape for e in ledger.entries if e.dtype in ("float16", "float32") and len(e.shape) > 1] == []
    epsilon = torch.finfo(dtype).eps
    for one, other in zip(found[0][1:], found[1][1:], strict=True):
        assert one.dtype == other.dtype == dtype
        assert one.shape == other.shape
    # Sums over 40 rows of values below 10, each within a step of a short float and of a level.
    assert torch.allclose(found[0][2].float(), found[1][2].float(), rtol=0, atol=ROWS * 10 * (epsilon + RELATIVE))


def test_autocast() -> None:
    """Aᵀ g of a gradient that is shorter than A, and a copy that is dropped out."""
    x, adjacency = inputs()
    layer, norm = nn.Linear(16, 16), nn.BatchNorm1d(16)
    found = []
    for scheme in ("fp32", FINE):
        layer.zero_grad()
        torch.manual_seed(0)
        with actbench.compress(scheme):
            product = adjacency @ x
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = F.dropout(F.relu(norm(layer(product))), 0.4)
                out = layer(out)
        found.append((out, *torch.autograd.grad(out, (layer.weight, layer.bias), torch.ones_like(out))))
    assert torch.equal(found[0][0], found[1][0])
    assert found[1][1].dtype == torch.float32
    assert bool(found[1][1].isfinite().all())
    # Without batch norm between there is nothing but bfloat16's rounding.
    found = []
    for scheme in ("fp32", FINE):
        with actbench.compress(scheme):
            product = adjacency @ x
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = layer(product)
        found.append(torch.autograd.grad(out, layer.weight, torch.ones_like(out)))
    size = torch.ones(16, NODES) @ (adjacency @ x).abs()
    assert bool(((found[0][0] - found[1][0]).abs() <= 2.0**-7 * size).all())


def test_a_mask_of_bits_and_one_of_a_seed_give_equal_gradients() -> None:
    x = torch.randn(400, 128)
    network = nn.Sequential(nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 3))
    found, kept = [], []
    for scheme in ("derived:dropout=bit", "derived:dropout=seed"):
        torch.manual_seed(0)
        with actbench.compress(scheme, seed=1), Ledger([x, *network.parameters(), *network.buffers()]) as ledger:
            out = network(x)
        kept.append(ledger.total_bytes)
        # What is drawn in between changes nothing.
        torch.rand(7)
        found.append(torch.autograd.grad(out, tuple(network.parameters()), torch.ones_like(out)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kept[0] - kept[1] == 400 * 128 // 8 - 5056


def test_a_relus_input_that_is_no_number_is_named() -> None:
    first, last = nn.Linear(5, 6), nn.Linear(6, 6)
    x = torch.randn(20, 5)
    says = r"^the input of relu 2 \(float32 \[20, 6\]\) cannot be kept"
    compression = actbench.compress("derived")
    for value in (torch.nan, torch.inf):
        with compression:
            hidden = last(F.relu(first(x))) + torch.tensor([0, 0, value, 0, 0, 0])
            with pytest.raises(NonFiniteError, match=says):
                F.relu(hidden)
    with compression:
        # Below 0 it is no more than below 0.
        out = F.relu(first(x) - torch.tensor([0, 0, torch.inf, 0, 0, 0]))
    assert bool((out[:, 2] == 0).all())
    norm = nn.BatchNorm1d(6)
    with compression, pytest.raises(NonFiniteError, match=r"^the input of batch_norm 1 "):
        F.relu(norm(first(x) * torch.nan))


@pytest.mark.parametrize("reduce", ["sum", "mean"])
@pytest.mark.parametrize("directed", [True, False])
def test_what_a_reduction_makes_is_not_kept_either(reduce: str, directed: bool) -> None:
    """Stock SAGEConv on a matrix of ones; the weight's gradient cᵀ (M x) in float64 on the dense M of the reduction."""
    x, edge_index = graph()
    edge_index = ring(NODES) if directed else edge_index
    ones = torch.sparse_coo_tensor(edge_index.flip(0), torch.ones(edge_index.shape[1]), (NODES, NODES)).to_sparse_csr()
    conv, lin = SAGEConv(16, WIDTH, aggr=reduce), nn.Linear(16, 16)
    c = torch.randn(NODES, WIDTH)
    ledger = Ledger(exclude=[x, ones, *conv.parameters()])
    with actbench.compress("derived", seed=0), ledger:
        out = conv(x, ones)
    assert ledger.total_bytes == 0
    (out * c).sum().backward()
    dense = ones.to_dense().double()
    if reduce == "mean":
        dense = dense / dense.sum(1, keepdim=True).clamp(min=1)
    assert conv.lin_l.weight.grad is not None
    # Roundings of a sum over neighbours, over nodes, of a division and of the products.
    terms = int(ones.crow_indices().diff().max()) + NODES + 4
    bound = (c.double().abs().t() @ (dense @ x.double().abs())) * (terms * ULP)
    assert bool(((conv.lin_l.weight.grad - c.double().t() @ (dense @ x.double())).abs() <= bound).all())
    hidden = Ledger(exclude=[x, ones, *conv.parameters(), *lin.parameters()])
    with actbench.compress("derived", seed=0), hidden:
        out = conv(F.relu(lin(x)), ones)
    assert out.requires_grad
    assert sorted((entry.operation, entry.dtype) for entry in hidden.entries) == [
        ("relu", "bfloat16"),
        ("relu", "uint8"),
    ]


def test_what_is_changed_by_way_of_data_is_kept_as_it_is_then() -> None:
    """Of which no version tells: of what is 0 the next layer's weight has no gradient."""
    x, weight = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(4, WIDTH, requires_grad=True)
    with actbench.compress("derived"):
        y = F.relu(x * 2)
        y.data.zero_()
        out = F.linear(y, weight)
    out.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "data": lambda h: h.data.mul_(3),
    "numpy": lambda h: np.multiply(a := h.detach().numpy(), 3, out=a),
    "array": lambda h: np.multiply(a := np.asarray(h.detach()), 3, out=a),
    "dlpack": lambda h: np.multiply(a := np.from_dlpack(h.detach()), 3, out=a),
    "storage": lambda h: torch.empty(0).set_(h.detach().untyped_storage(), 0, h.shape, h.stride()).mul_(3),
    "in place by way of detach": lambda h: h.detach().mul_(3),
    "a view": lambda h: h.detach().view(-1)[:].mul_(3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_code_of_what_was_is_not_read_for_what_is(change: str) -> None:
    """One activation read by two layers and written in between, whichever way: each layer has its own gradient.

    FP32 refuses those that torch sees and takes the new values for both of the others; the second layer's are of the
    new values in any case. 8 bits round by less than a 255th of the range.
    """
    torch.manual_seed(0)
    first, second = nn.Linear(16, 4), nn.Linear(16, 4)
    below = nn.Linear(16, 16)
    x = torch.randn(64, 16)
    with actbench.compress("derived-fine:bits=8"):
        h = below(x)
        one = first(h)
        CHANGES[change](h)
        now = h.detach().clone()
        other = second(h)
    (one.sum() * 0 + other.square().sum()).backward()
    assert second.weight.grad is not None
    g = 2 * other.detach()
    expected = g.double().t() @ now.double()
    spread = float(now.max() - now.min()) / 255 * 1.02
    assert bool(((second.weight.grad - expected).abs() <= g.abs().double().sum(0).unsqueeze(1) * spread + 1e-5).all())
