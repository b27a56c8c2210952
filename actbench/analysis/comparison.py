"""Schemes beside a reference: differences paired by seed, percentiles, bytes by kind, the Pareto front, the papers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from actbench.analysis.distinction import distinctions, settings_of
from actbench.analysis.intervals import Interval, paired_difference
from actbench.analysis.summary import REFERENCE, Row, median_of_known, ratio, summarise, timed_epochs
from actbench.errors import OutputError, SchemeError, UsageError
from actbench.records import (
    FIELDS,
    MACHINE_FIELDS,
    PEAK_FIELDS,
    Record,
    RecordFile,
    identity,
    is_figure,
    machine,
    printable,
    series,
    unusable_field,
)
from actbench.records.study import Study, match_studies, study_key
from actbench.runs.grid import FINAL
from actbench.scheme import Scheme
from actbench.training import DEFAULTS

KINDS: Final = ("layer", "linear", "batch_norm", "relu", "dropout", "attention", "metadata", "other")
"""Kept bytes are of inputs of recomputed layers, linear and batch-norm inputs, ReLUs, dropouts, attention, blocks'
minimum and scale, or the rest."""
PEAKS: Final = dict(zip(("allocated", "reserved", "nvml", "resident"), PEAK_FIELDS, strict=True))
_IN_HEADING: Final = ("sampler", "layers", "hidden", "epochs")
_LINEAR: Final = ("linear", "matmul", "mm", "addmm")
_ATTENTION: Final = ("edge_scores", "leaky_relu", "edge_softmax", "aggregate")


@dataclass(frozen=True)
class Source:
    """Where a record stands."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Located:
    """A record and where it stands."""

    record: Record
    source: Source


@dataclass(frozen=True)
class Cited:
    """A figure of the authors', with the mark of how certain it is: raw, calc, abs or recall."""

    value: float
    mark: str
    std: float | None = None


@dataclass(frozen=True)
class PaperFigures:
    """i-EXACT's Table 1 for one scheme: activation MiB and their ratio to FP32's, accuracy in %, epochs per second."""

    activation: Cited
    activation_ratio: Cited
    accuracy: Cited
    epochs_per_second: Cited


@dataclass(frozen=True)
class Peak:
    """A peak of memory in bytes and its ratio to the reference's."""

    value_bytes: float | None
    ratio: float | None


@dataclass(frozen=True)
class Curve:
    """Validation score by epoch over seeds, in [0, 1]: mean, and mean -/+ one standard deviation (the mean for one)."""

    mean: list[float]
    low: list[float]
    high: list[float]
    seeds: int


@dataclass(frozen=True)
class Machine:
    """Where rows were measured; `label` is empty where a comparison has one machine only."""

    label: str
    environment: dict[str, Any]
    commits: tuple[str, ...]

    @property
    def name(self) -> str:
        """The device's name."""
        return str(self.environment["device_name"])

    @property
    def device(self) -> str:
        """cpu or cuda."""
        return str(self.environment["device"])


@dataclass(frozen=True)
class ComparedRow:
    """One scheme's runs on one machine; a figure is None where no finished run has it.

    `difference` is that of the scores, [0, 1], to the reference's on the same machine, paired by seed. The 10 and 90
    percentiles of epochs per second are over all epochs after warm-up, whose number `epoch_seconds` tells.
    """

    summary: Row
    machine: Machine
    is_reference: bool
    difference: Interval | None
    scores: dict[int, float]
    peaks: dict[str, Peak]
    epoch_seconds: list[float]
    epochs_per_second_low: float | None
    epochs_per_second_high: float | None
    gradient_noise: float | None
    gradient_noise_error: float | None
    kinds: dict[str, int]
    curve: Curve | None
    paper: PaperFigures | None
    scheme: dict[str, Any]
    located: list[Located]

    @property
    def label(self) -> str:
        """The scheme's text, with the machine's label where there are several."""
        return f"{self.summary.scheme} [{self.machine.label}]" if self.machine.label else self.summary.scheme

    @property
    def median_epoch_seconds(self) -> dict[int, float]:
        """By seed, the median over the epochs after warm-up of the run that finished."""
        finished = [each.record for each in self.located if each.record["status"] == "ok"]
        timed = {record["seed"]: timed_epochs(record) for record in finished}
        return {seed: statistics.median(seconds) for seed, seconds in timed.items() if seconds}

    @property
    def kept_bytes(self) -> float | None:
        """Activation bytes on the device and in host memory together."""
        saved_bytes = self.summary.saved_bytes
        return None if saved_bytes is None else saved_bytes + (self.summary.host_bytes or 0)


