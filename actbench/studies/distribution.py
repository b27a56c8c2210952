"""What the variance claims rest on: how the values of real activations lie in their blocks, call by call.

A call's stored values v (x, or x P where the scheme projects) are normalised by their block's own bfloat16 minimum
and scale to t = (v - minimum) / scale in [0, B], as the quantizer does; stochastic rounding on edges l <= t < h then
has variance (t - l)(h - t) in units of the squared scale. Blocks without a range are exact and stand in no average in
such units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actbench.compress.codec import Quantized
from actbench.quant import Packing, dequantize, quantize
from actbench.quant.backend import Packed
from actbench.quant.layout import Layout
from actbench.quant.levels import clipped_normal_masses, expected_variance, level_table, uniform_variance
from actbench.scheme import LEVELS, Scheme
from actbench.studies.fixed_weights import FixedWeights
from actbench.studies.substitution import seen, substituted

BINS: Final = 48
"""Of the histogram over [0, B]: a multiple of B for 2 bits, so that the levels lie on borders of bins."""
BLOCK_LENGTHS: Final = (16, 32, 64, 128, 256, 512, 1024)
_MOST_ELEMENTS: Final = 2**24
"""Stored values of a call that are looked at; of larger ones evenly spaced runs of rows."""
_RUN_ROWS: Final = 128
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
    """One call's stored values [rows, width] under one scheme, of which `counted_rows` rows were looked at.

    `histogram` counts t / B in `BINS` equal bins of [0, 1]. `divergence` is the Jensen-Shannon divergence of that
    histogram, in bits, to the uniform distribution and to the clipped normal in the same bins. `rms` is the root mean
    square of the values. `levels` and `divergence` to the normal are empty or None where no block has a range.
    """

    call: str
    rows: int
    counted_rows: int
    width: int
    projected: bool
    bits: int
    block_length: int
    rms: float
    histogram: list[int]
    divergence: dict[str, float | None]
    levels: dict[str, LevelsFound]
    blocks: list[BlockFound]
    worst_column: float | None = None
    """Of a norm's input: the largest mean rounding variance of a column in units of the column's own variance.

    Backward divides by the latter, so that above 1 the column's share of the gradient is noise.
    """

    @property
    def normal_over_uniform(self) -> float | None:
        """Expected variance under clipped-normal levels over that under uniform ones; above 1 VM is worse."""
        if not self.levels or self.levels["uniform"].expected == 0:
            return None
        return self.levels["clipped-normal"].expected / self.levels["uniform"].expected


def study_calls(
    weights: FixedWeights, scheme: Scheme, draws: int, report: Callable[[str], None] = lambda call: None
) -> list[CallFound]:
    """What `scheme` would keep of every call of a forward pass; nothing for one that keeps no inputs quantized.

    Those are the schemes that quantize nothing, and the derived ones, which keep codes of what ReLUs make.
    Rounding is drawn `draws` times; the projection is that of seed 0.
    """
    found: list[CallFound] = []

    def substitute(call: str, kept: Quantized) -> Quantized:
        def see(x: Tensor) -> None:
            report(call)
            found.append(study(call, x, kept, draws))

        return seen(kept, see)

    if scheme.keeps_inputs:
        weights.forward(substituted(scheme, 0, substitute))
    return found


def study(call: str, x: Tensor, kept: Quantized, draws: int) -> CallFound:
    """The study of one call's input `x` [rows, width], which is `kept` so."""
    x = x.detach()
    rows = x.shape[0]
    chosen = sampled_rows(rows, kept.packing.shape[1], _MOST_ELEMENTS, x.device)
    x = x if chosen.numel() == rows else x[chosen]
    values = (x if kept.projection is None else x.float() @ kept.projection.matrix(x.float())).contiguous()
    packing = replace(kept.packing, shape=values.shape, dtype=values.dtype)
    tables = {name: level_table(name, int(packing.code.bits), packing.code.block_length) for name in LEVELS}
    histogram = torch.zeros(BINS, dtype=torch.int64)
    packed = quantize(values, packing, kept.noise.seed, kept.noise.rounding_stream)
    for (t,), _ in _normalised((values,), packed, packing):
        bins = (t * (BINS / _top(packing))).long().clamp_(0, BINS - 1)
        histogram += torch.bincount(bins.flatten(), minlength=BINS).cpu()
    counts = histogram.numpy()
    known = counts.sum() > 0
    return CallFound(
        call=call,
        rows=rows,
        counted_rows=values.shape[0],
        width=values.shape[1],
        projected=kept.projection is not None,
        bits=int(packing.code.bits),
        block_length=packing.code.block_length,
        rms=math.sqrt(float(values.double().square().mean())),
        histogram=histogram.tolist(),
        divergence=_divergences(counts, packing) if known else {},
        levels={name: _study_levels(values, kept, packing, table, draws) for name, table in tables.items()}
        if known
        else {},
        blocks=[_study_block(values, packing, rows, length) for length in BLOCK_LENGTHS],
        worst_column=_worst_column(values, packing) if call.startswith("batch_norm") else None,
    )


