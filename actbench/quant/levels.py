"""Level tables: where the codes of a block lie between its minimum and its maximum.

A table for b bits has 2**b edges 0 = e_0 < … < e_B = B, B = 2**b - 1, in units of the block's scale (max - min) / B.
Stochastic rounding of t in [l, h] onto its two edges has variance (t - l)(h - t). The clipped-normal table is
i-EXACT's variance minimisation (arXiv 2309.11856, section 3.2) for every bit width: t ~ N(B/2, σ) clipped to [0, B],
σ = -(B/2) / Φ⁻¹(1/G) for blocks of G elements, all inner edges free.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from actbench.scheme import TRIT_BITS

Edges = npt.NDArray[np.float64]

_STANDARD = NormalDist()
_NEWTON_STEPS = 100
_SHORTEST_NORMAL_BLOCK = 3
"""A block of one or two elements has all its values at the two ends: there is nothing to minimise."""


@lru_cache(maxsize=256)
def level_table(name: str, bits: int, block_length: int) -> tuple[float, ...]:
    """The 2**bits edges of table `name` ("uniform" or "clipped-normal") for blocks of `block_length` elements."""
    top = 2**bits - 1
    if name == "uniform" or top == 1 or block_length < _SHORTEST_NORMAL_BLOCK:
        return tuple(float(edge) for edge in range(top + 1))
    return tuple(float(edge) for edge in _minimise(top, clipped_normal_sigma(top, block_length)))


@lru_cache(maxsize=256)
def rectified_level_table(name: str, bits: float, block_length: int) -> tuple[float, ...]:
    """The edges of a rectified code's levels, of one symbol less than `bits` have, since code 0 is the mask.

    For "clipped-normal" a ReLU's input is normal about 0 with σ = -B / Φ⁻¹(1/G): of the levels that minimise the
    rounding variance over [-B, B] those from 0 on.
    """
    symbols = 3 if bits == TRIT_BITS else 2 ** int(bits)
    top = symbols - 2
    if name == "uniform" or top == 1 or block_length < _SHORTEST_NORMAL_BLOCK:
        return tuple(float(edge) for edge in range(top + 1))
    edges = _minimise(2 * top, clipped_normal_sigma(2 * top, block_length))
    return (0.0, *(float(edge) - top for edge in edges[top + 1 :]))


def clipped_normal_sigma(top: int, block_length: int) -> float:
    """σ of the normal whose mass below 0 and above `top` is 1/block_length each (block_length ≥ 3)."""
    return -(top / 2) / _STANDARD.inv_cdf(1 / block_length)


def expected_variance(edges: tuple[float, ...] | Edges, block_length: int) -> float:
    """E[(t - l)(h - t)] of stochastic rounding onto `edges` for the clipped normal of blocks of `block_length`.

    In units of the squared scale; values clipped to an end add nothing.
    """
    table = np.asarray(edges, dtype=np.float64)
    sigma = clipped_normal_sigma(len(table) - 1, block_length)
    z = (table - table[-1] / 2) / sigma
    mass, first, second = _moments(z)
    low, high = z[:-1], z[1:]
    return float(sigma**2 * np.sum((low + high) * first - second - low * high * mass))


def uniform_variance(edges: tuple[float, ...] | Edges) -> float:
    """E[(t - l)(h - t)] of stochastic rounding onto `edges` for t uniform on [0, B], in units of the squared scale."""
    widths = np.diff(np.asarray(edges, dtype=np.float64))
    return float(np.sum(widths**3) / (6 * np.sum(widths)))


def clipped_normal_masses(top: int, block_length: int, bins: int) -> Edges:
    """Probabilities of `bins` equal bins of [0, top] under the clipped normal; the outer two hold what is clipped."""
    normal = NormalDist(top / 2, clipped_normal_sigma(top, block_length))
    below = np.array([0.0, *(normal.cdf(top * i / bins) for i in range(1, bins)), 1.0])
    return np.diff(below)


def _moments(z: Edges) -> tuple[Edges, Edges, Edges]:
    """Integrals of 1, z and z² times the standard normal density over each [z_i, z_{i+1}]."""
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    below = np.array([_STANDARD.cdf(value) for value in z])
    mass = np.diff(below)
    return mass, -np.diff(density), mass - np.diff(z * density)


def _minimise(top: int, sigma: float) -> Edges:
    """Newton's method on the edges' stationarity; symmetric about top / 2, ends fixed at 0 and top.

    With l = e_{i-1}, e = e_i, h = e_{i+1} the derivative of the expected variance by e_i is
    ∫_l^e (t - l) φ - ∫_e^h (h - t) φ; its own derivatives make a tridiagonal matrix.
    """
    center = top / 2
    # Narrow bins want widths as density^(-1/3) (Panter and Dite, 1951): edges at quantiles of a √3 times wider normal.
    wide = NormalDist(0.0, 3**0.5)
    end = center / sigma
    z = np.array([wide.inv_cdf(q) for q in np.linspace(wide.cdf(-end), wide.cdf(end), top + 1)])
    for _ in range(_NEWTON_STEPS):
        mass, first, _second = _moments(z)
        density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        left = first[:-1] - z[:-2] * mass[:-1]
        right = z[2:] * mass[1:] - first[1:]
        hessian = np.diag((z[2:] - z[:-2]) * density[1:-1])
        inner = np.arange(top - 2)
        hessian[inner + 1, inner] = -mass[1:-1]
        hessian[inner, inner + 1] = -mass[1:-1]
        step = np.linalg.solve(hessian, right - left)
        # A full step may swap edges while far away; half of the narrowest bin keeps their order.
        room = np.min(np.diff(z)) / 2
        step *= min(1.0, room / max(np.max(np.abs(step)), np.finfo(np.float64).tiny))
        z[1:-1] += step
        if np.max(np.abs(step)) < 1e-12:
            break
    edges = z * sigma + center
    symmetric: Edges = (edges + top - edges[::-1]) / 2
    symmetric[0], symmetric[-1] = 0, top
    return symmetric
