"""Products with the transpose of a sparse matrix, without forming it where the matrix's own form allows."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from actbench.compress.known import Known


class Symmetry(Enum):
    """What relates a sparse matrix A to its transpose."""

    NONE = "none"
    EQUAL = "equal"
    """Aᵀ = A, as the symmetric norm of an undirected graph."""
    BY_ROWS = "by rows"
    """Aᵢⱼ = aᵢ where the pattern is symmetric, as the mean over neighbours: Aᵀ has A's pattern and the values aⱼ."""


_known = Known()


def symmetry_of(matrix: Tensor) -> Symmetry:
    """Which symmetry sparse CSR `matrix` [N, M] has; found once for each, by transposing it."""
    known: Symmetry | None = _known.get(matrix)
    if known is None:
        with torch.no_grad():
            known = _find_symmetry(matrix)
        _known[matrix] = known
    return known


def transposed_product(matrix: Tensor, symmetry: Symmetry, g: Tensor, reduce: str | None = None) -> Tensor:
    """Aᵀ `g` of sparse CSR A [N, M] and `g` [N, H]: [M, H]; Aᵀ is formed only if A has no symmetry.

    With `reduce` "mean" that of `torch.sparse.mm(A, x, "mean")`, which divides each row by its number of entries.
    """
    if reduce == "mean":
        g = g / matrix.crow_indices().diff().clamp_(min=1).unsqueeze(1)
    if symmetry is Symmetry.NONE:
        matrix = matrix.t().to_sparse_csr()
    elif symmetry is Symmetry.BY_ROWS:
        crow, col = matrix.crow_indices(), matrix.col_indices()
        values = _row_values(matrix).index_select(0, col)
        matrix = torch.sparse_csr_tensor(crow, col, values, matrix.shape, check_invariants=False)
    product: Tensor = matrix @ g
    return product


def _find_symmetry(matrix: Tensor) -> Symmetry:
    if matrix.shape[0] != matrix.shape[1] or matrix.values().dim() != 1:
        return Symmetry.NONE
    other = matrix.t().to_sparse_csr()
    crow, col, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    if not (torch.equal(crow, other.crow_indices()) and torch.equal(col, other.col_indices())):
        return Symmetry.NONE
    if torch.equal(values, other.values()):
        return Symmetry.EQUAL
    spread = _row_values(matrix).repeat_interleave(crow.diff(), output_size=values.numel())
    return Symmetry.BY_ROWS if torch.equal(values, spread) else Symmetry.NONE


def _row_values(matrix: Tensor) -> Tensor:
    """The first value of every row, 1 for an empty one: [N]."""
    crow, values = matrix.crow_indices(), matrix.values()
    if values.numel() == 0:
        return values.new_ones(matrix.shape[0])
    # No boolean index, which would wait for a GPU.
    first = values[crow[:-1].long().clamp_max(values.numel() - 1)]
    return torch.where(crow.diff() > 0, first, 1)
