"""Contexts of the derived schemes: each activation is kept once, in a code that serves all its consumers.

For linear or convolution → batch norm → ReLU → dropout → next layer that is one rectified code of the batch norm's
output: ReLU's mask exactly, estimates of ReLU's and dropout's output, and x̂ for batch norm's backward. A product of the
adjacency with such a value is not kept either. What no rule covers is kept as one INT2 code a tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any, ClassVar, Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from actbench.compress.derived import (
    AsIs,
    DroppedOut,
    Dropping,
    DropRectified,
    Elu,
    Late,
    MaskInUse,
    Norm,
    Normed,
    ProductLinear,
    Rectified,
    Rectify,
    Rectifying,
)
from actbench.compress.functions import DrawnMask, SparseProduct
from actbench.compress.interception import (
    Compression,
    apply,
    apply_for_two,
    compress_batch_norm,
    compress_dropout,
    compress_linear,
    compress_matmul,
    compress_relu,
    compress_sparse_product,
    compressible,
    is_layer,
)
from actbench.compress.known import Known
from actbench.compress.ledger import before_closing
from actbench.compress.norms import BatchNormInUnits, LayerNorm, Normalized
from actbench.compress.products import content_of
from actbench.compress.saved import Keeping, Kept, is_smaller, keeps_seed
from actbench.compress.stands import Stand
from actbench.compress.tensors import has_memory, tensors_in
from actbench.compress.torch_internals import (
    base_of,
    in_checkpoint,
    is_view,
    is_watched,
    run_as_written,
    uncompiled,
    unmoded,
    version_of,
)
from actbench.quant import Rectifier, dense_sum
from actbench.scheme import Scheme

Held = tuple[Keeping, tuple[Tensor, ...]]
"""How a tensor's values are read, and from which tensors."""


