"""A report as text for a terminal, Markdown, HTML, LaTeX, CSV and JSON, from one list of columns and one page."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.console import Group as Lines
from rich.table import Table as Grid
from rich.text import Text

from actbench.analysis.comparison import PEAKS, Cited, ComparedRow, Comparison, PaperFigures
from actbench.analysis.warnings import Caution, find_cautions
from actbench.records.study import Study
from actbench.report.command import command_for
from actbench.report.page import (
    Section,
    about,
    build_page,
    caution_sentence,
    metric_name,
    table_notes,
)
from actbench.report.phrases import (
    NOTHING,
    Language,
    Sentence,
    escape_markdown,
    mebibytes_text,
    noise_text,
    percent_text,
    points_text,
    rate_text,
    say,
    score_text,
    times_text,
    word,
)
from actbench.report.study import markdown_sheet, study_sheets, study_subject, study_table

_LEAST_SCHEME_COLUMNS: Final = 12
_HEADING_COLUMNS: Final = 12
# A word with the space after it, or a wide character; a closing mark stays with what is before it.
_PIECES: Final = re.compile(r"[\u3000-\uffef][）］、：]*\s*|[^\s\u3000-\uffef]+\s*")


@dataclass(frozen=True)
class Column:
    """One column: heading, what a cell says, and the value it is sorted by (None: last)."""

    key: str
    heading: Sentence
    text: Callable[[ComparedRow], str]
    value: Callable[[ComparedRow], float | str | None]


def columns(comparison: Comparison) -> list[Column]:
    """The comparison's columns, of those figures alone that were measured."""
    reference = {"reference": comparison.reference}
    confidences = [row.difference.confidence for row in comparison.rows if row.difference]
    found = [
        Column("scheme", Sentence("column.scheme"), lambda r: r.label, lambda r: r.label),
        Column(
            "score",
            Sentence("column.score", {"metric": metric_name(comparison)}),
            lambda r: score_text(r.summary.score_mean, r.summary.score_std),
            lambda r: r.summary.score_mean,
        ),
        Column(
            "activation",
            Sentence("column.activation"),
            lambda r: mebibytes_text(r.summary.saved_bytes),
            lambda r: r.summary.saved_bytes,
        ),
        Column(
            "activation_ratio",
            Sentence("column.ratio", reference),
            lambda r: percent_text(r.summary.saved_ratio),
            lambda r: r.summary.saved_ratio,
        ),
    ]
    if any(row.summary.host_bytes for row in comparison.rows):
        found.append(
            Column(
                "host",
                Sentence("column.host"),
                lambda r: mebibytes_text(r.summary.host_bytes),
                lambda r: r.summary.host_bytes,
            )
        )
    main = comparison.peaks[:1]
    found += [column for kind in main for column in _peak_columns(kind, reference)]
    found += [
        Column(
            "speed",
            Sentence("column.speed"),
            lambda r: rate_text(r.summary.epochs_per_second),
            lambda r: r.summary.epochs_per_second,
        ),
        Column(
            "speed_ratio",
            Sentence("column.ratio", reference),
            lambda r: times_text(r.summary.speed_ratio),
            lambda r: r.summary.speed_ratio,
        ),
        Column("runs", Sentence("column.runs"), _runs_text, lambda r: sum(r.summary.statuses.values())),
    ]
    if confidences:
        heading = Sentence("column.difference", reference | {"confidence": f"{100 * confidences[0]:g}"})
        found.insert(2, Column("difference", heading, _difference_text, _difference_value))
    if any(row.epochs_per_second_low for row in comparison.rows):
        found.append(
            Column(
                "spread",
                Sentence("column.spread", {"low": "10", "high": "90"}),
                _spread_text,
                lambda r: r.epochs_per_second_low,
            )
        )
    found += [column for kind in comparison.peaks[1:] for column in _peak_columns(kind, reference)]
    if any(row.gradient_noise is not None for row in comparison.rows):
        found.append(Column("noise", Sentence("column.noise"), _noise_text, lambda r: r.gradient_noise))
    if comparison.has_paper_figures:
        found += [
            _paper_column("paper_activation", lambda paper: paper.activation),
            Column(
                "paper_activation_ratio",
                Sentence("column.ratio", {"reference": "fp32"}),
                _paper_ratio_text,
                lambda r: r.paper.activation_ratio.value if r.paper else None,
            ),
            _paper_column("paper_score", lambda paper: paper.accuracy),
            _paper_column("paper_speed", lambda paper: paper.epochs_per_second),
        ]
    return found


