"""Autocast to bfloat16 as a user would write it, with sparse products in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

_PRODUCTS: Final = (
    torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, Tensor.mm, torch.mv, Tensor.mv,
    torch.bmm, Tensor.bmm, torch.addmm, Tensor.addmm, Tensor.addmm_, torch.addmv, Tensor.addmv, Tensor.addmv_,
    torch.sparse.mm, torch.sparse.addmm, torch.sparse.sampled_addmm, torch.smm, Tensor.smm, torch.hspmm,
    torch.sspaddmm, Tensor.sspaddmm, F.linear,
)  # fmt: skip


_SPARSE: Final = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


class Autocast:
    """A context of `torch.autocast` to bfloat16 on every device, or without it; may be entered again."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._contexts = ExitStack()

    def __enter__(self) -> None:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            # A cache would hand on a weight's copy that a step has outdated, or one made without a gradient.
            here = torch.autocast(device, torch.bfloat16, enabled=self._enabled, cache_enabled=False)
            self._contexts.enter_context(here)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._contexts.close()


def is_sparse_product(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call multiplies by a sparse matrix, on either side, or adds such a product to something."""
    return func in _PRODUCTS and any(_is_sparse(each) for each in (*args, *kwargs.values()))


def whole_product(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A sparse product in float32 and outside autocast, which would have it in bfloat16: a CPU has no such product."""
    device = next(each.device.type for each in (*args, *kwargs.values()) if _is_sparse(each))
    with torch.autocast(device, enabled=False):
        # What is changed in place stays the tensor that it is.
        kept, rest = args[: func.__name__.endswith("_") and not func.__name__.endswith("__")], args
        return func(*kept, *map(_whole, rest[len(kept) :]), **{key: _whole(value) for key, value in kwargs.items()})


def _is_sparse(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout in _SPARSE


def _whole(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x
