"""`compress`: the torch functions that keep activations, replaced by ours while a context is open."""

from __future__ import annotations

import inspect
import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from types import TracebackType
from typing import Any, Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module, Parameter
from torch.overrides import TorchFunctionMode

from actbench.compress.attention import Aggregate, Edges, aggregate, choose_edges, drop_edges
from actbench.compress.autocast import Autocast, is_sparse_product, whole_product
from actbench.compress.functions import Addmm, BatchNorm, Dropout, LeakyRelu, Linear, Relu, SparseProduct
from actbench.compress.offload import Offload
from actbench.compress.recomputation import Output, recompute
from actbench.compress.saved import Kept, Noise, Watch, keeps_seed
from actbench.errors import UsageError
from actbench.quant import pack_mask
from actbench.scheme import Scheme

_COMPRESSIBLE: Final = (torch.float32, torch.float16, torch.bfloat16)
_GOLDEN: Final = 0x9E3779B97F4A7C15
_contexts = itertools.count()
_open = threading.local()


def compress(scheme: Scheme | str, seed: int | None = None, resident: Iterable[Tensor] = ()) -> Compression:
    """A context in which forward passes keep activations as `scheme` says.

    `scheme` is a `Scheme` or its text. All projection and rounding noise comes from `seed`; without one it is made
    from `torch.initial_seed()` and a count of contexts, and never drawn from torch's generators. Results of forward
    do not change, but under `bf16`. The innermost of nested contexts decides. Raises `SchemeError` for an invalid text.

    Equal seeds give equal noise: in a training loop give none, or enter one context again and again. Double backward
    and the recomputation of `torch.utils.checkpoint` are refused with an error.

    The schemes that quantize nothing change what surrounds the model. `bf16` is torch's autocast; products with a
    sparse matrix stay FP32, which a CPU alone could not do otherwise. `checkpoint` recomputes what the model passes to
    `run_layer`, and `offload` moves to host memory what is kept on a GPU, but for what shares storage with `resident`:
    parameters, buffers and graph data that stay there anyway. Leaving the context raises `UsageError` where one of the
    two found nothing to do.
    """
    if isinstance(scheme, str):
        scheme = Scheme.parse(scheme)
    if seed is None:
        seed = torch.initial_seed() + next(_contexts) * _GOLDEN
    return Compression(scheme, seed % 2**64, Offload(resident) if scheme.name == "offload" else None)


def run_layer(module: Module, function: Callable[..., Output], *inputs: Tensor) -> Output:
    """`function(*inputs)`, a layer of `module`: under `checkpoint` its inputs are kept and it runs again in backward.

    All that it reads of changing tensors must be its inputs or `module`'s parameters and buffers.
    """
    innermost = _stack()[-1] if _stack() else None
    if innermost is None or innermost.scheme.name != "checkpoint":
        return function(*inputs)
    innermost.found = True
    return recompute(module, function, *inputs) if torch.is_grad_enabled() else function(*inputs)


