"""`actbench estimate`: what training would take of memory, and what would still fit."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer

from actbench.analysis.bounds import LARGEST_EDGES, LARGEST_HIDDEN, LARGEST_NODES
from actbench.cli.completion import offer_datasets, offer_schemes
from actbench.cli.options import (
    DEFAULT_SCHEMES,
    BatchNorm,
    Dropout,
    Format,
    Hidden,
    Layers,
    ModelName,
    Parts,
    PartsPerBatch,
    Roots,
    SamplerName,
    WalkLength,
)
from actbench.cli.sizes import read_size
from actbench.completing import COMPLETING
from actbench.errors import UsageError
from actbench.scheme import Scheme

if not COMPLETING:
    from actbench.analysis.estimate import Workload, forecast
    from actbench.cli.modules import load_module
    from actbench.graphs import Entry, sizes_of
    from actbench.report import estimate_table, open_stdout
    from actbench.runs import require_device
    from actbench.trace import Subject, require_calls
    from actbench.training import recipe_for

DEFAULT_CLASSES = 10
_GIVEN = "given sizes"


def estimate(
    nodes: Annotated[int | None, typer.Option(min=1, max=LARGEST_NODES, help="Nodes of the graph.")] = None,
    edges: Annotated[
        int | None,
        typer.Option(min=0, max=LARGEST_EDGES, help="Directed edges: an undirected one counts twice, no self-loops."),
    ] = None,
    features: Annotated[
        int | None, typer.Option("--features", "--in", min=1, max=LARGEST_HIDDEN, help="Features of a node.")
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            "--classes",
            "--out",
            min=1,
            max=LARGEST_HIDDEN,
            help="Classes, or labels.",
            show_default=str(DEFAULT_CLASSES),
        ),
    ] = None,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", help="Labels that do not exclude each other, float32 [nodes, classes].")
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            autocompletion=offer_datasets,
            help="Instead of these: a name from `actbench datasets`, which is not loaded, or a .npz file.",
        ),
    ] = None,
    model: ModelName = "sage",
    module: Annotated[
        str | None,
        typer.Option(
            help="Instead of --model a torch.nn.Module of your own, as pkg.file:Net: Net(in, out), called with x and "
            "edge_index."
        ),
    ] = None,
    adj_t: Annotated[
        bool, typer.Option("--adj-t", help="Call the module with x and a sparse adj_t, float32 CSR, instead.")
    ] = False,
    sampler: SamplerName = "full",
    hidden: Hidden = None,
    layers: Layers = None,
    dropout: Dropout = None,
    batch_norm: BatchNorm = None,
    roots: Roots = None,
    walk_length: WalkLength = None,
    parts: Parts = None,
    parts_per_batch: PartsPerBatch = None,
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            autocompletion=offer_schemes,
            help="What is kept for backward, again for each more; as in `run`.",
            show_default=", ".join(DEFAULT_SCHEMES),
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Memory to fit into, as 12GB (10^9 bytes each), 12GiB (2^30 each) or 1.5e9 (bytes)."),
    ] = None,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="What it is estimated for; none is asked.")] = "cuda",
    hopper: Annotated[
        bool, typer.Option("--hopper", help="A GPU such as H100, for which cuBLAS's workspaces are larger.")
    ] = False,
    format: Format = "table",
) -> None:
    """Estimate the bytes of training, by kind and scheme, without a GPU and without training.

    With --budget also which schemes fit, the largest hidden width and the largest graph that do. Estimates, derived
    from the shapes: docs/estimate.md says how, and how far they are right.

    Example: actbench estimate --dataset ogbn-arxiv --budget 2GB
    """
    schemes = [Scheme.parse(text) for text in scheme or DEFAULT_SCHEMES]
    sizes = {"--nodes": nodes, "--edges": edges, "--features": features, "--classes": classes}
    if dataset is not None:
        surplus = [name for name, value in sizes.items() if value is not None] + ["--multi-label"] * multi_label
        if surplus:
            raise UsageError(f"--dataset {dataset} has its own sizes: leave out {', '.join(surplus)}.")
        graph = sizes_of(dataset)
    else:
        if nodes is None or edges is None or features is None:
            missing = [name for name in ("--nodes", "--edges", "--features") if sizes[name] is None]
            raise UsageError(f"{', '.join(missing)} missing: give sizes, or a graph by --dataset.")
        task: Literal["single-label", "multi-label"] = "multi-label" if multi_label else "single-label"
        graph = Entry(_GIVEN, nodes, edges, features, classes or DEFAULT_CLASSES, task=task)
    if hopper and device == "cpu":
        raise UsageError("--hopper says which GPU it is, but --device is cpu: leave one of them out.")
    require_device(schemes, device)
    of_model = {"layers": layers, "hidden": hidden, "dropout": dropout, "batch_norm": batch_norm}
    of_sampler = {"roots": roots, "walk_length": walk_length, "parts": parts, "parts_per_batch": parts_per_batch}
    recipe = recipe_for(graph.name, model, sampler).overridden(**of_model, **of_sampler)
    subject = Subject(recipe, graph.task)
    if module is not None:
        _check_module(module, of_model, sampler)
        subject = Subject(recipe, graph.task, module=load_module(module), adj_t=adj_t, name=module)
    elif adj_t:
        raise UsageError("--adj-t says how a --module is called: leave it out, or name the module.")
    for each in schemes:
        require_calls(subject, each)
    workload = Workload(graph, subject, device, hopper)
    budget_bytes = None if budget is None else read_size("--budget", budget)
    found = forecast(workload, schemes, budget_bytes)
    if format == "json":
        typer.echo(json.dumps(found))
    else:
        open_stdout().print(estimate_table(found))


def _check_module(module: str, of_model: dict[str, Any], sampler: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in of_model.items() if value is not None]
    if given:
        raise UsageError(f"--module {module} has layers of its own: leave out {', '.join(given)}.")
    if sampler != "full":
        raise UsageError(f"--module {module} is estimated on whole graphs: leave out --sampler {sampler}.")
