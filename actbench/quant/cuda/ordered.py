"""Sparse products on CUDA whose sums have one order, in the place of torch's."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def ordered_products(key: str = "SparseCsrCUDA") -> Iterator[None]:
    """While open, a product of a sparse CSR or CSC and a dense matrix on CUDA sums in the order of the entries.

    In any thread, and in autograd's backward. Products with a vector, of a COO matrix, or into a tensor that is given
    (`out=`, `addmm_`) stay torch's: no model of ours has one.

    torch leaves them to cuSPARSE's CSR_ALG2, whose results differ from run to run
    (https://docs.nvidia.com/cuda/cusparse/#cusparsespmm), and does not say so where deterministic operations are asked
    for. `key` is the dispatch key of what is replaced. A product that is not of float32 raises a RuntimeError in the
    words of torch's own for what has no deterministic implementation.
    """
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # torch says that there was a kernel before.
        warnings.simplefilter("ignore", UserWarning)
        library.impl("addmm", _addmm, key)
    try:
        yield
    finally:
        library._destroy()


def _addmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """`torch.addmm`, which every product of a sparse CSR or CSC matrix comes to, from either side."""
    if left.layout == torch.strided:
        return _addmm(bias.t(), right.t(), left.t(), beta=beta, alpha=alpha).t()
    if left.dtype != torch.float32 or right.layout != torch.strided or left.values().dim() != 1:
        raise RuntimeError(
            f"sparse product of {left.dtype} and {right.layout} does not have a deterministic implementation"
        )
    matrix = left if left.layout == torch.sparse_csr else left.to_sparse_csr()
    parts = matrix.crow_indices(), matrix.col_indices(), matrix.values(), right
    crow, col, values, x = (part.contiguous() for part in parts)
    product = sparse_product(crow, col, values, x)
    if alpha != 1:
        product = product.mul_(alpha)
    return product if beta == 0 else product.add_(bias, alpha=beta)


def sparse_product(crow: Tensor, col: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """That of the CUDA backend, the only one with an order of its own."""
    from actbench.quant.cuda import backend as cuda

    return cuda.sparse_product(crow, col, values, x)
