"""Is a new measurement worse than its baseline? One finding for every figure of every row, and a verdict of them all.

Three kinds of figure need three kinds of question.

Bytes are deterministic: equal code keeps equal bytes, so any excess beyond a rounding's worth is a regression.

Scores and training losses are deterministic on one machine and one torch: equal seeds of equal code give equal bits.
What a change of the code does to them is a sample of one per seed, so that a re-drawn rounding (harmless, of mean zero)
is told from a loss by Student's interval of the paired differences. The loss is asked beside the score because it sees
a biased quantizer much earlier: it is a mean over all training nodes and epochs, not a count of a few test nodes.

Time is noise with a figure in it, see `_judge_times`.

A noisy figure of several rows is several tests, of which one in twenty would fail by chance: Holm's step-down
procedure (Scandinavian Journal of Statistics 6, 1979) keeps the chance of any false alarm in it below `significance`,
however many rows there are and however they depend on each other. Scores and losses do without: an unchanged run has
nothing to alarm there, and at three seeds the correction would hide losses of ten points.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple

from actbench.analysis.distinction import distinctions, settings_of
from actbench.analysis.intervals import Interval, paired_difference
from actbench.analysis.limits import Limits, Settings
from actbench.analysis.warnings import FEW_EPOCHS
from actbench.errors import UsageError
from actbench.records import Record, identity, is_figure, printable, settings
from actbench.runs.grid import FINAL

Outcome = Literal["pass", "regression", "improvement", "unclear", "missing", "new"]
Figure = Literal[
    "row",
    "seeds",
    "status",
    "saved_bytes",
    "predicted_saved_bytes",
    "loss_saved_bytes",
    "time",
    "score",
    "loss",
    "peak",
    "peak_reserved",
    "peak_nvml",
]
Why = Literal["unmeasured", "departed", "machine", "noise", "one seed"]


@dataclass(frozen=True)
class Finding:
    """What became of one figure of one row.

    `baseline` and `new` are bytes, seconds an epoch, scores or losses (means over the runs, of the seed that grew most
    for bytes), counts for "row", "seeds" and "status". `change` is relative, the paired difference itself for scores;
    `limit` is what of it is allowed. `low` and `high` are the interval of a score's or a loss's change, to which the
    `p_value` belongs; for time and peak that is of the change's direction, adjusted for the number of rows.
    `rest_change` is by how much the rest of the same runs slowed down. `departed` is the first epoch whose training
    loss is not the baseline's. None where there is no such figure.
    """

    figure: Figure
    outcome: Outcome
    baseline: float | None = None
    new: float | None = None
    change: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    rest_change: float | None = None
    departed: int | None = None
    why: Why | None = None
    detail: str | None = None


@dataclass(frozen=True)
class CheckedRow:
    """One data set, model, scheme and recipe; `seeds` are those that baseline and new measurement share.

    `distinction` holds what of recipe and data differs from other rows of the same data set, model and scheme.
    """

    dataset: str
    digest: str | None
    model: str
    scheme: str
    recipe: dict[str, Any]
    metric: str | None
    seeds: list[int]
    findings: list[Finding]
    distinction: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """All findings of a check."""

    rows: list[CheckedRow]
    settings: Settings
    allow_missing: bool

    def is_failure(self, finding: Finding) -> bool:
        """Whether `finding` makes the check fail: a regression, or something missing that was not allowed to be."""
        return finding.outcome == "regression" or (finding.outcome == "missing" and not self.allow_missing)

    @property
    def failures(self) -> list[tuple[CheckedRow, Finding]]:
        """The findings for which the check fails, with their rows."""
        return [(row, each) for row in self.rows for each in row.findings if self.is_failure(each)]

    def as_json(self) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {
            "verdict": "regression" if self.failures else "pass",
            "failures": len(self.failures),
            "allow_missing": self.allow_missing,
            "limits": asdict(self.settings.limits),
            "scheme_limits": {scheme: asdict(limits) for scheme, limits in self.settings.schemes.items()},
            "rows": [asdict(row) for row in self.rows],
        }


class _Key(NamedTuple):
    dataset: str
    digest: str | None
    model: str
    scheme: str
    recipe: str


@dataclass(frozen=True)
class _Pair:
    """The runs of one row in both files, by seed."""

    key: _Key
    base: dict[int, Record]
    new: dict[int, Record]

    @property
    def seeds(self) -> list[int]:
        return sorted(seed for seed in self.base if seed in self.new)

    @property
    def finished(self) -> list[int]:
        return [seed for seed in self.seeds if self.base[seed]["status"] == self.new[seed]["status"] == "ok"]


def check_records(
    baseline: Iterable[Record], new: Iterable[Record], settings: Settings | None = None, allow_missing: bool = False
) -> Verdict:
    """Compare two measurements row by row and seed by seed; see the module for how.

    The last final record of a baseline's job counts, and the last record of a new one, whatever became of it.
    Raises `UsageError` if there is nothing to compare, or if rows that belong together differ in data, recipe or
    machine.
    """
    settings = settings or Settings()
    final = (_whole(record) for record in baseline if record["status"] in FINAL)
    old_rows = _rows(_last_of_each(final, _job))
    new_rows = _rows(_last_of_each(map(_whole, new), _job))
    if not any(record["status"] == "ok" for runs in old_rows.values() for record in runs.values()):
        raise UsageError("The baseline holds no run that is ok, so nothing can be compared: measure it again.")
    if not new_rows:
        raise UsageError("The new measurement holds no records: `actbench run --output NEW.jsonl` writes them.")
    gone = [key for key in old_rows if key not in new_rows]
    added = [key for key in new_rows if key not in old_rows]
    _require_equal_settings(gone, added)
    pairs = [_Pair(key, runs, new_rows[key]) for key, runs in old_rows.items() if key in new_rows]
    for pair in pairs:
        _require_one_machine(pair)
        _require_one_computation(pair)
    if allow_missing and not any(pair.seeds for pair in pairs):
        raise UsageError("No row and seed of the baseline is in the new measurement, so nothing is compared: run them.")
    tested = (_judge_times, _judge_scores, _judge_losses, _judge_peaks, _judge_reserved_peaks, _judge_nvml_peaks)
    columns = [judge(pairs, settings) for judge in tested]
    rows = []
    for i, pair in enumerate(pairs):
        limits = settings.of(pair.key.scheme)
        findings = _missing_seeds(pair) + ([_judge_status(pair)] if pair.seeds else [])
        findings += [each for name in _BYTES if (each := _judge_bytes(pair, name, limits)) is not None]
        findings += [each for column in columns if (each := column[i]) is not None]
        rows.append(_checked(pair.key, pair.base, pair.seeds, findings))
    for key in gone:
        finding = Finding("row", "missing", baseline=len(old_rows[key]), new=0)
        rows.append(_checked(key, old_rows[key], [], [finding]))
    for key in added:
        finding = Finding("row", "new", baseline=0, new=len(new_rows[key]))
        rows.append(_checked(key, new_rows[key], [], [finding]))
    names = [(row.dataset, row.model, row.recipe.get("sampler"), row.scheme) for row in rows]
    told = distinctions(names, [settings_of(row.recipe, row.digest) for row in rows])
    rows = [replace(row, distinction=distinction) for row, distinction in zip(rows, told, strict=True)]
    return Verdict(rows, settings, allow_missing)


def choose_final(records: Iterable[Record]) -> list[Record]:
    """The last record of every job that ended "ok" or "oom", in the order in which jobs first appear.

    Raises `UsageError` if they are no baseline: no run that is ok, or runs of several machines or versions.
    """
    chosen = _last_of_each((_whole(record) for record in records if record["status"] in FINAL), identity)
    if not any(record["status"] == "ok" for record in chosen):
        raise UsageError("There is no run that is ok in these records, so they are no baseline: measure again.")
    first = _machine_of(chosen[0])
    for record in chosen:
        if (here := _machine_of(record)) != first:
            name, before, after = _first_difference(first, here)
            raise UsageError(
                f"These records differ in what they were measured on ({name} {before} and {after}), and a baseline is "
                "of one machine and one version: measure again into a file of its own."
            )
    return chosen


def _whole(record: Record) -> Record:
    """The record, safe to print; raises `UsageError` if it does not say which run it is of."""
    error = printable(record.get("error"), keep="\n")
    record = printable({name: value for name, value in record.items() if name != "error"}) | {"error": error}
    environment, scheme = record["environment"], record["scheme"]
    texts = {name: record[name] for name in ("status", "dataset", "model")} | {"scheme.name": scheme.get("name")}
    texts |= {f"environment.{name}": environment.get(name) for name in ("device", "device_name")}
    wrong = [name for name, value in texts.items() if not isinstance(value, str)]
    wrong += [] if isinstance(record["seed"], int) else ["seed"]
    wrong += [] if isinstance(record["digest"], str | None) else ["digest"]
    wrong += [] if isinstance(environment.get("versions"), dict) else ["environment.versions"]
    if wrong:
        raise UsageError(
            f"A record of {record['dataset']} has no usable {wrong[0]}, so it cannot be compared: measure again."
        )
    absent = {"cuda": None, "threads": None}
    versions = {"actbench": None, "torch": None} | environment["versions"]
    return record | {"environment": absent | environment | {"versions": versions}}


def _job(record: Record) -> str:
    """Equal for two records of the same measurement, wherever and with whichever version it was made."""
    return repr((_key(record), record["seed"]))


def _last_of_each(records: Iterable[Record], key: Callable[[Record], str]) -> list[Record]:
    last: dict[str, Record] = {}
    for record in records:
        last[key(record)] = record
    return list(last.values())


def _key(record: Record) -> _Key:
    recipe = json.dumps(settings(record["recipe"]), sort_keys=True)
    return _Key(record["dataset"], record["digest"], record["model"], record["scheme"]["name"], recipe)


def _rows(records: Iterable[Record]) -> dict[_Key, dict[int, Record]]:
    rows: dict[_Key, dict[int, Record]] = {}
    for record in records:
        rows.setdefault(_key(record), {})[record["seed"]] = record
    return rows


def _checked(key: _Key, runs: dict[int, Record], seeds: list[int], findings: list[Finding]) -> CheckedRow:
    names = [r["metrics"].get("name") for r in runs.values() if isinstance(r.get("metrics"), dict)]
    metric = names[0] if names else None
    return CheckedRow(key.dataset, key.digest, key.model, key.scheme, json.loads(key.recipe), metric, seeds, findings)


def _require_equal_settings(gone: list[_Key], added: list[_Key]) -> None:
    """Raise `UsageError` if a row that is gone seems to be one that was added, with other data or another recipe."""
    for old in gone:
        for new in added:
            if (old.dataset, old.model, old.scheme) == (new.dataset, new.model, new.scheme):
                before = {"digest of the data": old.digest} | json.loads(old.recipe)
                after = {"digest of the data": new.digest} | json.loads(new.recipe)
                name, *values = _first_difference(before, after)
                raise UsageError(
                    f"{old.scheme} on {old.dataset} cannot be compared: {name} is {values[0]} in the baseline and "
                    f"{values[1]} now; measure with equal settings or write a new baseline."
                )


def _require_one_machine(pair: _Pair) -> None:
    """Raise `UsageError` unless all runs of the row were made on the same machine, whichever actbench made them."""
    machines = []
    for where, runs in (("baseline", pair.base), ("new measurement", pair.new)):
        machines += [own := [_machine_of(record) | {"actbench": None} for record in runs.values()]]
        for each in own:
            if each != own[0]:
                name, before, after = _first_difference(own[0], each)
                raise UsageError(
                    f"The runs of {pair.key.scheme} in the {where} differ in {name} ({before} and {after}): "
                    "measure all of them on one machine."
                )
    (old, *_), (new, *_) = machines
    if old != new:
        name, before, after = _first_difference(old, new)
        raise UsageError(
            f"{pair.key.scheme} on {pair.key.dataset} cannot be compared: {name} is {before} in the baseline and "
            f"{after} now; measure on the same machine or write a new baseline there."
        )


def _require_one_computation(pair: _Pair) -> None:
    """Raise `UsageError` if graph, metric or scheme of a row differ where both files tell."""
    (old, *_), (new, *_) = (list(map(_computation_of, runs.values())) for runs in (pair.base, pair.new))
    for runs in (pair.base, pair.new):
        for told in map(_computation_of, runs.values()):
            for name, value in told.items():
                for other in (old, new):
                    if value is not None and other[name] is not None and value != other[name]:
                        raise UsageError(
                            f"{pair.key.scheme} on {pair.key.dataset} cannot be compared: {name} is {other[name]} in "
                            f"one run and {value} in another; measure both with the same data and scheme."
                        )


def _computation_of(record: Record) -> dict[str, Any]:
    """What a run computed beyond its key, by name; None where it did not come to tell."""
    graph, metrics = record.get("graph"), record.get("metrics")
    told = {name: graph.get(name) if isinstance(graph, dict) else None for name in ("nodes", "edges", "features")}
    told |= {name: record["scheme"].get(name) for name in ("bits", "block", "projection", "levels", "dropout")}
    told["overrides"] = record["scheme"].get("overrides")
    return told | {"metric": metrics.get("name") if isinstance(metrics, dict) else None}


def _machine_of(record: Record) -> dict[str, Any]:
    """What must be equal for figures to be comparable, by name; actbench's version is what a check compares."""
    names = ("device", "device_name", "cuda", "threads", "actbench", "torch")
    environment = record["environment"]
    told = {name: environment.get(name, environment["versions"].get(name)) for name in names}
    return told | {way: bool(environment.get(way)) for way in ("deterministic", "together")}


