"""A compression whose kept tensors are looked at, or kept otherwise than its scheme would keep them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from actbench.compress import Compression
from actbench.compress.codec import Quantized
from actbench.compress.rules import Rules
from actbench.scheme import Scheme

Substitute = Callable[[str, Quantized], Quantized]
"""From a call's name, as "linear 2", and how the scheme keeps its input to how that is kept instead."""


def substituted(scheme: Scheme, seed: int, substitute: Substitute) -> Compression:
    """As `compress(scheme, seed)`, with equal noise, but each kept input goes through `substitute`."""
    return Compression(_Substituted(scheme, seed, substitute))


class _Substituted(Rules):
    def __init__(self, scheme: Scheme, seed: int, substitute: Substitute) -> None:
        super().__init__(scheme, seed)
        self._substitute = substitute

    def codec(self, operation: str, x: Tensor, width: int, projected: bool) -> Quantized | None:
        """What `substitute` makes of how the scheme keeps that input; None where it is kept as it is anyway."""
        codec = super().codec(operation, x, width, projected)
        return codec and self._substitute(f"{operation} {self.calls[operation]}", codec)


@dataclass(frozen=True)
class Unrounded(Quantized):
    """Kept as floats: x, or x P under the very projection that the scheme draws, with nothing quantized."""

    def pack(self, x: Tensor) -> tuple[Tensor, ...]:
        """x or x P."""
        return (x.clone() if self.projection is None else x @ self.projection.matrix(x),)

    def unpack(self, packed: tuple[Tensor, ...]) -> Tensor:
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
class Seen(Quantized):
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

    def unpack(self, packed: tuple[Tensor, ...]) -> Tensor:
        """What `redraw` makes of x."""
        return self.redraw(packed[0])


def unrounded(call: str, kept: Quantized) -> Quantized:
    """A substitute: every input projected as the scheme says and not rounded."""
    return Unrounded(**_fields(kept))


def exact(call: str, kept: Quantized) -> Quantized:
    """A substitute: every input as it is."""
    return Exact(**_fields(kept))


def seen(kept: Quantized, see: Callable[[Tensor], None]) -> Quantized:
    """`kept`, shown to `see`."""
    return Seen(**_fields(kept), see=see)


def probed(
    kept: Quantized,
    see_product: Callable[[Tensor, Tensor], object] | None,
    see_input: Callable[[Tensor], object] | None = None,
) -> Quantized:
    """The input that `kept` is of, as it is, shown to one or the other."""
    return Probed(**_fields(kept), see_input=see_input, see_product=see_product)


def redrawn(kept: Quantized, redraw: Callable[[Tensor], Tensor]) -> Quantized:
    """The input that `kept` is of, as it is, and in backward as `redraw` makes it; not for a linear's."""
    return Redrawn(**_fields(kept), redraw=redraw)


def _fields(kept: Quantized) -> dict[str, Any]:
    return {field.name: getattr(kept, field.name) for field in fields(kept)}
