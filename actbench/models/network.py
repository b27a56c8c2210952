"""The networks that the papers train: convolution, batch norm, ReLU, dropout, again and again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from actbench.compress import Operation, kept_edges, run_layer
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
    if model == "gat":
        return looped_adjacency(edge_index, nodes)
    return mean_adjacency(edge_index, nodes) if model == "sage" else gcn_adjacency(edge_index, nodes)


def adjacency_entries(model: Model, edge_index: Tensor, nodes: int) -> int:
    """How many entries `adjacency_of` has, by counting alone."""
    edges = edge_index.shape[1]
    return edges if model == "sage" else edges + nodes - int((edge_index[0] == edge_index[1]).sum())


def operations(
    architecture: Architecture, nodes: int, features: int, classes: int, entries: int | None = None
) -> list[Operation]:
    """The operations of one training forward pass that keep activations, in order.

    `entries` are those of the model's adjacency, self-loops included, on which GAT alone depends; raises `ValueError`
    if it is not given them.
    """
    a = architecture
    widths = a.widths(features, classes)
    trace: list[Operation] = []
    x = "dropped data" if a.input_dropout > 0 else "data"
    if a.input_dropout > 0:
        trace.append(Operation("dropout", "data's mask", nodes, a.inputs(features, classes), derived_from="data"))
    if a.model == "gcnii":
        trace.append(Operation("layer", x, nodes, a.inputs(features, classes)))
        # The data needs no gradient, so that autocast keeps no copy of the weight.
        trace.append(Operation("linear", x, nodes, a.inputs(features, classes), whole=True, derived_from=x))
        x = _activation(trace, a, nodes, a.hidden, "first", whole=False)
    for i, (before, after) in enumerate(pairwise(widths)):
        trace.append(Operation("layer", x, nodes, before))
        if a.model == "gcnii":
            trace.append(Operation("layer_input", "relufirst", nodes, a.hidden))
        trace += _convolution_operations(a, i, x, nodes, before, after, entries)
        if i == a.layers - 1 and a.model != "gcnii":
            break
        # Under autocast a linear or addmm makes bfloat16, a sparse product or a sum with a bias float32; that is what
        # the convolution ends with.
        whole = a.model in ("gcn", "gat")
        if a.batch_norm:
            trace.append(Operation("batch_norm", f"convolution{i}", nodes, after, whole=whole))
        normed = f"convolution{i}" if a.batch_norm and not a.residual else None
        x = _activation(trace, a, nodes, after, str(i), whole, normed)
    if a.model == "gcnii":
        trace.append(Operation("layer", x, nodes, a.hidden))
        trace.append(Operation("linear", x, nodes, a.hidden, weight=a.hidden * classes, derived_from=x))
    return trace


def _activation(
    trace: list[Operation],
    a: Architecture,
    nodes: int,
    width: int,
    place: str,
    whole: bool,
    normed: str | None = None,
) -> str:
    """Append ReLU, of the batch norm of `normed` if that is given, and dropout; returns the name of their result."""
    trace.append(Operation("relu", f"relu{place}", nodes, width, whole=whole, derived_from=normed))
    if a.dropout == 0:
        return f"relu{place}"
    trace.append(Operation("dropout", f"mask{place}", nodes, width, whole=whole))
    return f"dropout{place}"


def _convolution_operations(
    a: Architecture, i: int, x: str, nodes: int, before: int, after: int, entries: int | None
) -> list[Operation]:
    # Of the first layer's input, which is data, nobody asks a gradient.
    weight = before * after if i else 0
    if a.model == "sage":
        return [
            Operation("linear", f"neighbours{i}", nodes, before, whole=True, weight=weight, derived_from=x),
            Operation("linear", x, nodes, before, whole=i == 0, weight=weight, derived_from=x),
        ]
    if a.model == "gcn":
        return [Operation("linear", x, nodes, before, whole=True, weight=weight, derived_from=x)]
    if a.model == "gcnii":
        return [Operation("addmm", f"neighbours{i}", nodes, before, whole=True, weight=before * after)]
    if entries is None:
        raise ValueError("what attention keeps depends on the number of entries of its adjacency")
    heads = a.heads or 1
    width = after * heads if i == a.layers - 1 else after
    kept = kept_edges(entries, a.edge_dropout)
    by_autocast = before * width if i else 0
    trace = [Operation("linear", x, nodes, before, whole=True, weight=by_autocast, derived_from=x)]
    if a.edge_dropout > 0:
        trace.append(Operation("edge_dropout", f"edges{i}", entries, 1))
    return [
        *trace,
        Operation("linear", f"transformed{i}", nodes, width),
        Operation("exact", f"attention vectors{i}", 2 * heads, width),
        Operation("leaky_relu", f"scores{i}", kept, heads),
        Operation("exact", f"coefficients{i}", kept, heads, whole=True),
        Operation("aggregate", f"transformed{i}", nodes, width),
    ]


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
