"""Autocast to bfloat16 as a user would write it, with sparse products in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final

import torch
from torch import Tensor

_PRODUCTS: Final = (torch.sparse.mm, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)

_SUMS: Final = (torch.addmm, Tensor.addmm, torch.sparse.addmm)


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


def is_sparse_product(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether `func(*args)` multiplies a sparse matrix by a dense one, or adds such a product to a matrix."""
    place = 0 if func in _PRODUCTS else 1 if func in _SUMS else len(args)
    factor = args[place] if place < len(args) else None
    return isinstance(factor, Tensor) and factor.layout != torch.strided


def whole_product(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A sparse product in float32 and outside autocast, which would have it in bfloat16: a CPU has no such product."""
    with torch.autocast(args[0].device.type, enabled=False):
        return func(*map(_whole, args), **{key: _whole(value) for key, value in kwargs.items()})


def _whole(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x
