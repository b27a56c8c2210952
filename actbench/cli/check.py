"""`actbench check`: is a new measurement worse than the baseline?"""

from __future__ import annotations

import json
import os
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal

import typer

from actbench.cli.options import expand_given
from actbench.cli.output import tell, write_whole
from actbench.completing import COMPLETING
from actbench.errors import OutputError
from actbench.home import expand_home

if not COMPLETING:
    from rich.console import Console

    from actbench.analysis import Settings, Verdict, check_records, read_settings
    from actbench.cli.baseline import read_existing
    from actbench.records import RecordFile
    from actbench.report import github_annotations, junit_xml, open_stdout, step_summary, verdict_table

_COLUMNS = 100


def check(
    new: Annotated[Path, typer.Argument(callback=expand_home, help="Records of `actbench run` to judge.")],
    baseline: Annotated[
        Path, typer.Option(callback=expand_home, help="Records to judge them by; `actbench baseline` writes them.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            callback=expand_given,
            help="A TOML file with what is allowed, as in: [check] time = 0.10.",
            show_default="bytes 0.1 %, time 10 %, score 1 point, loss 0.5 %, peak 5 %",
        ),
    ] = None,
    format: Annotated[Literal["table", "json", "junit"], typer.Option(help="What is written.")] = "table",
    output: Annotated[
        Path | None,
        typer.Option(
            callback=expand_given,
            help="Write it to this file; stdout gets the table.",
            show_default="stdout",
        ),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Rows and seeds of the baseline may be missing.")
    ] = False,
) -> None:
    """Compare records with a baseline: 0 nothing got worse, 1 something did, 2 they cannot be compared.

    On GitHub (GITHUB_ACTIONS=true) annotations and a step summary are written as well.

    Example: actbench check --baseline results/baseline.jsonl actbench.jsonl
    """
    settings = Settings() if config is None else read_settings(config)
    records = read_existing(baseline), read_existing(new)
    if output is not None:
        RecordFile(output).check_writable()
        if output.resolve() in (baseline.resolve(), new.resolve()):
            raise OutputError(f"--output {output} is one of the files to compare: name another file.")
    verdict = check_records(*records, settings, allow_missing)
    if output is not None:
        write_whole(output, _as_text(verdict, format))
    if format == "table" or output is not None:
        open_stdout().print(verdict_table(verdict))
    else:
        typer.echo(_as_text(verdict, format), nl=False)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # GitHub reads commands from stderr as well, and a document on stdout must stay one.
        for line in github_annotations(verdict):
            typer.echo(line, err=format != "table" and output is None)
        _append_summary(verdict)
    if verdict.failures:
        raise typer.Exit(1)


def _as_text(verdict: Verdict, format: str) -> str:
    if format == "json":
        return json.dumps(verdict.as_json(), allow_nan=False) + "\n"
    if format == "junit":
        return junit_xml(verdict)
    console = Console(file=StringIO(), width=_COLUMNS)
    console.print(verdict_table(verdict))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def _append_summary(verdict: Verdict) -> None:
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(step_summary(verdict))
    except OSError as error:
        # The verdict decides on the exit code, wherever it could be told.
        tell(f"actbench: GITHUB_STEP_SUMMARY {path} cannot be written ({error.strerror}): unset it.")
