"""Summaries over seeds: score, bytes, peak and speed of every scheme, with ratios to the reference scheme."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from actbench.records import machine, series

REFERENCE = "fp32"


@dataclass(frozen=True)
class Row:
    """One scheme's runs together; a figure is None where no finished run has it.

    Scores are in the metric's own unit, [0, 1]; `score_std` is the sample standard deviation over seeds, None for
    fewer than two. `epochs_per_second` is 1 / median of all epochs after warm-up. Ratios are to the reference scheme.
    `host_bytes` are those that a GPU's activations take in host memory.
    """

    scheme: str
    statuses: dict[str, int]
    score_mean: float | None
    score_std: float | None
    saved_bytes: float | None
    saved_ratio: float | None
    peak_bytes: float | None
    peak_ratio: float | None
    epochs_per_second: float | None
    speed_ratio: float | None
    host_bytes: float | None = None


@dataclass(frozen=True)
class Table:
    """The rows of one data set, model, recipe and device. `peak` names the kind of whole peak in the rows."""

    dataset: str
    synthetic: bool
    model: str
    metric: str | None
    device: str
    device_name: str
    deterministic: bool
    together: bool
    recipe: dict[str, Any]
    peak: str
    seeds: int
    rows: list[Row]

    def as_json(self) -> dict[str, Any]:
        """The table as JSON values."""
        return asdict(self)


def summarise(records: Iterable[dict[str, Any]], reference: str = REFERENCE) -> list[Table]:
    """One table for every data set, model, recipe and machine, rows in the order in which schemes first appear.

    Ratios are to the scheme named `reference`.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(repr((series(record), machine(record["environment"]))), []).append(record)
    return [_table(group, reference) for group in groups.values()]


def _table(records: list[dict[str, Any]], reference_name: str) -> Table:
    first = records[0]
    cuda = first["environment"]["device"] == "cuda"
    field, peak = ("peak_allocated_bytes", "allocated") if cuda else ("rss_peak_bytes", "resident")
    by_scheme: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_scheme.setdefault(record["scheme"]["name"], []).append(record)
    reference = _figures(by_scheme.get(reference_name, []), field)
    rows = [_row(scheme, group, _figures(group, field), reference) for scheme, group in by_scheme.items()]
    names = [r["metrics"]["name"] for r in records if r["metrics"]]
    return Table(
        dataset=first["dataset"],
        synthetic=any(r["graph"] and r["graph"].get("synthetic") for r in records),
        model=first["model"],
        metric=names[0] if names else None,
        device=first["environment"]["device"],
        device_name=first["environment"]["device_name"],
        deterministic=bool(first["environment"].get("deterministic")),
        together=bool(first["environment"].get("together")),
        recipe=first["recipe"],
        peak=peak,
        seeds=len({r["seed"] for r in records}),
        rows=rows,
    )


@dataclass(frozen=True)
class _Figures:
    saved_bytes: float | None
    peak_bytes: float | None
    epochs_per_second: float | None


def timed_epochs(record: dict[str, Any]) -> list[float]:
    """Seconds of the epochs after warm-up."""
    seconds: list[float] = record["epoch_seconds"][record["warmup_epochs"] :]
    return seconds


def _figures(records: list[dict[str, Any]], peak_field: str) -> _Figures:
    ok = [r for r in records if r["status"] == "ok"]
    seconds = [s for r in ok for s in timed_epochs(r)]
    return _Figures(
        saved_bytes=median_of_known(r["saved_bytes"] for r in records),
        peak_bytes=median_of_known(r[peak_field] for r in ok),
        epochs_per_second=1 / statistics.median(seconds) if seconds else None,
    )


def _row(scheme: str, records: list[dict[str, Any]], figures: _Figures, reference: _Figures) -> Row:
    scores = [r["metrics"]["test"] for r in records if r["status"] == "ok"]
    return Row(
        scheme=scheme,
        statuses=dict(Counter(r["status"] for r in records)),
        score_mean=statistics.fmean(scores) if scores else None,
        score_std=statistics.stdev(scores) if len(scores) > 1 else None,
        saved_bytes=figures.saved_bytes,
        saved_ratio=ratio(figures.saved_bytes, reference.saved_bytes),
        peak_bytes=figures.peak_bytes,
        peak_ratio=ratio(figures.peak_bytes, reference.peak_bytes),
        epochs_per_second=figures.epochs_per_second,
        speed_ratio=ratio(figures.epochs_per_second, reference.epochs_per_second),
        host_bytes=median_of_known(r.get("host_saved_bytes") for r in records),
    )


def median_of_known(values: Iterable[float | None]) -> float | None:
    """The median of those that are not None; None where all are."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def ratio(value: float | None, reference: float | None) -> float | None:
    """`value` / `reference`; None where one of them is missing or the reference is 0."""
    return value / reference if value is not None and reference else None
