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

from actbench.compress.codec import Kept, Quantized, Reading, Rectified, multiply, require_unchanged
from actbench.compress.first_order import first_order
from actbench.compress.functions import DrawnMask, take
from actbench.compress.norms import Normalized, batch_norm_backward
from actbench.compress.products import content_of, looked_at_product
from actbench.compress.stands import Stand, pass_relu
from actbench.compress.torch_internals import TensorWeakRef, backward_pass, version_of
from actbench.errors import UsageError
from actbench.quant import Dropped, RectifiedCodes, Rectifier, scale_where

What = TypeVar("What")


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

    inner: Reading
    mask: MaskInUse

    def unpack(self, packed: tuple[Tensor, ...]) -> Tensor:
        """Exact or an unbiased estimate, as the inner one is."""
        *inner, kept = packed
        dropped = self.mask.take(kept, inner[0].device)
        if isinstance(self.inner, Rectified):
            return self.inner.unpack(tuple(inner), dropped)
        return scale_where(self.inner.unpack(tuple(inner)), dropped.mask, dropped.factor)

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """`left` [n, rows] times that, times `scale`."""
        return multiply(left, self.unpack(packed), scale)


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
    codec: Quantized | None = None
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
        if normed.late is None or normed.codec is None:
            raise UsageError(
                f"what was made of {normed.name} went into an operation that compress cannot see, as an autograd "
                "function of your own, and into a ReLU: open compress('int4') or 'fp32' around that part."
            )
        packed = normed.late.grad_fn.saved_tensors  # type: ignore[union-attr]
        normal = normed.codec.unpack(packed)
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
        """Keeps the `codes` of x, or what `stand` gives way to. Returns the result and a tie for dropout.

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
        ctx: Any,
        x: Tensor,
        tie: Tensor,
        inplace: bool,
        out: list[Tensor],
        mask: MaskInUse,
        kept: Tensor,
        knot: Dropping,
    ) -> Tensor:
        """Keeps what is `kept` of the mask; `out` has what it makes of `x`."""
        ctx.mask, ctx.knot = mask, knot
        ctx.x = None if inplace else TensorWeakRef(x)
        ctx.save_for_backward(kept)
        return take(ctx, out, x, inplace)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Exact."""
        (kept,) = ctx.saved_tensors
        dropped = ctx.mask.take(kept, gradient.device, last=True)
        given = _lives(ctx.x)
        ctx.knot.leave((dropped, given))
        by_x = scale_where(gradient, dropped.mask, dropped.factor) if given else None
        return by_x, gradient, *(None,) * 5


class ProductLinear(Function):
    """`product(A x, weight, bias)` of a sparse A whose A x is not kept: ∂weight = (Aᵀ g)ᵀ x."""

    @staticmethod
    def forward(
        ctx: Any,
        product: Callable[..., Tensor],
        kept: Kept,
        content: Tensor,
        reduce: str | None,
        adjacency: Tensor,
        aggregated: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Keeps the adjacency, what is `kept` of x, and the weight if x needs a gradient.

        `aggregated` is A x by `reduce`, made when `content` was what A held.
        """
        ctx.reading, ctx.content, ctx.reduce = kept.reading, content, reduce
        ctx.aggregated = TensorWeakRef(aggregated)
        ctx.save_for_backward(adjacency, weight if x.requires_grad else None, *kept.tensors)
        return product(aggregated, weight) if bias is None else product(aggregated, weight, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Exact for x, by way of `aggregated` as long as that lives, and bias, an estimate for the weight."""
        adjacency, weight, *packed = ctx.saved_tensors
        by_aggregated = by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[8]:
            by_bias = gradient.sum(0)
        if ctx.needs_input_grad[5] and _lives(ctx.aggregated):
            by_aggregated = gradient @ weight.to(gradient.dtype)
        if ctx.needs_input_grad[6] or ctx.needs_input_grad[7]:
            content = content_of(adjacency)
            require_unchanged(ctx.content, content, "an adjacency that was multiplied by")
            # Under autocast the gradient is shorter than the adjacency.
            g = looked_at_product(adjacency, gradient.to(adjacency.dtype), ctx.reduce, content)
            # First the weight's, so that what x is read back into is gone before x's own is made.
            if ctx.needs_input_grad[7]:
                by_weight = ctx.reading.left_product(g.t(), tuple(packed))
            if ctx.needs_input_grad[6] and by_aggregated is None:
                by_x = g @ weight.to(g.dtype)
        return *(None,) * 5, by_aggregated, by_x, by_weight, by_bias


def _lives(x: TensorWeakRef | None) -> bool:
    return x is not None and x() is not None


def _tie(out: Tensor) -> Tensor:
    return out.new_empty(1).expand(out.shape)
