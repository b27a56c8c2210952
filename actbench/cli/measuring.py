"""A grid of jobs measured for a verb: progress on stderr, records in a file, and what an interrupt leaves behind."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console

from actbench.cli.options import INTERRUPTED
from actbench.cli.output import tell
from actbench.errors import UsageError
from actbench.records import Record, RecordFile
from actbench.report import ProgressListener
from actbench.runs import Job, describe_device, run_grid


def measure_grid(
    jobs: Sequence[Job],
    file: RecordFile,
    device: Literal["cpu", "cuda"],
    fresh: bool,
    stderr: Console,
) -> tuple[list[Record], bool]:
    """The records of `jobs`, all of them or those until Ctrl-C, and whether that came.

    Raises `UsageError` if there is no folder for the temporary files of a run.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        raise UsageError(
            "no folder for temporary files can be written to: let TMPDIR name one, with room in it."
        ) from None
    records: list[Record] = []
    with ProgressListener(stderr, len(jobs)) as listener:
        try:
            # One by one, so that an interrupt leaves the finished ones here.
            for record in run_grid(jobs, file, describe_device(device), fresh, listener):
                records.append(record)  # noqa: PERF402
        except KeyboardInterrupt:
            return records, True
    return records, False


def end(records: Sequence[Record], jobs: Sequence[Job], interrupted: bool, output: Path, fresh: bool) -> None:
    """Exit as the grid did: 130 after an interrupt, with a sentence that says how to go on; 1 if a run failed."""
    if interrupted:
        tell(
            f"actbench: interrupted; {len(records)} of {len(jobs)} results are in {output}, and the same command "
            f"{'without --fresh ' if fresh else ''}goes on from there."
        )
        raise typer.Exit(INTERRUPTED)
    if any(record["status"] in ("error", "killed") for record in records):
        raise typer.Exit(1)
