"""`actbench report`: what records say, for a terminal, a paper, a spreadsheet or a meeting."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Literal

import typer

from actbench.cli.completion import offer_schemes
from actbench.cli.options import expand_given
from actbench.cli.output import write_whole
from actbench.completing import COMPLETING
from actbench.errors import OutputError, UsageError
from actbench.home import expand_home
from actbench.report.phrases import Language, word

if not COMPLETING:
    from rich.console import Console

    from actbench.analysis import Comparison, compare, read_located, resolve_reference, summarise
    from actbench.records import RecordFile
    from actbench.records.study import is_study, read_study
    from actbench.report import draw_tables, formats, open_stderr, open_stdout

Format = Literal["table", "markdown", "html", "latex", "csv", "json", "svg"]
_FILE_COLUMNS = 160


def report(
    files: Annotated[
        list[Path], typer.Argument(help="Record files of `actbench run`, and files of `actbench analyze`.")
    ],
    format: Annotated[
        Format,
        typer.Option(
            help="html and markdown begin with a page for a decision; html is one file with charts, svg a picture of "
            "the table of `actbench run`, in English."
        ),
    ] = "table",
    lang: Annotated[Language, typer.Option(help="The language of headings, sentences and charts.")] = "en",
    reference: Annotated[
        str | None,
        typer.Option(
            autocompletion=offer_schemes, help="The scheme that others are compared with.", show_default="fp32"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(callback=expand_given, help="Write the report here instead of stdout.")
    ] = None,
    charts: Annotated[
        Path | None,
        typer.Option(callback=expand_given, help="Also write the charts, as PNG and SVG, into this folder."),
    ] = None,
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Let records of different machines share a table, labelled.")
    ] = False,
) -> None:
    """Compare schemes: score with its interval, bytes, peaks, speed, and what they mean.

    Example: actbench report actbench.jsonl --format html --lang ja --output report.html
    """
    paths = [expand_home(path) for path in files]
    if output is not None:
        _check_output(output, paths)
    studies = [path for path in dict.fromkeys(paths) if is_study(path)]
    records = [path for path in paths if path not in studies]
    if not records:
        raise UsageError(f"{studies[0]} is an analysis, which goes beside records: name those of its runs too.")
    located = read_located(records)
    comparisons = compare(
        located, resolve_reference(reference, located), across_machines, [read_study(path) for path in studies]
    )
    if charts is not None:
        _write_charts(comparisons, lang, charts)
    if format == "table" and output is None:
        open_stdout().print(formats.report_table(comparisons, lang))
        return
    text = _rendered(comparisons, format, lang)
    if output is None:
        typer.echo(text, nl=False)
        return
    write_whole(output, text)


def _rendered(comparisons: list[Comparison], format: Format, language: Language) -> str:
    if format == "table":
        stream = io.StringIO()
        Console(file=stream, width=_FILE_COLUMNS).print(formats.report_table(comparisons, language))
        return stream.getvalue()
    if format == "csv":
        return formats.report_csv(comparisons)
    if format == "latex":
        return formats.report_latex(comparisons, language)
    if format == "json":
        return formats.report_json(comparisons, language)
    if format == "svg":
        rows = [row for comparison in comparisons for row in comparison.rows]
        return draw_tables(summarise([each.record for row in rows for each in row.located]))
    if format == "markdown":
        return formats.report_markdown(comparisons, language)
    return formats.report_html(comparisons, language)


def _check_output(output: Path, files: list[Path]) -> None:
    """Records are never written over."""
    if not output.is_file():
        return
    try:
        holds_records = bool(RecordFile(output).read()) or is_study(output)
    except OutputError:
        holds_records = False
    if holds_records or any(path.exists() and output.samefile(path) for path in files):
        raise OutputError(f"--output {output} holds records, which a report must not replace: name another file.")


def _write_charts(comparisons: list[Comparison], language: Language, folder: Path) -> None:
    # matplotlib takes a second to import, which no other verb or format needs.
    from actbench.report.charts import chart_language, write_charts

    stderr = open_stderr()
    if chart_language(language) != language:
        stderr.print(word("chart.font", language), markup=False, highlight=False, soft_wrap=True)
    try:
        folder.mkdir(exist_ok=True)
        for path in write_charts(comparisons, language, folder):
            stderr.print(str(path), markup=False, highlight=False, soft_wrap=True)
    except OSError as error:
        raise OutputError(f"--charts {folder} cannot be written ({error.strerror}): name another folder.") from error
