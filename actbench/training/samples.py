"""The parts of a graph that an epoch of sampled training goes through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from actbench.graphs import Graph, OutEdges, partition
from actbench.training.recipe import Recipe

Sample = tuple[Tensor, Tensor]
"""Nodes, int64 ascending, and the edges between them, int64 [2, E'], by their places among the nodes."""


@dataclass(frozen=True, eq=False)
class Walks:
    """GraphSAINT's random-walk sampler (Zeng et al., ICLR 2020, section 3.4), without its normalisation."""

    edges: OutEdges
    roots: int
    walk_length: int
    steps: int

    def draw(self) -> Iterator[Sample]:
        """An epoch: `steps` subgraphs, each induced by walks from `roots` nodes drawn with replacement."""
        for _ in range(self.steps):
            roots = torch.randint(self.edges.nodes, (self.roots,))
            nodes = self.edges.walk(roots, self.walk_length).unique()
            yield nodes, self.edges.induce(nodes)


@dataclass(frozen=True, eq=False)
class Clusters:
    """Cluster-GCN's stochastic multiple partitions (Chiang et al., KDD 2019, section 3.2)."""

    edges: OutEdges
    parts: list[Tensor]
    parts_per_batch: int

    def draw(self) -> Iterator[Sample]:
        """An epoch: all parts in a random order, some at a time, with the edges within and between those."""
        for some in torch.randperm(len(self.parts)).split(self.parts_per_batch):
            nodes = torch.cat([self.parts[part] for part in some.tolist()]).sort().values
            yield nodes, self.edges.induce(nodes)


def samples_of(graph: Graph, recipe: Recipe) -> Walks | Clusters | None:
    """What `recipe` samples from `graph`, partitioned if it is to be; None for full batches."""
    if recipe.sampler == "full":
        return None
    edges = OutEdges.of(graph.edge_index, graph.nodes)
    if recipe.sampler == "saint":
        assert recipe.roots is not None
        assert recipe.walk_length is not None
        assert recipe.steps is not None
        return Walks(edges, recipe.roots, recipe.walk_length, recipe.steps)
    assert recipe.parts is not None
    assert recipe.parts_per_batch is not None
    return Clusters(edges, partition(graph.edge_index, graph.nodes, recipe.parts), recipe.parts_per_batch)
