"""The page for a decision: sections and sentences, each built from measured figures, in no language yet."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from actbench.analysis.comparison import ComparedRow, Comparison, Peak, pareto_front
from actbench.analysis.intervals import paired_difference
from actbench.analysis.warnings import FEW_EPOCHS, Caution, is_distinct, is_equal, is_overlapping
from actbench.graphs.catalogue import find
from actbench.report.phrases import (
    TEXTS,
    Sentence,
    mebibytes_text,
    model_text,
    noise_text,
    percent_text,
    points_text,
    score_text,
)
from actbench.report.study import epochs_of
from actbench.scheme import DERIVED, UNQUANTIZED, name_of
from actbench.training import recipe_for


@dataclass(frozen=True)
class Group:
    """Sentences that belong together, and what they are about."""

    subject: Sentence
    sentences: list[Sentence]


@dataclass(frozen=True)
class Section:
    """A section of the page; its heading is the text of `section.` and the key."""

    key: str
    groups: list[Group]


def build_page(comparisons: Sequence[Comparison]) -> list[Section]:
    """The sections of the page, all of them always; a group without a measured figure is not there.

    What was measured on different machines is spoken of apart.
    """
    parts = [comparison.on(place) for comparison in comparisons for place in comparison.machines]
    return [
        _section("summary", parts, _summary),
        _section("saved", parts, _saved),
        _section("costs", parts, _costs),
        _section("unknown", parts, _unknown),
        _rollout(parts),
        _section("meeting", parts, _meeting),
    ]


def about(comparison: Comparison) -> Sentence:
    """What a comparison is of: data set, model, recipe and device."""
    recipe = comparison.recipe
    differing = ", ".join(f"{key} {value}" for key, value in comparison.distinction.items())
    return Sentence(
        "subject",
        {
            "dataset": dataset_name(comparison),
            "model": model_text(comparison.model, recipe),
            "layers": str(recipe["layers"]),
            "hidden": str(recipe["hidden"]),
            "epochs": _epochs(comparison),
            "distinction": Sentence("distinction", {"text": differing}) if differing else "",
            "device": _devices(comparison),
        },
    )


def dataset_name(comparison: Comparison) -> Sentence:
    """The data set's name, labelled where the graph is generated."""
    return Sentence("generated" if comparison.synthetic else "real", {"dataset": comparison.dataset})


def metric_name(comparison: Comparison) -> str | Sentence:
    """The metric's name."""
    name = comparison.metric or "score"
    return Sentence(f"metric.{name}") if f"metric.{name}" in TEXTS else name


def caution_sentence(caution: Caution, comparison: Comparison) -> Sentence:
    """A warning about `comparison` and its advice."""
    figures = {
        name: value if isinstance(value, str) else f"{value:.3g}" if isinstance(value, float) else str(value)
        for name, value in caution.figures.items()
    }
    every = len(caution.schemes) == len(comparison.rows) > 1
    schemes = Sentence("schemes.all") if every else ", ".join(caution.schemes)
    return Sentence(f"caution.{caution.kind}", {"schemes": schemes, **figures})


def table_notes(comparison: Comparison) -> list[Sentence]:
    """What must be known to read the comparison's table."""
    devices = {place.device for place in comparison.machines} if comparison.peaks else set()
    keys = ["note.activation", *(f"note.peak.{device}" for device in sorted(devices & {"cpu", "cuda"}))]
    keys += ["note.sampled"] if comparison.recipe.get("sampler", "full") != "full" else []
    keys += ["note.score", "note.speed"]
    noises = [
        Sentence("note.noise", {"epochs": epochs_of(s), "draws": str(s.document["draws"]), "file": s.file})
        for s in comparison.studies
    ]
    derived = [row.label for row in comparison.rows if name_of(row.summary.scheme) in DERIVED]
    return [
        *map(Sentence, keys),
        *noises,
        *([Sentence("note.ours", {"schemes": ", ".join(derived)})] if derived else []),
        *(_paper_notes(comparison, devices) if comparison.has_paper_figures else []),
        *([Sentence("costs.generated", {"dataset": comparison.dataset})] if comparison.synthetic else []),
    ]


