"""`compress`: a context in which less is kept for backward, from its beginning to its end."""

from __future__ import annotations

import itertools
import operator
import threading
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from actbench.compress.autocast import Autocast, is_sparse_product, whole_product
from actbench.compress.derivation import Derivation
from actbench.compress.dispatch import dispatch
from actbench.compress.ledger import before_closing
from actbench.compress.offload import Offload
from actbench.compress.recomputation import Output, recompute
from actbench.compress.rules import Rules
from actbench.compress.torch_internals import run_as_written, uncompiled
from actbench.errors import SchemeError, UsageError
from actbench.scheme import Scheme

_BACKWARDS: Final = (Tensor.backward, torch.autograd.backward, torch.autograd.grad)
_GOLDEN: Final = 0x9E3779B97F4A7C15
_RANKS_APART: Final = 2**40
_contexts = itertools.count()
_open = threading.local()


@uncompiled
def compress(scheme: Scheme | str, seed: int | None = None, resident: Iterable[Tensor] = ()) -> Compression:
    """A context in which forward passes keep activations as `scheme` says.

    `scheme` is a `Scheme` or its text. All projection and rounding noise comes from `seed`; without one it is made
    from `torch.initial_seed()`, a count of contexts and the process's rank in `torch.distributed`, and never drawn from
    torch's generators. Results of forward do not change, but under `bf16`. The innermost of nested contexts decides; a
    context is open once at a time. Raises `SchemeError` for an invalid text.

    Under a derived scheme the gradient by what a batch norm, ReLU or sparse product returns passes that tensor by if
    nobody holds it any more in backward: a hook on such a one comes before its first use.

    Equal seeds give equal noise: in a training loop give none, or enter one context again and again. A backward pass
    with `create_graph` is refused with an error. What `torch.utils.checkpoint` covers runs again in backward and keeps
    what it keeps in FP32. A copy of a context, or one that another process gets, is closed; where no seed was given it
    has one of its own.

    The schemes that quantize nothing change what surrounds the model. `bf16` is torch's autocast; products with a
    sparse matrix stay FP32, which a CPU alone could not do otherwise. `checkpoint` recomputes what the model passes to
    `run_layer`, and `offload` moves to host memory what is kept on a GPU, but for what shares storage with `resident`:
    parameters, buffers and graph data that stay there anyway. Leaving the context raises `UsageError` where one of the
    two found nothing to do.
    """
    if isinstance(scheme, str):
        scheme = Scheme.parse(scheme)
    if not isinstance(scheme, Scheme):
        raise SchemeError(
            f"{scheme!r} is no scheme: give its text, as actbench.compress('derived'), or 'fp32' for none at all."
        )
    # Also numpy's integers and torch's, which 2**64 is too large for.
    number = _own_seed() if seed is None else operator.index(seed) % 2**64
    rules = (Derivation if scheme.derives else Rules)(scheme, number)
    return Compression(rules, Offload(resident) if scheme.name == "offload" else None, of_this_process=seed is None)


def run_layer(module: Module, function: Callable[..., Output], *inputs: Tensor) -> Output:
    """`function(*inputs)`, a layer of `module`: under `checkpoint` its inputs are kept and it runs again in backward.

    All that it reads of changing tensors must be its inputs or `module`'s parameters and buffers.
    """
    innermost = _innermost()
    if innermost is None or innermost.scheme.name != "checkpoint":
        return function(*inputs)
    innermost.rules.found = True
    return recompute(module, function, *inputs) if torch.is_grad_enabled() else function(*inputs)


