"""Progress on stderr: a live line for the running job on a terminal, a plain line for every finished one."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from actbench.report.phrases import MEBIBYTE


class ProgressListener:
    """Hears a grid of `total` jobs and shows it on `console`; a context."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._number = 0
        self._begun = 0.0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=8),
            TextColumn("{task.completed}/{task.total} {task.fields[figures]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def skipped(self, job: Any, record: dict[str, Any]) -> None:
        """Say that this job's result is there already."""
        self._number += 1
        self._say(f"{self._label(job)}: measured {record['started']}, not again (--fresh measures again)")

    def waiting(self, job: Any) -> None:
        """Say for what this process waits."""
        label = f"[{self._number + 1}/{self._total}] {job.scheme} seed {job.seed}"
        self._say(f"{label}: another process is measuring it into the same file; waiting for its record")

    def started(self, job: Any) -> None:
        """Begin this job's line."""
        self._number += 1
        self._begun = time.monotonic()
        self._task = self._progress.add_task(self._label(job), total=job.recipe.epochs, figures="starting")

    def advanced(self, job: Any, state: dict[str, Any]) -> None:
        """Move this job's bar."""
        assert self._task is not None
        occupied = state["occupied_bytes"]
        memory = "" if occupied is None else f" {occupied / MEBIBYTE:,.0f} MiB"
        figures = f"loss {state['loss']:.3g} valid {100 * state['valid']:.1f}%{memory}"
        self._progress.update(self._task, completed=state["epoch"], figures=figures)

    def ended(self, job: Any, record: dict[str, Any]) -> None:
        """Replace the live line by what became of the job."""
        assert self._task is not None
        self._progress.remove_task(self._task)
        seconds = time.monotonic() - self._begun
        self._say(f"{self._label(job)}: {_outcome(record)}, {seconds:.1f} s")

    def _label(self, job: Any) -> str:
        return f"[{self._number}/{self._total}] {job.scheme} seed {job.seed}"

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _outcome(record: dict[str, Any]) -> str:
    if record["status"] != "ok":
        error = record["error"]
        first_line = error["message"].partition("\n")[0]
        return f"{record['status']} in epoch {error['epoch']}: {error['type']} {first_line}".rstrip()
    metrics = record["metrics"]
    return f"test {metrics['name']} {100 * metrics['test']:.2f} %"