def _paper_notes(comparison: Comparison, devices: set[str]) -> Iterator[Sentence]:
    yield Sentence("note.paper")
    if "cpu" in devices:
        yield Sentence("note.paper.cpu")
    whole = find("ogbn-arxiv").nodes
    nodes = (comparison.graph or {}).get("nodes", whole)
    if nodes != whole:
        yield Sentence("note.paper.scale", {"nodes": f"{nodes:,}", "whole": f"{whole:,}"})
    elif comparison.synthetic:
        yield Sentence("note.paper.twin")
    usual = recipe_for("ogbn-arxiv", "sage").epochs
    if comparison.recipe["epochs"] != usual:
        yield Sentence("note.paper.epochs", {"epochs": _epochs(comparison), "usual": str(usual)})


_NOTHING = Sentence("nothing")
_MOST_SCHEMES = 4
"""More schemes than these make no page: then it speaks of the Pareto front alone."""


def _section(key: str, comparisons: Sequence[Comparison], build: Callable[[Comparison], Iterator[Sentence]]) -> Section:
    groups = [Group(about(comparison), list(build(comparison)) or [_NOTHING]) for comparison in comparisons]
    return Section(key, groups)


def _rollout(comparisons: Sequence[Comparison]) -> Section:
    steps = (("step.prototype", _prototype), ("step.toolchain", _toolchain), ("step.rules", _rules))
    groups = []
    for key, build in steps:
        sentences = [(comparison, sentence) for comparison in comparisons for sentence in build(comparison)]
        several = len(comparisons) > 1
        told = [Sentence("of", {"subject": about(c), "text": s}) if several else s for c, s in sentences]
        groups.append(Group(Sentence(key), told or [_NOTHING]))
    return Section("rollout", groups)


def _epochs(comparison: Comparison) -> Sentence:
    count = comparison.recipe["epochs"]
    return Sentence("epochs.one" if count == 1 else "epochs.many", {"epochs": str(count)})


def _spoken_of(comparison: Comparison) -> list[ComparedRow]:
    if len(comparison.candidates) <= _MOST_SCHEMES:
        return comparison.candidates
    front = [id(row) for row in pareto_front(comparison.rows)]
    return [row for row in comparison.candidates if id(row) in front or row is _best(comparison)]


def _devices(comparison: Comparison) -> str:
    places = comparison.machines
    return "; ".join(f"{place.label}: {place.name}" if place.label else place.name for place in places)


def _main_peak(row: ComparedRow) -> str:
    """The kind of peak that comes nearest to what must fit: NVML's of the process, else what the allocator held."""
    kinds = ("nvml", "reserved", "allocated") if row.machine.device == "cuda" else ("resident",)
    return next((kind for kind in kinds if row.peaks[kind].ratio is not None), kinds[-1])


def _whole(row: ComparedRow) -> Peak:
    return row.peaks[_main_peak(row)]


def _compressed(comparison: Comparison) -> list[ComparedRow]:
    """The schemes that keep less than the reference, not those that keep it elsewhere."""
    rows = [row for row in comparison.candidates if not row.summary.host_bytes]
    return [r for r in rows if r.summary.saved_ratio is not None and r.summary.saved_ratio < 1]


def _best(comparison: Comparison) -> ComparedRow | None:
    """The scheme that keeps less whose score lost least, over paired seeds; where none can tell, the smallest."""
    return max(
        _compressed(comparison),
        key=lambda r: (
            r.difference is not None,
            r.difference.mean if r.difference else 0,
            -(r.summary.saved_bytes or 0),
        ),
        default=None,
    )


def _common(comparison: Comparison, row: ComparedRow) -> dict[str, str | Sentence]:
    return {
        "scheme": row.label,
        "reference": comparison.reference,
        "dataset": dataset_name(comparison),
        "metric": metric_name(comparison),
        "device": row.machine.name,
        "kind": Sentence(f"peak.{_main_peak(row)}"),
    }


def _memory(comparison: Comparison, row: ComparedRow) -> dict[str, str | Sentence]:
    beside = comparison.reference_of(row)
    assert beside is not None
    return _common(comparison, row) | {
        "value": mebibytes_text(row.summary.saved_bytes),
        "base": mebibytes_text(beside.summary.saved_bytes),
        "ratio": percent_text(row.summary.saved_ratio),
        "peak": mebibytes_text(_whole(row).value_bytes),
        "peak_base": mebibytes_text(beside.peaks[_main_peak(row)].value_bytes),
        "peak_ratio": percent_text(_whole(row).ratio),
    }