class Derivation(Compression):
    """A `Compression` under one of `scheme.DERIVED`."""

    handlers: ClassVar[dict[Callable[..., Any], Callable[..., Any]]]

    def __init__(self, scheme: Scheme, seed: int) -> None:
        super().__init__(scheme, seed)
        self.held = Known()
        """How tensors' values are read: a `Held`."""
        self.aggregated = Known()
        """Of a product A x: A, x, how its terms were reduced, and the versions and contents that the two had."""
        self.tied = Known()
        """Of a ReLU's output: its tie and knot, until a dropout takes them."""
        self.normed = Known()
        """Of a batch norm's output: its tie and `Normed`."""
        self._unread: list[Tensor] = []
        """Batch norms' outputs that no ReLU has taken, held until the next function is called."""
        self._escaped: set[int] = set()
        """Where storages lie that others write to unseen."""
        self._taken: Tensor | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        self._contexts.enter_context(before_closing(self.settle_all))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.settle_all()
        finally:
            super().__exit__(kind, error, trace)
            for known in (self.held, self.aggregated, self.tied, self.normed):
                known.clear()
            self._unread.clear()
            self._escaped.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run `func`, or the function of ours that keeps less."""
        return _watched(self, func, types, args, kwargs)

    def run(self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...], kwargs: Any) -> Any:
        """As `__torch_function__`, and see what becomes of batch norms' outputs and which tensors are made."""
        self._settle_dying()
        if _may_change_in_place(func):
            self._settle(args, kwargs)
            # Its own version tells of a tensor; of others that share its memory by way of `data` none does.
            self._forget(args[:1], but_itself=True)
        if func in _ESCAPES and has_memory(args[0]) and not self.is_data(args[0]):
            self._forget(args[:1])
            self._escaped.add(args[0].untyped_storage().data_ptr())
        out = super().__torch_function__(func, types, args, kwargs)
        if any(True for _ in tensors_in((out,))):
            # Without gradients too: an autograd function that no mode sees runs its forward so.
            self._settle(args, kwargs)
        self._taken = None
        return out

    def keep_input(self, operation: str, x: Tensor, projected: bool, rows: int | None = None) -> Held:
        """What is held of `x` already, x itself if it is data, or else one code for this and later calls."""
        held = self.held_of(x)
        if held is None and self.is_data(x):
            held = AsIs(), (x,)
        if held is None:
            held = super().keep_input(operation, x, projected, rows) or (AsIs(), (x.detach(),))
            self.hold(x, held)
        return held

    def _give_way(self, kept: Tensor) -> None:
        super()._give_way(kept)
        place = kept.untyped_storage().data_ptr()
        for each in [known for known, _ in self.held.items()]:
            if has_memory(each) and each.untyped_storage().data_ptr() == place:
                self.held.pop(each)

    def hold(self, x: Tensor, held: Held) -> None:
        """Let later calls read `x` from what is `held` of it, as long as all that changes it is seen."""
        if not self.escaped(x):
            self.held[x] = held

    def escaped(self, x: Tensor) -> bool:
        """Whether the memory of `x` is in somebody's hands whose writing no mode and no version tells of."""
        return x.untyped_storage().data_ptr() in self._escaped

    def held_of(self, x: Tensor) -> Held | None:
        """What is held of `x` or of what it is a mere reshaping of."""
        held: Held | None = self.held.get(x)
        base = base_of(x)
        if held is None and base is not None and base.numel() == x.numel() and x.is_contiguous():
            # A CSR matrix is the base of its values and has no such question.
            held = self.held.get(base) if base.layout == torch.strided and base.is_contiguous() else None
        return held

    def taken(self, y: Tensor) -> None:
        """Tell that a ReLU has taken the tie of the batch norm's output `y`."""
        self._taken = y
        self._unread = [each for each in self._unread if each is not y]

    def rectify(self, x: Tensor, operation: str = "relu") -> tuple[Rectified, tuple[Tensor, Tensor]]:
        """How what is positive in `x`, for the next call of `operation`, is read, and its codes."""
        self.found = True
        rectifier, noise = Rectifier.of(x.shape, x.dtype, self.scheme), self.noise()
        with self.watch.packing(self.next_call(operation, x.dtype, tuple(x.shape)), x.device) as flag:
            codes = rectifier.quantize(x.detach(), noise.seed, noise.rounding_stream, flag)
        return Rectified(rectifier, self.watch), codes

    def normalized(self, y: Tensor, tie: Tensor, normed: Normed) -> None:
        """Tell of a batch norm's output `y`."""
        self.normed[y] = [tie, normed]
        self._unread.append(y)

    def _settle_dying(self) -> None:
        """Keep the batch norms' outputs that nobody else holds any more, and that so went where no context sees."""
        alive = []
        while self._unread:
            y = self._unread.pop()
            if sys.getrefcount(y) > _HELD_HERE_ALONE:
                alive.append(y)
            elif (entry := self.normed.get(y)) is not None:
                self._keep_late(y, entry[1])
        self._unread = alive

    def settle_all(self) -> None:
        """Keep every batch norm's output that lives: it may yet be used where no context sees it."""
        for y, (_, normed) in self.normed.items():
            self._keep_late(y, normed)

    def _forget(self, changing: tuple[Any, ...], but_itself: bool = False) -> None:
        """Forget what is known of tensors in the memory of one that is `changing`, whatever their versions tell."""
        places = {each.untyped_storage().data_ptr() for each in changing if has_memory(each)}
        if not places:
            return
        for known in (self.normed, self.held, self.aggregated, self.tied):
            for each, what in known.items():
                if but_itself and any(each is one for one in changing):
                    continue
                if has_memory(each) and each.untyped_storage().data_ptr() in places:
                    if known is self.normed:
                        self._keep_late(each, what[1])
                    known.pop(each)

    def _settle(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
        """Keep the batch norms' outputs among what a function that is no ReLU has taken."""
        for each in tensors_in((*args, *(kwargs or {}).values())):
            if each is not self._taken:
                _, normed = self.normed.get(each) or (None, None)
                if normed is not None:
                    self._keep_late(each, normed)

    def _keep_late(self, y: Tensor, normed: Normed) -> None:
        if normed.late is not None:
            return
        # This very mode must not take what is done here for a use of y.
        with unmoded(), torch.no_grad():
            rows, width = y.shape
            normed.kept = Kept.of(rows, width, y.dtype, self.scheme, self.noise(), 1, normed.name, self.watch)
            packed = normed.kept.pack((y.float() - normed.bias).div_(normed.weight))
        # Where gradients are switched off too, or it would keep nothing; and not as a part of what runs again.
        aside = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor) if in_checkpoint() else nullcontext()
        with torch.enable_grad(), aside:
            normed.late = apply(Late, torch.empty(0, device=y.device, requires_grad=True), *packed)


@uncompiled
def _watched(
    mode: Derivation, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...], kwargs: Any
) -> Any:
    return mode.run(func, types, args, kwargs)


