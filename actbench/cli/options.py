"""Options that several verbs share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from actbench.analysis.bounds import LARGEST_HIDDEN, LARGEST_LAYERS
from actbench.home import expand_home, home_folder


def require_finite(value: float | None) -> float | None:
    """The value; raises `typer.BadParameter` for an infinity or NaN."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def expand_given(path: Path | None) -> Path | None:
    """`expand_home` for an option that may be left out."""
    return path and expand_home(path)


def of_recipe(help: str, *names: str, **bounds: float) -> Any:
    """A number or a switch that the recipe decides unless it is given; `names` are those of a switch."""
    return typer.Option(*names, callback=require_finite, help=help, show_default="the recipe's", **bounds)  # type: ignore[arg-type]


Format = Annotated[Literal["table", "json"], typer.Option(help="What stdout gets.")]
DataDir = Annotated[
    Path,
    typer.Option(
        envvar="ACTBENCH_DATA",
        callback=expand_home,
        help="Where data sets are downloaded to; a folder of raw files in PyG's layout is used as it is.",
    ),
]
ModelName = Annotated[Literal["sage", "gcn", "gcnii", "gat"], typer.Option(help="The network.")]
SamplerName = Annotated[
    Literal["full", "saint", "cluster"],
    typer.Option(help="What a step trains on: the graph, GraphSAINT's random walks or Cluster-GCN's parts."),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes a CUDA GPU if there is one.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure again what --output holds already.")]
Layers = Annotated[int | None, of_recipe("Convolutions.", min=1, max=LARGEST_LAYERS)]
Hidden = Annotated[int | None, of_recipe("Width of the layers.", min=1, max=LARGEST_HIDDEN)]
Dropout = Annotated[float | None, of_recipe("Dropout probability.", min=0, max=0.99)]
BatchNorm = Annotated[bool | None, of_recipe("Batch norm.", "--batch-norm/--no-batch-norm")]
LearningRate = Annotated[float | None, of_recipe("The optimizer's step size.", min=0)]
Roots = Annotated[int | None, of_recipe("GraphSAINT: walks a step.", min=1)]
WalkLength = Annotated[int | None, of_recipe("GraphSAINT: edges a walk.", min=1)]
Parts = Annotated[int | None, of_recipe("Cluster-GCN: parts of the graph.", min=1)]
PartsPerBatch = Annotated[int | None, of_recipe("Cluster-GCN: parts a step.", min=1)]

MOST_SEEDS = 10_000
"""All runs are planned before the first: more would fill the memory with plans that no machine carries out."""
DEFAULT_SCHEMES = ("fp32", "exact", "blockwise", "blockwise-vm", "derived")
"""The reference, the papers' schemes and ours."""
DEFAULT_DATA_DIR = home_folder() / ".cache" / "actbench" / "data"
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""
PIPE_CLOSED = 141
"""Exit code after stdout's reader went away, as shells have it: 128 + SIGPIPE. No verdict has it."""