def _score(comparison: Comparison, row: ComparedRow) -> dict[str, str | Sentence]:
    beside = comparison.reference_of(row)
    interval = row.difference
    scores, base = row.scores, beside.scores if beside else {}
    if interval:
        # Of the seeds that the difference is of, so that the three figures agree.
        scores = {seed: score for seed, score in scores.items() if seed in base}
        base = {seed: score for seed, score in base.items() if seed in scores}
    values = _common(comparison, row) | {
        "value": score_text(statistics.fmean(scores.values()) if scores else None),
        "base": score_text(statistics.fmean(base.values()) if base else None),
    }
    if interval:
        values |= {
            "difference": points_text(interval.mean),
            "low": points_text(interval.low),
            "high": points_text(interval.high),
            "confidence": f"{100 * interval.confidence:g}",
            "pairs": str(interval.pairs),
        }
    return values


def _time(comparison: Comparison, row: ComparedRow) -> dict[str, str | Sentence]:
    beside = comparison.reference_of(row)
    assert beside is not None
    return _common(comparison, row) | {
        "value": _milliseconds(row),
        "base": _milliseconds(beside),
        "factor": f"{statistics.median(row.epoch_seconds) / statistics.median(beside.epoch_seconds):.2f}",
        "range": _time_range(row, beside),
    }


def _time_range(row: ComparedRow, beside: ComparedRow) -> str | Sentence:
    """The least and the largest ratio of two runs with equal seeds, where there are several: the median hides them."""
    medians, base = row.median_epoch_seconds, beside.median_epoch_seconds
    ratios = [medians[seed] / base[seed] for seed in medians if seed in base]
    if len(ratios) < 2:
        return ""
    return Sentence("time.range", {"low": f"{min(ratios):.2f}", "high": f"{max(ratios):.2f}"})


def _milliseconds(row: ComparedRow) -> str:
    return f"{1000 * statistics.median(row.epoch_seconds):,.1f}"


def _is_timed(comparison: Comparison, row: ComparedRow) -> bool:
    beside = comparison.reference_of(row)
    return beside is not None and min(len(row.epoch_seconds), len(beside.epoch_seconds)) >= FEW_EPOCHS


def _is_close(row: ComparedRow, best: ComparedRow) -> bool:
    """Whether the seeds that both rows have leave open which of them scores better."""
    interval = paired_difference(best.scores, row.scores)
    return interval is not None and interval.low <= 0 <= interval.high


def _is_apart(row: ComparedRow, other: ComparedRow) -> bool:
    """Whether the middle four fifths of both rows' epochs do not overlap; anything less is no order of speed."""
    ends = (
        row.epochs_per_second_low,
        row.epochs_per_second_high,
        other.epochs_per_second_low,
        other.epochs_per_second_high,
    )
    low, high, other_low, other_high = (end or 0 for end in ends)
    return low > other_high or other_low > high


def _finished_alone(comparison: Comparison) -> list[ComparedRow]:
    """The rows that finished where the reference ran out of memory every time."""
    beside = next((row for row in comparison.rows if row.is_reference), None)
    if beside is None or beside.scores or "oom" not in beside.summary.statuses:
        return []
    return [row for row in comparison.candidates if row.scores]


def _alone(comparison: Comparison, row: ComparedRow) -> dict[str, str | Sentence]:
    """A row's own figures, of which the reference has none."""
    return _common(comparison, row) | {
        "value": mebibytes_text(row.summary.saved_bytes),
        "peak": mebibytes_text(_own_peak(row)),
        "runs": str(len(row.scores)),
    }


def _own_peak(row: ComparedRow) -> float | None:
    return row.peaks[_main_peak(row)].value_bytes


