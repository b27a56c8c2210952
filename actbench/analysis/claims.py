"""What the papers' abstracts claim, beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from actbench.analysis.comparison import ComparedRow, Comparison
from actbench.analysis.intervals import Interval, paired_difference
from actbench.analysis.summary import ratio
from actbench.analysis.warnings import FEW_EPOCHS

_BLOCKWISE: Final = "blockwise"
_EXACT: Final = "exact"


@dataclass(frozen=True)
class Claim:
    """One claim about `scheme` beside `against`, and the measured figure, None where there is none.

    `kind` is "activation" (share of the bytes that is saved), "time" (relative change of an epoch's) or "score"
    (difference, [0, 1]; `interval` over seeds). `claimed` holds the least and the most that the abstract says, None
    where it leaves an end open or says "similar".
    """

    paper: str
    kind: str
    scheme: str
    against: str
    claimed: tuple[float | None, float | None]
    measured: float | None
    interval: Interval | None = None


def compare_claims(comparison: Comparison) -> list[Claim]:
    """The claims of both abstracts, on one machine; those about schemes that were not run are left out.

    EXACT (ICLR 2022): activations to 1/32, scores 0.2 to 0.5 points lower, time 10 to 25 % longer than FP32.
    i-EXACT (arXiv 2309.11856): activations 95 % below FP32's and 15 % below EXACT's, 5 % faster than EXACT.
    """
    return [claim for place in comparison.machines for claim in _claims(comparison.on(place))]


def _claims(comparison: Comparison) -> Iterator[Claim]:
    rows = {row.summary.scheme: row for row in comparison.rows}
    fp32, exact, blockwise = (rows.get(name) for name in ("fp32", _EXACT, _BLOCKWISE))
    if fp32 and exact:
        yield _activation("EXACT", exact, fp32, (None, 1 - 1 / 32))
        yield _score("EXACT", exact, fp32, (-0.005, -0.002))
        yield _time("EXACT", exact, fp32, (0.10, 0.25))
    if fp32 and blockwise:
        yield _activation("i-EXACT", blockwise, fp32, (0.95, None))
    if exact and blockwise:
        yield _activation("i-EXACT", blockwise, exact, (0.15, None))
        yield _score("i-EXACT", blockwise, exact, (None, None))
        yield _time("i-EXACT", blockwise, exact, (-0.05, -0.05))


_Claimed = tuple[float | None, float | None]


def _activation(paper: str, row: ComparedRow, beside: ComparedRow, claimed: _Claimed) -> Claim:
    part = ratio(row.summary.saved_bytes, beside.summary.saved_bytes)
    measured = None if part is None else 1 - part
    return Claim(paper, "activation", row.summary.scheme, beside.summary.scheme, claimed, measured)


def _time(paper: str, row: ComparedRow, beside: ComparedRow, claimed: _Claimed) -> Claim:
    timed = min(len(row.epoch_seconds), len(beside.epoch_seconds)) >= FEW_EPOCHS
    seconds, base = (statistics.median(r.epoch_seconds) if timed else None for r in (row, beside))
    times = ratio(seconds, base)
    measured = None if times is None else times - 1
    return Claim(paper, "time", row.summary.scheme, beside.summary.scheme, claimed, measured)


def _score(paper: str, row: ComparedRow, beside: ComparedRow, claimed: _Claimed) -> Claim:
    interval = paired_difference(row.scores, beside.scores)
    measured = interval.mean if interval else None
    return Claim(paper, "score", row.summary.scheme, beside.summary.scheme, claimed, measured, interval)
