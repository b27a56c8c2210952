"""What an analysis found, as sheets of text that a terminal, Markdown and HTML show alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from actbench.records.study import Study
from actbench.report.phrases import NOTHING, Language, Sentence, mebibytes_text, say, word
from actbench.scheme import DERIVED, LEVELS, name_of

_SAME: Final = 1e-9
"""A ratio of variances this near to 1 is that of equal level tables."""


@dataclass(frozen=True)
class Sheet:
    """A table with what must be known to read it; its first `left` columns are names."""

    title: Sentence
    headings: list[Sentence]
    rows: list[list[str]]
    notes: list[Sentence]
    left: int = 1


def study_subject(study: Study) -> Sentence:
    """What a study is of: data set, labelled where generated, model, recipe and device."""
    document, recipe = study.document, study.document["recipe"]
    name = Sentence("generated" if document["graph"]["synthetic"] else "real", {"dataset": document["dataset"]})
    values: dict[str, str | Sentence] = {"dataset": name, "model": document["model"], "epochs": epochs_of(study)}
    values |= {"layers": str(recipe["layers"]), "hidden": str(recipe["hidden"])}
    differing = ", ".join(f"{key} {value}" for key, value in document["unusual"].items())
    values["distinction"] = Sentence("distinction", {"text": differing}) if differing else ""
    return Sentence("subject", values | {"device": document["environment"]["device_name"]})


def epochs_of(study: Study) -> Sentence:
    """For how long FP32 trained the weights."""
    count = study.document["recipe"]["epochs"]
    return Sentence("epochs.one" if count == 1 else "epochs.many", {"epochs": str(count)})


def study_sheets(study: Study, language: Language) -> list[Sheet]:
    """Everything that the study found, scheme by scheme; schemes that store alike share a sheet."""
    sheets = [_noise_sheet(study)]
    noisy = [each for each in study.document["schemes"] if each["noise"]["total"]["mean"] > 0]
    sheets += [_tensor_sheet(each, language) for each in noisy]
    for schemes, calls in groups(study):
        sheets += [
            _values_sheet(schemes, calls, language),
            _variance_sheet(schemes, calls, study, language),
            _errors_sheet(schemes, calls, language),
        ]
    return sheets


def groups(study: Study) -> list[tuple[str, list[dict[str, Any]]]]:
    """Calls that were studied, with the names of the schemes that store them alike."""
    found: list[tuple[list[str], list[dict[str, Any]]]] = []
    for each in study.document["schemes"]:
        if not each["calls"]:
            continue
        for names, calls in found:
            if calls == each["calls"]:
                names.append(each["scheme"]["name"])
                break
        else:
            found.append(([each["scheme"]["name"]], each["calls"]))
    return [(", ".join(names), calls) for names, calls in found]


def study_table(study: Study, language: Language = "en") -> RenderableType:
    """Every sheet for a terminal."""
    title = say(Sentence("study.title", {"subject": study_subject(study)}), language)
    return Group(
        Text(title, style="bold"), *(_terminal_sheet(sheet, language) for sheet in study_sheets(study, language))
    )


def _terminal_sheet(sheet: Sheet, language: Language) -> RenderableType:
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for index, heading in enumerate(sheet.headings):
        justify = "left" if index < sheet.left else "right"
        grid.add_column(Text(say(heading, language)), justify=justify, overflow="fold", vertical="bottom")  # type: ignore[arg-type]
    for row in sheet.rows:
        grid.add_row(*map(Text, row))
    notes = (Text(say(note, language), style="dim") for note in sheet.notes)
    return Group(Text(say(sheet.title, language), style="bold"), grid, *notes, Text(""))


def markdown_sheet(sheet: Sheet, language: Language, escape: Callable[[str], str]) -> list[str]:
    """The lines of a sheet in Markdown."""
    rules = ["---" if index < sheet.left else "---:" for index in range(len(sheet.headings))]
    cells = [[say(heading, language, escape) for heading in sheet.headings], rules]
    cells += [[escape(cell) for cell in row] for row in sheet.rows]
    lines = [f"#### {say(sheet.title, language, escape)}", "", *(f"| {' | '.join(row)} |" for row in cells), ""]
    return [*lines, *(f"- {say(note, language, escape)}" for note in sheet.notes), ""]


def _headings(*keys: str) -> list[Sentence]:
    return [Sentence(f"study.column.{key}") for key in keys]


def estimate_text(estimate: dict[str, float] | None) -> str:
    """A mean and its standard error."""
    if estimate is None:
        return NOTHING
    if estimate["mean"] == 0 == estimate["standard_error"]:
        return "0"
    return f"{estimate['mean']:.3g} ± {estimate['standard_error']:.1g}".replace("-", "−")


def figure_text(value: float | None) -> str:
    """A figure in four digits."""
    return NOTHING if value is None else f"{value:#.4g}"


def change_text(ratio: float | None) -> str:
    """What a ratio is more or less than 1, in percent."""
    return NOTHING if ratio is None else f"{100 * (ratio - 1):+.1f}%".replace("-", "−")


def _noise_sheet(study: Study) -> Sheet:
    document = study.document
    parts = ("total", "projection", "rounding", "cross", "bias")
    rows = [
        [
            each["scheme"]["name"],
            _small_mebibytes(each["saved_bytes"]),
            *(estimate_text(each["noise"][p]) for p in parts),
        ]
        for each in document["schemes"]
    ]
    source = Sentence("study.note.source", {"file": study.file}) if study.file else Sentence("study.note.no_source")
    values: dict[str, str | Sentence] = {
        "epochs": epochs_of(study),
        "seed": str(document["seed"]),
        "draws": str(document["draws"]),
    }
    notes = [Sentence("study.note.weights", values | {"source": source}), Sentence("study.note.split")]
    names = [each["scheme"]["name"] for each in document["schemes"]]
    derived = ", ".join(name for name in names if name_of(name) in DERIVED)
    if derived:
        notes.append(Sentence("study.note.derived", {"schemes": derived}))
    if document["graph"]["synthetic"]:
        notes.append(Sentence("study.generated", {"dataset": document["dataset"]}))
    return Sheet(Sentence("study.noise"), _headings("scheme", "activation", *parts), rows, notes)


def _tensor_sheet(each: dict[str, Any], language: Language) -> Sheet:
    parts = ("total", "projection", "rounding")
    rows = [
        [
            tensor["parameter"],
            f"{100 * tensor['share']:.3g}%",
            *(estimate_text(tensor[part]) for part in parts),
            estimate_text(tensor["own"]) if tensor["own"] else word("study.exact", language),
        ]
        for tensor in each["noise"]["tensors"]
    ]
    title = Sentence("study.tensors", {"schemes": each["scheme"]["name"]})
    return Sheet(title, _headings("parameter", "share", *parts, "own"), rows, [Sentence("study.note.tensors")])


def _stored(call: dict[str, Any], language: Language) -> str:
    shape = f"{call['rows']:,} x {call['width']:,}"
    return say(Sentence("study.projected", {"shape": shape}), language) if call["projected"] else shape


def _values_sheet(schemes: str, calls: list[dict[str, Any]], language: Language) -> Sheet:
    rows = []
    for call in calls:
        uniform, normal = (call["divergence"].get(name) for name in LEVELS)
        nearer = NOTHING
        if uniform is not None and normal is not None:
            nearer = word("study.clipped-normal" if normal < uniform else "study.uniform", language)
        divergences = [NOTHING if value is None else f"{value:.4f}" for value in (uniform, normal)]
        rows.append([call["call"], _stored(call, language), f"{call['block_length']:,}", *divergences, nearer])
    bins = {"bins": str(len(calls[0]["histogram"]))}
    headings = _headings("call", "stored", "block", "from_uniform", "from_normal", "nearer")
    notes = [Sentence("study.note.values", bins)]
    drowned = {call["call"]: ratio for call in calls if (ratio := call.get("worst_column")) is not None and ratio > 1}
    if drowned:
        named = ", ".join(f"{name} ({ratio:,.3g} x)" for name, ratio in drowned.items())
        notes.insert(0, Sentence("study.drowned", {"calls": named}))
    part = [call["call"] for call in calls if call["counted_rows"] < call["rows"]]
    if part:
        notes.append(Sentence("study.note.counted", {"calls": ", ".join(part)}))
    return Sheet(Sentence("study.values", {"schemes": schemes}), headings, rows, notes)


def _variance_sheet(schemes: str, calls: list[dict[str, Any]], study: Study, language: Language) -> Sheet:
    rows = []
    for call in calls:
        for name in LEVELS:
            found = call["levels"].get(name)
            if found is None:
                continue
            measured = {"mean": found["measured"], "standard_error": found["measured_standard_error"]}
            rows.append(
                [
                    call["call"],
                    word(f"study.{name}", language),
                    *(figure_text(found[key]) for key in ("if_normal", "if_uniform", "expected")),
                    f"{measured['mean']:#.4g} ± {measured['standard_error']:.1g}",
                    change_text(call["normal_over_uniform"]) if name == "clipped-normal" else NOTHING,
                ]
            )
    headings = _headings("call", "levels", "if_normal", "if_uniform", "expected", "measured", "against")
    draws = {"draws": str(study.document["rounding_draws"])}
    notes = [*_verdict(calls), Sentence("study.note.variance", draws)]
    return Sheet(Sentence("study.variance", {"schemes": schemes}), headings, rows, notes, left=2)


def _verdict(calls: list[dict[str, Any]]) -> Iterator[Sentence]:
    """Where the variance-minimised levels are worse, or that they are nowhere."""
    ratios = {call["call"]: ratio for call in calls if (ratio := call["normal_over_uniform"]) is not None}
    worse = {name: ratio for name, ratio in ratios.items() if ratio > 1 + _SAME}
    if worse:
        named = ", ".join(f"{name} ({change_text(ratio)})" for name, ratio in worse.items())
        yield Sentence("study.worse", {"calls": named})
    elif less := [ratio for ratio in ratios.values() if ratio < 1 - _SAME]:
        yield Sentence("study.better", {"low": change_text(min(less)), "high": change_text(max(less))})
    elif ratios:
        yield Sentence("study.same")


def _errors_sheet(schemes: str, calls: list[dict[str, Any]], language: Language) -> Sheet:
    lengths = [block["length"] for block in max((call["blocks"] for call in calls), key=lambda b: b[-1]["length"])]
    headings = [
        *_headings("call", "levels"),
        *(Sentence("study.column.length", {"length": f"{length:,}"}) for length in lengths),
    ]
    totals = [sum(call["blocks"][index]["saved_bytes"] for call in calls) for index in range(len(lengths))]
    rows = [[word("study.bytes", language), "", *map(_small_mebibytes, totals)]]
    for call in calls:
        for name in LEVELS:
            errors = [block["error"][name] for block in call["blocks"]]
            cells = [f"{100 * error / call['rms']:.3g}%" if call["rms"] else NOTHING for error in errors]
            rows.append([call["call"], word(f"study.{name}", language), *cells])
    title = Sentence("study.errors", {"schemes": schemes})
    return Sheet(title, headings, rows, [Sentence("study.note.errors")], left=2)


def _small_mebibytes(value_bytes: float) -> str:
    return mebibytes_text(value_bytes) if value_bytes >= 10 * 2**20 else f"{value_bytes / 2**20:.3g}"
