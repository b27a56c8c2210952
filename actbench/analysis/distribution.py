"""What the variance claims rest on: how the values of real activations lie in their blocks, call by call.

A call's stored values v (x, or x P where the scheme projects) are normalised by their block's own bfloat16 minimum
and scale to t = (v - minimum) / scale in [0, B], as the quantizer does; stochastic rounding on edges l <= t < h then
has variance (t - l)(h - t) in units of the squared scale. Blocks without a range are exact and stand in no average in
such units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actbench.analysis.fixed_weights import FixedWeights
from actbench.analysis.substitution import Substituted, seen
from actbench.compress.saved import Kept
from actbench.quant import Packing, dequantize, quantize
from actbench.quant.levels import clipped_normal_masses, expected_variance, level_table, uniform_variance
from actbench.quant.packed import Packed
from actbench.scheme import LEVELS, Scheme

BINS: Final = 48
"""Of the histogram over [0, B]: a multiple of B for 2 bits, so that the levels lie on borders of bins."""
BLOCK_LENGTHS: Final = (16, 32, 64, 128, 256, 512, 1024)
_CHUNK_ELEMENTS: Final = 2**20
_SHORTEST_NORMAL_BLOCK: Final = 3

Masses = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LevelsFound:
    """Rounding of one call's values onto one level table, in units of the squared scale.

    `if_normal` and `if_uniform` are expected where t were the clipped normal (None for blocks of less than 3) or
    uniform, `expected` of the values as they are, `measured` the mean squared error of the quantizer itself with the
    standard error that follows from the values. `error` is the expected root of the mean squared error of an element
    in the values' own unit.
    """

    edges: tuple[float, ...]
    if_normal: float | None
    if_uniform: float
    expected: float
    measured: float
    measured_standard_error: float
    error: float


@dataclass(frozen=True)
class BlockFound:
    """One block length: the bytes it takes and the expected error of an element under every level table."""

    length: int
    saved_bytes: int
    error: dict[str, float]


@dataclass(frozen=True)
class CallFound:
    """One call's stored values [rows, width] under one scheme.

    `histogram` counts t / B in `BINS` equal bins of [0, 1]. `divergence` is the Jensen-Shannon divergence of that
    histogram, in bits, to the uniform distribution and to the clipped normal in the same bins. `rms` is the root mean
    square of the values. `levels` and `divergence` to the normal are empty or None where no block has a range.
    """

    call: str
    rows: int
    width: int
    projected: bool
    bits: int
    block_length: int
    rms: float
    histogram: list[int]
    divergence: dict[str, float | None]
    levels: dict[str, LevelsFound]
    blocks: list[BlockFound]

    @property
    def normal_over_uniform(self) -> float | None:
        """Expected variance under clipped-normal levels over that under uniform ones; above 1 VM is worse."""
        if not self.levels or self.levels["uniform"].expected == 0:
            return None
        return self.levels["clipped-normal"].expected / self.levels["uniform"].expected


def study_calls(
    weights: FixedWeights, scheme: Scheme, draws: int, report: Callable[[str], None] = lambda call: None
) -> list[CallFound]:
    """What `scheme` would keep of every call of a forward pass; nothing for a scheme that quantizes nothing.

    Rounding is drawn `draws` times; the projection is that of seed 0.
    """
    found: list[CallFound] = []

    def substitute(call: str, kept: Kept) -> Kept:
        def see(x: Tensor) -> None:
            report(call)
            found.append(study(call, x, kept, draws))

        return seen(kept, see)

    if scheme.compresses:
        weights.forward(Substituted(scheme, 0, substitute))
    return found


def study(call: str, x: Tensor, kept: Kept, draws: int) -> CallFound:
    """The study of one call's input `x` [rows, width], which is `kept` so."""
    x = x.detach()
    values = (x if kept.projection is None else x.float() @ kept.projection.matrix(x.float())).contiguous()
    packing = replace(kept.packing, dtype=values.dtype)
    tables = {name: level_table(name, packing.bits, packing.block_length) for name in LEVELS}
    histogram = torch.zeros(BINS, dtype=torch.int64)
    packed = quantize(values, packing, kept.noise.seed, kept.noise.rounding_stream)
    for t, _ in _normalised(values, packed, packing):
        bins = (t * (BINS / _top(packing))).long().clamp_(0, BINS - 1)
        histogram += torch.bincount(bins, minlength=BINS).cpu()
    counts = histogram.numpy()
    known = counts.sum() > 0
    return CallFound(
        call=call,
        rows=values.shape[0],
        width=values.shape[1],
        projected=kept.projection is not None,
        bits=packing.bits,
        block_length=packing.block_length,
        rms=math.sqrt(float(values.double().square().mean())),
        histogram=histogram.tolist(),
        divergence=_divergences(counts, packing) if known else {},
        levels={name: _study_levels(values, kept, packing, table, draws) for name, table in tables.items()}
        if known
        else {},
        blocks=[_study_block(values, packing, length) for length in BLOCK_LENGTHS],
    )


