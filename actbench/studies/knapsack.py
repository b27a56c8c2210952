"""The multiple-choice knapsack, exactly: one option of every group, the least value under a limit on cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_HALVINGS = 100
_SLACK = 1e-12
"""Relative slack of the bound, above the rounding of sums of float64."""

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Option:
    """What one option of a group costs and the value, to be small, that it has; both at least 0."""

    value: float
    cost: float


def pareto(options: Sequence[Option]) -> list[int]:
    """The options that no other of the group beats in both, cheapest first, as indices."""
    order = sorted(range(len(options)), key=lambda index: (options[index].cost, options[index].value))
    front: list[int] = []
    for index in order:
        if not front or options[index].value < options[front[-1]].value:
            front.append(index)
    return front


def choose(groups: Sequence[Sequence[Option]], limit: float) -> list[int] | None:
    """The index of one option in every group with the least sum of values whose costs sum to at most `limit`.

    Exact: sums of options are extended group by group, and a sum is dropped only if another is no worse in both, or if
    Lagrange's bound says that none of its completions beats a choice that is known (Kellerer, Pferschy and Pisinger,
    Knapsack Problems, 2004, chapter 11). None if even the cheapest options are beyond the limit.
    """
    fronts = [pareto(group) for group in groups]
    values = [np.array([group[i].value for i in front]) for group, front in zip(groups, fronts, strict=True)]
    costs = [np.array([group[i].cost for i in front]) for group, front in zip(groups, fronts, strict=True)]
    least_cost = _suffix_sums([float(cost.min()) for cost in costs])
    if least_cost[0] > limit:
        return None
    price, known = _price(values, costs, limit)
    least_sum = _suffix_sums([float((v + price * c).min()) for v, c in zip(values, costs, strict=True)])
    worst = known + _SLACK * max(abs(known), abs(price * limit), 1e-300)
    value, cost = np.zeros(1), np.zeros(1)
    steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
    for group, (v, c) in enumerate(zip(values, costs, strict=True)):
        sums, spent = (value[:, None] + v).ravel(), (cost[:, None] + c).ravel()
        bound = sums + price * (spent - limit) + least_sum[group + 1]
        kept = np.flatnonzero((spent + least_cost[group + 1] <= limit) & (bound <= worst))
        kept = kept[np.lexsort((sums[kept], spent[kept]))]
        before = np.concatenate(([np.inf], np.minimum.accumulate(sums[kept])[:-1]))
        kept = kept[sums[kept] < before]
        if not kept.size:
            return None
        value, cost = sums[kept], spent[kept]
        steps.append((kept // len(v), kept % len(v)))
    at = int(np.argmin(value))
    chosen: list[int] = []
    for (parents, options), front in zip(reversed(steps), reversed(fronts), strict=True):
        chosen.append(front[int(options[at])])
        at = int(parents[at])
    return chosen[::-1]


def _price(values: list[Numbers], costs: list[Numbers], limit: float) -> tuple[float, float]:
    """A price of cost at which the options that are best by value and cost keep to the limit, and their value."""

    def best(price: float) -> tuple[float, float]:
        picks = [int(np.argmin(v + price * c)) for v, c in zip(values, costs, strict=True)]
        return (
            sum(float(v[i]) for v, i in zip(values, picks, strict=True)),
            sum(float(c[i]) for c, i in zip(costs, picks, strict=True)),
        )

    value, cost = best(0.0)
    if cost <= limit:
        return 0.0, value
    low, high = 0.0, 1.0
    spread = [float(np.ptp(v)) / max(float(np.ptp(c)), 1e-300) for v, c in zip(values, costs, strict=True)]
    high = max([1.0, *spread])
    while best(high)[1] > limit and high < 1e300:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if best(middle)[1] > limit else (low, middle)
    value, cost = best(high)
    cheapest = sum(float(v[0]) for v in values)
    return high, value if cost <= limit else cheapest


def _suffix_sums(numbers: list[float]) -> list[float]:
    sums = [0.0]
    for number in reversed(numbers):
        sums.append(sums[-1] + number)
    return sums[::-1]
