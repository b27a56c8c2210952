"""Contexts of the derived schemes: each activation is kept once, in a code that serves all its consumers.

For linear or convolution → batch norm → ReLU → dropout → next layer that is one rectified code of the batch norm's
output: ReLU's mask exactly, estimates of ReLU's and dropout's output, and x̂ for batch norm's backward. A product of the
adjacency with such a value is not kept either. What no rule covers is kept as one INT2 code a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from actbench.compress.derived import (
    AsIs,
    DroppedOut,
    DropRectified,
    Knot,
    Late,
    MaskInUse,
    Norm,
    Normed,
    Product,
    ProductLinear,
    Rectified,
    Rectify,
)
from actbench.compress.functions import DrawnMask
from actbench.compress.interception import (
    Compression,
    apply,
    apply_for_two,
    compress_batch_norm,
    compress_dropout,
    compress_linear,
    compress_matmul,
    compress_sparse_product,
    compressible,
    open_compressions,
)
from actbench.compress.ledger import before_closing
from actbench.compress.products import symmetry_of
from actbench.compress.saved import Keeping, Kept, keeps_seed
from actbench.quant import Rectifier
from actbench.scheme import Scheme

Held = tuple[Keeping, tuple[Tensor, ...]]
"""How a tensor's values are read, and from which tensors."""


class Known:
    """What is known of tensors as long as they live and are not changed in place."""

    def __init__(self) -> None:
        self._entries: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __setitem__(self, tensor: Tensor, what: Any) -> None:
        self._entries[tensor] = tensor._version, what

    def get(self, tensor: Tensor) -> Any:
        """What was set for `tensor`, or for what it is a mere reshaping of; None if nothing is known."""
        version, what = self._entries.get(tensor, (-1, None))
        if what is None and tensor._base is not None:
            base = tensor._base
            if base.is_contiguous() and tensor.is_contiguous() and base.numel() == tensor.numel():
                version, what = self._entries.get(base, (-1, None))
        return what if version == tensor._version else None

    def pop(self, tensor: Tensor) -> Any:
        """As `get`, and forgotten."""
        found = self.get(tensor)
        self._entries.pop(tensor, None)
        return found

    def items(self) -> Iterator[tuple[Tensor, Any]]:
        """Tensors that still live, unchanged, with what is known of them."""
        for tensor, (version, what) in list(self._entries.items()):
            if version == tensor._version:
                yield tensor, what

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()


