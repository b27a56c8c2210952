"""The torch functions that keep activations, replaced by ours while a context is open."""

from __future__ import annotations

import inspect
import itertools
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache
from types import TracebackType
from typing import Any, ClassVar, Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from actbench.compress.attention import Aggregate, Edges, aggregate, choose_edges, drop_edges
from actbench.compress.autocast import Autocast, is_sparse_product, whole_product
from actbench.compress.functions import Addmm, DrawnMask, Dropout, LeakyRelu, Linear, Relu, SparseProduct
from actbench.compress.norms import BatchNorm, BatchNormInUnits, Normalized
from actbench.compress.offload import Offload
from actbench.compress.saved import Keeping, Kept, Noise, Watch, is_smaller, keeps_seed
from actbench.compress.stands import Stand
from actbench.compress.tensors import has_memory, is_parameter, tensors_in
from actbench.compress.torch_internals import (
    WeakTensorKeyDictionary,
    backward_pass,
    base_of,
    in_checkpoint,
    in_transform,
    is_view,
    run_as_written,
    uncompiled,
)
from actbench.compress.witness import Witness
from actbench.errors import UsageError
from actbench.quant import pack_mask
from actbench.scheme import Scheme

_COMPRESSIBLE: Final = (torch.float32, torch.float16, torch.bfloat16)
_BACKWARDS: Final = (Tensor.backward, torch.autograd.backward, torch.autograd.grad)
_GOLDEN: Final = 0x9E3779B97F4A7C15
_RANKS_APART: Final = 2**40
_contexts = itertools.count()
_open = threading.local()


