"""Autograd functions that keep each activation once and derive from it whatever else backward asks.

Between batch norm, ReLU and dropout gradients travel on ties: outputs without a storage of their own, each with one
consumer, the next of the three. Backward so meets all three in a row, whatever else uses their results: a gradient on
a tie is passed on as it came, what is to be done with it goes along in the tie's `Knot`, and the last of them does it
at once. What other operations make of the results comes by the results themselves, and is added.

A result that still lives in backward may be looked at there: by `torch.autograd.grad`, a hook, or `retain_grad`. It is
given its whole gradient, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

from actbench.compress.first_order import first_order
from actbench.compress.functions import DrawnMask
from actbench.compress.norms import Normalized, batch_norm_backward
from actbench.compress.products import content_of, looked_at_product
from actbench.compress.saved import Keeping, Kept, Watch
from actbench.compress.stands import Stand, pass_relu
from actbench.compress.torch_internals import TensorWeakRef, backward_pass, version_of
from actbench.errors import UsageError
from actbench.quant import Dropped, RectifiedCodes, Rectifier, dense_sum, scale_where

What = TypeVar("What")


@dataclass(frozen=True)
class AsIs:
    """A matrix that is there anyway, kept by reference: data.

    Where FP32 would not read it again in backward, `content` is what `dense_sum` made of it.
    """

    content: Tensor | None = None

    def recover(self, packed: tuple[Tensor, ...]) -> Tensor:
        """It itself. Raises `UsageError` if it is not what it was."""
        if self.content is not None:
            require_unchanged(self.content, dense_sum(packed[0]), "data that a layer read")
        return packed[0]

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """`left` [n, rows] times it, times `scale`."""
        return _left_product(self, left, packed, scale)


@dataclass(frozen=True)
class Rectified:
    """A ReLU's output, read from its codes."""

    rectifier: Rectifier
    watch: Watch

    def recover(self, packed: tuple[Tensor, ...], dropped: Dropped | None = None) -> Tensor:
        """An unbiased estimate, of the dropout's output after it if there was one."""
        self.watch.check()
        codes, scale = packed
        return self.rectifier.dequantize((codes, scale), dropped)

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """`left` [n, rows] times the estimate, times `scale`."""
        return _left_product(self, left, packed, scale)


class MaskInUse:
    """A dropout's bits as long as backward needs them: drawn again by the first to ask, given up by the last."""

    def __init__(self, drawn: DrawnMask) -> None:
        self.drawn = drawn
        self._dropped: Dropped | None = None

    def take(self, kept: Tensor, device: torch.device, last: bool = False) -> Dropped:
        """The bits and their factor, of what is kept of the mask."""
        dropped = self._dropped or Dropped(self.drawn.bits(kept, device), self.drawn.factor)
        self._dropped = None if last else dropped
        return dropped


@dataclass(frozen=True)
class DroppedOut:
    """A dropout's output: that of `inner`, whose tensors are kept before the mask, times the mask."""

    inner: Keeping
    mask: MaskInUse

    def recover(self, packed: tuple[Tensor, ...]) -> Tensor:
        """Exact or an unbiased estimate, as the inner one is."""
        *inner, kept = packed
        dropped = self.mask.take(kept, inner[0].device)
        if isinstance(self.inner, Rectified):
            return self.inner.recover(tuple(inner), dropped)
        return scale_where(self.inner.recover(tuple(inner)), dropped.mask, dropped.factor)

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """`left` [n, rows] times that, times `scale`."""
        return _left_product(self, left, packed, scale)


def _left_product(
    keeping: AsIs | Rectified | DroppedOut, left: Tensor, packed: tuple[Tensor, ...], scale: float
) -> Tensor:
    x = keeping.recover(packed)
    product = left @ x.reshape(left.shape[1], -1).to(left.dtype)
    return product if scale == 1 else product * scale


def require_unchanged(before: Tensor, now: Tensor, what: str) -> None:
    """Raise `UsageError` if the sums of a content differ; `what` says to a user of what. Waits for a GPU."""
    if now.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if not torch.equal(before, now):
        raise UsageError(
            f"{what} in forward was changed before backward came to read it again, in memory that it shares with "
            "another tensor or array: change a copy, or open compress('fp32') around that part."
        )


class Knot(Generic[What]):
    """What is to be done with the gradient that just came along a tie, by whoever is last.

    Several backward passes may go through one graph at once, in threads; each finds its own.
    """

    def __init__(self) -> None:
        self._left: dict[int, What] = {}

    def leave(self, what: What) -> None:
        """For the next along the tie."""
        self._left[backward_pass()] = what

    def take(self) -> What:
        """What was left, once."""
        return self._left.pop(backward_pass())


