"""`actbench tune`: a scheme for a budget of memory or a bound of gradient noise."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal

import typer

from actbench.cli.completion import offer_datasets
from actbench.cli.options import (
    DEFAULT_DATA_DIR,
    BatchNorm,
    DataDir,
    Device,
    Dropout,
    Hidden,
    Layers,
    LearningRate,
    ModelName,
    SamplerName,
    require_finite,
)
from actbench.cli.sizes import read_size
from actbench.completing import COMPLETING
from actbench.errors import ActbenchError, UsageError
from actbench.scheme import Scheme
from actbench.studies.bounds import LEAST_DRAWS

if not COMPLETING:
    import torch

    from actbench.cli.datasets import make_present
    from actbench.graphs import load
    from actbench.report import open_stderr
    from actbench.report.tuning import tuning_table
    from actbench.runs import is_out_of_memory, resolve_device
    from actbench.studies.fixed_weights import FixedWeights
    from actbench.studies.tuning import Tuning
    from actbench.studies.tuning import tune as find_scheme
    from actbench.training import recipe_for

DEFAULT_EPOCHS = 15
BESIDE = ("exact", "blockwise-vm", "derived")


def tune(
    dataset: Annotated[
        str, typer.Option(autocompletion=offer_datasets, help="A name from `actbench datasets` or a .npz file.")
    ],
    model: ModelName = "sage",
    sampler: SamplerName = "full",
    budget: Annotated[
        str | None, typer.Option(help="Most bytes to keep for backward, as 800MiB: activations, not all of memory.")
    ] = None,
    max_noise: Annotated[
        float | None,
        typer.Option(callback=require_finite, help="Most gradient noise E‖ĝ - g‖² / ‖g‖², above 0."),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=0, help="FP32 epochs before the weights are fixed; 0 takes them as they are drawn.")
    ] = DEFAULT_EPOCHS,
    batches: Annotated[
        int, typer.Option(min=1, help="Dropout masks, and with a sampler samples, that noise is averaged over.")
    ] = 1,
    draws: Annotated[int, typer.Option(min=LEAST_DRAWS, help="Gradients drawn for every measured noise.")] = 4,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Of weights and dropout masks.")] = 0,
    device: Device = "auto",
    format: Annotated[
        Literal["text", "json"], typer.Option(help="What stdout gets: the scheme's text, or all that was found.")
    ] = "text",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no table on stderr.")] = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    layers: Layers = None,
    hidden: Hidden = None,
    dropout: Dropout = None,
    batch_norm: BatchNorm = None,
    learning_rate: LearningRate = None,
) -> None:
    """Choose bits, block size, projection and levels call by call, and print the scheme that `actbench run` takes.

    With --budget the scheme of least gradient noise in that memory, with --max-noise the smallest within that noise.
    What was tried stands on stderr, and beside it exact, blockwise-vm and derived, which has nothing to choose by call.

    Example: actbench run --dataset cora --scheme "$(actbench tune --dataset cora --budget 1MiB)"
    """
    if (budget is None) == (max_noise is None):
        raise UsageError("tune needs either --budget, as 800MiB, or --max-noise, as 0.1.")
    if max_noise is not None and max_noise <= 0:
        raise UsageError(f"--max-noise {max_noise} is not above 0: without noise is fp32 alone.")
    budget_bytes = None if budget is None else read_size("--budget", budget)
    recipe = recipe_for(dataset, model, sampler).overridden(
        layers=layers, hidden=hidden, dropout=dropout, batch_norm=batch_norm, learning_rate=learning_rate
    )
    recipe = replace(recipe, epochs=epochs)
    chosen = torch.device(resolve_device(device))
    stderr = open_stderr(quiet)
    make_present(dataset, data_dir, stderr)
    graph = load(dataset, data_dir, seed)
    with stderr.status("starting") as status:
        try:
            weights = FixedWeights.trained(
                graph, recipe, chosen, seed, lambda epoch: status.update(f"FP32, epoch {epoch} of {epochs}")
            )
            masks = [FixedWeights(weights.trainer, seed + number) for number in range(batches)]
            beside = [Scheme.parse(text) for text in BESIDE]
            found = find_scheme(masks, draws, budget_bytes, max_noise, beside, status.update)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ActbenchError(
                f"{dataset} under {model} does not fit into memory: take a smaller --hidden or graph."
            ) from error
    limit = f"{budget_bytes:,} bytes" if budget_bytes is not None else f"noise {max_noise:g}"
    generated = " (generated graph)" if graph.synthetic else ""
    stderr.print(tuning_table(found, f"{limit} · {dataset}{generated} · {model}, {epochs} epochs of FP32"))
    if format == "json":
        about = {"dataset": dataset, "synthetic": graph.synthetic, "model": model, "recipe": recipe.as_record()}
        limits = {
            "budget_bytes": budget_bytes,
            "max_noise": max_noise,
            "batches": batches,
            "draws": draws,
            "seed": seed,
        }
        typer.echo(json.dumps(about | limits | _as_json(found), allow_nan=False))
    else:
        typer.echo(str(found.scheme))


def _as_json(found: Tuning) -> dict[str, Any]:
    return {
        "scheme": str(found.scheme),
        "other_bytes": found.other_bytes,
        "tried": [asdict(each) | {"scheme": str(each.scheme)} for each in found.tried],
        "calls": [asdict(call) for call in found.calls],
    }
