"""`actbench datasets` and `actbench pull`: what there is to train on, and how it gets here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from actbench.cli.completion import offer_downloads
from actbench.cli.options import DEFAULT_DATA_DIR, DataDir, Format
from actbench.completing import COMPLETING
from actbench.errors import UsageError

if not COMPLETING:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from actbench import graphs
    from actbench.report import datasets_table, open_stderr, open_stdout
    from actbench.training import Recipe


def datasets(format: Format = "table", data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """List the data sets with their size, licence and whether they are present.

    Example: actbench datasets --data-dir ~/graphs
    """
    listed = [asdict(entry) | {"present": graphs.present(entry.name, data_dir)} for entry in graphs.catalogue()]
    if format == "json":
        typer.echo(json.dumps(listed))
    else:
        open_stdout().print(datasets_table(listed, str(data_dir)))


def pull(
    name: Annotated[str, typer.Argument(autocompletion=offer_downloads, help="A name from `actbench datasets`.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Download a data set; never asks, and leaves nothing half-done.

    Example: actbench pull ogbn-arxiv
    """
    _pull(name, data_dir, open_stderr())


def make_present(name: str, data_dir: Path, console: Console) -> None:
    """Download `name` if it is not there, and check all of it that a run will read, before any run starts."""
    if name.endswith(".npz") or not graphs.find(name).synthetic:
        if not name.endswith(".npz") and not graphs.present(name, data_dir):
            _pull(name, data_dir, console)
        graphs.load(name, data_dir)


def require_parts(name: str, recipe: Recipe) -> None:
    """Raise `UsageError` if `recipe` cuts `name` into more parts than it has nodes."""
    if recipe.parts is not None and recipe.parts > (nodes := graphs.sizes_of(name).nodes):
        raise UsageError(f"--parts {recipe.parts} cannot be made of the {nodes} nodes of {name}: give fewer.")


def _pull(name: str, data_dir: Path, console: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"pull {name}", total=None)
        graphs.pull(name, data_dir, lambda done, total: progress.update(task, completed=done, total=total))
    console.print(f"{name} is in {data_dir}", markup=False, highlight=False, soft_wrap=True)