def _peak_columns(kind: str, reference: dict[str, str]) -> list[Column]:
    return [
        Column(
            kind,
            Sentence(f"column.{kind}"),
            lambda r: mebibytes_text(r.peaks[kind].value_bytes),
            lambda r: r.peaks[kind].value_bytes,
        ),
        Column(
            f"{kind}_ratio",
            Sentence("column.ratio", reference),
            lambda r: percent_text(r.peaks[kind].ratio),
            lambda r: r.peaks[kind].ratio,
        ),
    ]


def _paper_column(key: str, cited: Callable[[PaperFigures], Cited]) -> Column:
    def text(row: ComparedRow) -> str:
        if row.paper is None:
            return NOTHING
        figure = cited(row.paper)
        spread = "" if figure.std is None else f" ± {figure.std:.2f}"
        return f"{figure.value:.2f}{spread} [{figure.mark}]"

    def value(row: ComparedRow) -> float | None:
        return cited(row.paper).value if row.paper else None

    return Column(key, Sentence(f"column.{key}"), text, value)


def _paper_ratio_text(row: ComparedRow) -> str:
    if row.paper is None:
        return NOTHING
    return f"{percent_text(row.paper.activation_ratio.value)} [{row.paper.activation_ratio.mark}]"


def _runs_text(row: ComparedRow) -> str:
    return ", ".join(f"{count} {status}" for status, count in row.summary.statuses.items())


def _difference_value(row: ComparedRow) -> float | None:
    return row.difference.mean if row.difference else None


def _difference_text(row: ComparedRow) -> str:
    if row.difference is None:
        return NOTHING
    mean, low, high = (points_text(value) for value in (row.difference.mean, row.difference.low, row.difference.high))
    return f"{mean} [{low}, {high}]"


def _spread_text(row: ComparedRow) -> str:
    if row.epochs_per_second_low is None:
        return NOTHING
    return f"{rate_text(row.epochs_per_second_low)} – {rate_text(row.epochs_per_second_high)}"


def _noise_text(row: ComparedRow) -> str:
    return noise_text(row.gradient_noise, row.gradient_noise_error)


def sources_text(row: ComparedRow) -> str:
    """The records of a row, lines of one file joined: `runs.jsonl:1,5,9`."""
    by_file: dict[str, list[str]] = {}
    for each in row.located:
        by_file.setdefault(each.source.file, []).append(str(each.source.line))
    return "; ".join(f"{file}:{','.join(lines)}" for file, lines in by_file.items())


def _all_cautions(comparisons: Sequence[Comparison]) -> list[list[Caution]]:
    return [find_cautions(comparison) for comparison in comparisons]


# A terminal.


def report_table(comparisons: Sequence[Comparison], language: Language) -> RenderableType:
    """Every comparison as folded tables with its warnings, notes and records; 80 columns are enough."""
    return Lines(*(_terminal_comparison(comparison, language) for comparison in comparisons))


def _terminal_comparison(comparison: Comparison, language: Language) -> RenderableType:
    parts: list[RenderableType] = [
        Text(say(about(comparison), language), style="bold"),
        _FoldedTable(comparison, language),
    ]
    parts += [
        Text(say(Sentence("mark.caution", {"text": caution_sentence(caution, comparison)}), language), style="yellow")
        for caution in find_cautions(comparison)
    ]
    parts += [Text(say(note, language), style="dim") for note in table_notes(comparison)]
    parts.append(Text(word("section.sources", language), style="bold"))
    parts += [Text(f"  {row.label}: {sources_text(row)}") for row in comparison.rows]
    parts += [part for study in comparison.studies for part in (Text(""), study_table(study, language))]
    return Lines(*parts, Text(""))


