"""What a tensor is: in memory or not, a parameter or not; and the tensors among a function's arguments or results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parameter import is_lazy

from actbench.compress.torch_internals import base_of, has_own_memory


def has_memory(x: Any) -> bool:
    """Whether `x` is a tensor whose values lie as such in memory of a CPU or a GPU."""
    if not isinstance(x, Tensor) or is_lazy(x) or x.layout != torch.strided:
        return False
    return not x.is_nested and x.device.type in ("cpu", "cuda") and has_own_memory(x)


def is_parameter(x: Tensor) -> bool:
    """Whether `x` is a Parameter or a view of one, which stays whatever is kept."""
    return isinstance(x, Parameter) or isinstance(base_of(x), Parameter)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among `values`, and in lists and tuples of them."""
    for value in values:
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, Tensor):
                yield each