class Compression(TorchFunctionMode):
    """The context that `compress` makes; may be entered again, and then goes on with fresh noise.

    With `of_this_process` the rules' seed is one that every process, and every copy of the context, makes by itself.
    """

    def __init__(self, rules: Rules, offload: Offload | None = None, of_this_process: bool = False) -> None:
        super().__init__()
        self.scheme = rules.scheme
        self.rules = rules
        self.offload = offload
        self.of_this_process = of_this_process
        self._entered = False
        self._with_grad = False
        self._contexts = ExitStack()

    def __enter__(self) -> Self:
        if self._entered:
            raise UsageError(
                "this context of actbench.compress is open already: inside of itself, or in another thread, enter one "
                "of its own, by another call of actbench.compress."
            )
        # Of the rank as it is now: a context may be made before there are any.
        self.rules.begin(_rank() * _RANKS_APART * _GOLDEN if self.of_this_process else 0)
        self._entered, self._with_grad = True, False
        around = _innermost()
        open_compressions().append(self)
        if self.scheme.name == "bf16" or (around and around.scheme.name == "bf16"):
            self._contexts.enter_context(Autocast(enabled=self.scheme.name == "bf16"))
        if self.offload:
            self._contexts.enter_context(self.offload)
        elif around and around.offload:
            # Of nested hooks the innermost alone are asked.
            self._contexts.enter_context(saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor))
        self._contexts.enter_context(before_closing(self.rules.close))
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
        try:
            if kind is None:
                self.rules.close()
        finally:
            super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
            open_compressions().pop()
            self._entered = False
            self._contexts.close()
            self.rules.end()
        witness = self.rules.witness
        if self.rules.found or kind is not None:
            witness.told()
        elif witness.names:
            warnings.warn(
                f"actbench.compress('{self.scheme}') compressed nothing: {witness.names} kept all that they keep "
                "under 'fp32'. docs/schemes.md says which operations are compressed.",
                stacklevel=2,
            )
            witness.told()
        if kind is None and self._with_grad:
            if self.scheme.name == "checkpoint" and not self.rules.found:
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
        if self.scheme.compresses:
            # Torch may hand a mode on to a thread of its own, where nothing was opened.
            return dispatch(self.rules, func, args, kwargs, innermost=_innermost() is self)
        if self.scheme.name == "bf16" and is_sparse_product(func, args, kwargs):
            return whole_product(func, args, kwargs)
        if self.scheme.name == "bf16" and func in _BACKWARDS:
            # As outside of the context: autocast would shorten what a sparse product is given there, too.
            with Autocast(enabled=False):
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.requires_grad:
            self._with_grad = True
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
        self.rules.watch.check()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or what another process gets: closed, with the scheme and a seed given to `compress`."""
        if self._entered:
            raise UsageError(
                "a context of actbench.compress that is open cannot be copied or handed to another process: leave it "
                "first."
            )
        rules = self.rules
        return _again, (type(rules), self.scheme, rules.seed, self.of_this_process, self.offload, rules.kept)


run_as_written(Compression.__torch_function__)


def _again(
    kind: type[Rules], scheme: Scheme, seed: int, of_this_process: bool, offload: Offload | None, kept: int
) -> Compression:
    """The copy of a context."""
    rules = kind(scheme, _own_seed() if of_this_process else seed)
    rules.kept = kept
    return Compression(rules, offload, of_this_process)


def _own_seed() -> int:
    """A seed that no other context of this process has."""
    return (torch.initial_seed() + next(_contexts) * _GOLDEN) % 2**64


def _rank() -> int:
    """Which of the processes that train together this one is."""
    group = torch.distributed
    return group.get_rank() if group.is_available() and group.is_initialized() else 0


@uncompiled
def _refuse_unentered(context: Compression) -> None:
    """Torch.compile makes a context of what it compiles active and does not enter it: nothing would be compressed."""
    if context.scheme.name != "fp32":
        raise UsageError(
            f"torch.compile does not enter actbench.compress('{context.scheme}') inside of a function that it "
            "compiles: open the context around the call of the compiled function."
        )


def open_compressions() -> list[Compression]:
    """The contexts that are open in this thread, the innermost last."""
    if not hasattr(_open, "stack"):
        _open.stack = []
    stack: list[Compression] = _open.stack
    return stack


def _innermost() -> Compression | None:
    return open_compressions()[-1] if open_compressions() else None