def _worst_column(values: Tensor, packing: Packing) -> float | None:
    """Of the columns of `values` [rows, width] that vary, the largest expected rounding variance over their own."""
    name = next(
        each
        for each in LEVELS
        if level_table(each, int(packing.code.bits), packing.code.block_length) == packing.code.levels
    )
    rounding = expected_squares(values, packing, [name])[name].view(values.shape).double().mean(0)
    own = values.double().var(0, correction=0)
    ratios = (rounding / own)[own > 0]
    return float(ratios.max()) if ratios.numel() else None


def sampled_rows(rows: int, width: int, elements: int, device: torch.device) -> Tensor:
    """Indices of all rows or, where they hold more than `elements`, of evenly spaced runs that hold about so many."""
    runs = max(elements // (width * _RUN_ROWS), 1)
    if rows <= runs * _RUN_ROWS:
        return torch.arange(rows, device=device)
    starts: Tensor = torch.linspace(0, rows - _RUN_ROWS, runs, device=device).long()
    found: Tensor = (starts[:, None] + torch.arange(_RUN_ROWS, device=device)).flatten().unique()
    return found


def jensen_shannon(p: Masses, q: Masses) -> float:
    """The Jensen-Shannon divergence of two distributions over the same bins, in bits, from 0 to 1 (Lin, 1991)."""
    middle = (p + q) / 2
    halves = (np.sum(each[each > 0] * np.log2(each[each > 0] / middle[each > 0])) for each in (p, q))
    return float(sum(halves) / 2)


def _top(packing: Packing) -> int:
    return int(2 ** int(packing.code.bits) - 1)


def _divergences(counts: npt.NDArray[np.int64], packing: Packing) -> dict[str, float | None]:
    masses = counts / counts.sum()
    normal = None
    if packing.code.block_length >= _SHORTEST_NORMAL_BLOCK:
        normal = jensen_shannon(masses, clipped_normal_masses(_top(packing), packing.code.block_length, BINS))
    return {"uniform": jensen_shannon(masses, np.full(BINS, 1 / BINS)), "clipped-normal": normal}


def _normalised(
    tensors: tuple[Tensor, ...], packed: Packed, packing: Packing
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """t of every tensor, [blocks, G] each, and the blocks' scales [blocks, 1], of blocks that have a range.

    `tensors` hold packed values, or values read back. A short last block comes alone, and as short as it is.
    """
    _, minimum, scale = packed
    length, numel = packing.code.block_length, packing.shape.numel()
    whole = numel // length
    step = max(_CHUNK_ELEMENTS // length, 1)
    ends = [*range(step, whole, step), whole, minimum.numel()]
    first = 0
    for last in dict.fromkeys(ends):
        if last == first:
            continue
        low, high = minimum[first:last, None].float(), scale[first:last, None].float()
        columns = min(length, numel - first * length)
        grids = [each.reshape(-1)[first * length : last * length].view(-1, columns).float() for each in tensors]
        ranged = high[:, 0] > 0
        if not bool(ranged.all()):
            grids, low, high = [grid[ranged] for grid in grids], low[ranged], high[ranged]
        yield tuple(((grid - low) / high).clamp_(0, _top(packing)) for grid in grids), high
        first = last


def rounding_variance(t: Tensor, edges: tuple[float, ...]) -> Tensor:
    """Variance (t - l)(h - t) of stochastic rounding of every element."""
    low, high = _bins(t, edges)
    return (t - low).mul_(high - t)


def squared_error_variance(t: Tensor, edges: tuple[float, ...]) -> Tensor:
    """Variance of the squared error of stochastic rounding of every element.

    Up by `up` with probability down / width, down by `down` with the rest: E e⁴ = down · up (down³ + up³) / width, and
    (down³ + up³) / width = width² - 3 down · up.
    """
    low, high = _bins(t, edges)
    variance = (t - low) * (high - t)
    return variance * ((high - low) ** 2 - 4 * variance)


def _bins(t: Tensor, edges: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    table = torch.tensor(edges, dtype=t.dtype, device=t.device)
    lower = torch.bucketize(t, table[1:-1], right=True)
    return table[lower], table[lower + 1]


def expected_squares(values: Tensor, packing: Packing, names: Iterable[str] = LEVELS) -> dict[str, Tensor]:
    """The expected squared rounding error of every element of `values`, float32 in a row, by level table."""
    _, minimum, scale = quantize(values, packing, 0, 0)
    low, step = (
        each.float().repeat_interleave(packing.code.block_length)[: values.numel()] for each in (minimum, scale)
    )
    t = torch.where(step > 0, (values.reshape(-1).float() - low) / step, 0).clamp_(0, _top(packing))
    tables = {name: level_table(name, int(packing.code.bits), packing.code.block_length) for name in names}
    return {name: rounding_variance(t, edges).mul_(step).mul_(step) for name, edges in tables.items()}


def _study_levels(
    values: Tensor, kept: Quantized, packing: Packing, edges: tuple[float, ...], draws: int
) -> LevelsFound:
    packing = replace(packing, code=replace(packing.code, levels=edges))
    expected = spread = absolute = measured = 0.0
    elements = 0
    for draw in range(draws):
        packed = quantize(values, packing, kept.noise.seed + draw, kept.noise.rounding_stream)
        for (t, rounded), scale in _normalised((values, dequantize(packed, packing)), packed, packing):
            measured += _sum((rounded - t).square_()) / draws
            if draw == 0:
                variance = rounding_variance(t, edges)
                elements += t.numel()
                expected += _sum(variance)
                spread += _sum(squared_error_variance(t, edges))
                absolute += _sum(variance * scale**2)
    normal = packing.code.block_length >= _SHORTEST_NORMAL_BLOCK
    return LevelsFound(
        edges=edges,
        if_normal=expected_variance(edges, packing.code.block_length) if normal else None,
        if_uniform=uniform_variance(edges),
        expected=expected / elements,
        measured=measured / elements,
        measured_standard_error=math.sqrt(max(spread, 0.0) / draws) / elements,
        error=math.sqrt(absolute / values.numel()),
    )


def _study_block(values: Tensor, packing: Packing, rows: int, length: int) -> BlockFound:
    length = min(length, values.numel())
    tables = {name: level_table(name, int(packing.code.bits), length) for name in LEVELS}
    packing = replace(packing, code=replace(packing.code, block_length=length, levels=tables["uniform"]))
    squares = dict.fromkeys(LEVELS, 0.0)
    # Minimum and scale are the same whatever the levels.
    packed = quantize(values, packing, 0, 0)
    for (t,), scale in _normalised((values,), packed, packing):
        for name, edges in tables.items():
            squares[name] += _sum(rounding_variance(t, edges) * scale**2)
    error = {name: math.sqrt(square / values.numel()) for name, square in squares.items()}
    layout = Layout(rows * values.shape[1], length, int(packing.code.bits))
    return BlockFound(length, layout.total_bytes, error)


def _sum(values: Tensor) -> float:
    return float(values.sum(dtype=torch.float64))
