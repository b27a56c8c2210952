"""Parts of a graph to train on: random walks and what they reach, partitions, induced subgraphs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from actbench.errors import DataError


@dataclass(frozen=True, eq=False)
class OutEdges:
    """A graph's edges by source: those of node i end in `target[start[i]:start[i + 1]]`; int64 [N + 1] and [E]."""

    start: Tensor
    target: Tensor

    @staticmethod
    def of(edge_index: Tensor, nodes: int) -> OutEdges:
        """Of int64 [2, E], sorted by source as in a `Graph`, whose memory the targets share."""
        degree = edge_index[0].bincount(minlength=nodes)
        return OutEdges(torch.cat((degree.new_zeros(1), degree.cumsum(0))), edge_index[1])

    @property
    def nodes(self) -> int:
        """Number of nodes N."""
        return self.start.numel() - 1

    def walk(self, roots: Tensor, length: int) -> Tensor:
        """Random walks from `roots` int64 [n]: int64 [n, length + 1], each step to any out-neighbour with equal odds.

        A walk stays where no edge leaves. Draws from torch's CPU generator.
        """
        steps = [roots]
        for _ in range(length):
            here = steps[-1]
            first, degree = self.start[here], self.start[here + 1] - self.start[here]
            # Doubles below 1, times a whole number: below that number however it rounds.
            chosen = (torch.rand(here.numel(), dtype=torch.float64) * degree).long()
            there, moving = here.clone(), degree > 0
            there[moving] = self.target[(first + chosen)[moving]]
            steps.append(there)
        return torch.stack(steps, dim=1)

    def induce(self, nodes: Tensor) -> Tensor:
        """The edges with both ends in `nodes` (int64, ascending, each once), which are renamed to their places there.

        int64 [2, E'], sorted by source and in the order of the whole graph.
        """
        place = torch.full((self.nodes,), -1)
        place[nodes] = torch.arange(nodes.numel())
        degree = self.start[nodes + 1] - self.start[nodes]
        source = torch.arange(nodes.numel()).repeat_interleave(degree)
        # The how-manieth edge each is of its source, from where the source's begin.
        within = torch.arange(source.numel()) - (degree.cumsum(0) - degree)[source]
        target = place[self.target[self.start[nodes][source] + within]]
        inside = target >= 0
        return torch.stack((source[inside], target[inside]))


def partition(edge_index: Tensor, nodes: int, parts: int) -> list[Tensor]:
    """Cut a graph into `parts` parts of about equal size with few edges between them (METIS, Karypis & Kumar 1998).

    Args:
        edge_index: int64 [2, E]; directions and self-loops do not matter.
        nodes: number of nodes N.
        parts: number of parts, some of which may be empty.

    Returns:
        The nodes of every part, int64, ascending; every node is in one part. The same on every call.

    Raises:
        DataError: more parts than nodes.
    """
    if parts > nodes:
        raise DataError(f"{parts} parts cannot be made of {nodes} nodes: take fewer.")
    # Only clusters need it.
    import pymetis
    from torch_geometric.utils import remove_self_loops, to_undirected

    both = to_undirected(remove_self_loops(edge_index)[0], num_nodes=nodes)
    edges = OutEdges.of(both, nodes)
    kind = pymetis.zero_copy_dtype()
    adjacency = pymetis.CSRAdjacency(edges.start.numpy().astype(kind), edges.target.numpy().astype(kind))
    part = torch.tensor(pymetis.part_graph(parts, adjacency).vertex_part)
    return list(part.argsort(stable=True).split(part.bincount(minlength=parts).tolist()))