@dataclass(frozen=True)
class Given:
    """A gradient given to a result that lives, told from what others add to it or make of it."""

    address: int
    version: int

    @staticmethod
    def of(gradient: Tensor) -> Given:
        """Of a gradient that nobody else has seen yet."""
        return Given(gradient.data_ptr(), version_of(gradient))


Dropping = Knot[tuple[Dropped, bool]]
"""Between a ReLU and its dropout, which leaves its mask, and whether the ReLU's output was given the gradient, too."""
Rectifying = Knot[tuple[Rectifier, RectifiedCodes, Dropped | None, Given | None]]
"""Between a batch norm and its ReLU, which leaves its codes, the dropout after it and what the norm's output was given.
"""


@dataclass
class Normed:
    """What is known of one batch norm's output y = γ x̂ + β besides what ReLU makes of it."""

    name: str
    knot: Rectifying
    weight: Tensor
    bias: Tensor
    kept: Kept | None = None
    """How x̂ is kept for operations other than ReLU, if there are any."""
    late: Tensor | None = None


class Norm(Function):
    """`F.batch_norm` in training, keeping nothing of its input: x̂ follows from what is kept of its output."""

    @staticmethod
    def forward(
        ctx: Any, normed: Normed, found: Normalized, x: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keeps the inverse standard deviation. Returns the result and a tie for ReLU."""
        ctx.normed, ctx.dtype = normed, x.dtype
        ctx.set_materialize_grads(False)
        # FP32 reads no β in backward: where that alone is trained it may be stepped before, and γ as FP32's may not.
        ctx.save_for_backward(weight, bias if weight.requires_grad else bias.clone(), found.inverse_std)
        out = found.out.pop()
        return out, _tie(out)

    @staticmethod
    @first_order
    def backward(ctx: Any, by_y: Tensor | None, by_tie: Tensor | None) -> tuple[Tensor | None, ...]:
        """An unbiased estimate for weight and bias; for x one whose bias `Rectifier.norm_backward` states."""
        weight, bias, inverse_std = ctx.saved_tensors
        normed: Normed = ctx.normed
        if by_tie is not None:
            rectifier, codes, dropped, given = normed.knot.take()
            if by_y is None or given == Given.of(by_y):
                gradients = rectifier.norm_backward(by_tie, codes, dropped, weight, bias, inverse_std)
                return None, None, *gradients
            if given is None:
                by_y = by_y + rectifier.passed(by_tie, codes, dropped)
        if by_y is None:
            return (None,) * 5
        if normed.late is None or normed.kept is None:
            raise UsageError(
                f"what was made of {normed.name} went into an operation that compress cannot see, as an autograd "
                "function of your own, and into a ReLU: open compress('int4') or 'fp32' around that part."
            )
        packed = normed.late.grad_fn.saved_tensors  # type: ignore[union-attr]
        normal = normed.kept.recover(packed)
        return None, None, *batch_norm_backward(by_y, normal, weight, inverse_std, list(ctx.needs_input_grad[2:5]))


class Late(Function):
    """Keeps tensors for a backward that was planned without them; `late.grad_fn.saved_tensors` has them again."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        """Keeps all `tensors`; `anchor` is any that requires a gradient."""
        ctx.save_for_backward(*tensors)
        return anchor.new_empty(0)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        """Nobody's gradient."""
        return (None,) * (1 + len(ctx.saved_tensors))


class Rectify(Function):
    """`torch.relu`, keeping codes that have the mask and the output's value both."""

    @staticmethod
    def forward(
        ctx: Any,
        rectifier: Rectifier,
        codes: RectifiedCodes,
        onward: Rectifying | None,
        knot: Dropping,
        stand: Stand | None,
        inplace: bool,
        x: Tensor,
        tie: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Keeps the codes of `x`, or what `stand` gives way to. Returns the result and a tie for dropout.

        The tie's knot is `knot`. With a `tie` of the batch norm that made x, the gradient goes along that one, with the
        knot `onward`, and there is no `stand`.
        """
        ctx.rectifier, ctx.onward, ctx.knot, ctx.stand = rectifier, onward, knot, stand
        # In place there is no x any more but the result.
        ctx.x = None if inplace else TensorWeakRef(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*codes)
        if inplace:
            ctx.mark_dirty(x)
        out = x.relu_() if inplace else x.relu()
        return out, _tie(out)

    @staticmethod
    @first_order
    def backward(ctx: Any, by_out: Tensor | None, by_tie: Tensor | None) -> tuple[Tensor | None, ...]:
        """Exact."""
        codes = ctx.saved_tensors
        gradient, dropped = by_out, None
        nothing = (None,) * 6
        if by_tie is not None:
            dropped, given = ctx.knot.take()
            if given:
                gradient, dropped = by_out, None
            elif by_out is None:
                gradient = by_tie
            else:
                gradient, dropped = pass_relu(ctx.stand, ctx.rectifier, by_tie, codes, dropped) + by_out, None
        if gradient is None:
            return (*nothing, None, None)
        if ctx.onward is None:
            return *nothing, pass_relu(ctx.stand, ctx.rectifier, gradient, codes, dropped), None
        by_x = ctx.rectifier.passed(gradient, codes, dropped) if _lives(ctx.x) else None
        ctx.onward.leave((ctx.rectifier, codes, dropped, None if by_x is None else Given.of(by_x)))
        return *nothing, by_x, gradient


class DropRectified(Function):
    """`F.dropout` of a ReLU's output, whose gradient goes along the ReLU's `tie`."""

    @staticmethod
    def forward(
        ctx: Any, mask: MaskInUse, knot: Dropping, kept: list[Tensor], inplace: bool, x: Tensor, tie: Tensor
    ) -> Tensor:
        """Keeps the mask or what it is drawn from, and appends it to `kept`."""
        ctx.mask, ctx.knot = mask, knot
        ctx.x = None if inplace else TensorWeakRef(x)
        out, of_mask = mask.drawn.draw(x)
        kept.append(of_mask)
        ctx.save_for_backward(of_mask)
        if inplace:
            ctx.mark_dirty(x)
            return x.copy_(out)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Exact."""
        (kept,) = ctx.saved_tensors
        dropped = ctx.mask.take(kept, gradient.device, last=True)
        given = _lives(ctx.x)
        ctx.knot.leave((dropped, given))
        by_x = scale_where(gradient, dropped.mask, dropped.factor) if given else None
        return *(None,) * 4, by_x, gradient


class Elu(Function):
    """`F.elu`, keeping rectified codes of its output's negative, which has all that its derivative asks."""

    @staticmethod
    def forward(
        ctx: Any, rectifier: Rectifier, codes: RectifiedCodes, alpha: float, inplace: bool, x: Tensor, out: Tensor
    ) -> Tensor:
        """Keeps the codes; `out` is what the stock function made of `x`."""
        ctx.rectifier, ctx.alpha = rectifier, alpha
        ctx.save_for_backward(*codes)
        if inplace:
            ctx.mark_dirty(x)
            return x.copy_(out)
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """An unbiased estimate: g where x >= 0, (α + out) g elsewhere."""
        codes = ctx.saved_tensors
        negative = ctx.rectifier.dequantize(codes)
        by_x = gradient + ctx.rectifier.passed(gradient * (ctx.alpha - 1 - negative), codes)
        return None, None, None, None, by_x, None


class ProductLinear(Function):
    """`product(A x, weight, bias)` of a sparse A whose A x is not kept: ∂weight = (Aᵀ g)ᵀ x."""

    @staticmethod
    def forward(
        ctx: Any,
        product: Callable[..., Tensor],
        kept: Keeping,
        packed: tuple[Tensor, ...],
        content: Tensor,
        reduce: str | None,
        adjacency: Tensor,
        aggregated: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Keeps the adjacency, `packed`, which `kept` reads x from, and the weight if x needs a gradient.

        `aggregated` is A x by `reduce`, made when `content` was what A held.
        """
        ctx.kept, ctx.content, ctx.reduce = kept, content, reduce
        ctx.aggregated = TensorWeakRef(aggregated)
        ctx.save_for_backward(adjacency, weight if x.requires_grad else None, *packed)
        return product(aggregated, weight) if bias is None else product(aggregated, weight, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Exact for x, by way of `aggregated` as long as that lives, and bias, an estimate for the weight."""
        adjacency, weight, *packed = ctx.saved_tensors
        by_aggregated = by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[9]:
            by_bias = gradient.sum(0)
        if ctx.needs_input_grad[6] and _lives(ctx.aggregated):
            by_aggregated = gradient @ weight.to(gradient.dtype)
        if ctx.needs_input_grad[7] or ctx.needs_input_grad[8]:
            content = content_of(adjacency)
            require_unchanged(ctx.content, content, "an adjacency that was multiplied by")
            # Under autocast the gradient is shorter than the adjacency.
            g = looked_at_product(adjacency, gradient.to(adjacency.dtype), ctx.reduce, content)
            # First the weight's, so that what x is read back into is gone before x's own is made.
            if ctx.needs_input_grad[8]:
                by_weight = ctx.kept.left_product(g.t(), tuple(packed))
            if ctx.needs_input_grad[7] and by_aggregated is None:
                by_x = g @ weight.to(g.dtype)
        return *(None,) * 6, by_aggregated, by_x, by_weight, by_bias


def _lives(x: TensorWeakRef | None) -> bool:
    return x is not None and x() is not None


def _tie(out: Tensor) -> Tensor:
    return out.new_empty(1).expand(out.shape)
