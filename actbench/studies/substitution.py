"""A compression whose kept tensors are looked at, or kept otherwise than its scheme would keep them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from actbench.compress import Compression
from actbench.compress.saved import Kept
from actbench.scheme import Scheme

Substitute = Callable[[str, Kept], Kept]
"""From a call's name, as "linear 2", and how the scheme keeps its input to how that is kept instead."""


class Substituted(Compression):
    """As `compress(scheme, seed)`, with equal noise, but each kept input goes through `substitute`."""

    def __init__(self, scheme: Scheme, seed: int, substitute: Substitute) -> None:
        super().__init__(scheme, seed)
        self._substitute = substitute

    def keep(self, operation: str, rows: int, width: int, dtype: torch.dtype, projected: bool) -> Kept | None:
        """What `substitute` makes of how the scheme keeps that input; None where it is kept as it is anyway."""
        kept = super().keep(operation, rows, width, dtype, projected)
        return kept and self._substitute(f"{operation} {self._calls[operation]}", kept)


@dataclass(frozen=True)
class Unrounded(Kept):
    """Kept as floats: x, or x P under the very projection that the scheme draws, with nothing quantized."""

    def pack(self, x: Tensor) -> tuple[Tensor, ...]:
        """x or x P."""
        return (x.clone() if self.projection is None else x @ self.projection.matrix(x),)

    def recover(self, packed: tuple[Tensor, ...]) -> Tensor:
        """x or x P Pᵀ."""
        (u,) = packed
        return u if self.projection is None else u @ self.projection.matrix(u).t()

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """`left` times x or x P Pᵀ, times `scale`."""
        (u,) = packed
        product = left @ u
        product = product if self.projection is None else product @ self.projection.matrix(product).t()
        return product if scale == 1 else product * scale


@dataclass(frozen=True)
class Exact(Unrounded):
    """Kept as it is."""

    @property
    def projection(self) -> None:
        """None: there is no projection."""
        return


@dataclass(frozen=True)
class Seen(Kept):
    """Kept as the scheme says, and shown to `see` before that."""

    see: Callable[[Tensor], None] = lambda x: None

    def pack(self, x: Tensor) -> tuple[Tensor, ...]:
        """Show x, then pack it."""
        self.see(x)
        return super().pack(x)


@dataclass(frozen=True)
class Probed(Exact):
    """Kept as it is; x is shown when it is kept, and x with the left factor when a weight's gradient is made of it."""

    see_input: Callable[[Tensor], object] | None = None
    see_product: Callable[[Tensor, Tensor], object] | None = None

    def pack(self, x: Tensor) -> tuple[Tensor, ...]:
        """Show x, then keep it."""
        if self.see_input:
            self.see_input(x.detach())
        return super().pack(x)

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """Show x and `left` times `scale`, then multiply them."""
        if self.see_product:
            self.see_product(packed[0], left if scale == 1 else left * scale)
        return super().left_product(left, packed, scale)


@dataclass(frozen=True)
class Redrawn(Exact):
    """Kept as it is, and read by every backward pass as `redraw` makes it of x."""

    redraw: Callable[[Tensor], Tensor] = lambda x: x

    def recover(self, packed: tuple[Tensor, ...]) -> Tensor:
        """What `redraw` makes of x."""
        return self.redraw(packed[0])


def unrounded(call: str, kept: Kept) -> Kept:
    """A substitute: every input projected as the scheme says and not rounded."""
    return Unrounded(**_fields(kept))


def exact(call: str, kept: Kept) -> Kept:
    """A substitute: every input as it is."""
    return Exact(**_fields(kept))


def seen(kept: Kept, see: Callable[[Tensor], None]) -> Kept:
    """`kept`, shown to `see`."""
    return Seen(**_fields(kept), see=see)


def probed(
    kept: Kept,
    see_product: Callable[[Tensor, Tensor], object] | None,
    see_input: Callable[[Tensor], object] | None = None,
) -> Kept:
    """The input that `kept` is of, as it is, shown to one or the other."""
    return Probed(**_fields(kept), see_input=see_input, see_product=see_product)


def redrawn(kept: Kept, redraw: Callable[[Tensor], Tensor]) -> Kept:
    """The input that `kept` is of, as it is, and in backward as `redraw` makes it; not for a linear's."""
    return Redrawn(**_fields(kept), redraw=redraw)


def _fields(kept: Kept) -> dict[str, Any]:
    return {field.name: getattr(kept, field.name) for field in fields(kept)}
