"""A grid of jobs, one after the other, into one record file; finished ones are not measured again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, Protocol

from actbench.records import Record, RecordFile, identity, unusable_field
from actbench.runs.execute import Together, execute
from actbench.runs.job import Job, description

FINAL = ("ok", "oom")
"""Statuses that stand: what was killed or failed is measured again when the same command is given again."""


class Listener(Protocol):
    """Hears how a grid gets on."""

    def skipped(self, job: Job, record: Record) -> None:
        """`job` is not run, since `record` is its result already."""

    def waiting(self, job: Job) -> None:
        """Nothing is left but what other processes are measuring, `job` first."""

    def started(self, job: Job) -> None:
        """`job` begins."""

    def advanced(self, job: Job, state: dict[str, Any]) -> None:
        """An epoch of `job` is done: epoch, loss, valid, occupied_bytes, saved_bytes."""

    def ended(self, job: Job, record: Record) -> None:
        """`record`, the result of `job`, is on disk."""


def run_grid(
    jobs: Iterable[Job],
    file: RecordFile,
    environment: dict[str, Any],
    fresh: bool,
    listener: Listener,
) -> Iterator[Record]:
    """Measure `jobs` and append each record when its job ends; yields one record a job.

    Without `fresh`, a job with a final record in `file` is skipped and that record yielded. The file is read again
    before each job, so that what another process has finished meanwhile is not measured again; what another process
    is measuring comes last, when that one has ended. Each job has a process of its own, but for
    those that are measured together, which share one.
    """
    with closing(Together()) as company:
        elsewhere = []
        for job in jobs:
            record = _measure(job, file, environment, fresh, listener, company, wait=False)
            if record is None:
                elsewhere.append(job)
            else:
                yield record
        for job in elsewhere:
            listener.waiting(job)
            record = _measure(job, file, environment, fresh, listener, company, wait=True)
            assert record is not None
            yield record


def _measure(
    job: Job,
    file: RecordFile,
    environment: dict[str, Any],
    fresh: bool,
    listener: Listener,
    company: Together,
    wait: bool,
) -> Record | None:
    """The record of `job`, or None if another process is making it and `wait` is not set."""
    wanted = identity(description(job, environment))
    with file.claim(wanted, wait) as ours:
        if not ours:
            return None
        known = [] if fresh else [r for r in file.read() if _stands(r) and identity(r) == wanted]
        if known:
            listener.skipped(job, known[-1])
            return known[-1]
        listener.started(job)
        run = company.execute if job.together else execute
        record = run(job, environment, lambda state: listener.advanced(job, state))
        file.append(record)
        listener.ended(job, record)
        return record


def _stands(record: Record) -> bool:
    """Whether a record needs no second measurement: it ended, and has all that a report reads."""
    finished = record["status"] in FINAL and unusable_field(record) is None
    return finished and (record["status"] != "ok" or record.get("metrics") is not None)
