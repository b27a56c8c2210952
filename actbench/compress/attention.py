"""Graph attention (Veličković et al., ICLR 2018, section 2.1) in steps that keep what backward needs and no more.

Stock layers without torch-sparse form a message [E, heads, channels] for every edge, and keep it. Here the sum over
neighbours is a sparse product whose values are the attention coefficients. Each step is a torch function of ours, seen
by `compress` and by the ledger as torch's own are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.overrides import handle_torch_function, has_torch_function

from actbench.compress.codec import Exact, Kept
from actbench.compress.first_order import first_order
from actbench.quant import unpack_mask


@dataclass(frozen=True, eq=False)
class Edges:
    """The in-edges of every node: row i of the CSR pair `crow` [N + 1], `col` [E] holds the sources of node i's.

    `kept` is what backward finds them again from: whole graphs keep the pair itself, subsets the whole's pair and
    which edges they hold, a bool or a bit an edge.
    """

    crow: Tensor
    col: Tensor
    kept: tuple[Tensor, ...]

    @staticmethod
    def of(adjacency: Tensor) -> Edges:
        """All edges of a sparse CSR matrix [N, N]; they share its memory."""
        crow, col = adjacency.crow_indices(), adjacency.col_indices()
        return Edges(crow, col, (crow, col))

    @staticmethod
    def subset(crow: Tensor, col: Tensor, chosen: Tensor, kept: Tensor | None = None) -> Edges:
        """Those edges of a whole graph where `chosen`, bool [E], is set; backward gets them from `kept`, its bits."""
        before = torch.cat((crow.new_zeros(1), chosen.cumsum(0, dtype=crow.dtype)))
        return Edges(before[crow], col[chosen], (crow, col, chosen if kept is None else kept))

    @staticmethod
    def again(kept: tuple[Tensor, ...]) -> Edges:
        """The edges whose `kept` this is."""
        if len(kept) == 2:
            return Edges(*kept, kept)
        crow, col, chosen = kept
        bits = chosen.dtype == torch.uint8
        return Edges.subset(crow, col, unpack_mask(chosen, col.shape) if bits else chosen, chosen)

    @property
    def degree(self) -> Tensor:
        """In-edges of every node, [N]."""
        return self.crow.diff()

    def spread(self, rows: Tensor) -> Tensor:
        """[E, …]: for every edge the row of `rows` [N, …] of the node it ends in."""
        return rows.repeat_interleave(self.degree, 0, output_size=self.col.numel())

    def reduce(self, values: Tensor, how: str) -> Tensor:
        """[N, …]: the "sum" or "max" of `values` [E, …] over every node's in-edges, in their order on every device."""
        return torch.segment_reduce(values, how, offsets=self.crow, axis=0, unsafe=True)


def drop_edges(edges: Edges, p: float) -> Edges:
    """A random subset of `edges` without a share `p`, rounded down: always as many (Rong et al., ICLR 2020, DropEdge).

    FP32 keeps a byte an edge, compressing schemes a bit.
    """
    if has_torch_function((edges.crow,)):
        dropped: Edges = handle_torch_function(drop_edges, (edges.crow,), edges, p)
        return dropped
    return Edges.subset(edges.crow, edges.col, choose_edges(edges, p))


def choose_edges(edges: Edges, p: float) -> Tensor:
    """Bool [E]: a random choice of all but ⌊p E⌋ edges, from the generator of their device."""
    count = edges.col.numel()
    chosen = torch.zeros(count, dtype=torch.bool, device=edges.col.device)
    chosen[torch.randperm(count, device=edges.col.device)[: kept_edges(count, p)]] = True
    return chosen


def kept_edges(edges: int, p: float) -> int:
    """How many of `edges` edges a `drop_edges` by `p` leaves."""
    return edges - int(edges * p)


def edge_scores(edges: Edges, source: Tensor, target: Tensor) -> Tensor:
    """[E, heads]: for every edge j → i, source_j + target_i, of scores [N, heads]; keeps the edges alone."""
    if has_torch_function((source, target)):
        scores: Tensor = handle_torch_function(edge_scores, (source, target), edges, source, target)
        return scores
    out: Tensor = _EdgeScores.apply(edges, source, target)  # type: ignore[no-untyped-call]
    return out


def edge_softmax(edges: Edges, scores: Tensor) -> Tensor:
    """[E, heads]: attention coefficients, the softmax of `scores` over every node's in-edges; keeps them and the edges.

    They stay float32 under every scheme: as the values of a sparse product they multiply the gradient on its way
    down, where an estimate's noise would reach every layer below.
    """
    if has_torch_function((scores,)):
        coefficients: Tensor = handle_torch_function(edge_softmax, (scores,), edges, scores)
        return coefficients
    out: Tensor = _EdgeSoftmax.apply(edges, scores)  # type: ignore[no-untyped-call]
    return out


