"""`actbench reproduce`: the papers' tables, line by line, beside their own figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from actbench.cli.completion import offer_datasets
from actbench.cli.options import DEFAULT_DATA_DIR, MOST_SEEDS, DataDir, Device, Fresh, Quiet, expand_given
from actbench.completing import COMPLETING
from actbench.errors import DataError
from actbench.report.phrases import Language
from actbench.scheme import Scheme

if not COMPLETING:
    from rich.console import Console

    from actbench import graphs
    from actbench.analysis import Comparison, compare, compare_claims, read_located
    from actbench.cli.datasets import make_present, require_parts
    from actbench.cli.measuring import end, measure_grid
    from actbench.records import RecordFile, identity
    from actbench.report import claims_table, formats, open_stderr, open_stdout
    from actbench.runs import EXPERIMENTS, Experiment, Job, digest_of, plan, resolve_device
    from actbench.training import recipe_for


def reproduce(
    experiment: Annotated[Literal["table1", "exact"], typer.Argument(help="table1 of i-EXACT, or EXACT's own grid.")],
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=offer_datasets,
            help="A name from `actbench datasets` or a .npz file, again for each more.",
            show_default="ogbn-arxiv",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=MOST_SEEDS, help="Runs of every line.", show_default="the paper's 10")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs.", show_default="the recipe's")] = None,
    device: Device = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            callback=expand_given,
            help="Records are appended to this file, and those in it are not measured again.",
            show_default="EXPERIMENT.jsonl",
        ),
    ] = None,
    format: Annotated[Literal["table", "json"], typer.Option(help="What stdout gets.")] = "table",
    lang: Annotated[Language, typer.Option(help="The language of the table.")] = "en",
    fresh: Fresh = False,
    quiet: Quiet = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Measure a table of the papers line by line, and set their figures and claims beside ours.

    Beside the lines of i-EXACT's Table 1 stands one of a scheme of ours, derived, of which the papers claim nothing.

    Resumable: after Ctrl-C the same command goes on where it stopped. `actbench report` makes a page of the records.

    Example: actbench reproduce table1 --dataset synthetic:arxiv@0.05 --seeds 3 --epochs 30
    """
    wanted = EXPERIMENTS[experiment]
    names = list(dict.fromkeys(dataset or [wanted.dataset]))
    chosen = resolve_device(device)
    path = output or Path(f"{experiment}.jsonl")
    file = RecordFile(path)
    file.check_writable()
    file.read()
    stderr = open_stderr(quiet)
    for name in names:
        _make_present(name, data_dir, stderr)
    jobs = [job for name in names for job in _jobs(wanted, name, data_dir, seeds or wanted.seeds, epochs, chosen)]
    for job in jobs:
        require_parts(job.dataset, job.recipe)
    records, interrupted = measure_grid(jobs, file, chosen, fresh, stderr)
    if records:
        _print([identity(record) for record in records], path, format, lang)
    end(records, jobs, interrupted, path, fresh)


def _make_present(name: str, data_dir: Path, stderr: Console) -> None:
    try:
        make_present(name, data_dir, stderr)
    except DataError as error:
        twin = f"synthetic:{name.removeprefix('ogbn-')}"
        if twin not in [entry.name for entry in graphs.catalogue()]:
            raise
        raise DataError(
            f"{error} Its generated twin needs no download, and is labelled as one in every output: "
            f"--dataset {twin}, or a part such as {twin}@0.05."
        ) from error


def _jobs(wanted: Experiment, name: str, data_dir: Path, seeds: int, epochs: int | None, device: str) -> list[Job]:
    schemes = [Scheme.parse(text) for text in (*wanted.schemes, *wanted.ours)]
    jobs = []
    for model, sampler in wanted.systems:
        recipe = recipe_for(name, model, sampler).overridden(epochs=epochs)
        jobs += plan(Job(name, str(data_dir), digest_of(name), schemes[0], 0, recipe, device), schemes, seeds)
    return jobs


def _print(identities: list[str], path: Path, format: str, language: Language) -> None:
    ours = set(identities)
    comparisons = compare(each for each in read_located([path]) if identity(each.record) in ours)
    if format == "json":
        content = json.loads(formats.report_json(comparisons, language))
        typer.echo(json.dumps(content | {"claims": [_claims(comparison) for comparison in comparisons]}))
        return
    stdout = open_stdout()
    for comparison in comparisons:
        stdout.print(formats.report_table([comparison], language))
        stdout.print(claims_table(comparison, language))


def _claims(comparison: Comparison) -> dict[str, object]:
    found = [asdict(claim) for claim in compare_claims(comparison)]
    return {"dataset": comparison.dataset, "model": comparison.model, "claims": found}
