"""What we use of torch's private parts, and the only module that does.

What a torch upgrade may break, and how that would show:

| part | if it goes or changes |
| --- | --- |
| `StorageWeakRef`, `WeakTensorKeyDictionary`, `TensorWeakRef` | import error |
| `Tensor._base`, `._version`, `._is_view`, `._backward_hooks` | attribute error in the first forward pass |
| `torch._C._dispatch_keys`, `_functorch` | attribute error; a fake or wrapped tensor would be read as memory |
| `_current_graph_task_id` | attribute error; calls that run again in backward would be compressed |
| `_top_saved_tensors_default_hooks` | attribute error; torch's checkpoint, and hooks of a user's, would go unseen |
| `forward_ad._current_level` | attribute error |
| `torch._C._dynamo.eval_frame` | nothing but time: our frames would be compiled anew call by call |
| `_torchdynamo_disable` | a graph that breaks where it did not |
| `aten::_batch_norm_impl_index`, its backward | attribute error; another library than F.batch_norm's would be asked |
| `aten::_unsafe_view`, `torch._C._nn.leaky_relu` | attribute error |
| `_unsafe_preserve_version_counter` | import error |
| `torch._validate_sparse_csr_tensor_args` | attribute error |
| names of what a node has saved, `_saved_…` | nothing is seen of what stock operations keep: a code on top of it |
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary

__all__ = [
    "StorageWeakRef",
    "TensorWeakRef",
    "WeakTensorKeyDictionary",
    "backward_pass",
    "base_of",
    "batch_norm",
    "batch_norm_backward",
    "check_csr",
    "foreign_hooks",
    "has_own_memory",
    "in_checkpoint",
    "in_transform",
    "is_traceable_wrapper_subclass",
    "is_view",
    "is_watched",
    "leaky_relu",
    "pack_hook",
    "run_as_written",
    "saved_by",
    "uncompiled",
    "unmoded",
    "unseen_writes",
    "unviewed",
    "version_of",
]

Uncompiled = TypeVar("Uncompiled", bound=Callable[..., Any])
unmoded = torch._C.DisableTorchFunction
"""A context in which no torch function mode sees what is called."""
unseen_writes = _unsafe_preserve_version_counter
"""A context in which writing to its tensor does not count as a change."""
batch_norm_backward = torch.ops.aten._batch_norm_impl_index_backward


def batch_norm(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """What F.batch_norm dispatches to, which picks the same library (native, cuDNN, MIOpen).

    `arguments` are weight, bias, running mean and variance, training, momentum and eps. Returns the result and what
    backward needs: mean, inverse standard deviation, a reserve, and which library it was.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor, int] = torch.ops.aten._batch_norm_impl_index(
        x, *arguments, torch.backends.cudnn.enabled
    )
    return found


def check_csr(crow: Tensor, col: Tensor, values: Tensor, shape: torch.Size) -> None:
    """Raise `RuntimeError` if these make no CSR matrix of `shape`."""
    torch._validate_sparse_csr_tensor_args(crow, col, values, shape)


def leaky_relu(x: Tensor, slope: float, inplace: bool) -> Tensor:
    """`F.leaky_relu`, seen by no mode."""
    return torch._C._nn.leaky_relu_(x, slope) if inplace else torch._C._nn.leaky_relu(x, slope)


def version_of(x: Tensor) -> int:
    """How often `x` was changed in place; 0 for one of inference mode, which does not count and cannot be kept."""
    return 0 if x.is_inference() else x._version


def base_of(x: Tensor) -> Tensor | None:
    """The tensor that `x` is a view of."""
    return x._base


def is_view(x: Tensor) -> bool:
    """Whether `x` is a view of another tensor."""
    return x._is_view()


def unviewed(x: Tensor) -> Tensor:
    """`x`, no longer known as a view, which torch lets nobody change in place after a function of ours."""
    whole: Tensor = torch.ops.aten._unsafe_view(x, x.shape) if x._is_view() else x
    return whole


def is_watched(x: Tensor) -> bool:
    """Whether somebody wants to see the gradient by `x`."""
    return bool(x._backward_hooks) or x.retains_grad


def has_own_memory(x: Tensor) -> bool:
    """Whether `x` is no tensor with operations of its own, as a fake or distributed one, and no torch.func's."""
    has_own: bool = torch._C._dispatch_keys(x).has(torch._C.DispatchKey.Python)
    return not has_own and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def backward_pass() -> int:
    """A number of the backward pass that this thread is in; -1 in none."""
    return torch._C._current_graph_task_id()


def in_transform() -> bool:
    """Whether forward-mode derivatives or a transform of torch.func see what is called now."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None


def in_checkpoint() -> bool:
    """Whether what is called now is covered by torch.utils.checkpoint without reentrance: it runs again in backward."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and getattr(hooks[0], "__module__", "") == checkpoint.__module__


def pack_hook() -> Callable[[Tensor], Any] | None:
    """What the innermost `saved_tensors_hooks` calls with what is kept for backward."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return None if hooks is None else hooks[0]


def foreign_hooks() -> bool:
    """Whether what is kept for backward goes through hooks of a user's, who may copy it at every look."""
    hook = pack_hook()
    return hook is not None and not hook.__module__.startswith("actbench.")


@cache
def saved_by(kind: type) -> tuple[str, ...]:
    """The names under which a node of the autograd graph has what it has saved."""
    return tuple(name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors")


def uncompiled(function: Uncompiled) -> Uncompiled:
    """`function`, which torch.compile breaks its graph at and looks neither into nor at what it calls."""

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        called = _disabled(function) if "torch._dynamo" in sys.modules else function
        return called(*arguments, **named)

    # What torch.compiler.disable sets, whose import takes a second and some 100 MiB; it alone hides the calls inside.
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    run_as_written(call)
    return cast(Uncompiled, call)


def run_as_written(function: Callable[..., Any]) -> None:
    """Let torch.compile compile neither `function` nor what it calls where torch calls it by itself.

    It would compile it anew for every kind of call, up to its limit.
    """
    dynamo: Any = torch._C._dynamo.eval_frame
    if hasattr(dynamo, "set_code_exec_strategy"):
        skipped = dynamo._FrameExecStrategy(dynamo._FrameAction.SKIP, dynamo._FrameAction.SKIP)
        dynamo.set_code_exec_strategy(function.__code__, skipped)


@cache
def _disabled(function: Callable[..., Any]) -> Callable[..., Any]:
    disabled: Callable[..., Any] = torch.compiler.disable(function)
    return disabled