def _first_difference(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, Any, Any]:
    for name in [*before, *after]:
        # As texts, of which keys are made: 0 and 0.0 are two there.
        if (name in before) != (name in after) or _text(before[name]) != _text(after[name]):
            return name, before.get(name), after.get(name)
    raise AssertionError("no difference")


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _missing_seeds(pair: _Pair) -> list[Finding]:
    missing = sorted(seed for seed in pair.base if seed not in pair.new)
    if not missing:
        return []
    detail = ", ".join(map(str, missing))
    return [Finding("seeds", "missing", baseline=len(pair.base), new=len(pair.seeds), detail=detail)]


def _judge_status(pair: _Pair) -> Finding:
    """A run that was ok must still be. One that was out of memory before may stay so."""
    fallen = [seed for seed in pair.seeds if pair.base[seed]["status"] == "ok" != pair.new[seed]["status"]]
    risen = [seed for seed in pair.seeds if pair.base[seed]["status"] != "ok" == pair.new[seed]["status"]]
    before, after = (sum(runs[seed]["status"] == "ok" for seed in pair.seeds) for runs in (pair.base, pair.new))
    if fallen:
        record = pair.new[fallen[0]]
        error = record.get("error")
        detail = f"{record['status']} with seed {fallen[0]}"
        if isinstance(error, dict) and error.get("type"):
            detail += f", {error['type']}: {str(error.get('message', '')).partition(chr(10))[0]}"
        return Finding("status", "regression", before, after, detail=detail)
    if risen:
        detail = f"ok with seed {risen[0]}, {pair.base[risen[0]]['status']} in the baseline"
        return Finding("status", "improvement", before, after, detail=detail)
    return Finding("status", "pass", before, after)


