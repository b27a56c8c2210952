"""`actbench run`: measure schemes side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from actbench.cli.completion import offer_datasets, offer_schemes
from actbench.cli.options import (
    DEFAULT_DATA_DIR,
    DEFAULT_SCHEMES,
    MOST_SEEDS,
    BatchNorm,
    DataDir,
    Device,
    Dropout,
    Format,
    Fresh,
    Hidden,
    Layers,
    LearningRate,
    ModelName,
    Parts,
    PartsPerBatch,
    Quiet,
    Roots,
    SamplerName,
    WalkLength,
    of_recipe,
)
from actbench.completing import COMPLETING
from actbench.home import expand_home
from actbench.scheme import Scheme

if not COMPLETING:
    from actbench.analysis import summarise
    from actbench.cli.datasets import make_present, require_parts
    from actbench.cli.measuring import end, measure_grid
    from actbench.records import Record, RecordFile
    from actbench.report import ledger_table, open_stderr, open_stdout, render_tables
    from actbench.runs import Job, digest_of, plan, require_device, resolve_device
    from actbench.trace import Subject, require_calls
    from actbench.training import recipe_for

DEFAULT_DATASET = "synthetic:arxiv@0.05"
DEFAULT_EPOCHS = 30


def run(
    dataset: Annotated[
        str | None,
        typer.Option(
            autocompletion=offer_datasets,
            help="A name from `actbench datasets` or a .npz file.",
            show_default=DEFAULT_DATASET,
        ),
    ] = None,
    model: ModelName = "sage",
    sampler: SamplerName = "full",
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=offer_schemes,
            help="What is kept for backward, again for each more: fp32, exact, blockwise, blockwise-vm, derived, "
            "derived-lean, derived-fine, int8, int4, bf16, checkpoint, offload (GPU only), or one that quantizes with "
            "options, as blockwise:bits=4,block=256,projection=4,levels=uniform (block in elements, or in rows as 64r; "
            "levels uniform or clipped-normal), and with those of single calls, as "
            "int4/linear2:bits=8/batch_norm1:block=64r; the derived ones project nothing and have no single calls.",
            show_default=", ".join(DEFAULT_SCHEMES),
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=MOST_SEEDS, help="Runs of every scheme, with seeds 0, 1, ….")] = 1,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs.", show_default=f"the recipe's; {DEFAULT_EPOCHS} without --dataset"),
    ] = None,
    device: Device = "auto",
    output: Annotated[Path, typer.Option(callback=expand_home, help="Records are appended to this file.")] = Path(
        "actbench.jsonl"
    ),
    format: Format = "table",
    ledger: Annotated[bool, typer.Option("--ledger", help="Also print what is kept, tensor by tensor.")] = False,
    fresh: Fresh = False,
    quiet: Quiet = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="Deterministic operations alone: every run gives the same scores and bytes again."
        ),
    ] = False,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="One process for all runs, whose start is paid once; of a process's own peaks, resident and NVML's, "
            "there is then none a run.",
        ),
    ] = False,
    layers: Layers = None,
    hidden: Hidden = None,
    dropout: Dropout = None,
    batch_norm: BatchNorm = None,
    learning_rate: LearningRate = None,
    weight_decay: Annotated[float | None, of_recipe("The optimizer's L2 penalty.", min=0)] = None,
    clip: Annotated[float | None, of_recipe("Bound of the gradient's norm; 0 for none.", min=0)] = None,
    optimizer: Annotated[
        Literal["adam", "rmsprop"] | None, typer.Option(help="The optimizer.", show_default="the recipe's")
    ] = None,
    input_dropout: Annotated[float | None, of_recipe("Dropout of the features.", min=0, max=0.99)] = None,
    alpha: Annotated[float | None, of_recipe("GCNII: share of the first layer in each.", min=0, max=1)] = None,
    theta: Annotated[
        float | None, of_recipe("GCNII: how far weights are from identity; 0 for no identity.", min=0, max=1.7)
    ] = None,
    residual: Annotated[
        bool | None, of_recipe("GCNII: add a layer's input to its output.", "--residual/--no-residual")
    ] = None,
    heads: Annotated[int | None, of_recipe("GAT: heads of --hidden columns each.", min=1)] = None,
    edge_dropout: Annotated[float | None, of_recipe("GAT: share of edges left out.", min=0, max=0.99)] = None,
    labels_as_input: Annotated[
        bool | None,
        of_recipe(
            "Training labels beside the features, some hidden and predicted.",
            "--labels-as-input/--no-labels-as-input",
        ),
    ] = None,
    mask_rate: Annotated[
        float | None, of_recipe("Share of the labels as input that is hidden.", min=0.01, max=1)
    ] = None,
    roots: Roots = None,
    walk_length: WalkLength = None,
    steps: Annotated[int | None, of_recipe("GraphSAINT: steps an epoch.", min=1)] = None,
    parts: Parts = None,
    parts_per_batch: PartsPerBatch = None,
) -> None:
    """Train under several schemes and compare memory, time and score.

    Every run has a process of its own, and its record is appended to --output when it ends. After Ctrl-C the same
    command goes on where it stopped.

    Example: actbench run --dataset cora --model gcn --scheme fp32 --scheme exact --seeds 10
    """
    schemes = [Scheme.parse(text) for text in scheme or DEFAULT_SCHEMES]
    name = DEFAULT_DATASET if dataset is None else dataset
    recipe = recipe_for(name, model, sampler).overridden(
        layers=layers,
        hidden=hidden,
        dropout=dropout,
        batch_norm=batch_norm,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        clip=clip,
        optimizer=optimizer,
        input_dropout=input_dropout,
        alpha=alpha,
        theta=theta,
        residual=residual,
        heads=heads,
        edge_dropout=edge_dropout,
        labels_as_input=labels_as_input,
        mask_rate=mask_rate,
        roots=roots,
        walk_length=walk_length,
        steps=steps,
        parts=parts,
        parts_per_batch=parts_per_batch,
        epochs=epochs or (DEFAULT_EPOCHS if dataset is None else None),
    )
    for each in schemes:
        require_calls(Subject(recipe, "single-label"), each)
    chosen = resolve_device(device)
    require_device(schemes, chosen)
    file = RecordFile(output)
    file.check_writable()
    file.read()
    stderr = open_stderr(quiet)
    make_present(name, data_dir, stderr)
    require_parts(name, recipe)
    job = Job(name, str(data_dir), digest_of(name), schemes[0], 0, recipe, chosen, deterministic, together)
    jobs = plan(job, schemes, seeds)

    records, interrupted = measure_grid(jobs, file, chosen, fresh, stderr)
    _print(records, format, ledger)
    end(records, jobs, interrupted, output, fresh)


def _print(records: list[Record], format: str, ledger: bool) -> None:
    if format == "json":
        typer.echo(json.dumps({"tables": [table.as_json() for table in summarise(records)], "records": records}))
        return
    stdout = open_stdout()
    if records:
        stdout.print(render_tables(summarise(records)))
    for record in records if ledger else []:
        stdout.print(ledger_table(record))