def aggregate(edges: Edges, coefficients: Tensor, x: Tensor) -> Tensor:
    """[N, heads, channels]: for every head the sum of x [N, heads, channels] over in-edges, each times its coefficient.

    FP32 keeps the coefficients [E, heads], the edges and x; compressing schemes keep x packed and not projected, so
    that the coefficients' gradients ⟨g_i, x̂_j⟩ are unbiased.
    """
    if has_torch_function((coefficients, x)):
        summed: Tensor = handle_torch_function(aggregate, (coefficients, x), edges, coefficients, x)
        return summed
    out: Tensor = Aggregate.apply(edges, coefficients, x, Kept(Exact(), (x,)))  # type: ignore[no-untyped-call]
    return out


class _EdgeScores(Function):
    @staticmethod
    def forward(ctx: Any, edges: Edges, source: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(*edges.kept)
        return source.index_select(0, edges.col).add_(edges.spread(target))

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        edges = Edges.again(ctx.saved_tensors)
        gradient = _long(gradient).contiguous()
        by_target = edges.reduce(gradient, "sum")
        return None, torch.zeros_like(by_target).index_add_(0, edges.col, gradient), by_target


class _EdgeSoftmax(Function):
    @staticmethod
    def forward(ctx: Any, edges: Edges, scores: Tensor) -> Tensor:
        scores = _long(scores)
        # Less the row's largest score nothing overflows, and the row's sum is at least 1.
        powers = (scores - edges.spread(edges.reduce(scores, "max"))).exp_()
        coefficients = powers.div_(edges.spread(edges.reduce(powers, "sum")))
        ctx.save_for_backward(coefficients, *edges.kept)
        return coefficients

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        coefficients, *kept = ctx.saved_tensors
        edges = Edges.again(tuple(kept))
        weighted = coefficients * gradient
        return None, weighted - coefficients * edges.spread(edges.reduce(weighted, "sum"))


class Aggregate(Function):
    """`aggregate`, keeping what is `kept` of x, which makes the coefficients' gradient an estimate if that is one."""

    @staticmethod
    def forward(ctx: Any, edges: Edges, coefficients: Tensor, x: Tensor, kept: Kept) -> Tensor:
        """Keeps the edges, the coefficients and x."""
        ctx.reading, ctx.shape, ctx.pair = kept.reading, x.shape, len(edges.kept) == 2
        ctx.save_for_backward(coefficients, *edges.kept, *(kept.tensors if ctx.needs_input_grad[1] else ()))
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        # Autocast would shorten the sparse matrix too, for which there is no product on a CPU.
        with torch.autocast(x.device.type, enabled=False):
            for head in range(x.shape[1]):
                out[:, head] = _csr(edges, _long(coefficients[:, head])) @ _long(x[:, head])
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        """Exact for x, an estimate for the coefficients if x was packed."""
        coefficients, *rest = ctx.saved_tensors
        edges = Edges.again(tuple(rest[:2] if ctx.pair else rest[:3]))
        gradient, coefficients = _long(gradient), _long(coefficients)
        by_coefficients = by_x = None
        if ctx.needs_input_grad[1]:
            packed = tuple(rest[2:] if ctx.pair else rest[3:])
            x = ctx.reading.unpack(packed).view(ctx.shape)
            by_coefficients = torch.empty_like(coefficients)
            for head in range(x.shape[1]):
                pattern = _csr(edges, torch.zeros_like(coefficients[:, head]))
                by_coefficients[:, head] = torch.sparse.sampled_addmm(
                    pattern, gradient[:, head].contiguous(), _long(x[:, head]).t(), beta=0.0
                ).values()
        if ctx.needs_input_grad[2]:
            reverse, order = _reversed(edges)
            by_x = torch.empty_like(gradient, memory_format=torch.contiguous_format)
            for head in range(gradient.shape[1]):
                by_x[:, head] = _csr(reverse, coefficients[:, head][order]) @ gradient[:, head]
        return None, by_coefficients, by_x, None


def _long(values: Tensor) -> Tensor:
    """Values that autocast has shortened as float32: sums over neighbours, and a softmax, are not for short floats."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _csr(edges: Edges, values: Tensor) -> Tensor:
    nodes = edges.crow.numel() - 1
    return torch.sparse_csr_tensor(edges.crow, edges.col, values.contiguous(), (nodes, nodes), check_invariants=False)


def _reversed(edges: Edges) -> tuple[Edges, Tensor]:
    """The edges by source instead of target, and each one's place before."""
    order = edges.col.argsort(stable=True)
    nodes = edges.crow.numel() - 1
    ends = torch.arange(nodes, dtype=edges.col.dtype, device=edges.col.device)
    crow = torch.cat((edges.crow.new_zeros(1), edges.col.bincount(minlength=nodes).cumsum(0, dtype=edges.crow.dtype)))
    col = edges.spread(ends)[order]
    return Edges(crow, col, (crow, col)), order