class _FoldedTable:
    """The columns in as many tables below one another as the width asks for, each beginning with the scheme."""

    def __init__(self, comparison: Comparison, language: Language) -> None:
        self.rows = comparison.rows
        self.first, *self._others = columns(comparison)
        self._language: Language = language

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the tables."""
        widest = max(_LEAST_SCHEME_COLUMNS, options.max_width // 3)
        scheme = min(self._width(self.first), widest)
        for shown in self.parts(options.max_width, scheme):
            yield self._grid(shown, scheme)

    def parts(self, width: int, scheme: int | None = None) -> Iterator[list[Column]]:
        """The other columns, as many at a time as stand beside the scheme's in `width` characters; at least one."""
        scheme = self._width(self.first) if scheme is None else scheme
        shown: list[Column] = []
        used = 0
        for unit in self._units():
            more = sum(self._width(column) + 1 for column in unit)
            if shown and scheme + 2 + used + more > width:
                yield shown
                shown, used = [], 0
            shown += unit
            used += more
        yield shown

    def heading(self, column: Column) -> str:
        """The column's heading, in lines no longer than its cells are wide, or a dozen characters."""
        widest = max(map(cell_len, map(column.text, self.rows)))
        return _folded(say(column.heading, self._language), max(_HEADING_COLUMNS, widest))

    def _units(self) -> list[list[Column]]:
        """A ratio stays with the figure that it is of."""
        units: list[list[Column]] = []
        for column in self._others:
            if column.key.endswith("_ratio"):
                units[-1].append(column)
            else:
                units.append([column])
        return units

    def _width(self, column: Column) -> int:
        return max(map(cell_len, [*self.heading(column).split("\n"), *map(column.text, self.rows)]))

    def _grid(self, shown: list[Column], scheme: int) -> Grid:
        grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=0)
        grid.add_column(Text(self.heading(self.first)), overflow="fold", width=scheme, vertical="bottom")
        for column in shown:
            justify: Literal["left", "right"] = "left" if column.key == "runs" else "right"
            grid.add_column(Text(self.heading(column)), justify=justify, overflow="fold", vertical="bottom")
        for row in self.rows:
            style = None if set(row.summary.statuses) == {"ok"} else "yellow"
            grid.add_row(*(Text(column.text(row)) for column in (self.first, *shown)), style=style)
        return grid


def _folded(heading: str, width: int) -> str:
    """`heading` in lines no wider than `width`, broken at spaces and, in Japanese, at characters."""
    lines = [""]
    for piece in _PIECES.findall(heading):
        if lines[-1] and cell_len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


# Markdown.


def report_markdown(comparisons: Sequence[Comparison], language: Language) -> str:
    """The page for a decision, then every comparison with its table, warnings, commands and records."""
    lines = [f"# {word('title', language)}", ""]
    for section in build_page(comparisons):
        lines += [f"## {word(f'section.{section.key}', language)}", ""]
        for group in section.groups:
            if len(section.groups) > 1 or section.key == "summary":
                lines += [f"**{say(group.subject, language, escape_markdown)}**", ""]
            lines += [f"- {say(sentence, language, escape_markdown)}" for sentence in group.sentences]
            lines.append("")
    lines += [f"## {word('section.tables', language)}", ""]
    for comparison, cautions in zip(comparisons, _all_cautions(comparisons), strict=True):
        lines += [f"### {say(about(comparison), language, escape_markdown)}", ""]
        every = columns(comparison)
        lines.append(_markdown_row([escape_markdown(say(column.heading, language)) for column in every]))
        lines.append(_markdown_row(["---" if column.key in ("scheme", "runs") else "---:" for column in every]))
        lines += [_markdown_row([escape_markdown(column.text(row)) for column in every]) for row in comparison.rows]
        lines.append("")
        if cautions:
            lines += [
                f"> ⚠ {say(caution_sentence(caution, comparison), language, escape_markdown)}\n>"
                for caution in cautions
            ]
            lines[-1] = lines[-1].removesuffix("\n>")
            lines.append("")
        lines += [f"- {say(note, language, escape_markdown)}" for note in table_notes(comparison)]
        for study in comparison.studies:
            subject = Sentence("study.title", {"subject": study_subject(study)})
            lines += ["", f"### {say(subject, language, escape_markdown)}", ""]
            for sheet in study_sheets(study, language):
                lines += markdown_sheet(sheet, language, escape_markdown)
        lines += ["", f"#### {word('section.reproduce', language)}", ""]
        lines += [f"    {_command(row)}" for row in comparison.rows]
        lines += ["", f"#### {word('section.sources', language)}", ""]
        lines += [f"- {escape_markdown(f'{row.label}: {sources_text(row)}')}" for row in comparison.rows]
        lines.append("")
    return "\n".join(lines)


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


