"""Attention's steps against dense arithmetic in float64, and under compression against the analytic variance."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actbench
from actbench.compress import Edges, Ledger, aggregate, drop_edges, edge_scores, edge_softmax
from actbench.compress.attention import kept_edges
from actbench.compress.codec import Noise, Quantized
from actbench.graphs import looped_adjacency
from actbench.scheme import Scheme
from tests.compress.test_unbiased import PASSES, rounding_variance

NODES, HEADS, CHANNELS = 23, 3, 4


def edges(p: float = 0.0) -> Edges:
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.unique(torch.randint(NODES, (2, 90), generator=generator), dim=1)
    whole = Edges.of(looped_adjacency(edge_index, NODES))
    torch.manual_seed(1)
    return drop_edges(whole, p) if p else whole


def dense(chosen: Edges, values: Tensor) -> Tensor:
    """[N, N] of one value an edge."""
    matrix = values.new_zeros(NODES, NODES)
    for node in range(NODES):
        for place in range(int(chosen.crow[node]), int(chosen.crow[node + 1])):
            matrix[node, int(chosen.col[place])] = values[place]
    return matrix


def doubles(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("p", [0.0, 0.6])
def test_scores_softmax_and_sum_are_those_of_dense_matrices(p: float) -> None:
    chosen = edges(p)
    source, target, x = doubles(NODES, HEADS), doubles(NODES, HEADS) * 100, doubles(NODES, HEADS, CHANNELS)
    scores = edge_scores(chosen, source, target)
    coefficients = edge_softmax(chosen, scores)
    out = aggregate(chosen, coefficients, x)
    present = dense(chosen, torch.ones(chosen.col.numel(), dtype=torch.float64)) > 0
    for head in range(HEADS):
        matrix = (source[:, head] + target[:, head].unsqueeze(1)).masked_fill(~present, -torch.inf)
        assert torch.equal(dense(chosen, scores[:, head])[present], matrix[present])
        weights = matrix.softmax(1).nan_to_num(0)
        assert torch.allclose(dense(chosen, coefficients[:, head]), weights, rtol=1e-13, atol=0)
        assert torch.allclose(out[:, head], weights @ x[:, head], rtol=0, atol=1e-13)


@pytest.mark.parametrize("p", [0.0, 0.6])
def test_gradients_against_finite_differences(p: float) -> None:
    chosen = edges(p)
    count = chosen.col.numel()
    source, target = doubles(NODES, HEADS).requires_grad_(), doubles(NODES, HEADS).requires_grad_()
    scores, x = doubles(count, HEADS).requires_grad_(), doubles(NODES, HEADS, CHANNELS).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: edge_scores(chosen, s, t), (source, target))
    assert torch.autograd.gradcheck(lambda s: edge_softmax(chosen, s), scores)
    assert torch.autograd.gradcheck(lambda s, h: aggregate(chosen, s, h), (scores, x))


def test_an_edge_dropout_leaves_a_fixed_number_of_edges_of_the_graph() -> None:
    whole = edges()
    there = dense(whole, torch.ones(whole.col.numel())) > 0
    seen = torch.zeros(NODES, NODES)
    for _ in range(50):
        fewer = drop_edges(whole, 0.6)
        matrix = dense(fewer, torch.ones(fewer.col.numel()))
        assert fewer.col.numel() == int(matrix.sum()) == kept_edges(whole.col.numel(), 0.6)
        assert not bool((matrix > 0)[~there].any())
        seen += matrix
    # An edge that is never among 50 draws of 40 % has odds of 0.6 ** 50 = 8e-12.
    assert bool((seen[there] > 0).all())


@pytest.mark.parametrize("p", [0.0, 0.6])
@pytest.mark.parametrize("scheme", ["fp32", "blockwise"])
def test_backward_finds_the_same_edges_again(p: float, scheme: str) -> None:
    with actbench.compress(scheme):
        chosen = edges(p)
    again = Edges.again(chosen.kept)
    assert torch.equal(again.crow, chosen.crow)
    assert torch.equal(again.col, chosen.col)
    if p:
        numel = edges().col.numel()
        assert chosen.kept[2].nbytes == (numel if scheme == "fp32" else -(-numel // 8))


def attend(chosen: Edges, scores: Tensor, x: Tensor) -> Tensor:
    return aggregate(chosen, edge_softmax(chosen, F.leaky_relu(scores, 0.2)), x)


@pytest.mark.parametrize("scheme", ["exact", "blockwise-vm"])
def test_what_compression_keeps_of_attention(scheme: str) -> None:
    chosen = edges()
    count = chosen.col.numel()
    scores, x = torch.randn(count, HEADS, requires_grad=True), torch.randn(NODES, HEADS, CHANNELS, requires_grad=True)
    kept = {}
    outs = []
    for text in ("fp32", scheme):
        with actbench.compress(text, seed=0), Ledger([scores, x, *chosen.kept]) as ledger:
            outs.append(attend(chosen, scores, x))
        kept[text] = [(e.operation, e.dtype, e.saved_bytes) for e in ledger.entries]
    assert torch.equal(*outs)
    # Scores and x are the test's own and there anyway; both schemes keep the coefficients as they are.
    assert kept["fp32"] == [("edge_softmax", "float32", count * HEADS * 4)]
    packing = Quantized.of(NODES, HEADS * CHANNELS, x.dtype, Scheme.parse(scheme), Noise(0, 0), 1).packing
    assert [e for e in kept[scheme] if e[1] != "bfloat16"] == [
        ("leaky_relu", "uint8", -(-count * HEADS // 8)),
        ("edge_softmax", "float32", count * HEADS * 4),
        ("aggregate", "uint8", packing.layout.code_bytes),
    ]


@pytest.mark.parametrize("scheme", ["fp32", "exact"])
def test_under_autocast_coefficients_and_sums_are_float32(scheme: str) -> None:
    """The result is that of the rows as bfloat16 has them, rounded once."""
    chosen = edges()
    scores = torch.randn(chosen.col.numel(), HEADS, requires_grad=True)
    x = torch.randn(NODES, HEADS, CHANNELS).bfloat16().requires_grad_()
    with actbench.compress(scheme), torch.autocast("cpu", dtype=torch.bfloat16):
        coefficients = edge_softmax(chosen, scores.bfloat16())
        out = aggregate(chosen, coefficients, x)
    out.float().sum().backward()
    assert coefficients.dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, aggregate(chosen, coefficients, x.float()).bfloat16())
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    assert scores.grad is not None


@pytest.mark.parametrize("text", ["exact", pytest.param("blockwise-vm", marks=pytest.mark.slow)])
def test_the_gradient_of_scores_is_unbiased_and_that_of_x_exact(text: str) -> None:
    """∂coefficient_ij = ⟨g_i, x̂_j⟩, whose rounding variance is Σ_c g_ic² v_jc; softmax and leaky ReLU are linear in it.

    With s_ij the slope of the leaky ReLU, ∂score_e = s_e c_e (∂c_e - Σ_f c_f ∂c_f) over the edges f of e's row.
    """
    scheme, chosen = Scheme.parse(text), edges()
    torch.manual_seed(2)
    scores = torch.randn(chosen.col.numel(), HEADS, requires_grad=True)
    x = torch.randn(NODES, HEADS, CHANNELS, requires_grad=True)
    g = torch.randn(NODES, HEADS, CHANNELS)

    def gradients(seed: int | None) -> tuple[Tensor, ...]:
        with actbench.compress(scheme if seed is not None else "fp32", seed=seed):
            out = attend(chosen, scores, x)
        return torch.autograd.grad(out, (scores, x), g)

    exact, exact_x = gradients(None)
    total = torch.zeros_like(exact, dtype=torch.float64)
    for seed in range(PASSES):
        by_scores, by_x = gradients(seed)
        assert torch.equal(by_x, exact_x)
        total += by_scores

    kept = Quantized.of(NODES, HEADS * CHANNELS, x.dtype, scheme, Noise(0, 0), 1)
    v = rounding_variance(kept, x.detach().reshape(NODES, -1))[2].view(NODES, HEADS, CHANNELS)
    row, col = chosen.spread(torch.arange(NODES)), chosen.col.long()
    coefficients = edge_softmax(chosen, F.leaky_relu(scores.detach(), 0.2)).double()
    slope = torch.where(scores.detach() > 0, 1.0, 0.2)
    # The edges of a row have different sources, and every element is rounded on its own.
    each = (g.double()[row].square() * v[col]).sum(2)
    own = (1 - coefficients).square() * each
    others = chosen.spread(chosen.reduce(coefficients.square() * each, "sum")) - coefficients.square() * each
    variance = (slope * coefficients).square() * (own + others)
    error = (total / PASSES - exact).abs()
    # A float32 gradient is itself off by a few roundings of sums of some ten terms, which is no bias.
    rounding = 10 * 2.0**-23 * float(exact.abs().max())
    assert bool((error <= 5 * (variance / PASSES).sqrt() + rounding).all())


ADDMMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "torch.addmm": lambda a, x, w: torch.addmm(a, x, w, beta=0.25, alpha=0.5),
    "Tensor.addmm": lambda a, x, w: a.addmm(x, w, beta=0.25, alpha=0.5),
}


@pytest.mark.parametrize("name", ADDMMS)
@pytest.mark.parametrize("shape", [(20, 4), (4,), (1, 4)])
def test_every_form_of_addmm(name: str, shape: tuple[int, ...]) -> None:
    """Exact but for the weight, whose gradient is off by the rounding of 8 bits in blocks of one element."""
    x, w = torch.randn(20, 6, requires_grad=True), nn.Parameter(torch.randn(6, 4))
    largest = float(x.detach().abs().max()), float(w.detach().abs().max())
    a, g = torch.randn(shape, requires_grad=True), torch.randn(20, 4)
    results = []
    for scheme in ("fp32", "exact:bits=8,block=1,projection=1"):
        with actbench.compress(scheme), Ledger([w]) as ledger:
            out = ADDMMS[name](a, x, w)
        results.append((out, *torch.autograd.grad(out, (a, x, w), g)))
    (out, by_a, by_x, by_w), (out2, by_a2, by_x2, by_w2) = results
    assert torch.equal(out, out2)
    # Sums of at most 20 float32 products, in another order: 20 roundings of sums of 20 of the largest.
    rounding = 20 * 20 * 2.0**-24 * float(g.abs().max())
    assert torch.allclose(by_a, by_a2, rtol=0, atol=rounding)
    assert torch.allclose(by_x, by_x2, rtol=0, atol=rounding * largest[1])
    bound = x.detach().abs().t() @ g.abs() * 2.0**-7 / 255
    assert bool(((by_w - by_w2).abs() <= bound + rounding * largest[0]).all())
    assert ledger.total_bytes == 120 + 120 * 4


LEAKY: dict[str, Callable[[Tensor], Tensor]] = {
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "F.leaky_relu_": lambda x: F.leaky_relu_(x * 1, 0.2),
    "F.leaky_relu inplace": lambda x: F.leaky_relu(x * 1, 0.2, inplace=True),
    "nn.LeakyReLU": nn.LeakyReLU(0.2),
    "nn.LeakyReLU below 0": nn.LeakyReLU(-0.2),
}


@pytest.mark.parametrize("name", LEAKY)
def test_every_form_of_leaky_relu_keeps_bits_and_is_exact(name: str) -> None:
    x = torch.randn(33, 3)
    x[0, 0], x[1, 1] = 0.0, float("nan")
    results = []
    for scheme in ("fp32", "exact"):
        leaf = x.clone().requires_grad_()
        with actbench.compress(scheme), Ledger() as ledger:
            out = LEAKY[name](leaf)
        out.backward(torch.linspace(-1, 1, 99).view(33, 3))
        results.append((out.detach(), leaf.grad))
    (out, gradient), (out2, gradient2) = results
    assert gradient is not None
    assert gradient2 is not None
    assert torch.equal(out.nan_to_num(7), out2.nan_to_num(7))
    assert torch.equal(gradient, gradient2)
    assert ledger.total_bytes == 13
