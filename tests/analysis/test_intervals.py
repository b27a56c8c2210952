import random

import pytest

from actbench.analysis.intervals import paired_difference


def test_students_own_example() -> None:
    """Additional hours of sleep by two drugs in ten patients (Student 1908): mean 1.58, t = 4.0621 of 9 degrees."""
    first = dict(enumerate((0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)))
    second = dict(enumerate((1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)))
    interval = paired_difference(second, first)
    assert interval is not None
    assert interval.mean == pytest.approx(1.58)
    # 2.26216 is the 97.5 % point of Student's t with 9 degrees of freedom, from any table.
    assert interval.high - interval.mean == pytest.approx(2.26216 * 1.58 / 4.0621, rel=1e-4)
    assert interval.mean - interval.low == pytest.approx(interval.high - interval.mean)
    assert interval.pairs == 10


def test_only_seeds_that_both_have_are_paired_and_one_is_no_result() -> None:
    assert paired_difference({0: 1.0, 1: 2.0}, {1: 1.0, 2: 5.0}) is None
    interval = paired_difference({0: 1.0, 1: 2.0, 7: 9.0}, {1: 1.0, 0: 1.0})
    assert interval is not None
    assert (interval.mean, interval.pairs) == (0.5, 2)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    """2,000 samples of 5 pairs: a count with 5 standard deviations √(n p q) of room."""
    draw = random.Random(1)
    hits = 0
    for _ in range(2000):
        reference = {seed: draw.gauss(0, 1) for seed in range(5)}
        values = {seed: reference[seed] + draw.gauss(0.3, 0.2) for seed in range(5)}
        interval = paired_difference(values, reference)
        assert interval is not None
        hits += interval.low <= 0.3 <= interval.high
    assert abs(hits - 1900) <= 5 * (2000 * 0.95 * 0.05) ** 0.5