# LaTeX.

_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "±": r"$\pm$",
    "−": r"$-$",
    "–": "--",
    "‖": r"$\Vert$",
    "·": r"$\cdot$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape_latex(text: str) -> str:
    """`text` so that LaTeX sets it as it is."""
    return "".join(_LATEX.get(character, character) for character in text.replace("\n", " "))


def report_latex(comparisons: Sequence[Comparison], language: Language) -> str:
    """Every comparison as a `table*` for booktabs, folded to a page's width; Japanese needs LuaLaTeX or upLaTeX."""
    lines = [r"% \usepackage{booktabs}"]
    for comparison in comparisons:
        table = _FoldedTable(comparison, language)
        cautions = [
            Sentence("mark.caution", {"text": caution_sentence(caution, comparison)})
            for caution in find_cautions(comparison)
        ]
        # No part of what is set, but whoever pastes the table meets what the figures must not be read without.
        told = [say(each, language, escape_latex) for each in (*cautions, *table_notes(comparison))]
        lines += [
            *(f"% {' '.join(text.split())}" for text in told),
            r"\begin{table*}",
            r"\centering\footnotesize",
            rf"\caption{{{escape_latex(say(about(comparison), language))}}}",
        ]
        for shown in table.parts(_LATEX_COLUMNS):
            every = [table.first, *shown]
            alignment = ["l" if column.key in ("scheme", "runs") else "r" for column in every]
            headings = [
                _latex_heading(table.heading(column), side) for side, column in zip(alignment, every, strict=True)
            ]
            lines += [
                rf"\begin{{tabular}}{{{''.join(alignment)}}}",
                r"\toprule",
                " & ".join(headings) + r" \\",
                r"\midrule",
                *(_latex_row([column.text(row) for column in every]) for row in comparison.rows),
                r"\bottomrule",
                r"\end{tabular}",
                r"\par\medskip",
            ]
        lines[-1] = r"\end{table*}"
    return "\n".join(lines) + "\n"


_LATEX_COLUMNS: Final = 76
"""Characters of footnote size, with the room between columns, in the 345 pt of LaTeX's own page."""


def _latex_row(cells: list[str]) -> str:
    return " & ".join(map(_latex_line, cells)) + r" \\"


def _latex_heading(text: str, side: str) -> str:
    lines = r" \\ ".join(map(_latex_line, text.split("\n")))
    return rf"\shortstack[{side}]{{{lines}}}"


def _latex_line(text: str) -> str:
    """`text` escaped; a bracket at its beginning would be read as the option of the line break before it."""
    return f"{{}}{escape_latex(text)}" if text.startswith("[") else escape_latex(text)


# CSV.

CSV_FIELDS: Final = (
    "dataset", "synthetic", "model", "device", "device_name", "machine", "scheme", "reference", "metric",
    "runs_ok", "runs_oom", "runs_killed", "runs_error", "score_mean", "score_std",
    "difference_mean", "difference_low", "difference_high", "difference_pairs", "difference_confidence",
    "saved_bytes", "saved_ratio", "host_bytes",
    *(f"{field}{suffix}" for field in PEAKS.values() for suffix in ("", "_ratio")),
    "epochs_per_second", "epochs_per_second_p10", "epochs_per_second_p90", "speed_ratio", "timed_epochs",
    "gradient_noise", "paper_activation_mebibytes", "paper_activation_mark", "paper_activation_ratio",
    "paper_accuracy_percent", "paper_accuracy_std", "paper_accuracy_mark",
    "paper_epochs_per_second", "paper_epochs_per_second_mark",
    "sources", "command",
)  # fmt: skip
"""One line a row, bytes and ratios as measured; what is unknown is empty."""


def _command(row: ComparedRow) -> str:
    return command_for([each.record for each in row.located])