def _summary(comparison: Comparison) -> Iterator[Sentence]:
    for row in _finished_alone(comparison):
        yield Sentence("summary.finished", _alone(comparison, row))
    rows = _compressed(comparison)
    if rows:
        smallest = min(rows, key=lambda row: (row.summary.saved_bytes or 0, -(row.summary.score_mean or 0)))
        whole = _whole(smallest).ratio is not None
        yield Sentence("summary.smallest" if whole else "summary.smallest.activation", _memory(comparison, smallest))
    best = _best(comparison)
    if best and best.difference:
        yield Sentence("summary.score", _score(comparison, best))
        close = [row.label for row in rows if row is not best and _is_close(row, best)]
        if close:
            yield Sentence("summary.close", {"scheme": best.label, "schemes": ", ".join(close)})
    timed = [row for row in rows if _is_timed(comparison, row)]
    if timed:
        fastest = max(timed, key=lambda row: row.summary.speed_ratio or 0)
        if all(_is_apart(fastest, row) for row in comparison.rows if row is not fastest and row.epoch_seconds):
            yield Sentence("summary.time", _time(comparison, fastest))


def _saved(comparison: Comparison) -> Iterator[Sentence]:
    for place in comparison.machines:
        beside = next((row for row in comparison.rows if row.is_reference and row.machine is place), None)
        if beside and beside.summary.saved_bytes is not None and (peak_bytes := _whole(beside).value_bytes):
            share = percent_text(beside.summary.saved_bytes / peak_bytes)
            yield Sentence("saved.share", _common(comparison, beside) | {"share": share})
    if len(_spoken_of(comparison)) < len(comparison.candidates):
        yield Sentence("saved.further", {"total": str(len(comparison.candidates))})
    for row in _spoken_of(comparison):
        yield from _descriptions(row)
    for row in _spoken_of(comparison):
        if row.summary.saved_ratio is not None:
            whole = _whole(row).ratio is not None
            yield Sentence("saved.both" if whole else "saved.activation", _memory(comparison, row))
        elif row.summary.saved_bytes is not None:
            known = _own_peak(row) is not None
            yield Sentence("saved.alone.both" if known else "saved.alone", _alone(comparison, row))
        if row.summary.host_bytes:
            host = {"value": mebibytes_text(row.summary.host_bytes)}
            yield Sentence("saved.host", _common(comparison, row) | host)
    best = _best(comparison)
    if best and best.kinds:
        total = sum(best.kinds.values())
        largest, part = max(best.kinds.items(), key=lambda item: item[1])
        named: dict[str, str | Sentence] = {
            "kind": Sentence(f"kind.{largest}"),
            "share": percent_text(part / total),
            "value": mebibytes_text(total),
        }
        yield Sentence("saved.kind", _common(comparison, best) | named)


def _descriptions(row: ComparedRow) -> Iterator[Sentence]:
    """What the row's scheme does."""
    scheme = row.scheme
    if scheme.get("bits") is not None and "block" in scheme:
        yield _description(row)
    elif scheme.get("bits") is None and scheme["name"] in UNQUANTIZED and scheme["name"] != "fp32":
        yield Sentence(f"scheme.{scheme['name']}", {"scheme": row.label})
    _, *calls = str(scheme["name"]).split("/")
    if calls:
        yield Sentence("scheme.calls", {"scheme": row.label, "calls": "; ".join(calls)})


def _description(row: ComparedRow) -> Sentence:
    scheme = row.scheme
    block, projection, levels = str(scheme["block"]), scheme.get("projection", 1), str(scheme.get("levels"))
    derives = name_of(str(scheme["name"])) in DERIVED
    key = f"levels.{levels}"
    size = "block.row" if block == "1r" else "block.rows" if block.endswith("r") else "block.elements"
    return Sentence(
        "scheme.derived" if derives else "scheme.about",
        {
            "scheme": row.label,
            "bits": str(scheme["bits"]),
            "block": Sentence(size, {"rows": block.removesuffix("r")}),
            "levels": Sentence(key) if key in TEXTS else Sentence("levels.other", {"levels": levels}),
            "projection": Sentence("projection.none")
            if projection == 1
            else Sentence("projection.some", {"ratio": str(projection)}),
        },
    )


def _costs(comparison: Comparison) -> Iterator[Sentence]:
    for row in _spoken_of(comparison):
        beside = comparison.reference_of(row)
        if beside and row.summary.score_mean is not None and beside.summary.score_mean is not None:
            yield Sentence(f"costs.{_certainty(row)}", _score(comparison, row))
        elif row.summary.score_mean is not None:
            one = len(row.scores) == 1
            yield Sentence(
                "costs.alone.one" if one else "costs.alone", _score(comparison, row) | {"seeds": str(len(row.scores))}
            )
        if _is_timed(comparison, row):
            yield Sentence("costs.slower", _time(comparison, row))
        if row.gradient_noise is not None:
            value = noise_text(row.gradient_noise, row.gradient_noise_error)
            yield Sentence("costs.noise", _common(comparison, row) | {"value": value})
    if comparison.synthetic:
        yield Sentence("costs.generated", {"dataset": comparison.dataset})


