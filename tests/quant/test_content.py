"""The sums that tell contents apart: equal on every backend, and different for what differs."""

import itertools

import pytest
import torch
from torch import Tensor

from actbench.quant import asymmetry_sums, dense_sum
from actbench.quant.content import asymmetry_sums_in_torch, dense_sum_in_torch


def sparse(rows: int, entries: int, indices: torch.dtype, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows + entries)
    places = torch.randint(max(rows, 1), (2, entries))
    matrix = torch.sparse_coo_tensor(places, torch.randn(entries).to(dtype), (rows, rows)).coalesce().to_sparse_csr()
    return matrix.crow_indices().to(indices), matrix.col_indices().to(indices), matrix.values()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), (1024,), (41, 25), (33_000, 3)])
def test_a_dense_sum_is_the_same_by_loops_and_by_torch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    assert torch.equal(dense_sum(x), dense_sum_in_torch(x))
    if x.numel() > 1:
        assert torch.equal(dense_sum(x.t().contiguous().t() if x.dim() > 1 else x), dense_sum(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("indices", [torch.int32, torch.int64])
@pytest.mark.parametrize(("rows", "entries"), [(0, 0), (4, 0), (30, 100), (20_000, 90_000)])
def test_asymmetry_is_the_same_by_loops_and_by_torch(
    rows: int, entries: int, indices: torch.dtype, dtype: torch.dtype
) -> None:
    parts = sparse(rows, entries, indices, dtype)
    assert torch.equal(asymmetry_sums(*parts), asymmetry_sums_in_torch(*parts))


def test_one_changed_bit_anywhere_changes_a_dense_sum() -> None:
    x = torch.randn(2100)
    sums = {int(dense_sum(x))}
    words = x.view(torch.int32)
    for place in range(0, 2100, 7):
        for bit in (0, 13, 31):
            flipped = words.clone()
            flipped[place] ^= 1 << bit if bit < 31 else -(2**31)
            sums.add(int(dense_sum(flipped.view(torch.float32))))
    assert len(sums) == 1 + 300 * 3
    assert int(dense_sum(x.flip(0))) not in sums


def test_what_is_symmetric_and_what_is_but_for_one_entry() -> None:
    crow, col, _ = sparse(500, 3000, torch.int64, torch.float32)
    dense = torch.sparse_csr_tensor(crow, col, torch.rand(col.numel()) + 1, (500, 500)).to_dense()
    both = (dense + dense.t()).to_sparse_csr()
    crow, col, values = both.crow_indices(), both.col_indices(), both.values()
    assert asymmetry_sums(crow, col, values).tolist()[:2] == [0, 0]
    # In any order of a row's entries.
    turned = torch.cat([torch.arange(end - 1, start - 1, -1) for start, end in itertools.pairwise(crow)])
    assert asymmetry_sums(crow, col[turned], values[turned]).tolist()[:2] == [0, 0]
    for place in range(0, values.numel(), 37):
        other = values.clone()
        other[place] = torch.nextafter(other[place], torch.tensor(9.0))
        by_value, by_pattern, _ = asymmetry_sums(crow, col, other).tolist()
        on_the_diagonal = int((crow <= place).sum()) - 1 == int(col[place])
        assert (by_value == 0, by_pattern) == (on_the_diagonal, 0)
    row = int((crow.diff() > 1).nonzero()[0])
    missing = sorted(set(range(500)) - set(col[crow[row] : crow[row + 1]].tolist()) - {row})
    moved = col.clone()
    moved[crow[row]] = missing[0]
    assert asymmetry_sums(crow, moved, values)[1] != 0