class Compression(TorchFunctionMode):
    """The context that `compress` makes; may be entered again, and then goes on with fresh noise."""

    def __init__(self, scheme: Scheme, seed: int, offload: Offload | None = None) -> None:
        super().__init__()
        self.scheme = scheme
        self.seed = seed
        self.offload = offload
        self.found = False
        self._with_grad = False
        self._contexts = ExitStack()
        self._kept = itertools.count()
        self._calls: Counter[str] = Counter()
        self._watch = Watch()

    def __enter__(self) -> Self:
        self._watch.check()
        self._calls.clear()
        self.found = self._with_grad = False
        around = _stack()[-1] if _stack() else None
        _stack().append(self)
        if self.scheme.name == "bf16" or (around and around.scheme.name == "bf16"):
            self._contexts.enter_context(Autocast(enabled=self.scheme.name == "bf16"))
        if self.offload:
            self._contexts.enter_context(self.offload)
        elif around and around.offload:
            # Of nested hooks the innermost alone are asked.
            self._contexts.enter_context(saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._contexts.close()
        _stack().pop()
        if kind is None and self._with_grad:
            if self.scheme.name == "checkpoint" and not self.found:
                raise UsageError("checkpoint found no layer: call a model's layers by actbench.run_layer.")
            if self.offload and not self.offload.found:
                raise UsageError("offload found nothing on a GPU: what is kept on a CPU is in host memory already.")

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run `func`, or the function of ours that keeps less."""
        kwargs = kwargs or {}
        if self.scheme.compresses and torch.is_grad_enabled() and _stack()[-1] is self:
            handler = _HANDLERS.get(func)
            if handler is not None and _fits(handler, (self, func, *args), kwargs):
                out = handler(self, func, *args, **kwargs)
                if out is not None:
                    return out
        if self.scheme.name == "bf16" and is_sparse_product(func, args):
            return whole_product(func, args, kwargs)
        out = func(*args, **kwargs)
        self._with_grad = self._with_grad or (isinstance(out, Tensor) and out.requires_grad)
        return out

    @property
    def around_loss(self) -> AbstractContextManager[None]:
        """The context that the loss belongs in: autocast under `bf16`, nothing otherwise."""
        return Autocast() if self.scheme.name == "bf16" else nullcontext()

    def check(self) -> None:
        """Raise `NonFiniteError`, naming the tensor, if one that was kept could not be packed; waits for GPUs.

        Not needed on a CPU, where forward raises it. On a GPU forward does not wait: the error comes with backward or
        with the next forward, whichever is the first to know.
        """
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self._watch.check()

    def keep(self, operation: str, rows: int, width: int, dtype: torch.dtype, projected: bool) -> Kept | None:
        """How to keep the input [rows, width] of the next call of `operation`, with its own noise; None: as it is."""
        self._calls[operation] += 1
        scheme = self.scheme.for_call(operation, self._calls[operation])
        if not scheme.compresses:
            return None
        kind = str(dtype).removeprefix("torch.")
        name = f"the input of {operation} {self._calls[operation]} ({kind} [{rows}, {width}])"
        ratio = scheme.projection if projected else 1
        noise = Noise(self.seed, next(self._kept))
        return Kept.of(rows, width, dtype, scheme, noise, ratio, name, self._watch)


def _fits(handler: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the call has only arguments that the handler knows; `out=` and the like are left to torch."""
    try:
        _signature(handler).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


@cache
def _signature(handler: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(handler)


def _stack() -> list[Compression]:
    if not hasattr(_open, "stack"):
        _open.stack = []
    stack: list[Compression] = _open.stack
    return stack


def _compressible(x: Any) -> bool:
    """Whether `x` has values that one of the quantizer's backends can pack."""
    strided = isinstance(x, Tensor) and x.layout == torch.strided and x.device.type in ("cpu", "cuda")
    return strided and x.dtype in _COMPRESSIBLE and x.numel() > 0


def _apply(function: type[Function], *arguments: Any) -> Tensor:
    out: Tensor = _application(function)(*arguments)
    return out


# What torch.compiler.disable sets, whose import takes a second and some 100 MiB: torch.compile breaks its graph here.
_apply._torchdynamo_disable = True  # type: ignore[attr-defined]


def _application(function: type[Function]) -> Callable[..., Any]:
    """`function.apply`, which torch.compile must not look into either."""
    return _hidden_application(function) if "torch._dynamo" in sys.modules else function.apply


@cache
def _hidden_application(function: type[Function]) -> Callable[..., Any]:
    hidden: Callable[..., Any] = torch.compiler.disable(function.apply)
    return hidden


# A handler's parameters are the intercepted function's own, so that Python binds a call's positional and keyword
# arguments as torch would. It returns None where the stock function keeps nothing worth compressing.


def _linear(
    mode: Compression, func: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    if not (_compressible(input) and weight.requires_grad and weight.dim() == 2 and weight.numel() > 0):
        return None
    kept = mode.keep("linear", input[..., 0].numel(), input.shape[-1], input.dtype, projected=True)
    return _apply(Linear, func, True, kept, input, weight, bias) if kept else None


def _matmul(
    mode: Compression, func: Callable[..., Tensor], input: Any, other: Any, operation: str = "matmul"
) -> Tensor | None:
    # Of two activations neither is known to be the one whose noise is harmless.
    parameter = isinstance(other, Parameter) and other.requires_grad and other.dim() == 2 and other.numel() > 0
    if not (parameter and _compressible(input) and input.dim() > 1):
        return None
    kept = mode.keep(operation, input[..., 0].numel(), input.shape[-1], input.dtype, projected=True)
    return _apply(Linear, func, False, kept, input, other, None) if kept else None


def _mm(mode: Compression, func: Callable[..., Tensor], input: Any, mat2: Any) -> Tensor | None:
    return _matmul(mode, func, input, mat2, "mm")


def _addmm(
    mode: Compression,
    func: Callable[..., Tensor],
    input: Tensor,
    mat1: Tensor,
    mat2: Tensor,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Tensor | None:
    parameter = isinstance(mat2, Parameter) and mat2.requires_grad and mat2.numel() > 0
    if not (parameter and _compressible(mat1) and input.layout == torch.strided):
        return None
    kept = mode.keep("addmm", mat1.shape[0], mat1.shape[1], mat1.dtype, projected=True)
    return _apply(Addmm, func, kept, input, mat1, mat2, beta, alpha) if kept else None


def _batch_norm(
    mode: Compression,
    func: Callable[..., Tensor],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    needed = any(t is not None and t.requires_grad for t in (input, weight))
    if not (needed and _compressible(input) and input[:, 0].numel() > 1):
        return None
    width = input.shape[-1]
    kept = mode.keep("batch_norm", input.numel() // width, width, input.dtype, projected=False)
    if kept is None:
        return None
    return _apply(BatchNorm, kept, input, weight, bias, running_mean, running_var, training, momentum, eps)


def _torch_batch_norm(
    mode: Compression,
    func: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor | None:
    return _batch_norm(mode, func, input, running_mean, running_var, weight, bias, training, momentum, eps)


def _relu(mode: Compression, func: Callable[..., Tensor], input: Tensor, inplace: bool = False) -> Tensor | None:
    if not (_compressible(input) and input.requires_grad):
        return None
    return _apply(Relu, input, inplace)


def _relu_(mode: Compression, func: Callable[..., Tensor], input: Tensor) -> Tensor | None:
    return _relu(mode, func, input, inplace=True)


def _leaky_relu(
    mode: Compression,
    func: Callable[..., Tensor],
    input: Tensor,
    negative_slope: float = 0.01,
    inplace: bool = False,
) -> Tensor | None:
    # In place and below 0 torch itself refuses backward.
    if not (_compressible(input) and input.requires_grad) or (inplace and negative_slope < 0):
        return None
    return _apply(LeakyRelu, input, negative_slope, inplace)


def _leaky_relu_(
    mode: Compression, func: Callable[..., Tensor], input: Tensor, negative_slope: float = 0.01
) -> Tensor | None:
    return _leaky_relu(mode, func, input, negative_slope, inplace=True)


def _dropout(
    mode: Compression,
    func: Callable[..., Tensor],
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor | None:
    if not (training and 0 < p < 1 and _compressible(input) and input.requires_grad):
        return None
    return _apply(Dropout, input, p, inplace, keeps_seed(input.numel(), mode.scheme, input.device.type))


def _torch_dropout(
    mode: Compression, func: Callable[..., Tensor], input: Tensor, p: float, train: bool
) -> Tensor | None:
    return _dropout(mode, func, input, p, train)


def _torch_dropout_(
    mode: Compression, func: Callable[..., Tensor], input: Tensor, p: float, train: bool
) -> Tensor | None:
    return _dropout(mode, func, input, p, train, inplace=True)


def _sparse_product(
    mode: Compression, func: Callable[..., Tensor], sparse: Tensor, dense: Tensor, reduce: str | None = None
) -> Tensor | None:
    # Without `reduce` torch keeps the sparse matrix alone already.
    if reduce not in ("sum", "mean") or sparse.layout != torch.sparse_csr or sparse.requires_grad:
        return None
    if not (_compressible(dense) and dense.requires_grad):
        return None
    return _apply(SparseProduct, sparse, dense, reduce)


def _drop_edges(mode: Compression, func: Callable[..., Edges], edges: Edges, p: float) -> Edges:
    chosen = choose_edges(edges, p)
    return Edges.subset(edges.crow, edges.col, chosen, pack_mask(chosen))


def _aggregate(
    mode: Compression, func: Callable[..., Tensor], edges: Edges, coefficients: Tensor, x: Tensor
) -> Tensor | None:
    if not (_compressible(x) and coefficients.requires_grad):
        return None
    kept = mode.keep("aggregate", x.shape[0], x[0].numel(), x.dtype, projected=False)
    return _apply(Aggregate, edges, coefficients, x, kept)


_HANDLERS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.mm: _mm,
    Tensor.mm: _mm,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _torch_batch_norm,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _relu_,
    Tensor.relu_: _relu_,
    F.leaky_relu: _leaky_relu,
    F.leaky_relu_: _leaky_relu_,
    F.dropout: _dropout,
    torch.dropout: _torch_dropout,
    torch.dropout_: _torch_dropout_,
    torch.sparse.mm: _sparse_product,
    drop_edges: _drop_edges,
    aggregate: _aggregate,
}
