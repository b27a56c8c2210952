"""Products with the transpose of a sparse matrix, without forming it where the matrix's own form allows."""

from __future__ import annotations

from enum import Enum
from typing import Final

import torch
from torch import Tensor

from actbench.quant import asymmetry_sums, dense_sum


class Symmetry(Enum):
    """What relates a sparse matrix A to its transpose."""

    NONE = "none"
    EQUAL = "equal"
    """Aᵀ = A, as the symmetric norm of an undirected graph."""
    BY_ROWS = "by rows"
    """Aᵢⱼ = aᵢ where the pattern is symmetric, as the mean over neighbours: Aᵀ has A's pattern and the values aⱼ."""


_REMEMBERED: Final = 256
_known: dict[tuple[object, ...], Symmetry] = {}


def content_of(matrix: Tensor) -> Tensor:
    """What sparse CSR `matrix` holds now, told from any other content: int64 [3] on its device."""
    parts = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    return torch.cat([dense_sum(part.detach()) for part in parts])


def symmetry_of(matrix: Tensor, content: Tensor | None = None) -> Symmetry:
    """Which symmetry sparse CSR `matrix` [N, M] has now; found once for each content. Waits for a GPU.

    `content` is what `content_of` makes of it now, where that is known.
    """
    if matrix.shape[0] != matrix.shape[1] or matrix.values().dim() != 1:
        return Symmetry.NONE
    # No version tells of what is written by way of a tensor that the matrix wraps, so it is read each time.
    now = content_of(matrix) if content is None else content
    key = *now.tolist(), matrix.shape, matrix.dtype, matrix.col_indices().dtype
    known = _known.get(key)
    if known is None:
        if len(_known) >= _REMEMBERED:
            _known.clear()
        known = _known[key] = _find_symmetry(matrix)
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


def looked_at_product(matrix: Tensor, g: Tensor, reduce: str | None = None, content: Tensor | None = None) -> Tensor:
    """As `transposed_product`, by what `matrix` holds now, of which `content` is the sums where they are known."""
    if matrix.is_cuda and torch.cuda.is_current_stream_capturing():
        return scattered_product(matrix, g, reduce)
    return transposed_product(matrix, symmetry_of(matrix, content), g, reduce)


def scattered_product(matrix: Tensor, g: Tensor, reduce: str | None = None) -> Tensor:
    """As `transposed_product` of any A, entry by entry [E, H], with no look at what A holds.

    A CUDA graph, which is replayed on contents that nobody has looked at, may hold it.
    """
    degree = matrix.crow_indices().diff()
    if reduce == "mean":
        g = g / degree.clamp(min=1).unsqueeze(1)
    entries = matrix.values().numel()
    terms = g.repeat_interleave(degree, 0, output_size=entries) * matrix.values().unsqueeze(1)
    return g.new_zeros(matrix.shape[1], g.shape[1]).index_add_(0, matrix.col_indices(), terms)


def _find_symmetry(matrix: Tensor) -> Symmetry:
    values = matrix.values()
    by_value, by_pattern, varied = asymmetry_sums(matrix.crow_indices(), matrix.col_indices(), values.detach()).tolist()
    if by_value == by_pattern == 0:
        return Symmetry.EQUAL
    # What is no number is equal to nothing, and has no value to be had by its row.
    if by_pattern == varied == 0 and not bool(values.isnan().any()):
        return Symmetry.BY_ROWS
    return Symmetry.NONE


def _row_values(matrix: Tensor) -> Tensor:
    """The first value of every row, 1 for an empty one: [N]."""
    crow, values = matrix.crow_indices(), matrix.values()
    if values.numel() == 0:
        return values.new_ones(matrix.shape[0])
    # No boolean index, which would wait for a GPU.
    first = values[crow[:-1].long().clamp_max(values.numel() - 1)]
    return torch.where(crow.diff() > 0, first, 1)
