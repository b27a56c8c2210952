from statistics import NormalDist

import numpy as np
import pytest

from actbench.quant.levels import clipped_normal_sigma, expected_variance, level_table, rectified_level_table

PAPER = [
    (8, 1.3040, 1.0300, 0.12503, 0.12579),
    (16, 0.9778, 1.0500, 0.14424, 0.14694),
    (64, 0.6964, 1.0861, 0.15206, 0.16233),
    (1024, 0.4843, 1.1393, 0.13446, 0.16746),
]
LENGTHS = [3, 4, 7, 16, 63, 64, 1000, 1024, 2**17, 2**20]


@pytest.mark.parametrize(("length", "sigma", "alpha", "minimised", "uniform"), PAPER)
def test_two_bits_agree_with_the_papers_formulas(
    length: int, sigma: float, alpha: float, minimised: float, uniform: float
) -> None:
    """The printed digits are the tolerance: half a unit of the last one."""
    edges = level_table("clipped-normal", 2, length)
    assert clipped_normal_sigma(3, length) == pytest.approx(sigma, abs=5e-5)
    assert edges == pytest.approx((0, alpha, 3 - alpha, 3), abs=5e-5)
    assert expected_variance(edges, length) == pytest.approx(minimised, abs=5e-6)
    assert expected_variance((0, 1, 2, 3), length) == pytest.approx(uniform, abs=5e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("length", LENGTHS)
def test_expected_variance_is_the_integral(bits: int, length: int) -> None:
    """Against the midpoint rule; its error is below h²/24 · B · max|f''|, and f'' is at most 4 / σ here."""
    top = 2**bits - 1
    edges = np.array(level_table("clipped-normal", bits, length))
    sigma = clipped_normal_sigma(top, length)
    points = 400_000
    step = top / points
    t = (np.arange(points) + 0.5) * step
    low = np.searchsorted(edges, t, side="right") - 1
    density = np.exp(-(((t - top / 2) / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))
    integral = step * np.sum((t - edges[low]) * (edges[low + 1] - t) * density)
    widest = float(np.max(np.diff(edges)))
    curvature = 2 / sigma + widest / sigma**2 + widest**2 / sigma**3
    assert expected_variance(edges, length) == pytest.approx(integral, abs=step**2 * top * curvature + 1e-12)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("length", LENGTHS)
def test_no_edge_can_be_moved_to_advantage(bits: int, length: int) -> None:
    edges = np.array(level_table("clipped-normal", bits, length))
    least = expected_variance(edges, length)
    assert np.all(np.diff(edges) > 0)
    assert least <= expected_variance(level_table("uniform", bits, length), length)
    for i in range(1, len(edges) - 1, max(1, len(edges) // 16)):
        for share in (-1e-2, 1e-2):
            moved = edges.copy()
            moved[i] += share * min(edges[i] - edges[i - 1], edges[i + 1] - edges[i])
            assert expected_variance(moved, length) >= least * (1 - 1e-12)


def test_two_bits_against_a_search_over_alpha() -> None:
    alphas = np.linspace(0.5, 1.49, 100_000)
    mean, normal = 1.5, NormalDist()
    for length in (16, 1024):
        sigma = -mean / normal.inv_cdf(1 / length)
        t = (np.arange(30_000) + 0.5) / 10_000
        weight = np.exp(-(((t - mean) / sigma) ** 2) / 2)

        def variance(alpha: float, t: np.ndarray = t, weight: np.ndarray = weight) -> float:
            edges = np.array([0, alpha, 3 - alpha, 3])
            low = np.searchsorted(edges, t, side="right") - 1
            return float(np.sum((t - edges[low]) * (edges[low + 1] - t) * weight))

        coarse = alphas[::1000]
        best = coarse[np.argmin([variance(a) for a in coarse])]
        assert level_table("clipped-normal", 2, length)[1] == pytest.approx(best, abs=coarse[1] - coarse[0])


@pytest.mark.parametrize("length", [1, 2])
def test_blocks_without_an_inside_have_uniform_levels(length: int) -> None:
    assert level_table("clipped-normal", 2, length) == (0, 1, 2, 3)


def test_one_bit_has_no_inner_edge() -> None:
    assert level_table("clipped-normal", 1, 64) == level_table("uniform", 1, 64) == (0, 1)


@pytest.mark.parametrize("length", [8, 128, 1024])
def test_a_rectified_codes_middle_level_is_the_best_of_a_search(length: int) -> None:
    """Against a search on a grid, whose spacing is the tolerance, by the midpoint rule on a half-normal."""
    spacing = 1e-3
    sigma = -2 / NormalDist().inv_cdf(1 / length)
    t = (np.arange(4000) + 0.5) * 2 / 4000
    density = np.exp(-((t / sigma) ** 2) / 2)

    def variance(middle: float) -> float:
        below = t < middle
        return float(np.sum(density * np.where(below, t * (middle - t), (t - middle) * (2 - t))))

    grid = np.arange(0.5, 1.5, spacing)
    best = grid[np.argmin([variance(float(middle)) for middle in grid])]
    assert rectified_level_table("clipped-normal", 2, length) == pytest.approx((0, best, 2), abs=spacing)
    assert rectified_level_table("uniform", 4, length) == tuple(range(15))
    assert rectified_level_table("clipped-normal", 1.6, length) == (0, 1)
