"""The derived schemes' rules: each activation is kept once, in a code that serves all its consumers.

For linear or convolution → batch norm → ReLU → dropout → next layer that is one rectified code of the batch norm's
output: ReLU's mask exactly, estimates of ReLU's and dropout's output, and x̂ for batch norm's backward. A product of the
adjacency with such a value is not kept either. What no rule covers is kept as one INT2 code a tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks

from actbench.compress.codec import Exact, Kept, Quantized, is_smaller
from actbench.compress.forward import Node
from actbench.compress.functions import SparseProduct
from actbench.compress.norms import Normalized
from actbench.compress.products import content_of
from actbench.compress.rules import Rules, apply, compressible, is_layer
from actbench.compress.stands import Stand
from actbench.compress.tensors import has_memory, tensors_in
from actbench.compress.ties import (
    DroppedOut,
    Dropping,
    DropRectified,
    Late,
    MaskInUse,
    Norm,
    Normed,
    ProductLinear,
    Rectify,
    Rectifying,
)
from actbench.compress.torch_internals import (
    base_of,
    in_checkpoint,
    is_view,
    is_watched,
    unmoded,
    version_of,
)
from actbench.quant import dense_sum
from actbench.scheme import Scheme


@dataclass(frozen=True, eq=False)
class Product:
    """What made a tensor A x: a sparse A and x, how the terms were reduced, and what the two held then."""

    adjacency: Tensor
    x: Tensor
    reduce: str | None
    content: Tensor
    content_of_data: Tensor | None
    """What `dense_sum` made of x, if that is data."""
    versions: tuple[int, int]

    @property
    def stands(self) -> bool:
        """Whether neither was changed since, as far as versions tell."""
        return self.versions == (version_of(self.adjacency), version_of(self.x))


@dataclass(eq=False)
class BatchNormed:
    """What made a tensor y: a batch norm, and the tie along which the gradient of one ReLU of it will come."""

    normed: Normed
    tie: Tensor | None


@dataclass(eq=False)
class Rectifies:
    """What made a tensor: a ReLU, and the tie and its knot along which the gradient of one dropout of it will come."""

    tie: Tensor | None
    knot: Dropping


class Derivation(Rules):
    """The rules of one of `scheme.DERIVED`."""

    def __init__(self, scheme: Scheme, seed: int) -> None:
        super().__init__(scheme, seed)
        self._unread: list[Tensor] = []
        """Batch norms' outputs that no ReLU has taken, held until the next function is called."""
        self._taken: Tensor | None = None

    def end(self) -> None:
        """As `Rules.end`."""
        super().end()
        self._unread.clear()

    def close(self) -> None:
        """Keep every batch norm's output that lives: it may yet be used where no context sees it."""
        for y, node in self.forward.nodes():
            self._keep_late(y, node)

    def before(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See what becomes of batch norms' outputs, and who may change tensors unseen."""
        self._settle_dying()
        if _may_change_in_place(func):
            self._settle(args, kwargs)
            # Its own version tells of a tensor; of others that share its memory by way of `data` none does.
            self._forget(args[:1], but_itself=True)
        if func in _ESCAPES and has_memory(args[0]) and not self.forward.is_data(args[0]):
            self._forget(args[:1])
            self.forward.escape(args[0])

    def after(self, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what others than a ReLU have made a tensor of."""
        if any(True for _ in tensors_in((out,))):
            # Without gradients too: an autograd function that no mode sees runs its forward so.
            self._settle(args, kwargs)
        self._taken = None

    def keep_input(self, operation: str, x: Tensor, projected: bool, rows: int | None = None) -> Kept:
        """What is kept of `x` already, x itself if it is data, or else one code for this and later calls."""
        kept = self._kept_of(x)
        if kept is None and self.forward.is_data(x):
            kept = Kept(Exact(), (x,))
        if kept is None:
            kept = super().keep_input(operation, x, projected, rows) or Kept(Exact(), (x.detach(),))
            self._serve(x, kept)
        return kept

    def _serve(self, x: Tensor, kept: Kept) -> None:
        """Let later calls read `x` from what is `kept` of it, as long as all that changes it is seen."""
        if not self.forward.escaped(x):
            self.forward.node(x).kept = kept

    def _kept_of(self, x: Tensor) -> Kept | None:
        """What is kept of `x` or of what it is a mere reshaping of."""
        node, base = self.forward.find(x), base_of(x)
        if node is not None and node.kept is not None:
            return node.kept
        # A CSR matrix is the base of its values and has no such question.
        if base is None or base.numel() != x.numel() or not x.is_contiguous() or base.layout != torch.strided:
            return None
        whole = self.forward.find(base) if base.is_contiguous() else None
        return None if whole is None else whole.kept

    def _made_by(self, x: Tensor) -> Any:
        """The operation that made `x`; None if it is unknown or if somebody wants to see the gradient by x itself."""
        node = None if is_watched(x) else self.forward.find(x)
        return None if node is None else node.operation

    def _settle_dying(self) -> None:
        """Keep the batch norms' outputs that nobody else holds any more, and that so went where no context sees."""
        alive = []
        while self._unread:
            y = self._unread.pop()
            if sys.getrefcount(y) > _HELD_HERE_ALONE:
                alive.append(y)
            elif (node := self.forward.find(y)) is not None:
                self._keep_late(y, node)
        self._unread = alive

    def _forget(self, changing: tuple[Any, ...], but_itself: bool = False) -> None:
        """Forget what is known of tensors in the memory of one that is `changing`, whatever their versions tell."""
        places = {each.untyped_storage().data_ptr() for each in changing if has_memory(each)}
        if not places:
            return
        for each, node in self.forward.nodes_in(places):
            if but_itself and any(each is one for one in changing):
                continue
            self._keep_late(each, node)
            node.operation = node.kept = None

    def _settle(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep the batch norms' outputs among what a function that is no ReLU has taken."""
        for each in tensors_in((*args, *kwargs.values())):
            if each is not self._taken and (node := self.forward.find(each)) is not None:
                self._keep_late(each, node)

    def _keep_late(self, y: Tensor, node: Node) -> None:
        """If a batch norm made `y`, keep x̂ for what else than a ReLU reads y."""
        if not isinstance(node.operation, BatchNormed) or node.operation.normed.late is not None:
            return
        normed = node.operation.normed
        # This very mode must not take what is done here for a use of y.
        with unmoded(), torch.no_grad():
            rows, width = y.shape
            normed.codec = Quantized.of(rows, width, y.dtype, self.scheme, self.noise(), 1, normed.name, self.watch)
            packed = normed.codec.pack((y.float() - normed.bias).div_(normed.weight))
        # Where gradients are switched off too, or it would keep nothing; and not as a part of what runs again.
        aside = saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor) if in_checkpoint() else nullcontext()
        with torch.enable_grad(), aside:
            normed.late = apply(Late, torch.empty(0, device=y.device, requires_grad=True), *packed)

    def linear(
        self, func: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor | None:
        """As `Rules.linear`, and of A x the x is kept."""
        product = self._made_by(input)
        if not (isinstance(product, Product) and product.stands and is_layer(weight, bias)):
            return super().linear(func, input, weight, bias)
        kept = self.keep_input("linear", product.x, projected=False)
        if isinstance(kept.reading, Exact):
            # FP32 reads A x in backward, and neither A nor x: what they held must be what they hold then.
            kept = Kept(Exact(product.content_of_data), kept.tensors)
        operands = product.adjacency, input, product.x, weight, bias
        return apply(ProductLinear, func, kept, product.content, product.reduce, *operands)

    def sparse_product(
        self, func: Callable[..., Tensor], sparse: Tensor, dense: Tensor, reduce: str | None = None
    ) -> Tensor | None:
        """A product with a sparse matrix, kept in mind for the layer behind it."""
        if reduce not in (None, "sum", "mean") or sparse.layout != torch.sparse_csr or sparse.requires_grad:
            return None
        if not compressible(dense) or dense.dim() != 2 or sparse.dim() != 2 or sparse.values().dim() != 1:
            return None
        content, of_data = content_of(sparse), dense_sum(dense) if self.forward.is_data(dense) else None
        if dense.requires_grad:
            out = apply(SparseProduct, func, True, sparse, dense, reduce)
        else:
            out = func(sparse, dense) if reduce is None else func(sparse, dense, reduce)
        if not self.forward.escaped(dense):
            versions = version_of(sparse), version_of(dense)
            self.forward.record(out, Product(sparse, dense, reduce, content, of_data, versions))
        return out

    def matmul(self, func: Callable[..., Tensor], input: Any, other: Any, operation: str = "matmul") -> Tensor | None:
        """As `Rules.matmul`, or a product with a sparse matrix."""
        if isinstance(input, Tensor) and isinstance(other, Tensor) and input.layout != torch.strided:
            return self.sparse_product(func, input, other)
        return super().matmul(func, input, other, operation)

    def batch_norm(
        self,
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
        """As `Rules.batch_norm`, or nothing kept: x̂ follows from what a ReLU keeps of the result."""
        if weight is None or bias is None or not (training and input.dim() == 2 and compressible(input)):
            rest = running_mean, running_var, weight, bias, training, momentum, eps
            return super().batch_norm(func, input, *rest)
        if not (input.requires_grad or weight.requires_grad) or input.shape[0] < 2:
            return None
        rows, width = input.shape
        name = self.next_call("batch_norm", input)
        if self.stays(input) or not is_smaller(rows, width, input.dtype, self.scheme, 1):
            return None
        self.found = True
        found = Normalized.of(input, weight, bias, running_mean, running_var, training, momentum, eps)
        if not _tells(weight, bias, found.inverse_std, eps):
            finer = replace(self.scheme, bits=max(self.scheme.bits or 0, _FINER_BITS), levels="uniform")
            codec = Quantized.of(rows, width, input.dtype, finer, self.noise(), 1, name, self.watch)
            statistics = running_mean, running_var, training
            return self.batch_norm_in_units(codec, found, input, weight, bias, *statistics, eps)
        normed = Normed(name, Rectifying(), weight, bias)
        out, tie = apply_for_two(Norm, normed, found, input, weight, bias)
        self.forward.record(out, BatchNormed(normed, tie))
        self._unread.append(out)
        return out

    def relu(self, func: Callable[..., Tensor], input: Tensor, inplace: bool = False) -> Tensor | None:
        """A code kept that has the mask and the result's value both."""
        if not (compressible(input) and input.requires_grad):
            return None
        if inplace and is_view(input):
            # Of a function that changes a view torch allows no second result.
            return super().relu(func, input, inplace)
        maker = self._made_by(input)
        self.found = True
        codec = self.rectified("relu", input)
        codes = codec.pack(input.detach())
        onward = tie = None
        if isinstance(maker, BatchNormed) and maker.tie is not None:
            # One consumer a tie: what takes this output later is met by `_settle`.
            tie, maker.tie, onward = maker.tie, None, maker.normed.knot
            self._taken = input
            self._unread = [each for each in self._unread if each is not input]
        knot = Dropping()
        stand = Stand(codes) if tie is None else None
        arguments = codec.rectifier, codes, onward, knot, stand, inplace, input, tie
        out, next_tie = stand.apply(Rectify, *arguments) if stand else apply_for_two(Rectify, *arguments)
        if stand:
            self.forward.stand_for(out, stand)
        self.forward.record(out, Rectifies(next_tie, knot))
        self._serve(out, Kept(codec, codes))
        return out

    def dropout(
        self, func: Callable[..., Tensor], input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor | None:
        """As `Rules.dropout`, after a ReLU on its tie; of data too, for the layer that reads what is left."""
        if not (training and 0 < p < 1 and compressible(input)):
            return None
        if not input.requires_grad:
            return None if inplace or self.forward.made(input) else self._drop_data(input, p)
        node = self.forward.find(input)
        if node is None or node.kept is None or not isinstance(node.operation, Rectifies):
            return super().dropout(func, input, p, training, inplace)
        tie, node.operation.tie = node.operation.tie, None
        if tie is None or is_watched(input):
            return super().dropout(func, input, p, training, inplace)
        of_input, knot = node.kept, node.operation.knot
        mask = MaskInUse(self.mask(input, p, inplace))
        with torch.no_grad():
            out, kept = mask.drawn.draw(input)
        result = apply(DropRectified, input, tie, inplace, [out], mask, kept, knot)
        self._serve(result, Kept(DroppedOut(of_input.reading, mask), (*of_input.tensors, kept)))
        return result

    def _drop_data(self, input: Tensor, p: float) -> Tensor:
        mask = MaskInUse(self.mask(input, p, inplace=False))
        content = dense_sum(input)
        out, kept = mask.drawn.draw(input)
        self._serve(out, Kept(DroppedOut(Exact(content), mask), (input, kept)))
        return out


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


def apply_for_two(function: type[Function], *arguments: Any) -> tuple[Tensor, Tensor]:
    """The results of an autograd function of ours that has two."""
    first, second = function.apply(*arguments)
    return first, second