_Bytes = Literal["saved_bytes", "predicted_saved_bytes", "loss_saved_bytes"]
_BYTES: Final[tuple[_Bytes, ...]] = ("saved_bytes", "predicted_saved_bytes", "loss_saved_bytes")


def _judge_bytes(pair: _Pair, name: _Bytes, limits: Limits) -> Finding | None:
    """The seed that grew most decides: the count is exact, so there is nothing to average."""
    limit = limits.saved_bytes
    values = {seed: (_number(pair.base[seed].get(name)), _number(pair.new[seed].get(name))) for seed in pair.seeds}
    lost = [seed for seed in pair.finished if values[seed][0] is not None and values[seed][1] is None]
    if lost:
        return Finding(name, "regression", values[lost[0]][0], limit=limit, why="unmeasured")
    known = [(old, new) for old, new in values.values() if old is not None and new is not None]
    if not known:
        return None
    old, new = max(known, key=lambda each: each[1] / each[0] if each[0] else math.inf if each[1] else 1.0)
    outcome: Outcome = "pass"
    if new > old * (1 + limit) + _ROUNDING * old:
        outcome = "regression"
    elif new < old * (1 - limit) - _ROUNDING * old:
        outcome = "improvement"
    return Finding(name, outcome, old, new, new / old - 1 if old else None, limit)