_HELD_HERE_ALONE: Final = 2
"""References to what one variable has: its own and that of the call which counts them."""
_ESCAPES: Final = (
    Tensor.data.__get__,  # type: ignore[attr-defined]
    Tensor.numpy,
    Tensor.__array__,
    Tensor.__dlpack__,
    Tensor.untyped_storage,
    Tensor.storage,
    Tensor.data_ptr,
)
"""Functions that hand out a tensor's memory. Equal, not the same: each look at `data.__get__` makes another."""
_RELUS: Final = (F.relu, torch.relu, Tensor.relu, torch.relu_, Tensor.relu_)


def _may_change_in_place(func: Callable[..., Any]) -> bool:
    """Whether `func`, other than a ReLU, changes its argument in place or has a parameter that makes it do so."""
    if func in _RELUS:
        return False
    name = getattr(func, "__name__", "")
    if name == "__setitem__" or (name.endswith("_") and (not name.endswith("__") or name.startswith("__i"))):
        return True
    return "inplace" in getattr(getattr(func, "__code__", None), "co_varnames", ())


_TELLING: Final = 8
"""How many times the spread of a channel others of its batch norm may be as large and still leave it its own levels.

Networks that train stay below 2 (GraphSAGE, GCN and GIN on the generated arxiv graph); a rounding of levels that are 8
times as far apart is 64 times the noise.
"""


_FINER_BITS: Final = 4
"""Bits of x̂ in a batch norm whose output does not tell it.

Two leave γ's gradient so noisy that an L1 norm on γ ends with fewer small γ than FP32's, by more than seeds differ.
"""


def _tells(weight: Tensor, bias: Tensor, inverse_std: Tensor, eps: float) -> bool:
    """Whether the code of y = γ x̂ + β, whose blocks mix channels, has x̂ of every channel to a few of its own levels.

    A block's levels are as far apart as the widest channel is large, and x̂ = (ŷ - β) / γ is read by dividing. Waits for
    a GPU; where nobody may wait, in a CUDA graph's capture, no.
    """
    if weight.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    size = weight.detach().abs().float()
    # Where eps counts beside a channel's variance x̂ itself is narrower than 1.
    spread = size * (1 - eps * inverse_std.float().square()).clamp_min(0).sqrt()
    return bool((spread * _TELLING >= (size + bias.detach().abs()).max()).all())


