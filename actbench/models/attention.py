"""Multi-head graph attention on the edges of a sparse adjacency."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actbench.compress import Edges, aggregate, drop_edges, edge_scores, edge_softmax


class AttentionConv(nn.Module):
    """PyG's `GATConv`, its parameters and its formula, without a message for every edge.

    Heads are concatenated or, without `concat`, averaged. In training a share `edge_dropout` of the edges, drawn anew
    in every pass, takes no part: neither in the softmax nor in the sum.
    """

    def __init__(self, before: int, channels: int, heads: int, concat: bool, edge_dropout: float) -> None:
        super().__init__()
        from torch_geometric.nn import GATConv

        self.stock = GATConv(before, channels, heads, concat=concat)
        self.edge_dropout = edge_dropout

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """[N, heads · channels], or [N, channels] without `concat`, of x [N, before] and sparse CSR A + I."""
        stock = self.stock
        edges = Edges.of(adjacency)
        if self.training and self.edge_dropout > 0:
            edges = drop_edges(edges, self.edge_dropout)
        hidden = stock.lin(x)
        # The scores ⟨a, h⟩ of all heads as one linear map of h, so that its input is kept as any linear input is.
        vectors = [torch.block_diag(*attention[0].unsqueeze(1)) for attention in (stock.att_src, stock.att_dst)]
        source, target = F.linear(hidden, torch.cat(vectors)).chunk(2, dim=1)
        scores = F.leaky_relu(edge_scores(edges, source, target), stock.negative_slope)
        out = aggregate(edges, edge_softmax(edges, scores), hidden.view(-1, stock.heads, stock.out_channels))
        merged = out.flatten(1) if stock.concat else out.mean(dim=1)
        result: Tensor = merged + stock.bias
        return result