@dataclass(frozen=True)
class _Prior:
    """What is known of the spread of a figure's logarithm over identical runs, and how many observations it counts."""

    deviation: float
    weight: int


# Identical runs on a shared two-core machine: standard deviations of 0.03 to 0.06 in quiet hours, 0.1 to 0.27 in busy
# ones. It decides alone where there is one run on each side, and what is flagged then is about half as slow again.
_TIME = _Prior(0.10, 4)
# The resident set of identical runs: 0.009 to 0.017. It is known well, so that one run on each side can be judged.
_RESIDENT = _Prior(0.01, 20)
# The allocator's own count repeats itself almost to the byte.
_ALLOCATED: Final = _Prior(0.001, 20)


class _Shift(NamedTuple):
    """A mean change of logarithms: its estimate, the standard error, and the degrees of freedom of that."""

    estimate: float
    error: float
    freedom: int

    def p_value(self, direction: int) -> float:
        """The chance of such an estimate or one further in `direction` (1 or -1) without any change."""
        from scipy.stats import t

        return float(t.sf(direction * self.estimate / self.error, self.freedom))

    def reach(self, significance: float) -> float:
        """The least estimate that is significant."""
        from scipy.stats import t

        return float(t.isf(significance, self.freedom)) * self.error


_ROUNDING: Final = 1e-9
"""What a change may be above its limit, in the same unit: 0.71 - 0.70 is not more than 0.01."""

