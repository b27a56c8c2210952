"""Walks, induced subgraphs and partitions against brute force."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch import Tensor

from actbench.errors import DataError
from actbench.graphs.sampling import OutEdges, partition

NODES = 9
edge_lists = st.sets(st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1)), max_size=40).map(
    lambda edges: torch.tensor(sorted(edges), dtype=torch.int64).reshape(-1, 2).t().contiguous()
)
derandomised = settings(derandomize=True, deadline=None, max_examples=60)


@given(edge_lists)
@derandomised
def test_every_step_of_a_walk_is_an_edge(edge_index: Tensor) -> None:
    torch.manual_seed(0)
    edges = {(s, t) for s, t in edge_index.t().tolist()}
    leaving = {s for s, _ in edges}
    roots = torch.arange(NODES).repeat(3)
    walk = OutEdges.of(edge_index, NODES).walk(roots, 4)
    assert walk.shape == (3 * NODES, 5)
    assert torch.equal(walk[:, 0], roots)
    for one in walk.tolist():
        for here, there in pairwise(one):
            assert (here, there) in edges or (here == there and here not in leaving)


def test_a_step_goes_to_every_neighbour_with_equal_odds() -> None:
    """Pearson's statistic of 60,000 steps; a chance of 1e-6 that a fair walk exceeds the bound."""
    degree, steps = 13, 60_000
    edge_index = torch.stack((torch.full((degree,), 2), torch.arange(3, 3 + degree)))
    torch.manual_seed(0)
    walk = OutEdges.of(edge_index, 20).walk(torch.full((steps,), 2), 1)
    counts = walk[:, 1].bincount(minlength=20)[3 : 3 + degree].double()
    assert int(counts.sum()) == steps
    expected = steps / degree
    assert float(((counts - expected).square() / expected).sum()) < chi2.ppf(1 - 1e-6, degree - 1)


@given(edge_lists, st.sets(st.integers(0, NODES - 1)))
@derandomised
def test_an_induced_subgraph_is_that_of_brute_force(edge_index: Tensor, members: set[int]) -> None:
    nodes = sorted(members)
    found = OutEdges.of(edge_index, NODES).induce(torch.tensor(nodes, dtype=torch.int64))
    assert found.dtype == torch.int64
    expected = [
        [nodes.index(source), nodes.index(target)]
        for source, target in edge_index.t().tolist()
        if source in members and target in members
    ]
    assert found.t().tolist() == expected


@given(edge_lists, st.integers(1, NODES))
@derandomised
def test_every_node_is_in_exactly_one_part(edge_index: Tensor, parts: int) -> None:
    found = partition(edge_index, NODES, parts)
    assert len(found) == parts
    assert all(part.tolist() == sorted(part.tolist()) for part in found)
    assert sorted(node for part in found for node in part.tolist()) == list(range(NODES))
    again = partition(edge_index, NODES, parts)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_partition_cuts_where_few_edges_are() -> None:
    """Four cliques of 8, joined in a ring by single edges: the best cut takes the four and no other edge."""
    cliques = [(8 * c + i, 8 * c + j) for c in range(4) for i in range(8) for j in range(8) if i != j]
    ring = [(8 * c, (8 * c + 9) % 32) for c in range(4)]
    edge_index = torch.tensor(sorted(cliques + ring)).t().contiguous()
    found = partition(edge_index, 32, 4)
    assert sorted(part.tolist() for part in found) == [list(range(8 * c, 8 * c + 8)) for c in range(4)]


def test_more_parts_than_nodes_are_refused() -> None:
    with pytest.raises(DataError, match="10 parts cannot be made of 9 nodes"):
        partition(torch.empty(2, 0, dtype=torch.int64), NODES, 10)
