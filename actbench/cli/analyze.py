"""`actbench analyze`: what the variance claims rest on, on real activations, and the gradient noise that follows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from actbench.cli.completion import offer_datasets, offer_schemes
from actbench.cli.options import (
    DEFAULT_DATA_DIR,
    BatchNorm,
    DataDir,
    Device,
    Dropout,
    Format,
    Hidden,
    Layers,
    LearningRate,
    ModelName,
    Quiet,
    SamplerName,
    expand_given,
)
from actbench.cli.output import write_whole
from actbench.completing import COMPLETING
from actbench.errors import ActbenchError, OutputError
from actbench.report.phrases import Language, word
from actbench.scheme import Scheme
from actbench.studies.bounds import LEAST_DRAWS

if not COMPLETING:
    from actbench.cli.datasets import make_present
    from actbench.records import RecordFile
    from actbench.records.study import Study, is_study
    from actbench.report import open_stderr, open_stdout
    from actbench.report.study import study_table
    from actbench.runs import Job, digest_of, is_out_of_memory, require_device, resolve_device
    from actbench.studies.study import run_study
    from actbench.trace import Subject, require_calls
    from actbench.training import recipe_for

DEFAULT_SCHEMES = ("exact", "blockwise", "blockwise-vm", "blockwise-vm:projection=1", "derived")
DEFAULT_EPOCHS = 15
DEFAULT_DRAWS = 8


def analyze(
    dataset: Annotated[
        str, typer.Option(autocompletion=offer_datasets, help="A name from `actbench datasets` or a .npz file.")
    ],
    model: ModelName = "sage",
    sampler: SamplerName = "full",
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=offer_schemes,
            help="A scheme as `actbench run` takes it, again for each more.",
            show_default=", ".join(DEFAULT_SCHEMES),
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=0, help="FP32 epochs before the weights are fixed; 0 takes them as they are drawn.")
    ] = DEFAULT_EPOCHS,
    draws: Annotated[int, typer.Option(min=LEAST_DRAWS, help="Gradients drawn of every scheme.")] = DEFAULT_DRAWS,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of weights and dropout masks.")] = 0,
    device: Device = "auto",
    format: Format = "table",
    lang: Annotated[Language, typer.Option(help="The language of tables and charts.")] = "en",
    output: Annotated[
        Path | None,
        typer.Option(callback=expand_given, help="Write the JSON here too; `actbench report` takes it beside records."),
    ] = None,
    charts: Annotated[
        Path | None, typer.Option(callback=expand_given, help="Also write charts, as PNG and SVG, into this folder.")
    ] = None,
    quiet: Quiet = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    layers: Layers = None,
    hidden: Hidden = None,
    dropout: Dropout = None,
    batch_norm: BatchNorm = None,
    learning_rate: LearningRate = None,
) -> None:
    """Measure gradient noise at fixed weights, and how activations lie in their blocks, layer by layer.

    Example: actbench analyze --dataset cora --output cora-analysis.json --charts charts
    """
    schemes = [Scheme.parse(text) for text in scheme or DEFAULT_SCHEMES]
    recipe = recipe_for(dataset, model, sampler).overridden(
        layers=layers, hidden=hidden, dropout=dropout, batch_norm=batch_norm, learning_rate=learning_rate
    )
    for each in schemes:
        require_calls(Subject(recipe, "single-label"), each)
    chosen = resolve_device(device)
    require_device(schemes, chosen)
    if output is not None:
        _check_replaceable(output)
    if charts is not None:
        _make_folder(charts)
    stderr = open_stderr(quiet)
    make_present(dataset, data_dir, stderr)
    job = Job(dataset, str(data_dir), digest_of(dataset), schemes[0], seed, replace(recipe, epochs=epochs), chosen)
    with stderr.status("starting") as status:
        try:
            document = run_study(job, schemes, draws, status.update)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ActbenchError(
                f"{dataset} under {model} does not fit into memory: take a smaller --hidden or graph."
            ) from error
    text = json.dumps(document, allow_nan=False)
    study = Study(json.loads(text), "" if output is None else str(output))
    if output is not None:
        write_whole(output, text + "\n")
    if charts is not None:
        _write_charts(study, lang, charts)
    if format == "json":
        typer.echo(text)
    else:
        open_stdout().print(study_table(study, lang))


def _check_replaceable(path: Path) -> None:
    """Raise `OutputError` if `path` cannot be written, or holds anything but an analysis."""
    RecordFile(path).check_writable()
    if path.exists() and path.stat().st_size > 0 and not is_study(path):
        raise OutputError(f"--output {path} holds something else than an analysis: name another file.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"--charts {folder} cannot be written ({error.strerror}): name another folder.") from error


def _write_charts(study: Study, language: Language, folder: Path) -> None:
    # matplotlib takes a second to import, which tables need not wait for.
    from actbench.report.charts import chart_language, file_stem
    from actbench.report.study_charts import write_study_charts

    stderr = open_stderr()
    if chart_language(language) != language:
        stderr.print(word("chart.font", language), markup=False, highlight=False, soft_wrap=True)
    stem = file_stem(f"{Path(study.document['dataset']).name}-{study.document['model']}")
    try:
        for path in write_study_charts(study, language, folder, stem):
            stderr.print(str(path), markup=False, highlight=False, soft_wrap=True)
    except OSError as error:
        raise OutputError(f"--charts {folder} cannot be written ({error.strerror}): name another folder.") from error
