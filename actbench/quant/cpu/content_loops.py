"""`content.py`'s sums on a CPU, compiled by Numba."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from actbench.quant.cpu.loops import Integers, compiled

FIRST_FACTOR: Final = 0x9E3779B97F4A7C15
SECOND_FACTOR: Final = 0xBF58476D1CE4E5B9
PAIR_FACTOR: Final = 0x94D049BB133111EB
"""Odd, with about half of their bits set: the constants of Steele, Lea and Flood's SplitMix (OOPSLA 2014)."""
RUN: Final = 1024
"""Elements of a dense tensor that are multiplied in pairs with one set of keys."""

_FIRST, _SECOND, _PAIR = np.uint64(FIRST_FACTOR), np.uint64(SECOND_FACTOR), np.uint64(PAIR_FACTOR)
_ONE, _SHIFT, _HALF = np.uint64(1), np.uint64(29), np.uint64(32)


@compiled
def _mix(n: Any) -> Any:
    n = (n + _ONE) * _FIRST
    n = (n ^ (n >> _SHIFT)) * _SECOND
    return n ^ (n >> _HALF)


@compiled
def asymmetry_sums(
    crow: npt.NDArray[Any], col: npt.NDArray[Any], patterns: npt.NDArray[Any], first: int, last: int
) -> npt.NDArray[np.uint64]:
    """The sums over rows `first` … `last - 1`."""
    sums = np.zeros(3, np.uint64)
    for row in range(first, last):
        by_a, by_b, of_a, of_b = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
        for place in range(crow[row], crow[row + 1]):
            a = _mix(np.uint64(col[place]))
            b = a * _PAIR
            b = b ^ (b >> _HALF)
            w = _mix(np.uint64(np.int64(patterns[place])))
            by_a += w * a
            by_b += w * b
            of_a += a
            of_b += b
            if patterns[place] != patterns[crow[row]]:
                sums[2] += _ONE
        a = _mix(np.uint64(row))
        b = a * _PAIR
        b = b ^ (b >> _HALF)
        sums[0] += a * by_b - b * by_a
        sums[1] += a * of_b - b * of_a
    return sums


@compiled
def dense_sum(words: Integers, first: int, last: int) -> npt.NDArray[np.uint64]:
    """The sum over runs `first` … `last - 1` of the words."""
    keys = np.empty(RUN, np.uint32)
    for i in range(RUN):
        keys[i] = np.uint32(_mix(np.uint64(i)) & np.uint64(0xFFFFFFFF))
    total = np.zeros(1, np.uint64)
    padded = np.zeros(RUN, np.int32)
    for run in range(first, last):
        start = run * RUN
        part = words[start : start + RUN]
        if part.size < RUN:
            padded[: part.size] = part
            part = padded
        found = np.uint64(0)
        for i in range(0, RUN, 2):
            found += np.uint64(np.uint32(np.uint32(part[i]) + keys[i])) * np.uint64(
                np.uint32(np.uint32(part[i + 1]) + keys[i + 1])
            )
        total[0] += _mix(np.uint64(run)) * found
    return total
