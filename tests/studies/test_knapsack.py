from itertools import product

import numpy as np
import pytest

from actbench.studies.knapsack import Option, choose, pareto


def brute_force(groups: list[list[Option]], limit: float) -> float | None:
    """The least value of all combinations within the limit."""
    sums = [
        sum(option.value for option in each)
        for each in product(*groups)
        if sum(option.cost for option in each) <= limit
    ]
    return min(sums, default=None)


def instance(seed: int, bytes_and_noise: bool) -> list[list[Option]]:
    """Options as tuning has them, value falling as cost grows, or at random; costs are whole, so sums are exact."""
    generator = np.random.default_rng(seed)
    groups = []
    for _ in range(int(generator.integers(1, 6))):
        costs = generator.integers(0, 60, size=int(generator.integers(1, 7)))
        values = generator.integers(0, 2**20, size=len(costs)) / 2**10
        if bytes_and_noise:
            values = np.floor(2**20 / (1 + costs) ** 2) / 2**10
        groups.append([Option(float(v), float(c)) for v, c in zip(values, costs, strict=True)])
    return groups


@pytest.mark.parametrize("bytes_and_noise", [True, False])
def test_the_choice_is_brute_forces(bytes_and_noise: bool) -> None:
    found = 0
    for seed in range(200):
        groups = instance(seed, bytes_and_noise)
        cheapest = sum(min(option.cost for option in group) for group in groups)
        dearest = sum(max(option.cost for option in group) for group in groups)
        for limit in {cheapest - 1, cheapest, (cheapest + dearest) // 2, (2 * cheapest + dearest) // 3, dearest}:
            chosen = choose(groups, limit)
            expected = brute_force(groups, limit)
            if expected is None:
                assert chosen is None
                continue
            assert chosen is not None
            picked = [group[index] for group, index in zip(groups, chosen, strict=True)]
            assert sum(option.cost for option in picked) <= limit
            assert sum(option.value for option in picked) == expected
            found += 1
    assert found > 600


def test_the_front_is_what_no_option_beats() -> None:
    options = [Option(5, 1), Option(4, 1), Option(4, 2), Option(1, 9), Option(0, 8), Option(0, 8)]
    assert pareto(options) == [1, 4]
    for group in instance(3, bytes_and_noise=False):
        front = pareto(group)
        for index, option in enumerate(group):
            beaten = any(
                other.cost <= option.cost and other.value <= option.value and (other.cost, other.value) != (
                    option.cost, option.value,
                )
                for other in group
            )  # fmt: skip
            assert index not in front or not beaten


def test_sixty_four_calls_of_forty_options_are_no_matter_of_minutes() -> None:
    generator = np.random.default_rng(0)
    groups = []
    for _ in range(64):
        costs = np.sort(generator.integers(1000, 10**6, size=40))
        values = generator.random() * 1e3 / costs**1.7 * np.exp(generator.normal(0, 0.1, size=40))
        groups.append([Option(float(v), float(c)) for v, c in zip(values, costs, strict=True)])
    limit = sum(np.median([option.cost for option in group]) for group in groups)
    chosen = choose(groups, float(limit))
    assert chosen is not None
    picked = [group[index] for group, index in zip(groups, chosen, strict=True)]
    assert sum(option.cost for option in picked) <= limit
    # No single exchange that keeps to the limit is better.
    spare = limit - sum(option.cost for option in picked)
    for group, taken in zip(groups, picked, strict=True):
        assert not [o for o in group if o.value < taken.value and o.cost <= taken.cost + spare]


def test_a_limit_of_nothing_takes_what_costs_nothing() -> None:
    assert choose([[Option(1, 0), Option(0, 1)]], 0) == [0]
    assert choose([[Option(1, 0)], [Option(0, 1)]], 0) is None
    assert choose([], 0) == []