_Sample = tuple[list[float], list[float]]
"""Logarithms of a figure, one a run: the baseline's and the new ones."""


def _shifts(rows: dict[int, _Sample], prior: _Prior) -> dict[int, _Shift]:
    """How far the second half of every sample lies above the first, with an error that few runs cannot make too small.

    A sample's values are runs, never epochs: epochs of one run share its luck (its memory, its neighbours) and count
    hardly more than once. Three runs estimate a variance poorly, and by chance much too small; so a row's variance is
    drawn towards that of all rows, and that towards `prior`, each as so many observations (moderated t; Smyth,
    Statistical Applications in Genetics and Molecular Biology 3, 2004).
    """
    squares = {i: sum(statistics.pvariance(part) * len(part) for part in row) for i, row in rows.items()}
    freedom = {i: len(old) + len(new) - 2 for i, (old, new) in rows.items()}
    common = prior.weight * prior.deviation**2 + sum(squares.values())
    common /= (prior.weight + sum(freedom.values())) or 1
    shifts = {}
    for i, (old, new) in rows.items():
        degrees = prior.weight + freedom[i]
        variance = (prior.weight * common + squares[i]) / degrees
        error = math.sqrt(variance * (1 / len(old) + 1 / len(new)))
        shifts[i] = _Shift(statistics.fmean(new) - statistics.fmean(old), error, degrees)
    return shifts


def _holm(p_values: dict[int, float]) -> dict[int, float]:
    """The p-values adjusted for being several: those below a significance are rejected together at it (Holm 1979)."""
    adjusted, highest = {}, 0.0
    for rank, i in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _judge_times(pairs: list[_Pair], settings: Settings) -> list[Finding | None]:
    """An epoch's time: significantly slower, by more than the limit, and slower than the rest of its own run.

    The figure of a run is the lower quartile of its epochs after warm-up. What else a machine does only ever lengthens
    an epoch, so a low quantile repeats better than the median (standard deviations of 0.11 against 0.23 where another
    process came and went), and what slows every epoch moves both alike. Runs are compared by `_shifts`.

    That sees what changes from run to run, but not that a machine is slower today than on the day of the baseline: all
    runs of a file share that. Only something else measured in the same minutes can tell, and every record has it: the
    rest of the run (loading and evaluation, the wall time less the epochs), which compression does not touch. On our
    records its logarithm and the epoch's correlate by 0.7 to 0.9 in busy hours. So the ratio of the two must have
    grown as well, by the same test; it rests on as many runs. The ratio to FP32 would be no such control: it is blind
    to what slows every scheme, and FP32's own epochs vary the most.

    Both must hold. The ratio alone would blame an epoch when loading becomes faster. A rest that is much noisier than
    the epochs (data sets read from a cold disk) is no control and is left out. The price: what slows training and
    evaluation alike is named as unclear and does not fail; on a machine of one's own set `control = false`.
    """
    limits = [settings.of(pair.key.scheme).time for pair in pairs]
    control = _rest_time if settings.limits.control else None
    return _judge_shifts("time", pairs, limits, settings, _TIME, _epoch_time, control)


