"""GraphSAGE and GCN as the papers train them: convolution, batch norm, ReLU, dropout, again and again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from actbench.compress import Operation, run_layer
from actbench.graphs import gcn_adjacency, mean_adjacency

Model = Literal["sage", "gcn"]


@dataclass(frozen=True)
class Architecture:
    """What a network is made of; `layers` counts convolutions, `hidden` their width except the last's."""

    model: Model
    layers: int
    hidden: int
    dropout: float
    batch_norm: bool

    def widths(self, features: int, classes: int) -> list[int]:
        """Widths of the rows before the first layer and after each."""
        return [features, *[self.hidden] * (self.layers - 1), classes]


class Network(nn.Module):
    """Maps x [N, features] and the model's adjacency (sparse CSR [N, N]) to logits [N, classes]."""

    def __init__(self, architecture: Architecture, features: int, classes: int) -> None:
        super().__init__()
        widths = architecture.widths(features, classes)
        self.dropout = architecture.dropout
        self.convs = nn.ModuleList(
            _convolution(architecture.model, before, after) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:-1] if architecture.batch_norm)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Logits [N, classes]."""
        for i in range(len(self.convs)):
            x = run_layer(self, partial(self._layer, i), x, adjacency)
        return x

    def _layer(self, i: int, x: Tensor, adjacency: Tensor) -> Tensor:
        x = self.convs[i](x, adjacency)
        if i == len(self.convs) - 1:
            return x
        if self.norms:
            x = self.norms[i](x)
        return F.dropout(F.relu(x), self.dropout, self.training)


def adjacency_of(model: Model, edge_index: Tensor, nodes: int) -> Tensor:
    """The normalised adjacency that the model's convolutions multiply by, sparse CSR float32 [nodes, nodes]."""
    return mean_adjacency(edge_index, nodes) if model == "sage" else gcn_adjacency(edge_index, nodes)


def operations(architecture: Architecture, nodes: int, features: int, classes: int) -> list[Operation]:
    """The operations of one training forward pass that keep activations, in order."""
    widths = architecture.widths(features, classes)
    trace: list[Operation] = []
    x = "data"
    sage = architecture.model == "sage"
    for i, (before, after) in enumerate(pairwise(widths)):
        # Under autocast a linear makes bfloat16 and a sparse product float32: SAGE ends a layer with the one, GCN with
        # the other. The data needs no gradient, so the first layer's weights need not be kept.
        weight = before * after if i else 0
        trace.append(Operation("layer", x, nodes, before))
        if sage:
            trace.append(Operation("linear", f"neighbours{i}", nodes, before, whole=True, weight=weight))
        trace.append(Operation("linear", x, nodes, before, whole=not sage or i == 0, weight=weight))
        if i == architecture.layers - 1:
            break
        if architecture.batch_norm:
            trace.append(Operation("batch_norm", f"convolution{i}", nodes, after, whole=not sage))
        x = f"relu{i}"
        trace.append(Operation("relu", x, nodes, after, whole=not sage))
        if architecture.dropout > 0:
            x = f"dropout{i}"
            trace.append(Operation("dropout", f"mask{i}", nodes, after, whole=not sage))
    return trace


def _convolution(model: Model, before: int, after: int) -> nn.Module:
    # PyG takes longer to import than torch itself, and a mistyped option need not wait for it.
    from torch_geometric.nn import GCNConv, SAGEConv

    # The adjacency holds the normalisation, so that one sparse product is all an aggregation takes on any device.
    conv: nn.Module = (
        SAGEConv(before, after, aggr="sum") if model == "sage" else GCNConv(before, after, normalize=False)
    )
    return conv