@dataclass(frozen=True)
class Comparison:
    """All rows of one data set, model and recipe; `peaks` are the kinds of whole peak that were measured.

    `distinction` holds what else of recipe and data differs from other comparisons of the same data set and model.
    `studies` are the analyses at fixed weights of the same network; a row's gradient noise is that of the last of them
    that has its scheme, unless its records tell their own.
    """

    dataset: str
    synthetic: bool
    model: str
    metric: str | None
    recipe: dict[str, Any]
    graph: dict[str, Any] | None
    reference: str
    machines: list[Machine]
    peaks: tuple[str, ...]
    rows: list[ComparedRow]
    superseded: list[Source]
    distinction: dict[str, Any]
    studies: tuple[Study, ...] = ()

    def on(self, place: Machine) -> Comparison:
        """The part that was measured on one machine, its rows without the machine's label."""
        alone = replace(place, label="")
        rows = [replace(row, machine=alone) for row in self.rows if row.machine is place]
        records = [each.record for row in rows for each in row.located]
        return replace(self, machines=[alone], rows=rows, peaks=_measured_peaks(records))

    def reference_of(self, row: ComparedRow) -> ComparedRow | None:
        """The reference's row on the same machine as `row`."""
        return next((r for r in self.rows if r.is_reference and r.machine is row.machine), None)

    @property
    def candidates(self) -> list[ComparedRow]:
        """The rows beside the reference's."""
        return [row for row in self.rows if not row.is_reference]

    @property
    def has_paper_figures(self) -> bool:
        """Whether the papers measured this model on this graph, or on the one it is a twin of."""
        return any(row.paper for row in self.rows)


def read_located(paths: Iterable[Path]) -> list[Located]:
    """All records of the files, in order, each with its line; characters that no terminal should meet are replaced.

    Raises:
        OutputError: a file is absent, empty or holds a line that is no record, or one without a usable field.
    """
    found = []
    for path in dict.fromkeys(paths):
        if not path.exists():
            raise OutputError(f"There is no file {path}: name the --output of an `actbench run`.")
        records = RecordFile(path).read()
        if not records:
            raise OutputError(f"{path} holds no records: name the --output of an `actbench run`.")
        lines = [number for number, line in enumerate(path.read_bytes().split(b"\n"), start=1) if line.strip()]
        # A last line that was cut short has a number and no record.
        for number, record in zip(lines, records, strict=False):
            source = Source(printable(str(path)), number)
            found.append(Located(_checked(printable(record, keep="\n"), source), source))
    return found


def compare(
    located: Iterable[Located],
    reference: str = REFERENCE,
    across_machines: bool = False,
    studies: Iterable[Study] = (),
) -> list[Comparison]:
    """One comparison for every data set, model and recipe, in the order in which they first appear.

    Of several records of the same run the last that stands (ok or oom) counts, as `actbench run` has it.

    Raises:
        UsageError: records of different machines would share a table and `across_machines` is not set, or a study is
            of none of the records' networks.
    """
    groups: dict[str, list[Located]] = {}
    for each in located:
        groups.setdefault(series(each.record), []).append(each)
    firsts = [group[0].record for group in groups.values()]
    headings = [(r["dataset"], r["model"], *(r["recipe"].get(key) for key in _IN_HEADING)) for r in firsts]
    told = distinctions(headings, [settings_of(r["recipe"], r["digest"]) for r in firsts])
    by_key = match_studies(studies, map(study_key, firsts))
    return [
        _with_studies(_compare(group, reference, across_machines, distinction), by_key.get(study_key(first), []))
        for group, distinction, first in zip(groups.values(), told, firsts, strict=True)
    ]


