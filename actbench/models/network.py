"""The networks that the papers train: convolution, batch norm, ReLU, dropout, again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from actbench.compress import run_layer
from actbench.graphs import gcn_adjacency, looped_adjacency, mean_adjacency
from actbench.models.attention import AttentionConv

Model = Literal["sage", "gcn", "gcnii", "gat"]


@dataclass(frozen=True)
class Architecture:
    """What a network is made of; `layers` counts convolutions, `hidden` their width except the last's.

    GCNII has a linear layer before and after its convolutions, which are all `hidden` wide; `alpha` is the share of
    the first one's output in each, `theta` sets how far a convolution's weight is from identity (None: it is not mixed
    with identity), `residual` adds each layer's input to its output (Chen et al., ICML 2020, section 3). GAT has
    `heads` of `hidden` columns each, drops a share `edge_dropout` of the edges and, with `labels_as_input`, sees
    training labels beside the features. `input_dropout` is that of the features. What a model does not have is at its
    default.
    """

    model: Model
    layers: int
    hidden: int
    dropout: float
    batch_norm: bool
    input_dropout: float = 0.0
    alpha: float | None = None
    theta: float | None = None
    residual: bool = False
    heads: int | None = None
    edge_dropout: float = 0.0
    labels_as_input: bool = False

    def inputs(self, features: int, classes: int) -> int:
        """Columns of the network's x: the features and, with labels as input, one a class."""
        return features + classes if self.labels_as_input else features

    def widths(self, features: int, classes: int) -> list[int]:
        """Widths of the rows before the first convolution and after each."""
        inputs = self.inputs(features, classes)
        if self.model == "gcnii":
            return [self.hidden] * (self.layers + 1)
        return [inputs, *[self.hidden * (self.heads or 1)] * (self.layers - 1), classes]


class Network(nn.Module):
    """Maps x [N, inputs] and the model's adjacency (sparse CSR [N, N]) to logits [N, classes]."""

    def __init__(self, architecture: Architecture, features: int, classes: int) -> None:
        super().__init__()
        a = self.architecture = architecture
        widths = a.widths(features, classes)
        ends = [(a.inputs(features, classes), a.hidden), (a.hidden, classes)] if a.model == "gcnii" else []
        self.lins = nn.ModuleList(nn.Linear(*end) for end in ends)
        self.convs = nn.ModuleList(_convolution(a, i, *pair) for i, pair in enumerate(pairwise(widths)))
        hidden = widths[1:] if ends else widths[1:-1]
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in hidden if a.batch_norm)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Logits [N, classes]."""
        if self.architecture.input_dropout:
            x = F.dropout(x, self.architecture.input_dropout, self.training)
        if not self.lins:
            for i in range(len(self.convs)):
                x = run_layer(self, partial(self._layer, i, None), x, adjacency)
            return x
        x, first = run_layer(self, self._entry, x)
        for i in range(len(self.convs)):
            x = run_layer(self, partial(self._layer, i), first, x, adjacency)
        logits: Tensor = run_layer(self, self.lins[1], x)
        return logits

    def _entry(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What GCNII's first convolution takes, and what each of them starts from."""
        first = F.relu(self.lins[0](x))
        return F.dropout(first, self.architecture.dropout, self.training), first

    def _layer(self, i: int, first: Tensor | None, x: Tensor, adjacency: Tensor) -> Tensor:
        """Convolution `i` and what follows it; `first` is GCNII's alone."""
        out: Tensor = self.convs[i](x, adjacency) if first is None else self.convs[i](x, first, adjacency)
        if first is None and i == len(self.convs) - 1:
            return out
        if self.norms:
            out = self.norms[i](out)
        if self.architecture.residual:
            out = out + x
        return F.dropout(F.relu(out), self.architecture.dropout, self.training)


def adjacency_of(model: Model, edge_index: Tensor, nodes: int) -> Tensor:
    """The adjacency that the model's convolutions take, sparse CSR [nodes, nodes].

    Float32 and normalised; for GAT, which weighs edges itself, uint8 ones.
    """
    return _ADJACENCIES[model](edge_index, nodes)


_ADJACENCIES: Final[dict[Model, Callable[[Tensor, int], Tensor]]] = {
    "sage": mean_adjacency,
    "gcn": gcn_adjacency,
    "gcnii": gcn_adjacency,
    "gat": looped_adjacency,
}


def _convolution(a: Architecture, i: int, before: int, after: int) -> nn.Module:
    # PyG takes longer to import than torch itself, and a mistyped option need not wait for it.
    from torch_geometric.nn import GCN2Conv, GCNConv, SAGEConv

    if a.model == "gat":
        heads, last = a.heads or 1, i == a.layers - 1
        return AttentionConv(before, after if last else a.hidden, heads, not last, a.edge_dropout)
    # The adjacency holds the normalisation, so that one sparse product is all an aggregation takes on any device.
    conv: nn.Module
    if a.model == "gcnii":
        layer = None if a.theta is None else i + 1
        conv = GCN2Conv(before, a.alpha, a.theta, layer, normalize=False)
    elif a.model == "sage":
        conv = SAGEConv(before, after, aggr="sum")
    else:
        conv = GCNConv(before, after, normalize=False)
    return conv