def _judge_peaks(pairs: list[_Pair], settings: Settings) -> list[Finding | None]:
    """The whole peak (allocator on CUDA, resident set on a CPU), by the test of times with its own, small, noise."""
    cuda = bool(pairs) and all(r["environment"]["device"] == "cuda" for pair in pairs for r in pair.base.values())
    limits = [settings.of(pair.key.scheme).peak for pair in pairs]
    return _judge_shifts("peak", pairs, limits, settings, _ALLOCATED if cuda else _RESIDENT, _peak)


def _judge_reserved_peaks(pairs: list[_Pair], settings: Settings) -> list[Finding | None]:
    """What CUDA's allocator held from the driver at most, as other peaks; a CPU has no such figure."""
    limits = [settings.of(pair.key.scheme).peak for pair in pairs]
    return _judge_shifts(
        "peak_reserved", pairs, limits, settings, _RESIDENT, lambda record: _positive(record.get("peak_reserved_bytes"))
    )


def _judge_nvml_peaks(pairs: list[_Pair], settings: Settings) -> list[Finding | None]:
    """What NVML saw of the process at most, as other peaks; a CPU has no such figure."""
    limits = [settings.of(pair.key.scheme).peak for pair in pairs]
    return _judge_shifts(
        "peak_nvml", pairs, limits, settings, _RESIDENT, lambda record: _positive(record.get("nvml_peak_bytes"))
    )


def _judge_shifts(
    figure: Literal["time", "peak", "peak_reserved", "peak_nvml"],
    pairs: list[_Pair],
    limits: list[float],
    settings: Settings,
    prior: _Prior,
    value: Callable[[Record], float | None],
    control: Callable[[Record], float | None] | None = None,
) -> list[Finding | None]:
    """Findings of a noisy figure of which more is worse; where `control` is one, its ratio to that must move too."""
    found: list[Finding | None] = [None] * len(pairs)
    samples: dict[int, _Sample] = {}
    ratios: dict[int, _Sample] = {}
    for i, pair in enumerate(pairs):
        old, new = _paired(pair, lambda record: _log(value(record)))
        if len(new) < len(old):
            before = math.exp(statistics.fmean(old.values()))
            found[i] = Finding(figure, "regression", before, limit=limits[i], why="unmeasured")
        elif old:
            samples[i] = list(old.values()), list(new.values())
            rests = _paired(pair, lambda record: _log(control(record)) if control else None)
            if all(rest.keys() == old.keys() for rest in rests):
                ratios[i] = [old[s] - rests[0][s] for s in old], [new[s] - rests[1][s] for s in old]
    shifts = _shifts(samples, prior)
    controls = {
        i: ratio
        for i, ratio in _shifts(ratios, prior).items()
        if ratio.error <= 2 * shifts[i].error or ratio.reach(settings.limits.significance) <= math.log1p(limits[i])
    }
    tests = {i: [shift, *([controls[i]] if i in controls else [])] for i, shift in shifts.items()}
    # Each of a row's tests must reject, so the larger of their p-values is that of both together.
    higher, lower = (
        _holm({i: max(each.p_value(sign) for each in tested) for i, tested in tests.items()}) for sign in (1, -1)
    )
    for i, shift in shifts.items():
        limit = math.log1p(limits[i])
        estimates = [each.estimate for each in tests[i]]
        outcome, why = _outcome(min(estimates), limit, higher[i], 1.0, settings)
        if outcome == "pass" and shift.estimate > limit:
            outcome = "unclear"
        if outcome == "pass":
            outcome, why = _outcome(max(estimates), limit, 1.0, lower[i], settings)
        if outcome == "unclear":
            shared = i in controls and controls[i].estimate <= limit
            why = "machine" if shared else "one seed" if len(pairs[i].finished) == 1 else "noise"
        before, after = (math.exp(statistics.fmean(sample)) for sample in samples[i])
        found[i] = Finding(
            figure,
            outcome,
            before,
            after,
            math.expm1(shift.estimate),
            limits[i],
            p_value=lower[i] if shift.estimate < 0 else higher[i],
            rest_change=math.expm1(shift.estimate - controls[i].estimate) if i in controls else None,
            why=why,
        )
    return found


