"""Options that several verbs share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import typer


def expand_home(path: Path) -> Path:
    """`~` as the home folder, for `--option=~/path`, which shells leave alone."""
    return path.expanduser()


def require_finite(value: float | None) -> float | None:
    """The value; raises `typer.BadParameter` for an infinity or NaN."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


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
Layers = Annotated[int | None, typer.Option(min=1, help="Convolutions.", show_default="the recipe's")]
Hidden = Annotated[int | None, typer.Option(min=1, help="Their width.", show_default="the recipe's")]
Dropout = Annotated[
    float | None,
    typer.Option(min=0, max=0.99, callback=require_finite, help="Dropout probability.", show_default="the recipe's"),
]
BatchNorm = Annotated[
    bool | None, typer.Option("--batch-norm/--no-batch-norm", help="Batch norm.", show_default="the recipe's")
]
LearningRate = Annotated[
    float | None,
    typer.Option(min=0, callback=require_finite, help="Adam's step size.", show_default="the recipe's"),
]

DEFAULT_DATA_DIR = Path.home() / ".cache" / "actbench" / "data"
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""
PIPE_CLOSED = 141
"""Exit code after stdout's reader went away, as shells have it: 128 + SIGPIPE. No verdict has it."""
