"""`actbench run`: measure schemes side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from actbench.analysis import summarise
from actbench.cli.datasets import make_present, require_parts
from actbench.cli.measuring import end, measure_grid
from actbench.cli.options import DEFAULT_DATA_DIR, DataDir, Format, expand_home, require_finite
from actbench.compress import require_calls
from actbench.models import operations
from actbench.report import ledger_table, open_stderr, open_stdout, render_tables
from actbench.runs import Job, Record, RecordFile, digest_of, plan, require_device, resolve_device
from actbench.scheme import Scheme
from actbench.training import recipe_for

DEFAULT_DATASET = "synthetic:arxiv@0.05"
DEFAULT_EPOCHS = 30
DEFAULT_SCHEMES = ("fp32", "exact", "blockwise", "blockwise-vm")


def run(
    dataset: Annotated[
        str | None,
        typer.Option(help="A name from `actbench datasets` or a .npz file.", show_default=DEFAULT_DATASET),
    ] = None,
    model: Annotated[Literal["sage", "gcn", "gcnii", "gat"], typer.Option(help="The network.")] = "sage",
    sampler: Annotated[
        Literal["full", "saint", "cluster"],
        typer.Option(help="What a step trains on: the graph, GraphSAINT's random walks or Cluster-GCN's parts."),
    ] = "full",
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            help="What is kept for backward, again for each more: fp32, exact, blockwise, blockwise-vm, int8, int4, "
            "bf16, checkpoint, offload (GPU only), or one that quantizes with options, as "
            "blockwise:bits=4,block=256,projection=4,levels=uniform (block in elements, or in rows as 64r; levels "
            "uniform or clipped-normal), and with those of single calls, as int4/linear2:bits=8/batch_norm1:block=64r.",
            show_default=", ".join(DEFAULT_SCHEMES),
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of every scheme, with seeds 0, 1, ….")] = 1,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs.", show_default=f"the recipe's; {DEFAULT_EPOCHS} without --dataset"),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes a CUDA GPU if there is one.")
    ] = "auto",
    output: Annotated[Path, typer.Option(callback=expand_home, help="Records are appended to this file.")] = Path(
        "actbench.jsonl"
    ),
    format: Format = "table",
    ledger: Annotated[bool, typer.Option("--ledger", help="Also print what is kept, tensor by tensor.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what --output holds already.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    layers: Annotated[int | None, typer.Option(min=1, help="Convolutions.", show_default="the recipe's")] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help="Their width.", show_default="the recipe's")] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.99, callback=require_finite, help="Dropout probability.", show_default="the recipe's"
        ),
    ] = None,
    batch_norm: Annotated[
        bool | None,
        typer.Option("--batch-norm/--no-batch-norm", help="Batch norm.", show_default="the recipe's"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0, callback=require_finite, help="The optimizer's step size.", show_default="the recipe's"),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(min=0, callback=require_finite, help="The optimizer's L2 penalty.", show_default="the recipe's"),
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(
            min=0,
            callback=require_finite,
            help="Bound of the gradient's norm; 0 for none.",
            show_default="the recipe's",
        ),
    ] = None,
    optimizer: Annotated[
        Literal["adam", "rmsprop"] | None, typer.Option(help="The optimizer.", show_default="the recipe's")
    ] = None,
    input_dropout: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.99, callback=require_finite, help="Dropout of the features.", show_default="the recipe's"
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            callback=require_finite,
            help="GCNII: share of the first layer in each.",
            show_default="the recipe's",
        ),
    ] = None,
    theta: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1.7,
            callback=require_finite,
            help="GCNII: how far weights are from identity; 0 for no identity.",
            show_default="the recipe's",
        ),
    ] = None,
    residual: Annotated[
        bool | None,
        typer.Option(
            "--residual/--no-residual", help="GCNII: add a layer's input to its output.", show_default="the recipe's"
        ),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="GAT: heads of --hidden columns each.", show_default="the recipe's")
    ] = None,
    edge_dropout: Annotated[
        float | None,
        typer.Option(
            min=0, max=0.99, callback=require_finite, help="GAT: share of edges left out.", show_default="the recipe's"
        ),
    ] = None,
    labels_as_input: Annotated[
        bool | None,
        typer.Option(
            "--labels-as-input/--no-labels-as-input",
            help="Training labels beside the features, some hidden and predicted.",
            show_default="the recipe's",
        ),
    ] = None,
    mask_rate: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1,
            callback=require_finite,
            help="Share of the labels as input that is hidden.",
            show_default="the recipe's",
        ),
    ] = None,
    roots: Annotated[
        int | None, typer.Option(min=1, help="GraphSAINT: walks a step.", show_default="the recipe's")
    ] = None,
    walk_length: Annotated[
        int | None, typer.Option(min=1, help="GraphSAINT: edges a walk.", show_default="the recipe's")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="GraphSAINT: steps an epoch.", show_default="the recipe's")
    ] = None,
    parts: Annotated[
        int | None, typer.Option(min=1, help="Cluster-GCN: parts of the graph.", show_default="the recipe's")
    ] = None,
    parts_per_batch: Annotated[
        int | None, typer.Option(min=1, help="Cluster-GCN: parts a step.", show_default="the recipe's")
    ] = None,
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
    trace = operations(recipe.architecture, 1, 1, 1, 1)
    for each in schemes:
        require_calls(trace, each)
    chosen = resolve_device(device)
    require_device(schemes, chosen)
    file = RecordFile(output)
    file.check_writable()
    file.read()
    stderr = open_stderr(quiet)
    make_present(name, data_dir, stderr)
    require_parts(name, recipe)
    job = Job(name, str(data_dir), digest_of(name), schemes[0], 0, recipe, chosen)
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