def _judge_scores(pairs: list[_Pair], settings: Settings) -> list[Finding | None]:
    """The paired difference of test scores: on average beyond the margin, and its whole interval below zero.

    Not "the whole interval beyond the margin": three seeds whose differences spread by a point have an interval of
    ± 2.5 points, and a loss of three points would pass. Nor "the interval reaches beyond the margin", which alarms
    at every unchanged but noisy score. One seed has no interval; the margin alone decides then, which cannot alarm as
    long as nothing changes, since equal seeds score equally.
    """
    values = [_paired(pair, _test_score) for pair in pairs]
    return _judge_paired("score", values, [settings.of(pair.key.scheme).score for pair in pairs], settings, -1)


def _judge_losses(pairs: list[_Pair], settings: Settings) -> list[Finding | None]:
    """The mean training loss over all epochs, as the ratio of equal seeds; judged as scores are, higher being worse.

    Half a level of bias in the quantizer raises it by 0.7 to 8 % within 20 epochs, alike in every seed, where
    re-drawn noise moves it by ± 0.5 % (a graph of 339 nodes). A curve that departs from the baseline's by more than
    what float sums in another order explain is named in any case: the training is no longer the same computation.
    """
    values = [_paired(pair, lambda record: _log(_mean_loss(record))) for pair in pairs]
    limits = [math.log1p(settings.of(pair.key.scheme).loss) for pair in pairs]
    found = _judge_paired("loss", values, limits, settings, 1)
    for i, (pair, finding) in enumerate(zip(pairs, found, strict=True)):
        if finding is None or finding.baseline is None:
            continue
        limits_here = settings.of(pair.key.scheme)
        departed = _first_departure(pair)
        outcome, why = finding.outcome, finding.why
        if departed is not None and limits_here.exact_loss and outcome != "regression":
            outcome, why = "regression", "departed"
        found[i] = replace(
            finding,
            outcome=outcome,
            why=why,
            departed=departed,
            baseline=math.exp(finding.baseline),
            new=None if finding.new is None else math.exp(finding.new),
            limit=limits_here.loss,
            change=_relative(finding.change),
            low=_relative(finding.low),
            high=_relative(finding.high),
        )
    return found


def _relative(logarithm: float | None) -> float | None:
    return None if logarithm is None else math.expm1(logarithm)


_DEPARTURE = 1e-3


def _first_departure(pair: _Pair) -> int | None:
    """The first epoch whose training loss differs by more than `_DEPARTURE`, over all seeds; None if there is none."""
    epochs = [
        epoch
        for seed in pair.finished
        for epoch, (old, new) in enumerate(zip(_losses(pair.base[seed]), _losses(pair.new[seed]), strict=False), 1)
        if abs(new - old) > _DEPARTURE * max(abs(old), abs(new))
    ]
    return min(epochs, default=None)


def _judge_paired(
    figure: Literal["score", "loss"],
    values: list[tuple[dict[int, float], dict[int, float]]],
    limits: list[float],
    settings: Settings,
    worse: int,
) -> list[Finding | None]:
    """Findings of seed-paired values (first the baseline's), of which a change in direction `worse` is one."""
    intervals = [paired_difference(new, old, 1 - settings.limits.significance) for old, new in values]
    found: list[Finding | None] = []
    for (old, new), interval, limit in zip(values, intervals, limits, strict=True):
        if not old:
            found.append(None)
            continue
        before = statistics.fmean(old.values())
        if len(new) < len(old):
            found.append(Finding(figure, "regression", before, limit=limit, why="unmeasured"))
            continue
        after = statistics.fmean(new.values())
        change = after - before if interval is None else interval.mean
        p_value = None if interval is None else _p_value(interval)
        # One seed has no interval: the limit alone decides.
        certain = 0.0 if p_value is None else p_value
        outcome, why = _outcome(worse * change, limit, certain, certain, settings)
        found.append(
            Finding(
                figure,
                outcome,
                before,
                after,
                change,
                limit,
                None if interval is None else interval.low,
                None if interval is None else interval.high,
                p_value,
                why=why,
            )
        )
    return found


