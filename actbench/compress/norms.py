"""Norms whose input is kept in the units that backward reads it in: those of each row's or channel's own scale.

A norm's backward divides by the scale σ of every group that it normalises, a row or a channel, and a block of codes
mixes groups. A code of x rounds all of a block by its widest group; in a narrow one that is many σ, and backward, which
is quadratic in x̂ = (x - μ) / σ, turns it into noise and bias of any size. What is packed here is u = x̂ / r, r the root
mean square of a group's x̂: all groups have the same scale, whatever theirs was. docs/method.md derives the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from actbench.compress import torch_internals
from actbench.compress.first_order import first_order
from actbench.compress.saved import Kept
from actbench.compress.torch_internals import batch_norm


@dataclass
class Normalized:
    """What `F.batch_norm` made of x: its result, taken once, and what its own backward would read besides x."""

    out: list[Tensor]
    mean: Tensor
    inverse_std: Tensor
    reserve: Tensor
    implementation: int

    @staticmethod
    def of(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Normalized:
        """By what F.batch_norm itself dispatches to."""
        with torch.no_grad():
            statistics = running_mean, running_var, training, momentum, eps
            out, mean, inverse_std, reserve, library = batch_norm(x, weight, bias, *statistics)
        return Normalized([out], mean, inverse_std, reserve, library)


class BatchNorm(Function):
    """`F.batch_norm`, keeping its input packed as it is and not projected, as the papers' schemes do."""

    @staticmethod
    def forward(
        ctx: Any,
        kept: Kept,
        found: Normalized,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        eps: float,
    ) -> Tensor:
        """Keeps the packed input and the batch's mean and inverse standard deviation."""
        ctx.kept, ctx.training, ctx.eps, ctx.shape = kept, training, eps, x.shape
        ctx.implementation = found.implementation
        # In training the running statistics change with every step and play no part in backward.
        fixed = (None, None) if training else (running_mean, running_var)
        packed = kept.pack(x.reshape(kept.packing.shape))
        ctx.save_for_backward(weight, *fixed, found.mean, found.inverse_std, found.reserve, *packed)
        return found.out.pop()

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The stock backward on the estimate of the input."""
        weight, running_mean, running_var, mean, inverse_std, reserve, *packed = ctx.saved_tensors
        x = ctx.kept.recover(tuple(packed)).view(ctx.shape)
        needed = _needed(ctx)
        gradients = torch_internals.batch_norm_backward(
            ctx.implementation,
            x,
            gradient.contiguous(),
            weight,
            running_mean,
            running_var,
            mean,
            inverse_std,
            ctx.training,
            ctx.eps,
            needed,
            reserve,
        )
        return None, None, *_where(needed, gradients), None, None, None, None


class BatchNormInUnits(Function):
    """`F.batch_norm`, keeping its input packed in the units of each channel."""

    @staticmethod
    def forward(
        ctx: Any,
        kept: Kept,
        found: Normalized,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        eps: float,
    ) -> Tensor:
        """Keeps the packed u, and of each channel the inverse standard deviation and the spread of x̂.

        In evaluation the running statistics and, as x̂ has a mean then, that mean.
        """
        ctx.kept, ctx.training, ctx.shape, ctx.eps = kept, training, x.shape, eps
        over = tuple(each for each in range(x.dim()) if each != 1)
        mean, inverse_std = found.mean, found.inverse_std
        if not training:
            mean, inverse_std = running_mean, (running_var.float() + eps).rsqrt()  # type: ignore[assignment, union-attr]
        u, spread, center = in_units(x, by_channel(mean, x), by_channel(inverse_std, x), over, centered=training)
        packed = kept.pack(u.view(kept.packing.shape))
        fixed = (None, inverse_std) if training else (running_mean, running_var)
        ctx.save_for_backward(weight, *fixed, spread, center, *packed)
        return found.out.pop()

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The stock backward on the estimate of x̂; in evaluation exact for the input, whose gradient has no x̂."""
        weight, running_mean, scale, spread, center, *packed = ctx.saved_tensors
        by_x, by_weight, by_bias = needed = _needed(ctx)
        if ctx.training:
            normal = ctx.kept.recover(tuple(packed)).view(ctx.shape).mul_(spread)
            return None, None, *batch_norm_backward(gradient, normal, weight, scale, needed), *(None,) * 4
        gradient = gradient.contiguous()
        backward = torch.ops.aten.native_batch_norm_backward
        found: list[Tensor | None] = [None] * 3
        if by_x:
            statistics = running_mean, scale, None, None, False, ctx.eps
            found[0] = backward(gradient, gradient, weight, *statistics, [True, False, False])[0]
        if by_weight or by_bias:
            normal = ctx.kept.recover(tuple(packed)).view(ctx.shape).mul_(spread).add_(center)
            statistics = torch.zeros_like(scale), torch.ones_like(scale), None, None, False, 0.0
            found[1:] = backward(gradient, normal, weight, *statistics, [False, by_weight, by_bias])[1:]
        return None, None, *_where(needed, found), *(None,) * 4