def _linear(
    mode: Derivation, func: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    factors = mode.aggregated.get(input)
    if factors is None or not is_layer(weight, bias) or is_watched(input):
        return compress_linear(mode, func, input, weight, bias)
    adjacency, x, reduce, versions, content, of_data = factors
    if versions != (version_of(adjacency), version_of(x)):
        return compress_linear(mode, func, input, weight, bias)
    kept, packed = mode.keep_input("linear", x, projected=False)
    if isinstance(kept, AsIs):
        # FP32 reads A x in backward, and neither A nor x: what they held must be what they hold then.
        kept = AsIs(of_data)
    return apply(ProductLinear, func, kept, packed, content, reduce, adjacency, input, x, weight, bias)


def _product(
    mode: Derivation, func: Callable[..., Tensor], sparse: Tensor, dense: Tensor, reduce: str | None = None
) -> Tensor | None:
    if reduce not in (None, "sum", "mean") or sparse.layout != torch.sparse_csr or sparse.requires_grad:
        return None
    if not compressible(dense) or dense.dim() != 2 or sparse.dim() != 2 or sparse.values().dim() != 1:
        return None
    content, of_data = content_of(sparse), dense_sum(dense) if mode.is_data(dense) else None
    if dense.requires_grad:
        product = apply(SparseProduct, func, True, sparse, dense, reduce)
    else:
        product = func(sparse, dense) if reduce is None else func(sparse, dense, reduce)
    if not mode.escaped(dense):
        versions = version_of(sparse), version_of(dense)
        mode.aggregated[product] = sparse, dense, reduce, versions, content, of_data
    return product


def _matmul(
    mode: Derivation, func: Callable[..., Tensor], input: Any, other: Any, operation: str = "matmul"
) -> Tensor | None:
    if isinstance(input, Tensor) and isinstance(other, Tensor) and input.layout != torch.strided:
        return _product(mode, func, input, other)
    return compress_matmul(mode, func, input, other, operation)


def _batch_norm(
    mode: Derivation,
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
    if weight is None or bias is None or not (training and input.dim() == 2 and compressible(input)):
        return compress_batch_norm(mode, func, input, running_mean, running_var, weight, bias, training, momentum, eps)
    if not (input.requires_grad or weight.requires_grad) or input.shape[0] < 2:
        return None
    rows, width = input.shape
    name = mode.next_call("batch_norm", input.dtype, tuple(input.shape))
    if mode.stays(input) or not is_smaller(rows, width, input.dtype, mode.scheme, 1):
        return None
    mode.found = True
    found = Normalized.of(input, weight, bias, running_mean, running_var, training, momentum, eps)
    if not _tells(weight, bias, found.inverse_std, eps):
        finer = replace(mode.scheme, bits=max(mode.scheme.bits or 0, _FINER_BITS), levels="uniform")
        kept = Kept.of(rows, width, input.dtype, finer, mode.noise(), 1, name, mode.watch)
        return apply(BatchNormInUnits, kept, found, input, weight, bias, running_mean, running_var, training, eps)
    normed = Normed(name, Rectifying(), weight, bias)
    out, tie = apply_for_two(Norm, normed, found, input, weight, bias)
    mode.normalized(out, tie, normed)
    return out


def _relu(mode: Derivation, func: Callable[..., Tensor], input: Tensor, inplace: bool = False) -> Tensor | None:
    if not (compressible(input) and input.requires_grad):
        return None
    if inplace and is_view(input):
        # Of a function that changes a view torch allows no second result.
        return compress_relu(mode, func, input, inplace)
    entry: list[Any] = [None, None] if is_watched(input) else mode.normed.get(input) or [None, None]
    tie, normed = entry
    rectified, codes = mode.rectify(input)
    onward = None
    if tie is not None:
        # One consumer a tie: what takes this output later is met by `_settle`.
        entry[0], onward = None, normed.knot
        mode.taken(input)
    knot = Dropping()
    stand = Stand(codes) if tie is None else None
    arguments = rectified.rectifier, codes, onward, knot, stand, inplace, input, tie
    out, next_tie = stand.apply(Rectify, *arguments) if stand else apply_for_two(Rectify, *arguments)
    if stand:
        mode.stand_for(out, stand)
    mode.hold(out, (rectified, codes))
    mode.tied[out] = next_tie, knot
    return out


def _elu(
    mode: Derivation, func: Callable[..., Tensor], input: Tensor, alpha: float = 1.0, inplace: bool = False
) -> Tensor | None:
    if not (compressible(input) and input.requires_grad and alpha > 0) or mode.witness.keeps(input):
        return None
    out = func(input.detach(), alpha)
    rectified, codes = mode.rectify(-out, "elu")
    return apply(Elu, rectified.rectifier, codes, alpha, inplace, input, out)


def _layer_norm(
    mode: Derivation,
    func: Callable[..., Tensor],
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    needed = any(t is not None and t.requires_grad for t in (input, weight))
    shape = tuple(normalized_shape)
    if not (needed and compressible(input) and shape == input.shape[input.dim() - len(shape) :]):
        return None
    if mode.stays(input):
        return None
    if torch.is_autocast_enabled(input.device.type):
        # Autocast has a dtype of its own for it.
        return None
    width = input.shape[-1]
    kept = mode.keep("layer_norm", input.numel() // width, width, input.dtype, projected=False)
    return apply(LayerNorm, kept, input, shape, weight, bias, eps) if kept else None


def _dropout(
    mode: Derivation,
    func: Callable[..., Tensor],
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor | None:
    if not (training and 0 < p < 1 and compressible(input)):
        return None
    by_seed = keeps_seed(input.numel(), mode.scheme, input.device.type)
    mask = MaskInUse(DrawnMask(input, p, inplace, by_seed))
    if not input.requires_grad:
        if inplace or mode.made(input):
            return None
        content = dense_sum(input)
        out, of_mask = mask.drawn.draw(input)
        mode.hold(out, (DroppedOut(AsIs(content), mask), (input, of_mask)))
        return out
    tied, held = mode.tied.pop(input), mode.held.get(input)
    if tied is None or held is None or is_watched(input):
        return compress_dropout(mode, func, input, p, training, inplace)
    tie, knot = tied
    inner, packed = held
    kept: list[Tensor] = []
    out = apply(DropRectified, mask, knot, kept, inplace, input, tie)
    mode.hold(out, (DroppedOut(inner, mask), (*packed, *kept)))
    return out


_REPLACED: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    compress_linear: _linear,
    compress_matmul: _matmul,
    compress_sparse_product: _product,
    compress_batch_norm: _batch_norm,
    compress_relu: _relu,
    compress_dropout: _dropout,
}
run_as_written(Derivation.__torch_function__)
Derivation.handlers = {
    **{func: _REPLACED.get(handler, handler) for func, handler in Compression.handlers.items()},
    F.elu: _elu,
    F.layer_norm: _layer_norm,
}