def resolve_reference(text: str | None, located: Sequence[Located]) -> str:
    """The scheme that `text` names, as records write it; raises `UsageError` if none of them has it."""
    if text is None:
        return REFERENCE
    names = list(dict.fromkeys(each.record["scheme"]["name"] for each in located))
    if text in names:
        return text
    try:
        resolved = str(Scheme.parse(text))
    except SchemeError as error:
        raise UsageError(f"--reference: {error}") from error
    if resolved not in names:
        raise UsageError(f"--reference {text} is in none of the records: they hold {', '.join(names)}.")
    return resolved


def pareto_front(rows: Iterable[ComparedRow]) -> list[ComparedRow]:
    """The rows that no other beats in both score and activation bytes, on device and host, fewest bytes first."""
    points = [row for row in rows if row.summary.score_mean is not None and row.summary.saved_bytes is not None]
    points.sort(key=lambda row: (row.kept_bytes or 0, -(row.summary.score_mean or 0)))
    front: list[ComparedRow] = []
    for row in points:
        if not front or (row.summary.score_mean or 0) > (front[-1].summary.score_mean or 0):
            front.append(row)
    return front


def bytes_by_kind(record: Record) -> dict[str, int]:
    """The ledger's bytes summed by kind, in the order of `KINDS`; empty without a ledger."""
    compresses = record["scheme"].get("bits") is not None
    sums: dict[str, int] = {}
    for entry in record["ledger"]:
        kind = _kind(entry["operation"], compresses and entry["dtype"] == "bfloat16")
        sums[kind] = sums.get(kind, 0) + entry["saved_bytes"]
    return {kind: sums[kind] for kind in KINDS if kind in sums}


def _kind(operation: str, metadata: bool) -> str:
    if metadata:
        return "metadata"
    if operation in _LINEAR:
        return "linear"
    if operation in _ATTENTION:
        return "attention"
    return operation if operation in KINDS else "other"


def _compare(group: list[Located], reference: str, across_machines: bool, distinction: dict[str, Any]) -> Comparison:
    standing, superseded = _standing(group)
    by_machine: dict[str, list[Located]] = {}
    for each in standing:
        by_machine.setdefault(repr(machine(each.record["environment"])), []).append(each)
    first = standing[0].record
    if len(by_machine) > 1 and not across_machines:
        parts = list(by_machine.values())
        raise UsageError(
            f"{first['dataset']} under {first['model']} was measured on {len(parts)} machines or versions, first in "
            f"{' and '.join(str(part[0].source) for part in parts[:2])} ({_difference(*parts[:2])}): name records of "
            "one, or give --across-machines."
        )
    rows, machines = [], []
    for index, part in enumerate(by_machine.values()):
        commits = tuple(dict.fromkeys(str(c) for each in part if (c := each.record["environment"].get("commit"))))
        place = Machine(_letter(index) if len(by_machine) > 1 else "", part[0].record["environment"], commits)
        machines.append(place)
        rows += _rows(part, place, reference)
    records = [each.record for each in standing]
    return Comparison(
        dataset=first["dataset"],
        synthetic=_is_synthetic(records),
        model=first["model"],
        metric=next((r["metrics"]["name"] for r in records if r["metrics"]), None),
        recipe=first["recipe"],
        graph=next((r["graph"] for r in records if r["graph"]), None),
        reference=reference,
        machines=machines,
        peaks=_measured_peaks(records),
        rows=rows,
        superseded=superseded,
        distinction=distinction,
    )


