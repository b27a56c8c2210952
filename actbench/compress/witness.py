"""What operations that no rule covers keep for backward: which tensors, and of which modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.module import register_module_forward_hook

from actbench.compress.tensors import has_memory, tensors_in
from actbench.compress.torch_internals import foreign_hooks, saved_by

_MOST_NAMES: Final = 8
_MOST_NODES: Final = 256


class Witness:
    """Sees what stays in float, so that nobody keeps a code of it besides, and who must be told if all of it does."""

    def __init__(self) -> None:
        self._modules: dict[str, None] = {}
        self._functions: dict[str, None] = {}
        self._scripted = False
        self._handle: Any = None
        self._looks_at_modules = True

    def begin(self) -> None:
        """Until something has been compressed or told of, look at every module that is called."""
        self._modules, self._functions, self._scripted = {}, {}, False
        if self._looks_at_modules:
            self._handle = register_module_forward_hook(self._see_module)

    def end(self) -> None:
        """Look at no more modules."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def told(self) -> None:
        """Look at no modules any more, in later forward passes either."""
        self._looks_at_modules = False

    @property
    def names(self) -> str:
        """Whose tensors stay in float: modules or, where there are none, functions; empty if nothing was kept."""
        if not (self._looks_at_modules and (self._functions or self._scripted)):
            return ""
        return ", ".join(list(self._modules or self._functions)[:_MOST_NAMES])

    def see(
        self, func: Callable[..., Any], out: Any, arguments: tuple[Any, ...], is_data: Callable[[Tensor], bool]
    ) -> list[Tensor]:
        """A function that ran as it is: what it keeps. `is_data` tells which of its arguments stay anyway."""
        if foreign_hooks() or not any(each.requires_grad for each in tensors_in((out,))):
            return []
        kept = []
        stays = {
            each.untyped_storage().data_ptr() for each in tensors_in(arguments) if has_memory(each) and is_data(each)
        }
        for tensor in _saved(out, arguments):
            storage = tensor.untyped_storage()
            if tensor.is_floating_point() and storage.data_ptr() not in stays and storage.nbytes() > 0:
                kept.append(tensor)
                if len(self._functions) < _MOST_NAMES:
                    self._functions[getattr(func, "__name__", str(func)).strip("_")] = None
        return kept

    def _see_module(self, module: Module, args: Any, out: Any) -> None:
        scripted = isinstance(module, torch.jit.ScriptModule)
        parameter = next(module.parameters(recurse=scripted), None)
        if (
            parameter is None
            or not torch.is_grad_enabled()
            or not any(each.requires_grad for each in tensors_in((out,)))
        ):
            return
        name = str(getattr(module, "original_name", type(module).__name__))
        kind = "" if parameter.dtype == torch.float32 else f" ({str(parameter.dtype).removeprefix('torch.')})"
        self._modules[f"{name}{' (scripted)' if scripted else kind}"] = None
        self._scripted = self._scripted or scripted


def _saved(out: Any, arguments: tuple[Any, ...]) -> Iterator[Tensor]:
    """The strided tensors that the nodes between `arguments` and `out` have saved."""
    known = {each.grad_fn for each in tensors_in(arguments) if each.grad_fn is not None}
    nodes = [each.grad_fn for each in tensors_in((out,))]
    seen: set[Any] = set()
    while nodes and len(seen) < _MOST_NODES:
        node = nodes.pop()
        if node is None or node in known or node in seen:
            continue
        seen.add(node)
        nodes.extend(above for above, _ in node.next_functions)
        for name in saved_by(type(node)):
            try:
                value = getattr(node, name)
            except (RuntimeError, AttributeError):
                # Freed, or changed since: nobody keeps it for a backward that will be.
                continue
            yield from filter(has_memory, tensors_in((value,)))