def jensen_shannon(p: Masses, q: Masses) -> float:
    """The Jensen-Shannon divergence of two distributions over the same bins, in bits, from 0 to 1 (Lin, 1991)."""
    middle = (p + q) / 2
    halves = (np.sum(each[each > 0] * np.log2(each[each > 0] / middle[each > 0])) for each in (p, q))
    return float(sum(halves) / 2)


def _top(packing: Packing) -> int:
    return int(2**packing.bits - 1)


def _divergences(counts: npt.NDArray[np.int64], packing: Packing) -> dict[str, float | None]:
    masses = counts / counts.sum()
    normal = None
    if packing.block_length >= _SHORTEST_NORMAL_BLOCK:
        normal = jensen_shannon(masses, clipped_normal_masses(_top(packing), packing.block_length, BINS))
    return {"uniform": jensen_shannon(masses, np.full(BINS, 1 / BINS)), "clipped-normal": normal}


def _normalised(values: Tensor, packed: Packed, packing: Packing) -> Iterator[tuple[Tensor, Tensor]]:
    """t and its block's scale, float64 [n] each, chunk by chunk, of the elements whose block has a range."""
    _, minimum, scale = packed
    flat, length = values.view(-1), packing.block_length
    blocks = max(_CHUNK_ELEMENTS // length, 1)
    for first in range(0, minimum.numel(), blocks):
        part = flat[first * length : (first + blocks) * length].double()
        low, step = (
            each[first : first + blocks].double().repeat_interleave(length)[: part.numel()] for each in (minimum, scale)
        )
        ranged = step > 0
        yield ((part - low)[ranged] / step[ranged]).clamp_(0, _top(packing)), step[ranged]


def rounding_variance(t: Tensor, edges: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Variance (t - l)(h - t) of stochastic rounding and the variance of its squared error, float64 as `t`."""
    table = torch.tensor(edges, dtype=torch.float64, device=t.device)
    lower = torch.bucketize(t, table[1:-1], right=True)
    down, up = t - table[lower], table[lower + 1] - t
    variance = down * up
    # Up by `up` with probability down / width, down by `down` with the rest: E e⁴ = down · up (down³ + up³) / width.
    fourth = variance * (down**3 + up**3) / (down + up)
    return variance, fourth - variance**2


def _study_levels(values: Tensor, kept: Kept, packing: Packing, edges: tuple[float, ...], draws: int) -> LevelsFound:
    packing = replace(packing, levels=edges)
    expected = spread = absolute = measured = 0.0
    elements = 0
    for draw in range(draws):
        packed = quantize(values, packing, kept.noise.seed + draw, kept.noise.rounding_stream)
        read = dequantize(packed, packing)
        pairs = zip(_normalised(values, packed, packing), _normalised(read, packed, packing), strict=True)
        for (t, scale), (rounded, _) in pairs:
            measured += float((rounded - t).square().sum()) / draws
            if draw == 0:
                variance, of_square = rounding_variance(t, edges)
                elements += t.numel()
                expected += float(variance.sum())
                spread += float(of_square.sum())
                absolute += float((variance * scale**2).sum())
    normal = packing.block_length >= _SHORTEST_NORMAL_BLOCK
    return LevelsFound(
        edges=edges,
        if_normal=expected_variance(edges, packing.block_length) if normal else None,
        if_uniform=uniform_variance(edges),
        expected=expected / elements,
        measured=measured / elements,
        measured_standard_error=math.sqrt(max(spread, 0.0) / draws) / elements,
        error=math.sqrt(absolute / values.numel()),
    )


def _study_block(values: Tensor, packing: Packing, length: int) -> BlockFound:
    length = min(length, values.numel())
    error = {}
    for name in LEVELS:
        edges = level_table(name, packing.bits, length)
        other = replace(packing, block_length=length, levels=edges)
        packed = quantize(values, other, 0, 0)
        squares = (
            float((rounding_variance(t, edges)[0] * scale**2).sum()) for t, scale in _normalised(values, packed, other)
        )
        error[name] = math.sqrt(sum(squares) / values.numel())
    return BlockFound(length, other.layout.total_bytes, error)