def _certainty(row: ComparedRow) -> str:
    if row.difference is None:
        return "single"
    return "equal" if is_equal(row) else "distinct" if is_distinct(row) else "overlap"


def _unknown(comparison: Comparison) -> Iterator[Sentence]:
    if comparison.synthetic:
        yield Sentence("unknown.generated", {"dataset": comparison.dataset})
    single = [row.label for row in comparison.rows if len(row.scores) == 1]
    if single:
        yield Sentence("unknown.seeds", {"schemes": ", ".join(single)})
    overlapping = [row.label for row in comparison.candidates if is_overlapping(row)]
    if overlapping:
        yield Sentence("unknown.overlap", {"schemes": ", ".join(overlapping), "reference": comparison.reference})
    for row in comparison.rows:
        for status, runs in row.summary.statuses.items():
            if status != "ok":
                yield Sentence("unknown.unfinished", {"scheme": row.label, "status": status, "runs": str(runs)})
    few = [row for row in comparison.rows if 0 < len(row.epoch_seconds) < FEW_EPOCHS]
    if few:
        most = str(max(len(row.epoch_seconds) for row in few))
        yield Sentence("unknown.speed", {"schemes": ", ".join(row.label for row in few), "epochs": most})
    yield from _unmeasured_peaks(comparison)
    yield Sentence("unknown.epochs", {"epochs": _epochs(comparison)})
    yield Sentence("unknown.machine", {"device": _devices(comparison)})


def _unmeasured_peaks(comparison: Comparison) -> Iterator[Sentence]:
    cuda = any(place.device == "cuda" for place in comparison.machines)
    fields = {"nvml": "nvml_peak_bytes"} if cuda else {"resident": "rss_peak_bytes"}
    for kind, field in fields.items():
        reasons = [each.record["reasons"].get(field) for row in comparison.rows for each in row.located]
        if kind not in comparison.peaks and any(reasons):
            reason = next(str(reason) for reason in reasons if reason)
            yield Sentence("unknown.peak", {"kind": Sentence(f"peak.{kind}"), "reason": reason})


def _prototype(comparison: Comparison) -> Iterator[Sentence]:
    best = _best(comparison)
    if best:
        yield Sentence("rollout.prototype", _memory(comparison, best))
        if best.difference and not is_equal(best):
            yield Sentence("rollout.prototype.score", _score(comparison, best))
        elif best.difference is None:
            yield Sentence("rollout.prototype.unscored", _common(comparison, best))


def _toolchain(comparison: Comparison) -> Iterator[Sentence]:
    best = _best(comparison)
    if best:
        exact = {"value": f"{best.summary.saved_bytes:,.0f}"}
        yield Sentence("rollout.toolchain", _memory(comparison, best) | exact)
        if _is_timed(comparison, best):
            yield Sentence("rollout.toolchain.time", _time(comparison, best))


def _rules(comparison: Comparison) -> Iterator[Sentence]:
    best = _best(comparison)
    if best and _whole(best).ratio is not None:
        yield Sentence("rollout.rules", _memory(comparison, best))
    if best and best.difference:
        yield Sentence("rollout.rules.score", _score(comparison, best))


def _meeting(comparison: Comparison) -> Iterator[Sentence]:
    for row in _finished_alone(comparison):
        yield Sentence("meeting.finished", _alone(comparison, row))
    best = _best(comparison)
    if best is None:
        return
    whole = _whole(best).ratio is not None
    yield Sentence("meeting.memory" if whole else "meeting.memory.activation", _memory(comparison, best))
    if best.difference:
        key = {"equal": "equal", "distinct": "loss", "overlap": "noise"}[_certainty(best)]
        yield Sentence(f"meeting.{key}", _score(comparison, best))
    elif best.summary.score_mean is not None:
        yield Sentence("meeting.single", _score(comparison, best))
    if _is_timed(comparison, best):
        yield Sentence("meeting.time", _time(comparison, best))
    if comparison.synthetic:
        yield Sentence("meeting.generated")
