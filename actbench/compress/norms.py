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
from actbench.compress.codec import Kept, Quantized
from actbench.compress.first_order import first_order
from actbench.compress.torch_internals import batch_norm


@dataclass
class Normalized:
    """What `F.batch_norm` made of x: its result, taken once, and what its own backward would read besides x."""

    out: list[Tensor]
    mean: Tensor
    inverse_std: Tensor
    reserve: Tensor
    library: int

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
        """Keeps what is `kept` of x, and the batch's mean and inverse standard deviation."""
        ctx.reading, ctx.training, ctx.eps, ctx.shape = kept.reading, training, eps, x.shape
        ctx.library = found.library
        # In training the running statistics change with every step and play no part in backward.
        fixed = (None, None) if training else (running_mean, running_var)
        ctx.save_for_backward(weight, *fixed, found.mean, found.inverse_std, found.reserve, *kept.tensors)
        return found.out.pop()

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The stock backward on the estimate of the input."""
        weight, running_mean, running_var, mean, inverse_std, reserve, *packed = ctx.saved_tensors
        x = ctx.reading.unpack(tuple(packed)).view(ctx.shape)
        needed = _needed(ctx)
        gradients = torch_internals.batch_norm_backward(
            ctx.library,
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
        kept: InUnits,
        out: list[Tensor],
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        eps: float,
    ) -> Tensor:
        """Keeps what is `kept` of x̂, and in evaluation the running statistics; `out` has the result."""
        ctx.reading, ctx.training, ctx.shape, ctx.eps = kept.u.reading, training, x.shape, eps
        fixed = (None, kept.inverse_std) if training else (running_mean, running_var)
        ctx.save_for_backward(weight, *fixed, kept.spread, kept.center, *kept.u.tensors)
        return out.pop()

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The stock backward on the estimate of x̂; in evaluation exact for the input, whose gradient has no x̂."""
        weight, running_mean, scale, spread, center, *packed = ctx.saved_tensors
        by_x, by_weight, by_bias = needed = _needed(ctx)
        if ctx.training:
            normal = ctx.reading.unpack(tuple(packed)).view(ctx.shape).mul_(spread)
            return None, None, *batch_norm_backward(gradient, normal, weight, scale, needed), *(None,) * 4
        gradient = gradient.contiguous()
        backward = torch.ops.aten.native_batch_norm_backward
        found: list[Tensor | None] = [None] * 3
        if by_x:
            statistics = running_mean, scale, None, None, False, ctx.eps
            found[0] = backward(gradient, gradient, weight, *statistics, [True, False, False])[0]
        if by_weight or by_bias:
            normal = ctx.reading.unpack(tuple(packed)).view(ctx.shape).mul_(spread).add_(center)
            statistics = torch.zeros_like(scale), torch.ones_like(scale), None, None, False, 0.0
            found[1:] = backward(gradient, normal, weight, *statistics, [False, by_weight, by_bias])[1:]
        return None, None, *_where(needed, found), *(None,) * 4


class LayerNorm(Function):
    """`F.layer_norm`, keeping its input packed in the units of each row."""

    @staticmethod
    def forward(
        ctx: Any,
        kept: InUnits,
        out: list[Tensor],
        x: Tensor,
        shape: tuple[int, ...],
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """Keeps what is `kept` of x̂, of rows of `shape`; `out` has the result."""
        ctx.reading, ctx.shape, ctx.normalized = kept.u.reading, x.shape, shape
        ctx.save_for_backward(weight, bias, kept.inverse_std, kept.spread, *kept.u.tensors)
        return out.pop()

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The stock backward on the estimate of x̂."""
        weight, bias, inverse_std, spread, *packed = ctx.saved_tensors
        normal = ctx.reading.unpack(tuple(packed)).view(ctx.shape).mul_(spread)
        needed = [ctx.needs_input_grad[2], ctx.needs_input_grad[4], ctx.needs_input_grad[5]]
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
        return None, None, *_where([needed[0]], [by_x]), None, *_where(needed[1:], [by_weight, by_bias])


@dataclass(frozen=True, eq=False)
class InUnits:
    """What is kept of a norm's x̂: u, the scale 1 / σ and the spread r of each group and, in evaluation, x̂'s mean."""

    u: Kept
    inverse_std: Tensor
    spread: Tensor
    center: Tensor | None

    @staticmethod
    def of_channels(
        codec: Quantized,
        x: Tensor,
        found: Normalized,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        eps: float,
    ) -> InUnits:
        """Of a batch norm's input [N, C, …]: r and the mean are [1, C, 1, …], 1 / σ is [C]."""
        mean, inverse_std = found.mean, found.inverse_std
        if not training:
            assert running_mean is not None
            assert running_var is not None
            mean, inverse_std = running_mean, (running_var.float() + eps).rsqrt()
        over = tuple(each for each in range(x.dim()) if each != 1)
        normal = (x.detach().float() - by_channel(mean, x)).mul_(by_channel(inverse_std, x))
        return _in_units(codec, normal, inverse_std, over, centered=training)

    @staticmethod
    def of_rows(codec: Quantized, x: Tensor, dimensions: int, mean: Tensor, inverse_std: Tensor) -> InUnits:
        """Of a layer norm's input, whose rows are its last `dimensions`: all of a row have 1 there."""
        normal = (x.detach().float() - mean).mul_(inverse_std)
        return _in_units(codec, normal, inverse_std, tuple(range(x.dim() - dimensions, x.dim())), centered=True)


def _in_units(codec: Quantized, normal: Tensor, inverse_std: Tensor, over: tuple[int, ...], centered: bool) -> InUnits:
    """x̂ = `normal` of groups that `over` are the dimensions of, in units of its spread; of mean 0 if it is `centered`.

    A group without a spread has u = 0. r is below 1 where the norm's eps counts beside the variance.
    """
    normal, center = normal.contiguous(), None
    if not centered:
        center = normal.mean(over, keepdim=True)
        normal.sub_(center)
    spread = torch.linalg.vector_norm(normal, dim=over, keepdim=True)
    spread.div_((normal.numel() / max(spread.numel(), 1)) ** 0.5)
    normal.div_(torch.where(spread > 0, spread, 1))
    return InUnits(Kept.by(codec, normal.view(codec.packing.shape)), inverse_std, spread, center)


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
