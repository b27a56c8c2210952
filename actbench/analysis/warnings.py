"""What a reader of a comparison must be warned of, told from the records alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from actbench.analysis.comparison import ComparedRow, Comparison
from actbench.analysis.summary import timed_epochs
from actbench.records import Record

FEW_EPOCHS: Final = 10
"""Fewer timed epochs than these are no measurement of speed."""
SLOW_START: Final = 1.25
"""First timed epochs this many times slower than the later ones are still warm-up."""
SCATTER: Final = 1.5
"""Slowest over fastest tenth of the timed epochs above which something else was running."""
_FIRST_EPOCHS: Final = 3
_LEAST_FOR_WARM_UP: Final = 10


@dataclass(frozen=True)
class Caution:
    """One warning: its kind, the schemes it is about (none: the whole comparison) and its figures by name."""

    kind: str
    schemes: tuple[str, ...]
    figures: dict[str, float | str]


def find_cautions(comparison: Comparison) -> list[Caution]:
    """Every warning about `comparison`, the gravest first."""
    return [
        *_about_machines(comparison),
        *_about_host(comparison),
        *_about_seeds(comparison),
        *_about_differences(comparison),
        *_about_ends(comparison),
        *_about_time(comparison),
        *_about_neighbours(comparison),
        *_about_sources(comparison),
    ]


def shows_warm_up(record: Record) -> bool:
    """Whether the first epochs that count are much slower than the later ones."""
    kept = timed_epochs(record)
    if len(kept) < _LEAST_FOR_WARM_UP:
        return False
    first, later = kept[:_FIRST_EPOCHS], kept[_FIRST_EPOCHS:]
    return bool(statistics.median(first) > SLOW_START * statistics.median(later))


def _labels(rows: list[ComparedRow]) -> tuple[str, ...]:
    return tuple(row.label for row in rows)


def _about_machines(comparison: Comparison) -> Iterator[Caution]:
    if len(comparison.machines) > 1:
        names = "; ".join(f"{place.label}: {place.name}" for place in comparison.machines)
        yield Caution("machines", (), {"machines": names})
    missing = [row for row in comparison.candidates if comparison.reference_of(row) is None]
    if missing:
        yield Caution("no_reference", _labels(missing), {"reference": comparison.reference})


def _about_host(comparison: Comparison) -> Iterator[Caution]:
    for row in comparison.rows:
        if row.summary.host_bytes:
            yield Caution("host", (row.label,), {"mebibytes": f"{row.summary.host_bytes / 2**20:,.1f}"})


def _about_seeds(comparison: Comparison) -> Iterator[Caution]:
    single = [row for row in comparison.rows if len(row.scores) == 1]
    if single:
        yield Caution("one_seed", _labels(single), {})
    beside = [(row, reference) for row in comparison.candidates if (reference := comparison.reference_of(row))]
    # Where the reference finished no run, more seeds of the same would not help.
    unpaired = [r for r, reference in beside if r.difference is None and len(r.scores) > 1 and reference.scores]
    if unpaired:
        yield Caution("unpaired", _labels(unpaired), {"reference": comparison.reference})
    differ = [r for r, reference in beside if r.difference and r.scores.keys() != reference.scores.keys()]
    if differ:
        yield Caution("seeds_differ", _labels(differ), {"reference": comparison.reference})


def _about_differences(comparison: Comparison) -> Iterator[Caution]:
    overlapping = [row for row in comparison.candidates if is_overlapping(row)]
    if overlapping:
        yield Caution("overlap", _labels(overlapping), {"reference": comparison.reference})


def is_distinct(row: ComparedRow) -> bool:
    """Whether the interval of the score's difference leaves out zero."""
    return row.difference is not None and not row.difference.low <= 0 <= row.difference.high


def is_equal(row: ComparedRow) -> bool:
    """Whether every seed scored as it did under the reference, to the bit."""
    return row.difference is not None and row.difference.low == 0 == row.difference.high


def is_overlapping(row: ComparedRow) -> bool:
    """Whether the interval of the score's difference holds zero and more than that."""
    return row.difference is not None and not is_distinct(row) and not is_equal(row)


def _about_ends(comparison: Comparison) -> Iterator[Caution]:
    for row in comparison.rows:
        for status, count in row.summary.statuses.items():
            if status != "ok":
                yield Caution("unfinished", (row.label,), {"status": status, "runs": count})


def _about_time(comparison: Comparison) -> Iterator[Caution]:
    for row in comparison.rows:
        finished = [each.record for each in row.located if each.record["status"] == "ok"]
        slow = sum(map(shows_warm_up, finished))
        if 2 * slow > len(finished):
            yield Caution("warm_up", (row.label,), {"slow": slow, "runs": len(finished)})
    few = [row for row in comparison.rows if 0 < len(row.epoch_seconds) < FEW_EPOCHS]
    if few:
        yield Caution("few_epochs", _labels(few), {"epochs": min(len(row.epoch_seconds) for row in few)})
    for row in comparison.rows:
        low, high = row.epochs_per_second_low, row.epochs_per_second_high
        if low and high and len(row.epoch_seconds) >= FEW_EPOCHS and high > SCATTER * low:
            yield Caution("scatter", (row.label,), {"factor": high / low})


def _about_neighbours(comparison: Comparison) -> Iterator[Caution]:
    """A record may tell of other processes on its GPU, as `other_gpu_processes`, a count."""
    beside = []
    for row in comparison.rows:
        counts = [each.record.get("other_gpu_processes") for each in row.located]
        if any(isinstance(count, int) and count > 0 for count in counts):
            beside.append(row)
    if beside:
        yield Caution("neighbours", _labels(beside), {})


def _about_sources(comparison: Comparison) -> Iterator[Caution]:
    commits = dict.fromkeys(commit for place in comparison.machines for commit in place.commits)
    if len(commits) > 1:
        yield Caution("commits", (), {"commits": ", ".join(commits)})
    if comparison.superseded:
        sources = ", ".join(map(str, comparison.superseded))
        yield Caution("superseded", (), {"records": len(comparison.superseded), "sources": sources})