def report_csv(comparisons: Sequence[Comparison]) -> str:
    """Every row as one line of `CSV_FIELDS`."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for comparison in comparisons:
        for row in comparison.rows:
            values = _flat(comparison, row)
            writer.writerow({field: _csv_cell(values.get(field)) for field in CSV_FIELDS})
    return buffer.getvalue()


def _csv_cell(value: Any) -> Any:
    # A spreadsheet would take such a text for a formula.
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value


def _flat(comparison: Comparison, row: ComparedRow) -> dict[str, Any]:
    summary, difference, paper = row.summary, row.difference, row.paper
    values: dict[str, Any] = {
        "dataset": comparison.dataset,
        "synthetic": str(comparison.synthetic).lower(),
        "model": comparison.model,
        "device": row.machine.device,
        "device_name": row.machine.name,
        "machine": row.machine.label,
        "scheme": summary.scheme,
        "reference": comparison.reference,
        "metric": comparison.metric,
        **{f"runs_{status}": summary.statuses.get(status, 0) for status in ("ok", "oom", "killed", "error")},
        "score_mean": summary.score_mean,
        "score_std": summary.score_std,
        "saved_bytes": summary.saved_bytes,
        "saved_ratio": summary.saved_ratio,
        "host_bytes": summary.host_bytes,
        "epochs_per_second": summary.epochs_per_second,
        "epochs_per_second_p10": row.epochs_per_second_low,
        "epochs_per_second_p90": row.epochs_per_second_high,
        "speed_ratio": summary.speed_ratio,
        "timed_epochs": len(row.epoch_seconds),
        "gradient_noise": row.gradient_noise,
        "sources": sources_text(row),
        "command": _command(row),
    }
    for kind, field in PEAKS.items():
        values |= {field: row.peaks[kind].value_bytes, f"{field}_ratio": row.peaks[kind].ratio}
    if difference:
        values |= {f"difference_{name}": value for name, value in asdict(difference).items()}
    if paper:
        values |= {
            "paper_activation_mebibytes": paper.activation.value,
            "paper_activation_mark": paper.activation.mark,
            "paper_activation_ratio": paper.activation_ratio.value,
            "paper_accuracy_percent": paper.accuracy.value,
            "paper_accuracy_std": paper.accuracy.std,
            "paper_accuracy_mark": paper.accuracy.mark,
            "paper_epochs_per_second": paper.epochs_per_second.value,
            "paper_epochs_per_second_mark": paper.epochs_per_second.mark,
        }
    return values


# JSON.


def report_json(comparisons: Sequence[Comparison], language: Language) -> str:
    """Comparisons with figures and records, warnings and the page's sentences, as one JSON value."""
    content = {
        "language": language,
        "comparisons": [_json_comparison(comparison, language) for comparison in comparisons],
        "page": [_json_section(section, language) for section in build_page(comparisons)],
    }
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def _json_comparison(comparison: Comparison, language: Language) -> dict[str, Any]:
    return {
        "dataset": comparison.dataset,
        "synthetic": comparison.synthetic,
        "model": comparison.model,
        "metric": comparison.metric,
        "reference": comparison.reference,
        "recipe": comparison.recipe,
        "graph": comparison.graph,
        "machines": [asdict(place) for place in comparison.machines],
        "rows": [_json_row(row) for row in comparison.rows],
        "analyses": [{"file": study.file} | study.document for study in comparison.studies],
        "warnings": [
            asdict(caution) | {"text": say(caution_sentence(caution, comparison), language)}
            for caution in find_cautions(comparison)
        ],
    }


def _json_row(row: ComparedRow) -> dict[str, Any]:
    return {
        **asdict(row.summary),
        "machine": row.machine.label,
        "difference": asdict(row.difference) if row.difference else None,
        "peaks": {kind: asdict(peak) for kind, peak in row.peaks.items()},
        "epochs_per_second_p10": row.epochs_per_second_low,
        "epochs_per_second_p90": row.epochs_per_second_high,
        "timed_epochs": len(row.epoch_seconds),
        "gradient_noise": row.gradient_noise,
        "gradient_noise_error": row.gradient_noise_error,
        "bytes_by_kind": row.kinds,
        "paper": asdict(row.paper) if row.paper else None,
        "command": _command(row),
        "records": [asdict(each.source) | _json_run(each.record) for each in row.located],
    }


