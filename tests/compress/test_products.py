from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actbench
from actbench.compress import products
from actbench.compress.products import Symmetry, looked_at_product, scattered_product, symmetry_of, transposed_product
from actbench.errors import UsageError
from actbench.graphs import gcn_adjacency, mean_adjacency

ULP = 2.0**-24


def edges(nodes: int, directed: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    # The last two nodes have no neighbour.
    one_way = torch.randint(nodes - 2, (2, 4 * nodes), generator=generator)
    found: Tensor = torch.unique(one_way if directed else torch.cat((one_way, one_way.flip(0)), 1), dim=1)
    return found


def with_values(matrix: Tensor, values: Tensor) -> Tensor:
    revalued: Tensor = torch.sparse_csr_tensor(matrix.crow_indices(), matrix.col_indices(), values, matrix.shape)
    return revalued


def rounding(matrix: Tensor, g: Tensor) -> Tensor:
    """Of a sum of n products in float32: each rounded, n - 1 additions, a factor before and a quotient after it."""
    dense = matrix.to_dense().double().abs()
    terms = int((dense != 0).sum(0).max()) + 3 if dense.numel() else 0
    bound: Tensor = (dense.t() @ g.double().abs()) * (terms * ULP * 1.01)
    return bound


def test_which_symmetry_a_graphs_adjacency_has() -> None:
    undirected, directed = edges(30, directed=False), edges(30, directed=True)
    assert symmetry_of(gcn_adjacency(undirected, 30)) is Symmetry.EQUAL
    assert symmetry_of(mean_adjacency(undirected, 30)) is Symmetry.BY_ROWS
    assert symmetry_of(gcn_adjacency(directed, 30)) is Symmetry.NONE
    assert symmetry_of(mean_adjacency(directed, 30)) is Symmetry.NONE


def test_weights_and_a_shape_leave_no_symmetry_and_odd_values_do() -> None:
    mean = mean_adjacency(edges(30, directed=False), 30)
    values = mean.values()
    assert symmetry_of(with_values(mean, torch.linspace(1, 2, values.numel()))) is Symmetry.NONE
    # Of rows alike but for one value of one of them.
    one_off = values.clone()
    one_off[3] *= 1.5
    assert symmetry_of(with_values(mean, one_off)) is Symmetry.NONE
    # Aᵀ has the very values of A, whatever they are.
    of_one_row = (torch.arange(30) == 4).repeat_interleave(mean.crow_indices().diff())
    for value in (0.0, 1e-40, 1e25, -1.0):
        matrix = with_values(mean, torch.where(of_one_row, value, values))
        assert symmetry_of(matrix) is Symmetry.BY_ROWS
        assert torch.equal(transposed_product(matrix, Symmetry.BY_ROWS, torch.eye(30)), matrix.to_dense().t())
    assert symmetry_of(with_values(mean, torch.where(of_one_row, torch.nan, values))) is Symmetry.NONE
    rectangular = torch.ones(3, 5).to_sparse_csr()
    assert symmetry_of(rectangular) is Symmetry.NONE
    one_way = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).to_sparse_csr()
    assert symmetry_of(one_way) is Symmetry.NONE


def test_a_change_in_place_is_looked_at_anew() -> None:
    adjacency = gcn_adjacency(edges(30, directed=False), 30)
    assert symmetry_of(adjacency) is Symmetry.EQUAL
    adjacency.values()[0] *= 2
    adjacency.values()[1] *= 3
    assert symmetry_of(adjacency) is Symmetry.NONE
    assert symmetry_of(adjacency) is Symmetry.NONE


@pytest.mark.parametrize("indices", [torch.int32, torch.int64])
@pytest.mark.parametrize("kind", ["gcn", "mean", "directed", "weighted", "rectangular", "no entries", "no rows"])
def test_the_product_is_that_of_the_dense_transpose(kind: str, indices: torch.dtype) -> None:
    undirected, directed = edges(30, directed=False), edges(30, directed=True)
    matrix = {
        "gcn": lambda: gcn_adjacency(undirected, 30),
        "mean": lambda: mean_adjacency(undirected, 30),
        "directed": lambda: mean_adjacency(directed, 30),
        "weighted": lambda: with_values(m := mean_adjacency(undirected, 30), torch.randn(m.values().numel())),
        "rectangular": lambda: (torch.randn(20, 33) * (torch.rand(20, 33) < 0.2)).to_sparse_csr(),
        "no entries": lambda: torch.zeros(4, 4).to_sparse_csr(),
        "no rows": lambda: torch.zeros(0, 0).to_sparse_csr(),
    }[kind]()
    crow, col = matrix.crow_indices().to(indices), matrix.col_indices().to(indices)
    matrix = torch.sparse_csr_tensor(crow, col, matrix.values(), matrix.shape)
    g = torch.randn(matrix.shape[0], 7)
    out = transposed_product(matrix, symmetry_of(matrix), g)
    expected = matrix.to_dense().double().t() @ g.double()
    assert out.shape == expected.shape
    assert bool(((out.double() - expected).abs() <= rounding(matrix, g)).all())


