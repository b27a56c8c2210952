"""Autograd functions whose forward is the stock operation and which keep less for backward.

The result is what the very torch function makes that each stands for, so it is FP32's bit for bit. Each is given what
is kept, packed, by its rule, and keeps it through `save_for_backward`, where any saved-tensor hook sees it. Where x may
be changed in place it is the first tensor among the arguments, as torch asks for of views.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from actbench.compress.codec import Kept, device_of
from actbench.compress.first_order import first_order
from actbench.compress.products import Symmetry, looked_at_product, transposed_product
from actbench.compress.stands import Stand
from actbench.compress.torch_internals import leaky_relu, unviewed
from actbench.quant import RectifiedCodes, Rectifier, draw_mask, keep_where, pack_mask, scale_where, unpack_mask


class Linear(Function):
    """`product(x, weight, bias)`, keeping x [..., D] packed; the weight's gradient is an unbiased estimate.

    `transposed` tells F.linear, whose weight is [H, D], from matmul, whose weight is [D, H].
    """

    @staticmethod
    def forward(
        ctx: Any,
        product: Callable[..., Tensor],
        transposed: bool,
        kept: Kept,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        """Keeps what is `kept` of x, and the weight if x needs a gradient."""
        operands = (x, weight) if bias is None else (x, weight, bias)
        ctx.reading, ctx.transposed = kept.reading, transposed
        # As FP32: a weight that nobody reads may be stepped before backward.
        ctx.save_for_backward(weight if x.requires_grad else None, *kept.tensors)
        out = product(*operands)
        # On more than two dimensions F.linear returns a view.
        return unviewed(out)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Exact for x and bias, an estimate for the weight."""
        weight, *packed = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        by_x = by_weight = by_bias = None
        if ctx.needs_input_grad[3]:
            # Under autocast the gradient is shorter than the weight.
            square = (weight if ctx.transposed else weight.t()).to(rows.dtype)
            by_x = (rows @ square).view(*gradient.shape[:-1], square.shape[1])
        if ctx.needs_input_grad[4]:
            by_weight = ctx.reading.left_product(rows.t(), tuple(packed))
            by_weight = by_weight if ctx.transposed else by_weight.t()
        if ctx.needs_input_grad[5]:
            by_bias = rows.sum(0)
        return None, None, None, by_x, by_weight, by_bias


class Addmm(Function):
    """`torch.addmm(input, x, weight)`, beta input + alpha x weight, keeping x [N, D] packed as `Linear` does."""

    @staticmethod
    def forward(
        ctx: Any,
        product: Callable[..., Tensor],
        kept: Kept,
        input: Tensor,
        x: Tensor,
        weight: Tensor,
        beta: float,
        alpha: float,
    ) -> Tensor:
        """Keeps what is `kept` of x, and the weight [D, H] if x needs a gradient."""
        ctx.reading, ctx.shape, ctx.beta, ctx.alpha = kept.reading, input.shape, beta, alpha
        ctx.save_for_backward(weight if x.requires_grad else None, *kept.tensors)
        return product(input, x, weight, beta=beta, alpha=alpha)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Exact for input and x, an estimate for the weight."""
        weight, *packed = ctx.saved_tensors
        by_input = by_x = by_weight = None
        if ctx.needs_input_grad[2]:
            by_input = (gradient * ctx.beta).sum_to_size(ctx.shape)
        if ctx.needs_input_grad[3]:
            by_x = (gradient @ weight.t().to(gradient.dtype)) * ctx.alpha
        if ctx.needs_input_grad[4]:
            by_weight = ctx.reading.left_product(gradient.t(), tuple(packed), ctx.alpha).t()
        return None, None, by_input, by_x, by_weight, None, None


class Relu(Function):
    """`torch.relu`, keeping one bit an element, or what `stand` gave way to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool, positive: Tensor, stand: Stand) -> Tensor:
        """Keeps the bits of what is `positive`, uint8."""
        ctx.stand = stand
        ctx.save_for_backward(positive)
        if inplace:
            ctx.mark_dirty(x)
        return x.relu_() if inplace else x.relu()

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Exact."""
        (packed,) = ctx.saved_tensors
        by_x = gradient.masked_fill(packed <= 0, 0) if ctx.stand.whole else keep_where(gradient, packed)
        return by_x, None, None, None


class LeakyRelu(Function):
    """`F.leaky_relu`, keeping one bit an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float, inplace: bool, above: Tensor) -> Tensor:
        """Keeps the bits of where x is `above` 0, uint8: what FP32's backward asks."""
        ctx.slope = slope
        ctx.save_for_backward(above)
        if inplace:
            ctx.mark_dirty(x)
        return leaky_relu(x, slope, inplace)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Exact."""
        (above,) = ctx.saved_tensors
        by_x = torch.where(unpack_mask(above, gradient.shape), gradient, gradient * ctx.slope)
        return by_x, None, None, None


class Elu(Function):
    """`F.elu`, keeping rectified codes of its output's negative, which has all that its derivative asks.

    Or the output itself, where `stand` gave way to it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        alpha: float,
        inplace: bool,
        out: list[Tensor],
        rectifier: Rectifier,
        codes: RectifiedCodes,
        stand: Stand,
    ) -> Tensor:
        """Keeps the `codes`; `out` has the result."""
        ctx.rectifier, ctx.alpha, ctx.stand = rectifier, alpha, stand
        ctx.save_for_backward(*codes)
        return take(ctx, out, x, inplace)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """An unbiased estimate: g where x >= 0, (α + out) g elsewhere."""
        codes = ctx.saved_tensors
        if ctx.stand.whole:
            out = codes[0]
            by_x = torch.where(out < 0, (ctx.alpha + out) * gradient, gradient)
        else:
            negative = ctx.rectifier.dequantize(codes)
            by_x = gradient + ctx.rectifier.passed(gradient * (ctx.alpha - 1 - negative), codes)
        return by_x, None, None, None, None, None, None