class Compression(TorchFunctionMode):
    """The context that `compress` makes; may be entered again, and then goes on with fresh noise."""

    handlers: ClassVar[dict[Callable[..., Any], Callable[..., Any]]]
    """What is run instead of a torch function, where it returns something."""

    def __init__(self, scheme: Scheme, seed: int, offload: Offload | None = None) -> None:
        super().__init__()
        self.scheme = scheme
        self.seed = seed
        self.of_this_process = False
        """Whether the seed is one that every process, and every copy of the context, makes by itself."""
        self.offload = offload
        self.found = False
        self._entered = False
        self._with_grad = False
        self._contexts = ExitStack()
        self._kept = 0
        self._apart = 0
        self._calls: Counter[str] = Counter()
        self.watch = Watch()
        self.witness = Witness()
        self._stands: dict[int, list[Stand]] = {}
        """What is kept in place of tensors, by where their storages lie."""
        self._made: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        """Tensors without gradient that were made inside, changed in place or not: no data that stays anyway."""

    def __enter__(self) -> Self:
        if self._entered:
            raise UsageError(
                "this context of actbench.compress is open already: inside of itself, or in another thread, enter one "
                "of its own, by another call of actbench.compress."
            )
        self.watch.check()
        self._entered = True
        self._calls.clear()
        # Of the rank as it is now: a context may be made before there are any.
        self._apart = _rank() * _RANKS_APART * _GOLDEN if self.of_this_process else 0
        self.found = self._with_grad = False
        around = open_compressions()[-1] if open_compressions() else None
        open_compressions().append(self)
        if self.scheme.name == "bf16" or (around and around.scheme.name == "bf16"):
            self._contexts.enter_context(Autocast(enabled=self.scheme.name == "bf16"))
        if self.offload:
            self._contexts.enter_context(self.offload)
        elif around and around.offload:
            # Of nested hooks the innermost alone are asked.
            self._contexts.enter_context(saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor))
        if self.scheme.compresses:
            self.witness.begin()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self not in open_compressions():
            raise UsageError(
                "this context of actbench.compress is not open in this thread: leave it where it was entered, once."
            )
        inner = open_compressions()[-1]
        if inner is not self:
            # As torch's own modes, which would end the innermost. All end, so that none goes on unnoticed.
            try:
                inner.__exit__(kind, error, trace)
            finally:
                if self in open_compressions():
                    self.__exit__(kind, error, trace)
            raise UsageError(
                "contexts of actbench.compress end in another order than they began in, as where a generator or a "
                "coroutine hands over inside of one: close each before that."
            )
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        open_compressions().pop()
        self._entered = False
        self._contexts.close()
        self.witness.end()
        self.witness.forget()
        self._stands.clear()
        self._made.clear()
        if self.found or kind is not None:
            self.witness.told()
        elif self.witness.names:
            self._tell()
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
        if not self._entered:
            _refuse_unentered(self)
        if self.scheme.compresses and torch.is_grad_enabled():
            out = _handled(self, func, args, kwargs)
            if out is not None:
                self._note_made(func, out, args, kwargs)
                return out
        if self.scheme.name == "bf16" and is_sparse_product(func, args, kwargs):
            return whole_product(func, args, kwargs)
        if self.scheme.name == "bf16" and func in _BACKWARDS:
            # As outside of the context: autocast would shorten what a sparse product is given there, too.
            with Autocast(enabled=False):
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.requires_grad:
            self._with_grad = True
        if self.scheme.compresses:
            self._note_made(func, out, args, kwargs)
            if torch.is_grad_enabled():
                arguments = *args, *kwargs.values()
                for kept in self.witness.see(func, out, arguments, lambda x: is_parameter(x) or self.is_data(x)):
                    self._give_way(kept)
        return out

    def made(self, x: Tensor) -> bool:
        """Whether `x`, which needs no gradient, was made inside: no data that stays anyway."""
        base = base_of(x)
        return x in self._made or (base is not None and base in self._made)

    def is_data(self, x: Tensor) -> bool:
        """Whether `x` stays anyway: it needs no gradient and was there before."""
        return not x.requires_grad and not self.made(x)

    def _note_made(self, func: Callable[..., Any], out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for each in tensors_in((out,)):
            if not each.requires_grad and self._is_new(func, each, args, kwargs):
                self._made[each] = True

    def _is_new(self, func: Callable[..., Any], out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether `out` is a tensor of its own, and neither an argument nor a view of data."""
        taken = tensors_in((*args, *kwargs.values()))
        if not has_memory(out) or is_view(out) or any(out is each for each in taken):
            return False
        return func is not Tensor.detach or args[0].requires_grad or self.made(args[0])

    def _tell(self) -> None:
        """Warn, once for this context, that nothing was compressed."""
        warnings.warn(
            f"actbench.compress('{self.scheme}') compressed nothing: {self.witness.names} kept all that they keep "
            "under 'fp32'. docs/schemes.md says which operations are compressed.",
            stacklevel=3 if type(self) is Compression else 4,
        )
        self.witness.told()

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
        self.watch.check()

    def keep(self, operation: str, rows: int, width: int, dtype: torch.dtype, projected: bool) -> Kept | None:
        """How to keep the input [rows, width] of the next call of `operation`, with its own noise; None: as it is."""
        name = self.next_call(operation, dtype, (rows, width))
        scheme = self.scheme.for_call(operation, self._calls[operation])
        if not scheme.compresses:
            return None
        ratio = scheme.projection if projected else 1
        if not is_smaller(rows, width, dtype, scheme, ratio):
            return None
        self.found = True
        return Kept.of(rows, width, dtype, scheme, self.noise(), ratio, name, self.watch)

    def keep_input(
        self, operation: str, x: Tensor, projected: bool, rows: int | None = None
    ) -> tuple[Keeping, tuple[Tensor, ...]] | None:
        """How the next call of `operation` keeps its input `x`, a matrix of `rows`, and what it keeps; None: x itself.

        Without `rows` its last dimension is the matrix's width.
        """
        width = x.shape[-1] if rows is None else x.numel() // rows
        if self.stays(x):
            # It is a call all the same: which one has which number does not depend on what stays.
            self.next_call(operation, x.dtype, (x.numel() // width, width))
            return None
        kept = self.keep(operation, x.numel() // width, width, x.dtype, projected)
        return None if kept is None else (kept, kept.pack(x.detach().reshape(-1, width)))

    def stays(self, x: Tensor) -> bool:
        """Whether `x` stays as it is whatever is kept, so that a code of it would come on top.

        That are parameters, what operations keep that no rule covers and, but for the papers' schemes, data.
        """
        return is_parameter(x) or self.witness.keeps(x) or (self.is_data(x) and not self.scheme.is_papers)

    def stand_for(self, x: Tensor, stand: Stand) -> None:
        """Tell that `stand` is kept in place of `x`, until an operation that no rule covers keeps that itself."""
        stand.stand_for(x)
        self._stands.setdefault(x.untyped_storage().data_ptr(), []).append(stand)

    def _give_way(self, kept: Tensor) -> None:
        for stand in self._stands.pop(kept.untyped_storage().data_ptr(), ()):
            stand.give_way(kept)

    def next_call(self, operation: str, dtype: torch.dtype, shape: tuple[int, ...]) -> str:
        """Count the next call of `operation`; what a user reads of its input."""
        self._calls[operation] += 1
        kind = str(dtype).removeprefix("torch.")
        return f"the input of {operation} {self._calls[operation]} ({kind} {list(shape)})"

    def noise(self) -> Noise:
        """Random numbers for the next tensor that is kept."""
        self._kept += 1
        return Noise(self.seed + self._apart, self._kept - 1)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or what another process gets: closed, with the scheme and a seed given to `compress`."""
        if self._entered:
            raise UsageError(
                "a context of actbench.compress that is open cannot be copied or handed to another process: leave it "
                "first."
            )
        return _again, (type(self), self.scheme, self.seed, self.of_this_process, self.offload, self._kept)


def _again(
    kind: type[Compression], scheme: Scheme, seed: int, of_this_process: bool, offload: Offload | None, kept: int
) -> Compression:
    """The copy of a context."""
    copy = kind(scheme, own_seed() if of_this_process else seed, *((offload,) if offload else ()))
    copy.of_this_process, copy._kept = of_this_process, kept
    return copy


def own_seed() -> int:
    """A seed that no other context of this process has."""
    return (torch.initial_seed() + next(_contexts) * _GOLDEN) % 2**64


def _rank() -> int:
    """Which of the processes that train together this one is."""
    group = torch.distributed
    return group.get_rank() if group.is_available() and group.is_initialized() else 0


@uncompiled
def _refuse_unentered(mode: Compression) -> None:
    """Torch.compile makes a context of what it compiles active and does not enter it: nothing would be compressed."""
    if mode.scheme.name != "fp32":
        raise UsageError(
            f"torch.compile does not enter actbench.compress('{mode.scheme}') inside of a function that it compiles: "
            "open the context around the call of the compiled function."
        )


@uncompiled
def _handled(mode: Compression, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the handler of `func` makes of the call; None if there is none for it, or the call is not `mode`'s."""
    handler = mode.handlers.get(func)
    if handler is None or not _compresses_here(mode) or not _fits(handler, (mode, func, *args), kwargs):
        return None
    return handler(mode, func, *args, **kwargs)


def _compresses_here(mode: Compression) -> bool:
    """Whether what is called now is `mode`'s to compress."""
    # Torch may hand a mode on to a thread of its own, where nothing was opened.
    if not open_compressions() or open_compressions()[-1] is not mode:
        return False
    # Run again in backward (torch.utils.checkpoint), a call would be packed with noise of its own and read with that of
    # the first time. Kept as it is, torch sees that it is not what was kept then.
    if backward_pass() != -1 or in_checkpoint():
        return False
    # Functions of ours have no forward-mode derivative, and a transform of torch.func has tensors without memory, which
    # the quantizer cannot read.
    return not in_transform()


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


def open_compressions() -> list[Compression]:
    """The contexts that are open in this thread, the innermost last."""
    if not hasattr(_open, "stack"):
        _open.stack = []
    stack: list[Compression] = _open.stack
    return stack


def compressible(x: Any) -> bool:
    """Whether `x` has values that one of the quantizer's backends can pack."""
    return has_memory(x) and x.dtype in _COMPRESSIBLE and x.numel() > 0


def apply(function: type[Function], *arguments: Any) -> Tensor:
    """The result of an autograd function of ours."""
    out: Tensor = function.apply(*arguments)
    return out


def apply_for_two(function: type[Function], *arguments: Any) -> tuple[Tensor, Tensor]:
    """The results of an autograd function of ours that has two."""
    first, second = function.apply(*arguments)
    return first, second


# A handler's parameters are the intercepted function's own, so that Python binds a call's positional and keyword
# arguments as torch would. It returns None where the stock function keeps nothing worth compressing. Those that only
# rearrange arguments ask the mode for the handler of the function that they come down to.


def compress_linear(
    mode: Compression, func: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    """`F.linear`: the input kept as the scheme says."""
    if not (compressible(input) and is_layer(weight, bias)):
        return None
    kept = mode.keep_input("linear", input, projected=True)
    return apply_linear(mode, Linear, (func, True), kept, input, weight, bias) if kept else None


def apply_linear(
    mode: Compression,
    function: type[Function],
    how: tuple[Any, ...],
    kept: tuple[Keeping, tuple[Tensor, ...]],
    *operands: Any,
) -> Tensor:
    """The product that `function` makes of `operands`, x among them as the last but two."""
    x = operands[-3]
    stand = Stand(kept[1], kept[0])
    out: Tensor = stand.apply(function, *how, stand, kept[1], *operands)
    if x.requires_grad or mode.made(x):
        mode.stand_for(x, stand)
    return out


def is_layer(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether these are a linear layer's, and its input is kept: a matrix that is trained, and a row if anything."""
    row = bias is None or bias.dim() < 2
    return row and weight.requires_grad and weight.dim() == 2 and weight.numel() > 0


def is_weight(matrix: Any) -> bool:
    """Whether `matrix` [D, H] is a trained Parameter or a view of one: its transpose, or one of several in a stack."""
    trained = has_memory(matrix) and matrix.requires_grad and matrix.dim() == 2 and matrix.numel() > 0
    return trained and is_parameter(matrix)


def compress_matmul(
    mode: Compression, func: Callable[..., Tensor], input: Any, other: Any, operation: str = "matmul"
) -> Tensor | None:
    """A product with a weight: the input kept as the scheme says."""
    # Of two activations neither is known to be the one whose noise is harmless.
    if not (is_weight(other) and compressible(input) and input.dim() > 1):
        return None
    kept = mode.keep_input(operation, input, projected=True)
    return apply_linear(mode, Linear, (func, False), kept, input, other, None) if kept else None


def _mm(mode: Compression, func: Callable[..., Tensor], input: Any, mat2: Any) -> Tensor | None:
    product: Tensor | None = mode.handlers[torch.matmul](mode, func, input, mat2, "mm")
    return product


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
    if not (is_weight(mat2) and compressible(mat1) and input.layout == torch.strided):
        return None
    kept = mode.keep_input("addmm", mat1, projected=True)
    return apply(Addmm, func, *kept, input, mat1, mat2, beta, alpha) if kept else None


def compress_batch_norm(
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
    """`F.batch_norm`: the input kept quantized."""
    needed = any(t is not None and t.requires_grad for t in (input, weight))
    if not (needed and compressible(input) and input[:, 0].numel() > 1):
        return None
    if mode.stays(input):
        mode.next_call("batch_norm", input.dtype, tuple(input.shape))
        return None
    kept = keep_batch_norm(mode, input)
    if kept is None:
        return None
    statistics = running_mean, running_var, training
    found = Normalized.of(input, weight, bias, *statistics, momentum, eps)
    function = BatchNorm if mode.scheme.is_papers else BatchNormInUnits
    return apply(function, kept, found, input, weight, bias, *statistics, eps)


def keep_batch_norm(mode: Compression, input: Tensor) -> Kept | None:
    """How to keep the `input` [N, C, …] of the next batch norm.

    A row is one of N; in the input's own units, where channels differ, one channel of that if it has several values.
    """
    rows = input.shape[0]
    if mode.scheme.is_papers and input.numel() > rows * input.shape[1]:
        rows *= input.shape[1]
    return mode.keep("batch_norm", rows, input.numel() // rows, input.dtype, projected=False)


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
    rest = weight, bias, training, momentum, eps
    out: Tensor | None = mode.handlers[F.batch_norm](mode, func, input, running_mean, running_var, *rest)
    return out


def compress_relu(
    mode: Compression, func: Callable[..., Tensor], input: Tensor, inplace: bool = False
) -> Tensor | None:
    """`F.relu`: a bit an element kept."""
    if not (compressible(input) and input.requires_grad):
        return None
    mode.found = True
    stand = Stand()
    out: Tensor = stand.apply(Relu, input, inplace, stand)
    mode.stand_for(out, stand)
    return out


def _relu_(mode: Compression, func: Callable[..., Tensor], input: Tensor) -> Tensor | None:
    out: Tensor | None = mode.handlers[F.relu](mode, func, input, inplace=True)
    return out


def _leaky_relu(
    mode: Compression,
    func: Callable[..., Tensor],
    input: Tensor,
    negative_slope: float = 0.01,
    inplace: bool = False,
) -> Tensor | None:
    # In place and below 0 torch itself refuses backward.
    if not (compressible(input) and input.requires_grad) or (inplace and negative_slope < 0):
        return None
    if mode.witness.keeps(input):
        return None
    mode.found = True
    return apply(LeakyRelu, input, negative_slope, inplace)


def _leaky_relu_(
    mode: Compression, func: Callable[..., Tensor], input: Tensor, negative_slope: float = 0.01
) -> Tensor | None:
    return _leaky_relu(mode, func, input, negative_slope, inplace=True)


def compress_dropout(
    mode: Compression,
    func: Callable[..., Tensor],
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor | None:
    """`F.dropout` in training: a bit or a seed kept."""
    if not (training and 0 < p < 1 and compressible(input) and input.requires_grad):
        return None
    mode.found = True
    by_seed = keeps_seed(input.numel(), mode.scheme, input.device.type)
    return apply(Dropout, input, DrawnMask(input, p, inplace, by_seed), inplace)


def _torch_dropout(
    mode: Compression, func: Callable[..., Tensor], input: Tensor, p: float, train: bool
) -> Tensor | None:
    out: Tensor | None = mode.handlers[F.dropout](mode, func, input, p, train)
    return out


def _torch_dropout_(
    mode: Compression, func: Callable[..., Tensor], input: Tensor, p: float, train: bool
) -> Tensor | None:
    out: Tensor | None = mode.handlers[F.dropout](mode, func, input, p, train, inplace=True)
    return out


def compress_sparse_product(
    mode: Compression, func: Callable[..., Tensor], sparse: Tensor, dense: Tensor, reduce: str | None = None
) -> Tensor | None:
    """`torch.sparse.mm` with a reduction: the adjacency kept alone."""
    # Without `reduce` torch keeps the sparse matrix alone already.
    if reduce not in ("sum", "mean") or sparse.layout != torch.sparse_csr or sparse.requires_grad:
        return None
    if not (compressible(dense) and dense.requires_grad):
        return None
    return apply(SparseProduct, func, False, sparse, dense, reduce)


def _drop_edges(mode: Compression, func: Callable[..., Edges], edges: Edges, p: float) -> Edges:
    mode.found = True
    chosen = choose_edges(edges, p)
    return Edges.subset(edges.crow, edges.col, chosen, pack_mask(chosen))


def _aggregate(
    mode: Compression, func: Callable[..., Tensor], edges: Edges, coefficients: Tensor, x: Tensor
) -> Tensor | None:
    if not (compressible(x) and coefficients.requires_grad):
        return None
    kept = mode.keep_input("aggregate", x, projected=False, rows=x.shape[0])
    return apply(Aggregate, edges, coefficients, x, *(kept or (None, (x,))))


run_as_written(Compression.__torch_function__)
Compression.handlers = {
    F.linear: compress_linear,
    torch.matmul: compress_matmul,
    Tensor.matmul: compress_matmul,
    Tensor.__matmul__: compress_matmul,
    torch.mm: _mm,
    Tensor.mm: _mm,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    F.batch_norm: compress_batch_norm,
    torch.batch_norm: _torch_batch_norm,
    F.relu: compress_relu,
    torch.relu: compress_relu,
    Tensor.relu: compress_relu,
    torch.relu_: _relu_,
    Tensor.relu_: _relu_,
    F.leaky_relu: _leaky_relu,
    F.leaky_relu_: _leaky_relu_,
    F.dropout: compress_dropout,
    torch.dropout: _torch_dropout,
    torch.dropout_: _torch_dropout_,
    torch.sparse.mm: compress_sparse_product,
    drop_edges: _drop_edges,
    aggregate: _aggregate,
}
