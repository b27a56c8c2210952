from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import GCNConv, SAGEConv

from actbench.graphs import gcn_adjacency, looped_adjacency, mean_adjacency

NODES = 7
edge_lists = st.sets(st.tuples(st.integers(0, NODES - 1), st.integers(0, NODES - 1)), max_size=30).map(
    lambda edges: torch.tensor(sorted(edges), dtype=torch.int64).reshape(-1, 2).t().contiguous()
)
derandomised = settings(derandomize=True, deadline=None, max_examples=60)


def dense(edge_index: Tensor) -> Tensor:
    matrix = torch.zeros(NODES, NODES, dtype=torch.float64)
    for source, target in edge_index.t().tolist():
        matrix[target, source] = 1
    return matrix


@given(edge_lists)
@derandomised
def test_mean_of_in_neighbours(edge_index: Tensor) -> None:
    matrix = dense(edge_index)
    expected = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    found = mean_adjacency(edge_index, NODES)
    assert torch.allclose(found.to_dense().double(), expected, atol=1e-7)
    assert found.values().numel() == edge_index.size(1)


@given(edge_lists)
@derandomised
def test_symmetric_norm_adds_each_loop_once(edge_index: Tensor) -> None:
    matrix = dense(edge_index).fill_diagonal_(1)
    scale = matrix.sum(1).rsqrt()
    found = gcn_adjacency(edge_index, NODES)
    assert torch.allclose(found.to_dense().double(), scale[:, None] * matrix * scale, atol=1e-6)


def test_types() -> None:
    for adjacency in (mean_adjacency, gcn_adjacency):
        found = adjacency(torch.tensor([[0, 1, 2], [1, 2, 0]]), 4)
        assert found.layout == torch.sparse_csr
        assert found.dtype == torch.float32
        assert found.crow_indices().dtype == found.col_indices().dtype == torch.int32
        assert found.shape == (4, 4)


def test_same_layer_output_as_from_the_edge_list() -> None:
    torch.manual_seed(0)
    edge_index = torch.tensor([[0, 1, 2, 3, 3, 5], [1, 2, 2, 0, 2, 4]])
    x = torch.randn(6, 3)
    mean, total = SAGEConv(3, 2, aggr="mean"), SAGEConv(3, 2, aggr="sum")
    total.load_state_dict(mean.state_dict())
    assert torch.allclose(total(x, mean_adjacency(edge_index, 6)), mean(x, edge_index), atol=1e-6)
    stock, prepared = GCNConv(3, 2), GCNConv(3, 2, normalize=False)
    prepared.load_state_dict(stock.state_dict())
    assert torch.allclose(prepared(x, gcn_adjacency(edge_index, 6)), stock(x, edge_index), atol=1e-6)


@given(edge_lists)
@derandomised
def test_ones_for_every_edge_and_loop(edge_index: Tensor) -> None:
    found = looped_adjacency(edge_index, NODES)
    assert torch.equal(found.to_dense().double(), dense(edge_index).fill_diagonal_(1))
    assert found.values().dtype == torch.uint8


def test_threads_that_make_adjacencies_leave_torchs_checks_as_they_were() -> None:
    edges = torch.randint(0, 500, (2, 4000), generator=torch.Generator().manual_seed(1))
    edges = torch.unique(torch.cat((edges, edges.flip(0)), 1), dim=1)
    assert not torch.sparse.check_sparse_tensor_invariants.is_enabled()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: mean_adjacency(edges, 500), range(64)))
    assert not torch.sparse.check_sparse_tensor_invariants.is_enabled()
