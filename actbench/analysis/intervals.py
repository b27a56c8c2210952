"""Intervals of a mean difference between runs that were paired by their seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A mean of `pairs` differences and the interval that holds the true one with probability `confidence`."""

    mean: float
    low: float
    high: float
    pairs: int
    confidence: float


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95
) -> Interval | None:
    """Student's interval of the mean of `values[seed] - reference[seed]` over the seeds that both have.

    None for fewer than two such seeds, which say nothing of a spread. Student, Biometrika 6 (1908).
    """
    from scipy.stats import t

    differences = [values[seed] - reference[seed] for seed in values if seed in reference]
    if len(differences) < 2:
        return None
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = float(t.ppf((1 + confidence) / 2, len(differences) - 1)) * error
    return Interval(mean, mean - reach, mean + reach, len(differences), confidence)