def _json_run(record: dict[str, Any]) -> dict[str, Any]:
    return {"seed": record["seed"], "status": record["status"], "started": record["started"]}


def _json_section(section: Section, language: Language) -> dict[str, Any]:
    return {
        "key": section.key,
        "heading": word(f"section.{section.key}", language),
        "groups": [
            {"subject": say(group.subject, language), "sentences": [say(s, language) for s in group.sentences]}
            for group in section.groups
        ],
    }


# HTML.


def report_html(comparisons: Sequence[Comparison], language: Language) -> str:
    """One file that needs nothing else: the page for a decision, then tables, charts, settings and records."""
    # A second of imports that no other format needs.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from actbench.report.charts import chart_language

    environment = Environment(
        loader=PackageLoader("actbench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader = environment.loader
    assert loader is not None
    style, _, _ = loader.get_source(environment, "report.css")
    script, _, _ = loader.get_source(environment, "report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html.jinja").render(
        language=language,
        style=style,
        script=script,
        script_digest=digest,
        word=lambda key: word(key, language),
        say=lambda sentence: say(sentence, language),
        sections=build_page(comparisons),
        parts=[_html_part(number, comparison, language) for number, comparison in enumerate(comparisons, start=1)],
        font_note=language == "ja" and chart_language(language) != language,
    )


def _html_part(number: int, comparison: Comparison, language: Language) -> dict[str, Any]:
    from markupsafe import Markup

    from actbench.report.charts import draw_charts

    every = columns(comparison)
    return {
        "number": number,
        "about": about(comparison),
        "cautions": [caution_sentence(caution, comparison) for caution in find_cautions(comparison)],
        "columns": every,
        "rows": [_html_row(number, row, every) for number, row in enumerate(comparison.rows, start=1)],
        "notes": table_notes(comparison),
        "charts": [
            # matplotlib escapes the names in its texts.
            {
                "name": chart.name,
                "title": Sentence(f"chart.{chart.name}"),
                "note": chart.note,
                "svg": Markup(chart.as_inline_svg(f"c{number}-{chart.name}")),
            }
            for chart in draw_charts(comparison, language)
        ],
        "studies": [
            _html_study(f"{number}-{index}", study, language) for index, study in enumerate(comparison.studies, start=1)
        ],
        "settings": _flat_items(comparison.recipe | {"graph": comparison.graph or {}}),
        "machines": [
            {"label": place.label, "name": place.name, "items": _flat_items(place.environment)}
            for place in comparison.machines
        ],
    }


def _html_study(number: str, study: Study, language: Language) -> dict[str, Any]:
    from markupsafe import Markup

    from actbench.report.study_charts import draw_study_charts

    return {
        "title": Sentence("study.title", {"subject": study_subject(study)}),
        "sheets": study_sheets(study, language),
        "charts": [
            {
                "name": f"{chart.name}-{number}",
                "title": title,
                "note": chart.note,
                "svg": Markup(chart.as_inline_svg(f"s{number}-{chart.name}")),
            }
            for title, chart in draw_study_charts(study, language)
        ],
    }


def _html_row(number: int, row: ComparedRow, every: list[Column]) -> dict[str, Any]:
    return {
        "number": number,
        "label": row.label,
        "finished": set(row.summary.statuses) == {"ok"},
        "cells": [
            {"text": column.text(row), "value": column.value(row), "left": column.key in ("scheme", "runs")}
            for column in every
        ],
        "command": _command(row),
        "runs": [_html_run(each.record) | {"source": str(each.source)} for each in row.located],
    }


def _html_run(record: dict[str, Any]) -> dict[str, Any]:
    finished = record["status"] == "ok"
    return {
        "seed": record["seed"],
        "status": record["status"],
        "score": score_text(record["metrics"]["test"] if finished else None),
        "saved": mebibytes_text(record["saved_bytes"]),
        "started": record["started"],
        "error": (record["error"] or {}).get("message"),
    }


def _flat_items(values: dict[str, Any]) -> list[tuple[str, str]]:
    items = []
    for name, value in values.items():
        if isinstance(value, dict):
            items += [(f"{name}: {inner}", text) for inner, text in _flat_items(value)]
        elif value is not None:
            items.append((str(name), str(value)))
    return items