def _p_value(interval: Interval) -> float:
    """The two-sided p-value of no difference: below 1 - confidence if and only if the interval leaves out zero."""
    from scipy.stats import t

    degrees = interval.pairs - 1
    error = (interval.high - interval.mean) / float(t.ppf((1 + interval.confidence) / 2, degrees))
    if error == 0:
        return 0.0 if interval.mean else 1.0
    return 2 * float(t.sf(abs(interval.mean) / error, degrees))


def _outcome(
    change: float, limit: float, p_worse: float, p_better: float, settings: Settings
) -> tuple[Outcome, Why | None]:
    """What a change towards the worse (positive) means: both its size and its certainty count."""
    if change > limit + _ROUNDING:
        return ("regression", None) if p_worse < settings.limits.significance else ("unclear", "noise")
    if change < -limit - _ROUNDING and p_better < settings.limits.significance:
        return "improvement", None
    return "pass", None


def _paired(pair: _Pair, figure: Callable[[Record], float | None]) -> tuple[dict[int, float], dict[int, float]]:
    """The figure of every finished seed whose baseline has it, in both files; fewer in the second if it was lost."""
    old = {seed: value for seed in pair.finished if (value := figure(pair.base[seed])) is not None}
    new = {seed: value for seed in old if (value := figure(pair.new[seed])) is not None}
    return old, new


def _epoch_time(record: Record) -> float | None:
    """Seconds, the lower quartile of all epochs after warm-up; None if those are too few for a measurement."""
    seconds = [each for each in _epoch_seconds(record) if _positive(each) is not None]
    timed = sorted(seconds[_warmup(record) :])
    if len(timed) < FEW_EPOCHS:
        return None
    place = (len(timed) - 1) / 4
    low = math.floor(place)
    high = min(low + 1, len(timed) - 1)
    return float(timed[low] + (place - low) * (timed[high] - timed[low]))


def _epoch_seconds(record: Record) -> list[Any]:
    seconds = record.get("epoch_seconds")
    return seconds if isinstance(seconds, list) else []


def _warmup(record: Record) -> int:
    epochs = record.get("warmup_epochs")
    return max(epochs, 0) if isinstance(epochs, int) else 0


def _rest_time(record: Record) -> float | None:
    """Seconds that a run spent on everything but its epochs; None if that is not known."""
    wall = _positive(record.get("wall_seconds"))
    seconds = [_positive(each) for each in _epoch_seconds(record)]
    if wall is None or not all(seconds):
        return None
    return _positive(wall - sum(each for each in seconds if each is not None))


def _losses(record: Record) -> list[float]:
    curve = record.get("curve")
    losses = curve.get("loss") if isinstance(curve, dict) else None
    numbers = [_number(each) for each in losses] if isinstance(losses, list) else []
    # A mean over fewer epochs would be another figure, so a curve with a hole or without its end is none.
    whole = None not in numbers and len(numbers) == record["recipe"].get("epochs", len(numbers))
    return [number for number in numbers if number is not None] if whole else []


def _test_score(record: Record) -> float | None:
    metrics = record.get("metrics")
    return _number(metrics.get("test")) if isinstance(metrics, dict) else None


def _mean_loss(record: Record) -> float | None:
    losses = _losses(record)
    return _positive(statistics.fmean(losses)) if losses else None


def _peak(record: Record) -> float | None:
    """Bytes, of the kind that the comparison's table calls the whole peak."""
    cuda = record["environment"]["device"] == "cuda"
    return _positive(record.get("peak_allocated_bytes" if cuda else "rss_peak_bytes"))


def _log(value: float | None) -> float | None:
    return None if value is None else math.log(value)


def _number(value: Any) -> float | None:
    """A number that can be reckoned with, None for anything else."""
    return value if is_figure(value) else None


def _positive(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None