class Derivation(Compression):
    """A `Compression` under one of `scheme.DERIVED`."""

    handlers: ClassVar[dict[Callable[..., Any], Callable[..., Any]]]

    def __init__(self, scheme: Scheme, seed: int) -> None:
        super().__init__(scheme, seed)
        self.held = Known()
        """How tensors' values are read: a `Held`."""
        self.aggregated = Known()
        """Of a product A x: A and x."""
        self.tied = Known()
        """Of a ReLU's output: its tie and knot, until a dropout takes them."""
        self.normed = Known()
        """Of a batch norm's output: its tie and `Normed`."""
        self._made = Known()
        """Tensors without gradient that were made inside: not data that stays anyway."""
        self._taken: Tensor | None = None

    def __enter__(self) -> Self:
        for known in (self.held, self.aggregated, self.tied, self.normed, self._made):
            known.clear()
        super().__enter__()
        self._contexts.enter_context(before_closing(self.settle_all))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.settle_all()
        super().__exit__(kind, error, trace)
        for known in (self.held, self.aggregated, self.tied, self.normed, self._made):
            known.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run `func`, or the function of ours that keeps less."""
        if not torch.is_grad_enabled() or open_compressions()[-1] is not self:
            return super().__torch_function__(func, types, args, kwargs)
        name = getattr(func, "__name__", "")
        if name.endswith("_") and (not name.endswith("__") or name.startswith("__i")):
            self._settle(args, kwargs)
        out = super().__torch_function__(func, types, args, kwargs)
        if isinstance(out, Tensor):
            if out.requires_grad:
                self._settle(args, kwargs)
            elif not out._is_view() and out.layout == torch.strided and not any(out is each for each in args):
                self._made[out] = True
        self._taken = None
        return out

    def keep_input(self, operation: str, x: Tensor, projected: bool, rows: int | None = None) -> Held | None:
        """What is held of `x` already, x itself if it is data, or else one code for this and later calls."""
        held: Held | None = self.held.get(x)
        if held is None and not x.requires_grad and not self.made(x):
            held = AsIs(), (x,)
        if held is None:
            held = super().keep_input(operation, x, projected, rows)
            self.held[x] = held
        return held

    def made(self, x: Tensor) -> bool:
        """Whether `x`, which needs no gradient, was made inside: no data that stays anyway."""
        return bool(self._made.get(x))

    def taken(self, y: Tensor) -> None:
        """Tell that a ReLU has taken the tie of the batch norm's output `y`."""
        self._taken = y

    def rectify(self, x: Tensor) -> tuple[Rectified, tuple[Tensor, Tensor]]:
        """How the next ReLU, of `x`, is read, and its codes."""
        rectifier, noise = Rectifier.of(x.shape, x.dtype, self.scheme), self.noise()
        flag = self.watch.flag(self.next_call("relu", x.dtype, tuple(x.shape)), x.device)
        codes = rectifier.quantize(x.detach(), noise.seed, noise.rounding_stream, flag)
        if not x.is_cuda:
            self.watch.check()
        return Rectified(rectifier, self.watch), codes

    def settle_all(self) -> None:
        """Keep every batch norm's output that lives and that no ReLU has taken."""
        for y, (tie, normed) in self.normed.items():
            if tie is not None:
                self._keep_late(y, normed)

    def _settle(self, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
        """Keep the batch norms' outputs among what a function that is no ReLU has taken."""
        for argument in (*args, *(kwargs or {}).values()):
            for each in argument if isinstance(argument, list | tuple) else (argument,):
                if isinstance(each, Tensor) and each is not self._taken:
                    _, normed = self.normed.get(each) or (None, None)
                    if normed is not None:
                        self._keep_late(each, normed)

    def _keep_late(self, y: Tensor, normed: Normed) -> None:
        if normed.late is not None:
            return
        with torch.no_grad():
            rows, width = y.shape
            normed.kept = Kept.of(rows, width, y.dtype, self.scheme, self.noise(), 1, normed.name, self.watch)
            packed = normed.kept.pack(y.detach())
        normed.late = apply(Late, torch.empty(0, device=y.device, requires_grad=True), *packed)


def _linear(
    mode: Derivation, func: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor | None:
    adjacency, x = mode.aggregated.get(input) or (None, None)
    if adjacency is None or x is None or not weight.requires_grad:
        return compress_linear(mode, func, input, weight, bias)
    held = mode.keep_input("linear", x, projected=False)
    if held is None:
        return None
    symmetry = symmetry_of(adjacency)
    return apply(ProductLinear, func, *held, symmetry, adjacency, input.detach(), x, weight, bias)


def _product(
    mode: Derivation, func: Callable[..., Tensor], sparse: Tensor, dense: Tensor, reduce: str | None = None
) -> Tensor | None:
    if reduce is not None:
        return compress_sparse_product(mode, func, sparse, dense, reduce)
    if sparse.layout != torch.sparse_csr or sparse.requires_grad or not compressible(dense) or dense.dim() != 2:
        return None
    product = apply(Product, func, symmetry_of(sparse), sparse, dense) if dense.requires_grad else func(sparse, dense)
    mode.aggregated[product] = sparse, dense
    return product


def _matmul(mode: Derivation, func: Callable[..., Tensor], input: Any, other: Any) -> Tensor | None:
    if isinstance(input, Tensor) and isinstance(other, Tensor) and input.layout != torch.strided:
        return _product(mode, func, input, other)
    return compress_matmul(mode, func, input, other)


def _mm(mode: Derivation, func: Callable[..., Tensor], input: Any, mat2: Any) -> Tensor | None:
    return _matmul(mode, func, input, mat2)


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
    normed = Normed(mode.next_call("batch_norm", input.dtype, tuple(input.shape)), Knot())
    out, tie = apply_for_two(Norm, normed, input, weight, bias, running_mean, running_var, momentum, eps)
    mode.normed[out] = [tie, normed]
    return out


def _torch_batch_norm(
    mode: Derivation,
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


def _relu(mode: Derivation, func: Callable[..., Tensor], input: Tensor, inplace: bool = False) -> Tensor | None:
    if not (compressible(input) and input.requires_grad):
        return None
    entry = mode.normed.get(input) or [None, None]
    tie, normed = entry
    rectified, codes = mode.rectify(input)
    onward = None
    if tie is not None:
        # One consumer a tie: what takes this output later is met by `_settle`.
        entry[0], onward = None, normed.knot
        mode.taken(input)
    knot = Knot()
    out, next_tie = apply_for_two(Rectify, rectified.rectifier, codes, onward, knot, inplace, input, tie)
    mode.held[out] = rectified, codes
    mode.tied[out] = next_tie, knot
    return out


def _relu_(mode: Derivation, func: Callable[..., Tensor], input: Tensor) -> Tensor | None:
    return _relu(mode, func, input, inplace=True)


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
        out, of_mask = mask.drawn.draw(input)
        mode.held[out] = DroppedOut(AsIs(), mask), (input, of_mask)
        return out
    tied, held = mode.tied.pop(input), mode.held.get(input)
    if tied is None or held is None:
        return compress_dropout(mode, func, input, p, training, inplace)
    tie, knot = tied
    inner, packed = held
    kept: list[Tensor] = []
    out = apply(DropRectified, mask, knot, kept, inplace, input, tie)
    mode.held[out] = DroppedOut(inner, mask), (*packed, *kept)
    return out


def _torch_dropout(
    mode: Derivation, func: Callable[..., Tensor], input: Tensor, p: float, train: bool
) -> Tensor | None:
    return _dropout(mode, func, input, p, train)


def _torch_dropout_(
    mode: Derivation, func: Callable[..., Tensor], input: Tensor, p: float, train: bool
) -> Tensor | None:
    return _dropout(mode, func, input, p, train, inplace=True)


Derivation.handlers = Compression.handlers | {
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.mm: _mm,
    Tensor.mm: _mm,
    torch.sparse.mm: _product,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _torch_batch_norm,
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _relu_,
    Tensor.relu_: _relu_,
    F.dropout: _dropout,
    torch.dropout: _torch_dropout,
    torch.dropout_: _torch_dropout_,
}