def _with_studies(comparison: Comparison, studies: list[Study]) -> Comparison:
    rows: list[ComparedRow] = []
    for row in comparison.rows:
        found = [noise["total"] for study in studies if (noise := study.noise_of(row.summary.scheme))]
        if found and row.gradient_noise is None:
            total = found[-1]
            row = replace(row, gradient_noise=total["mean"], gradient_noise_error=total["standard_error"])
        rows.append(row)
    return replace(comparison, rows=rows, studies=tuple(studies))


def _is_synthetic(records: Iterable[Record]) -> bool:
    return any(r["dataset"].startswith("synthetic:") or (r["graph"] or {}).get("synthetic") for r in records)


def _measured_peaks(records: list[Record]) -> tuple[str, ...]:
    """On a GPU the resident set is not the whole that must fit; on a CPU it is the only one."""
    cuda = any(r["environment"]["device"] == "cuda" for r in records)
    cpu = any(r["environment"]["device"] != "cuda" for r in records)
    measured = (kind for kind, field in PEAKS.items() if any(r[field] is not None for r in records))
    return tuple(kind for kind in measured if (cpu if kind == "resident" else cuda))


def _standing(group: list[Located]) -> tuple[list[Located], list[Source]]:
    chosen: dict[str, Located] = {}
    superseded = []
    for each in group:
        key = identity(each.record)
        before = chosen.get(key)
        if before and before.record["status"] in FINAL and each.record["status"] not in FINAL:
            superseded.append(each.source)
            continue
        if before:
            superseded.append(before.source)
        chosen[key] = each
    kept = {id(each) for each in chosen.values()}
    return [each for each in group if id(each) in kept], superseded


def _difference(one: list[Located], other: list[Located]) -> str:
    pairs = zip(
        MACHINE_FIELDS, machine(one[0].record["environment"]), machine(other[0].record["environment"]), strict=True
    )
    return "; ".join(f"{field} {a} and {b}" for field, a, b in pairs if a != b)


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _rows(located: list[Located], place: Machine, reference: str) -> list[ComparedRow]:
    # Their recipes differ in nothing but, perhaps, the source that they name.
    recipe = located[0].record["recipe"]
    (table,) = summarise([each.record | {"recipe": recipe} for each in located], reference)
    by_scheme: dict[str, list[Located]] = {}
    for each in located:
        by_scheme.setdefault(each.record["scheme"]["name"], []).append(each)
    beside = by_scheme.get(reference, [])
    return [_row(row, by_scheme[row.scheme], beside, place, row.scheme == reference) for row in table.rows]


def _row(
    summary: Row, located: list[Located], reference: list[Located], place: Machine, is_reference: bool
) -> ComparedRow:
    records = [each.record for each in located]
    ok = [record for record in records if record["status"] == "ok"]
    seconds = [s for record in ok for s in timed_epochs(record)]
    low, high = _percentiles(seconds)
    scores = _scores(located)
    ledger = next((r for r in [*ok, *records] if r["ledger"]), None)
    noises = [r["gradient_noise"] for r in ok if is_figure(r.get("gradient_noise"))]
    return ComparedRow(
        summary=summary,
        machine=place,
        is_reference=is_reference,
        difference=None if is_reference else paired_difference(scores, _scores(reference)),
        scores=scores,
        peaks={kind: _peak(located, reference, field) for kind, field in PEAKS.items()},
        epoch_seconds=seconds,
        epochs_per_second_low=1 / high if high else None,
        epochs_per_second_high=1 / low if low else None,
        gradient_noise=median_of_known(noises),
        gradient_noise_error=None,
        kinds=bytes_by_kind(ledger) if ledger else {},
        curve=_curve(ok),
        paper=paper_figures(records[0]),
        scheme=records[0]["scheme"],
        located=located,
    )


def _scores(located: list[Located]) -> dict[int, float]:
    return {r["seed"]: r["metrics"]["test"] for r in (each.record for each in located) if r["status"] == "ok"}


