"""One graph with its features, labels and split, and the checks that every loader ends with."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actbench.errors import DataError
from actbench.graphs.catalogue import Metric, Task, seeded_sizes


@dataclass(frozen=True, eq=False)
class Graph:
    """A node-classification graph; edges run from source to target, as in PyG."""

    name: str
    x: Tensor
    """Features, float32 [N, F]."""
    edge_index: Tensor
    """int64 [2, E], sorted by source, then by target, without duplicates."""
    y: Tensor
    """Classes, int64 [N]; multi-label: 0 or 1, float32 [N, L]."""
    train: Tensor
    """Node indices, int64, ascending; so are `valid` and `test`."""
    valid: Tensor
    test: Tensor
    classes: int
    task: Task
    metric: Metric
    synthetic: bool = False

    @property
    def nodes(self) -> int:
        """Number of nodes N."""
        return self.x.size(0)

    @property
    def edges(self) -> int:
        """Number of directed edges E, both directions of an undirected edge counted."""
        return self.edge_index.size(1)

    @property
    def features(self) -> int:
        """Number of features F of a node."""
        return self.x.size(1)

    def as_record(self) -> dict[str, Any]:
        """Its sizes, and whether it is synthetic, as JSON values."""
        return {
            "nodes": self.nodes,
            "edges": self.edges,
            "features": self.features,
            "classes": self.classes,
            "train_nodes": self.train.numel(),
            "valid_nodes": self.valid.numel(),
            "test_nodes": self.test.numel(),
            "synthetic": self.synthetic,
        }


def split_at_random(nodes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a random 60/20/20 split of `nodes` nodes that depends on nothing but the two arguments."""
    train, valid, _ = seeded_sizes(nodes)
    return cut(np.random.default_rng(seed).permutation(nodes), train, valid)


def cut(order: np.ndarray, train: int, valid: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a permutation of the nodes into ascending indices: `train` of them, `valid` of them, the rest."""
    first, second, third = (torch.from_numpy(np.sort(part)) for part in np.split(order, [train, train + valid]))
    return first, second, third


def settle(graph: Graph, undirected: bool = False) -> Graph:
    """Check a graph as it was read and return it with coalesced edges.

    `undirected` adds the reverse of every edge. Self-loops stay.

    Raises:
        DataError: shapes or dtypes disagree, a feature is not finite, an edge, a label or the split points
            outside, or two parts of the split share a node.
    """
    # The import takes seconds, and `actbench datasets` does not need it.
    from torch_geometric.utils import coalesce, to_undirected

    check(graph)
    merge = to_undirected if undirected else coalesce
    return replace(graph, edge_index=merge(graph.edge_index, num_nodes=graph.nodes))


def check(graph: Graph) -> None:
    """Check all of a graph but that its edges are coalesced; raises `DataError` as `settle` does."""
    _check_features(graph)
    _check_edges(graph)
    _check_labels(graph)
    _check_split(graph)


def _check_features(graph: Graph) -> None:
    x = graph.x
    if x.dim() != 2 or x.dtype != torch.float32 or x.numel() == 0:
        raise DataError(
            f"{graph.name}: the features have shape {list(x.shape)} and dtype {_dtype(x)}; "
            "give float32 [nodes, features], neither of them 0."
        )
    if not torch.stack(x.aminmax()).isfinite().all():
        node, feature = (~x.isfinite()).nonzero()[0].tolist()
        raise DataError(
            f"{graph.name}: feature {feature} of node {node} is {x[node, feature].item()}; "
            "replace values that are not finite in float32."
        )


def _check_edges(graph: Graph) -> None:
    edges = graph.edge_index
    if edges.dim() != 2 or edges.size(0) != 2 or edges.dtype != torch.int64:
        raise DataError(
            f"{graph.name}: the edges have shape {list(edges.shape)} and dtype {_dtype(edges)}; give int64 [2, edges]."
        )
    if edges.numel() and (edges.min() < 0 or edges.max() >= graph.nodes):
        end, edge = ((edges < 0) | (edges >= graph.nodes)).nonzero()[0].tolist()
        raise DataError(
            f"{graph.name}: the {('source', 'target')[end]} of edge {edge} is {edges[end, edge].item()}, "
            f"but there are {graph.nodes} nodes; number them from 0 to {graph.nodes - 1}."
        )


def _check_labels(graph: Graph) -> None:
    y = graph.y
    single = graph.task == "single-label"
    wanted = ([graph.nodes], torch.int64) if single else ([graph.nodes, graph.classes], torch.float32)
    if (list(y.shape), y.dtype) != wanted:
        raise DataError(
            f"{graph.name}: the labels have shape {list(y.shape)} and dtype {_dtype(y)}; "
            f"give {str(wanted[1]).removeprefix('torch.')} {wanted[0]}."
        )
    wrong = (y < 0) | (y >= graph.classes) if single else (y != 0) & (y != 1)
    if wrong.any():
        node = int(wrong.nonzero()[0, 0])
        value = y[wrong][0].item()
        allowed = f"0 to {graph.classes - 1}" if single else "0 and 1"
        raise DataError(f"{graph.name}: node {node} has the label {value}; only {allowed} are valid.")


def _check_split(graph: Graph) -> None:
    times = torch.zeros(graph.nodes, dtype=torch.int64)
    for part in ("train", "valid", "test"):
        nodes: Tensor = getattr(graph, part)
        if nodes.dim() != 1 or nodes.dtype != torch.int64 or nodes.numel() == 0:
            raise DataError(
                f"{graph.name}: the {part} part of the split has shape {list(nodes.shape)} "
                f"and dtype {_dtype(nodes)}; give int64 [nodes], at least one."
            )
        outside = (nodes < 0) | (nodes >= graph.nodes)
        if outside.any():
            raise DataError(
                f"{graph.name}: the {part} part of the split names node {nodes[outside][0].item()}, "
                f"but there are {graph.nodes} nodes; number them from 0 to {graph.nodes - 1}."
            )
        times += torch.bincount(nodes, minlength=graph.nodes)
        if times.max() > 1:
            raise DataError(
                f"{graph.name}: node {int(times.argmax())} stands more than once in the split, "
                f"last in {part}; give it to one part."
            )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