class LayerNorm(Function):
    """`F.layer_norm`, keeping its input packed in the units of each row."""

    @staticmethod
    def forward(
        ctx: Any, kept: Kept, x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        """Keeps the packed u and each row's inverse standard deviation and spread of x̂."""
        out, mean, inverse_std = torch.ops.aten.native_layer_norm(x, shape, weight, bias, eps)
        ctx.kept, ctx.shape, ctx.normalized = kept, x.shape, shape
        over = tuple(range(x.dim() - len(shape), x.dim()))
        u, spread, _ = in_units(x, mean, inverse_std, over, centered=True)
        packed = kept.pack(u.view(kept.packing.shape))
        ctx.save_for_backward(weight, bias, inverse_std, spread, *packed)
        result: Tensor = out
        return result

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The stock backward on the estimate of x̂."""
        weight, bias, inverse_std, spread, *packed = ctx.saved_tensors
        normal = ctx.kept.recover(tuple(packed)).view(ctx.shape).mul_(spread)
        needed = [ctx.needs_input_grad[1], ctx.needs_input_grad[3], ctx.needs_input_grad[4]]
        by_x, by_weight, by_bias = torch.ops.aten.native_layer_norm_backward(
            gradient.contiguous(),
            normal,
            ctx.normalized,
            torch.zeros_like(inverse_std),
            torch.ones_like(inverse_std),
            weight,
            bias,
            needed,
        )
        if needed[0]:
            by_x = by_x.mul_(inverse_std)
        return None, *_where([needed[0]], [by_x]), None, *_where(needed[1:], [by_weight, by_bias]), None


def in_units(
    x: Tensor, mean: Tensor, inverse_std: Tensor, over: tuple[int, ...], centered: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """u of `x`, float32 of its shape, contiguous; the spread r of x̂ and, unless it is `centered`, its mean.

    `over` are the dimensions of one group; `mean`, `inverse_std`, r and the mean of x̂ have 1 there. A group without a
    spread has u = 0. r is below 1 where the norm's eps counts beside the variance.
    """
    normal = (x.detach().float() - mean).mul_(inverse_std).contiguous()
    center = None
    if not centered:
        center = normal.mean(over, keepdim=True)
        normal.sub_(center)
    spread = torch.linalg.vector_norm(normal, dim=over, keepdim=True)
    spread.div_((normal.numel() / max(spread.numel(), 1)) ** 0.5)
    return normal.div_(torch.where(spread > 0, spread, 1)), spread, center


def batch_norm_backward(
    gradient: Tensor, normal: Tensor, weight: Tensor | None, inverse_std: Tensor, needed: list[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients by a training batch norm's input, γ and β, as `needed`, of `gradient` [N, C, …] and x̂ = `normal`.

    `inverse_std` is [C].
    """
    # x̂ is an input of mean 0 and variance 1: the stock backward then asks for nothing but a factor after it.
    statistics = torch.zeros_like(inverse_std), torch.ones_like(inverse_std)
    by_x, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
        gradient.contiguous(), normal, weight, None, None, *statistics, True, 0.0, needed
    )
    if needed[0]:
        by_x = by_x.mul_(by_channel(inverse_std, by_x))
    return _where(needed, (by_x, by_weight, by_bias))


def by_channel(values: Tensor, x: Tensor) -> Tensor:
    """[C] `values` in a shape that multiplies `x` [N, C, …]."""
    return values.view(1, -1, *(1,) * (x.dim() - 2))


def _needed(ctx: Any) -> list[bool]:
    """Of x, γ and β."""
    return list(ctx.needs_input_grad[2:5])


def _where(needed: list[bool], gradients: Any) -> tuple[Tensor | None, ...]:
    return tuple(each if need else None for each, need in zip(gradients, needed, strict=True))