def test_a_gradient_that_is_not_contiguous() -> None:
    for matrix in (mean_adjacency(edges(30, directed=False), 30), gcn_adjacency(edges(30, directed=False), 30)):
        g = torch.randn(7, 30).t()
        expanded = torch.ones(1, 1).expand(30, 7)
        for each in (g, expanded):
            out = transposed_product(matrix, symmetry_of(matrix), each)
            expected = matrix.to_dense().double().t() @ each.double()
            assert bool(((out.double() - expected).abs() <= rounding(matrix, each)).all())


def test_what_a_cuda_graph_would_hold_is_the_same_product() -> None:
    torch.manual_seed(0)
    undirected = edges(30, directed=False)
    for matrix in (mean_adjacency(undirected, 30), with_values(m := mean_adjacency(undirected, 30), m.values() * 1.5)):
        g = torch.randn(30, 7)
        for reduce in (None, "sum", "mean"):
            expected = looked_at_product(matrix, g, reduce)
            degrees = matrix.crow_indices().diff().max()
            bound = 4 * int(degrees + 3) * ULP * float(g.abs().max()) * float(matrix.values().abs().max())
            assert float((scattered_product(matrix, g, reduce) - expected).abs().max()) <= bound


WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "the tensor that the matrix wraps": lambda values, new: values.copy_(new),
    "a numpy view": lambda values, new: values.numpy().__setitem__(slice(None), new.numpy()),
    "data": lambda values, new: values.data.copy_(new),
    "a view made before": lambda values, new: values.view(-1)[:].copy_(new),
}


@pytest.mark.parametrize("reduce", [None, "sum", "mean"])
@pytest.mark.parametrize("write", WRITES)
def test_values_written_by_way_of_other_memory_are_those_of_backward(write: str, reduce: str | None) -> None:
    """No version of the matrix tells of it; gradients are of what the matrix holds, to the rounding of its sums."""
    base = mean_adjacency(edges(30, directed=False), 30)
    values = base.values().clone()
    matrix = with_values(base, values)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x, g = torch.randn(30, 6, requires_grad=True), torch.randn(30, 6)
        with actbench.compress("derived"):
            y = matrix @ x if reduce is None else torch.sparse.mm(matrix, x, reduce)
        y.backward(g)
        assert x.grad is not None
        given = g / matrix.crow_indices().diff().clamp(min=1).unsqueeze(1) if reduce == "mean" else g
        expected = matrix.to_dense().double().t() @ given.double()
        assert bool(((x.grad.double() - expected).abs() <= rounding(matrix, given)).all())
        WRITES[write](values, torch.rand(values.numel(), generator=generator) + 0.5)


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("what", ["values", "data", "data before a dropout"])
def test_what_backward_would_read_changed_is_an_error(what: str, write: str) -> None:
    """FP32 keeps A x, or what dropout left of x; ours reads A and x again, which must be what they were."""
    base = mean_adjacency(edges(30, directed=False), 30)
    values, x = base.values().clone(), torch.randn(30, 6)
    matrix, layer = with_values(base, values), nn.Linear(6, 4)
    with actbench.compress("derived"):
        out = layer(matrix @ (x if what != "data before a dropout" else F.dropout(x, 0.5)))
    changing = values if what == "values" else x.view(-1)
    WRITES[write](changing, changing + 1)
    with pytest.raises((UsageError, RuntimeError), match=r"was changed|modified by an inplace"):
        out.sum().backward()


def test_symmetry_is_found_once_for_equal_contents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution that norms its adjacency anew in every call makes a new matrix of equal content."""
    found: list[Tensor] = []
    find = products._find_symmetry

    def counted(matrix: Tensor) -> Symmetry:
        found.append(matrix)
        return find(matrix)

    monkeypatch.setattr(products, "_known", {})
    monkeypatch.setattr(products, "_find_symmetry", counted)
    for _ in range(5):
        assert symmetry_of(gcn_adjacency(edges(30, directed=False), 30)) is Symmetry.EQUAL
    assert len(found) == 1
