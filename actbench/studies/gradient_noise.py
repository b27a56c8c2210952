"""Gradient noise E‖ĝ - g‖² / ‖g‖² of a scheme at fixed weights, for every parameter tensor, split by its source.

g is FP32's gradient, ĝ a draw of the scheme's, g_P the gradient under that draw's projections with nothing rounded.
For every draw, exactly,

    ‖ĝ - g‖² = ‖g_P - g‖² + ‖ĝ - g_P‖² + 2 ⟨g_P - g, ĝ - g_P⟩,

projection, rounding and a cross term. Where rounding is unbiased given P, as it is for linear inputs, the cross
term's expectation is 0 and this is the law of total variance; batch norm's backward, quadratic in its input, leaves a
bias that the cross term and ‖E ĝ - g‖² show. Derived schemes add one there, see `Rectifier.norm_backward`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from actbench.compress.codec import Quantized
from actbench.errors import ActbenchError
from actbench.scheme import Scheme
from actbench.studies.bounds import LEAST_DRAWS
from actbench.studies.fixed_weights import FixedWeights
from actbench.studies.substitution import substituted, unrounded

Squares = tuple[float, float, float]
"""‖ĝ - g‖², ‖g_P - g‖² and ‖ĝ - g_P‖² of one draw."""


@dataclass(frozen=True)
class Estimate:
    """A mean over draws and its standard error."""

    mean: float
    standard_error: float


@dataclass(frozen=True)
class Noise:
    """Noise of one parameter tensor or of all, in units of the whole gradient's ‖g‖², so that tensors add up.

    `share` is ‖g_t‖² / ‖g‖². `bias` is ‖E ĝ - g‖², estimated without bias from pairs of draws: it may come out below
    0. `own` is the noise in units of the tensor's own ‖g_t‖², None where that gradient is 0 in float32, as that of a
    bias before batch norm.
    """

    share: float
    total: Estimate
    projection: Estimate
    rounding: Estimate
    cross: Estimate
    bias: Estimate
    own: Estimate | None


@dataclass(frozen=True)
class GradientNoise:
    """One scheme's noise, of all parameters together and by parameter tensor."""

    scheme: Scheme
    draws: int
    squared_norm: float
    whole: Noise
    tensors: dict[str, Noise]


def measure_gradient_noise(
    weights: FixedWeights, scheme: Scheme, draws: int, report: Callable[[int], None] = lambda draw: None
) -> GradientNoise:
    """The noise of `scheme` over `draws` (at least 3) independent draws of its noise under one dropout mask.

    Draw k takes seed k. Raises `ActbenchError` if a gradient is not finite or all of it 0.
    """
    if draws < LEAST_DRAWS:
        raise ValueError(f"{draws} draws are fewer than {LEAST_DRAWS}")
    exact_gradients = weights.gradients()
    projects = _projects(weights, scheme)
    deviations: dict[str, list[Tensor]] = {name: [] for name in exact_gradients}
    squares: dict[str, list[Squares]] = {name: [] for name in exact_gradients}
    for seed in range(draws):
        noisy = weights.gradients(weights.compress(scheme, seed))
        projected = weights.gradients(substituted(scheme, seed, unrounded)) if projects else exact_gradients
        for name, g in exact_gradients.items():
            deviation, by_projection = (found[name].double() - g.double() for found in (noisy, projected))
            by_rounding = deviation - by_projection
            squares[name].append((_square(deviation), _square(by_projection), _square(by_rounding)))
            deviations[name].append(deviation.flatten())
        report(seed + 1)
    norms = {name: float(g.double().square().sum()) for name, g in exact_gradients.items()}
    squared_norm = sum(norms.values())
    if squared_norm == 0:
        raise ActbenchError("The gradient is 0, so its noise has no measure: train for fewer --epochs.")
    # What is 0 in theory is a float32 sum over all nodes in practice: √nodes roundings of 2**-23, four times that.
    vanishing = 16 * weights.batch.x.shape[0] * torch.finfo(torch.float32).eps ** 2
    grams = {name: (stacked := torch.stack(parts)) @ stacked.t() for name, parts in deviations.items()}
    tensors = {
        name: _noise(squares[name], grams[name], norms[name], squared_norm, vanishing) for name in exact_gradients
    }
    summed = [_sum(rows) for rows in zip(*squares.values(), strict=True)]
    whole = _noise(summed, torch.stack(list(grams.values())).sum(0), squared_norm, squared_norm, vanishing)
    return GradientNoise(scheme, draws, squared_norm, whole, tensors)


def _square(values: Tensor) -> float:
    return float(values.square().sum())


def _sum(rows: tuple[Squares, ...]) -> Squares:
    total, projection, rounding = (sum(column) for column in zip(*rows, strict=True))
    return total, projection, rounding


def _projects(weights: FixedWeights, scheme: Scheme) -> bool:
    """Whether `scheme` projects any of the inputs that it keeps."""
    found = []

    def look(call: str, kept: Quantized) -> Quantized:
        found.append(kept.projection is not None)
        return kept

    if scheme.keeps_inputs:
        weights.forward(substituted(scheme, 0, look))
    return any(found)


def _noise(squares: list[Squares], gram: Tensor, norm: float, whole_norm: float, vanishing: float) -> Noise:
    """Figures of one tensor: of each draw ‖ĝ - g‖², ‖g_P - g‖², ‖ĝ - g_P‖², and all ⟨ĝ_k - g, ĝ_l - g⟩."""
    totals, projections, roundings = ([value / whole_norm for value in column] for column in zip(*squares, strict=True))
    crosses = [total - p - r for total, p, r in zip(totals, projections, roundings, strict=True)]
    return Noise(
        share=norm / whole_norm,
        total=estimate(totals),
        projection=estimate(projections),
        rounding=estimate(roundings),
        cross=estimate(crosses),
        bias=bias_of_mean(gram / whole_norm),
        own=None if norm <= vanishing * whole_norm else estimate([total * whole_norm / norm for total in totals]),
    )


def estimate(values: list[float]) -> Estimate:
    """Mean of at least two draws and its standard error."""
    return Estimate(statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)))


def bias_of_mean(gram: Tensor) -> Estimate:
    """‖E d‖² from all ⟨d_k, d_l⟩ of independent draws: the mean over pairs k ≠ l.

    Its error is the jackknife's or, where that is larger, that of as many uncorrelated pairs: without a bias ⟨d_k, d_l⟩
    has no part that follows from one draw alone, which is all that the jackknife sees (Hoeffding, 1948).
    """
    draws = gram.shape[0]
    others = (gram.sum(1) - gram.diagonal()).tolist()
    pairs = sum(others)
    without = [(pairs - 2 * own) / ((draws - 1) * (draws - 2)) for own in others]
    jackknife = (draws - 1) * statistics.pvariance(without)
    values = gram[torch.triu(torch.ones_like(gram, dtype=torch.bool), 1)].tolist()
    uncorrelated = statistics.variance(values) / len(values)
    return Estimate(pairs / (draws * (draws - 1)), math.sqrt(max(jackknife, uncorrelated)))
