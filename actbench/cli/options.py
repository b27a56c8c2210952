"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Format = Annotated[Literal["table", "json"], typer.Option(help="What stdout gets.")]
DataDir = Annotated[
    Path,
    typer.Option(
        envvar="ACTBENCH_DATA",
        help="Where data sets are downloaded to; a folder of raw files in PyG's layout is used as it is.",
    ),
]
DEFAULT_DATA_DIR = Path.home() / ".cache" / "actbench" / "data"
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 + SIGINT."""