class DrawnMask:
    """The mask of one dropout of `x` in training with 0 < p < 1: how it was drawn, and how it is had again.

    It is kept as a bit an element or, where `by_seed`, as the generator's state before it was drawn.
    """

    def __init__(self, x: Tensor, p: float, inplace: bool, by_seed: bool) -> None:
        # Stock CUDA draws in place as a CPU does, and otherwise in a kernel of its own.
        on_cuda = device_of(x) == "cuda"
        self._fused = on_cuda and not inplace
        self._by_seed = by_seed and _can_be_drawn_again(x) and self._fused == on_cuda
        self._p, self._shape, self._dtype = p, x.shape, x.dtype
        self.factor = 1 / (1 - p) if self._fused else _drawn_factor(p, x.dtype, x.device.type if x.is_cuda else "cpu")

    def draw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the stock function makes of `x`, drawing what that would draw; and what is kept of the mask."""
        state = generator_of(x).get_state() if self._by_seed else None
        if self._fused:
            out, mask = torch.native_dropout(x, self._p, True)
            return out, pack_mask(mask) if state is None else state
        if x.is_contiguous() and device_of(x) != "cuda":
            packed = draw_mask(x.numel(), 1 - self._p, generator_of(x))
            out = scale_where(x, packed, self.factor)
        else:
            noise = torch.empty_like(x).bernoulli_(1 - self._p).div_(1 - self._p)
            packed, out = pack_mask(noise != 0), x * noise
        return out, packed if state is None else state

    def bits(self, kept: Tensor, device: torch.device) -> Tensor:
        """Which elements survived, a bit each, of what `draw` kept; on `device`, the dropout's own."""
        if not self._by_seed:
            return kept
        return _draw_again(self._shape, self._dtype, device, self._p, kept, self._fused)


@cache
def _drawn_factor(p: float, dtype: torch.dtype, device: str) -> float:
    """What 1 / (1 - p) is for a dropout that draws its noise and divides it on `device`, rounded as there.

    Waits for a GPU, once.
    """
    return float(torch.ones(1, dtype=dtype, device=device).div_(1 - p))


class Dropout(Function):
    """`F.dropout` in training with 0 < p < 1, keeping what `mask` says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool, out: list[Tensor], mask: DrawnMask, kept: Tensor) -> Tensor:
        """Keeps what is `kept` of the mask; `out` has what it makes of `x`."""
        ctx.mask = mask
        ctx.save_for_backward(kept)
        return take(ctx, out, x, inplace)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Exact."""
        (kept,) = ctx.saved_tensors
        by_x = scale_where(gradient, ctx.mask.bits(kept, gradient.device), ctx.mask.factor)
        return by_x, None, None, None, None


def take(ctx: Any, out: list[Tensor], x: Tensor, inplace: bool) -> Tensor:
    """The result that `out` has, once, or `x` become it: an argument that is returned would be a view of itself."""
    if not inplace:
        return out.pop()
    ctx.mark_dirty(x)
    return x.copy_(out.pop())


def generator_of(x: Tensor) -> torch.Generator:
    """The generator that a dropout of `x` draws from."""
    return torch.cuda.default_generators[x.get_device()] if x.is_cuda else torch.default_generator


def _can_be_drawn_again(x: Tensor) -> bool:
    """Whether another tensor of this shape and dtype gets the same mask from the same state."""
    if not x.is_cuda:
        return x.is_contiguous()
    # CUDA's mask depends on how many values a thread loads at once; a generator cannot be set back during a capture.
    return x.is_contiguous() and x.data_ptr() % 16 == 0 and not torch.cuda.is_current_stream_capturing()


def _draw_again(
    shape: torch.Size, dtype: torch.dtype, device: torch.device, p: float, state: Tensor, fused: bool
) -> Tensor:
    """The bits of a dropout of these that began at the generator's `state`, `fused` as on CUDA or drawn as on a CPU.

    On CUDA the device's only generator is set back meanwhile: other threads must not draw from it.
    """
    if not fused:
        generator = torch.Generator("cpu")
        generator.set_state(state)
        return draw_mask(shape.numel(), 1 - p, generator)
    x = torch.empty(shape, dtype=dtype, device=device)
    generator = generator_of(x)
    now = generator.get_state()
    generator.set_state(state)
    try:
        mask = torch.native_dropout(x, p, True)[1]
    finally:
        generator.set_state(now)
    return pack_mask(mask)


class SparseProduct(Function):
    """`product(A, x)`, or `product(A, x, reduce)` for "sum" or "mean", of a sparse CSR A, keeping A alone.

    With `reduce` stock torch keeps the dense x as well, which only a gradient for A's values would need.
    """

    @staticmethod
    def forward(
        ctx: Any,
        product: Callable[..., Tensor],
        looks: bool,
        adjacency: Tensor,
        x: Tensor,
        reduce: str | None,
    ) -> Tensor:
        """Keeps nothing that is not the graph's already; backward `looks` whether A is symmetric."""
        ctx.looks, ctx.reduce = looks, reduce
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(adjacency)
        return product(adjacency, x) if reduce is None else product(adjacency, x, reduce)

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        """Exact."""
        (adjacency,) = ctx.saved_tensors
        if gradient is None:
            return (None,) * 5
        if ctx.looks:
            return None, None, None, looked_at_product(adjacency, gradient, ctx.reduce), None
        return None, None, None, transposed_product(adjacency, Symmetry.NONE, gradient, ctx.reduce), None