def _peak(located: list[Located], reference: list[Located], field: str) -> Peak:
    value, beside = (
        median_of_known(each.record[field] for each in part if each.record["status"] == "ok")
        for part in (located, reference)
    )
    return Peak(value, ratio(value, beside))


def _percentiles(seconds: list[float]) -> tuple[float | None, float | None]:
    if len(seconds) < 2:
        return None, None
    tenths = statistics.quantiles(seconds, n=10, method="inclusive")
    return tenths[0], tenths[-1]


def _curve(ok: list[Record]) -> Curve | None:
    runs = [record["curve"]["valid"] for record in ok]
    # Runs of one recipe have as many epochs; what a foreign hand shortened is cut to the shortest.
    epochs = list(zip(*runs, strict=False))
    if not epochs:
        return None
    means = [statistics.fmean(values) for values in epochs]
    spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in epochs]
    low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
    high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
    return Curve(means, low, high, len(runs))


# i-EXACT, Table 1; accuracy and speed as remembered, activation bytes from result files or the code's arithmetic.
_PAPER: Final = {
    None: ((786.22, "calc"), (71.95, 0.16), 13.07),
    1: ((30.47, "raw"), (71.16, 0.21), 10.03),
    2: ((27.87, "calc"), (71.16, 0.34), 10.23),
    4: ((26.58, "calc"), (71.17, 0.22), 10.46),
    8: ((25.95, "raw"), (71.21, 0.39), 10.54),
    16: ((25.72, "raw"), (71.01, 0.19), 10.55),
    32: ((25.60, "raw"), (70.87, 0.29), 10.54),
    64: ((25.56, "raw"), (71.28, 0.25), 10.54),
}
_PAPER_VM: Final = ((71.20, 0.19), 9.16)
_PAPER_GRAPHS: Final = ("ogbn-arxiv", "synthetic:arxiv")


def paper_figures(record: Record) -> PaperFigures | None:
    """The papers' own figures where graph (or its twin of any scale), model, width and scheme are the papers'."""
    recipe, scheme = record["recipe"], record["scheme"]
    shape = (record["model"], recipe["layers"], recipe["hidden"], recipe.get("batch_norm", True))
    if record["dataset"].partition("@")[0] not in _PAPER_GRAPHS or shape != ("sage", 3, 128, True):
        return None
    # Samples, labels as input and the like are other systems.
    if any(recipe.get(field, usual) != usual for field, usual in DEFAULTS.items()):
        return None
    rows: int | None = None
    if scheme.get("overrides"):
        return None
    if scheme.get("bits") is None:
        if scheme["name"] != "fp32":
            return None
    else:
        block = str(scheme.get("block", ""))
        usual = (scheme.get("bits"), scheme.get("projection"), scheme.get("dropout", "bit")) == (2, 8, "bit")
        if not usual or not (block.endswith("r") and block[:-1].isdigit()):
            return None
        rows = int(block[:-1])
    if rows not in _PAPER:
        return None
    (activation, mark), (accuracy, spread), speed = _PAPER[rows]
    if scheme.get("levels") == "clipped-normal":
        if rows == 1:
            return None
        mark, ((accuracy, spread), speed) = "calc", _PAPER_VM
    part = activation / _PAPER[None][0][0]
    return PaperFigures(
        Cited(activation, mark), Cited(part, "calc"), Cited(accuracy, "recall", spread), Cited(speed, "recall")
    )


def _checked(record: Record, source: Source) -> Record:
    field = unusable_field(record)
    if field is not None:
        raise OutputError(f"the record in {source} has no usable {field!r}: remove that line or measure it again.")
    if record["status"] == "ok" and record.get("metrics") is None:
        raise OutputError(f"the record in {source} is of a finished run without a score: remove that line.")
    # A field that may be null may be absent.
    return dict.fromkeys(FIELDS) | record
