"""Run jobs in child processes and return their records, whatever becomes of the children."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from actbench.quant.operations import compile_loops
from actbench.records import Record
from actbench.runs.job import Job
from actbench.runs.measure import blank_record, says_out_of_memory

_WORKER: Final = [sys.executable, "-P", "-m", "actbench.runs.worker"]
_STDERR_TAIL: Final = 2000
_ENVIRONMENT: Final = {
    # OpenMP's threads spin at every barrier by default: with one other busy process on the machine an epoch took 75
    # times as long. Asleep they make an FP32 epoch on a quiet machine about a fifth longer.
    "OMP_WAIT_POLICY": "passive",
    # By default glibc keeps what is freed, in a heap that the few small tensors kept for backward tear to pieces: the
    # resident peak of one training differed by 100 MiB from run to run. Large tensors get pages of their own instead,
    # and huge ones, without which an epoch took a third longer.
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

_DETERMINISTIC: Final = {
    # Before cuBLAS starts: with workspaces of a fixed size and number its sums have one order.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8"
}


def execute(job: Job, environment: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> Record:
    """Measure `job` in a process of its own; `report` is called with the state after every epoch.

    A child that dies makes a record too: "oom" if memory ran out, "killed" if a signal ended it, "error" otherwise.
    The child is killed if this call is interrupted. `environment` stands in such a record, since the child did not
    live to tell its own.
    """
    with contextlib.closing(Child(job)) as child:
        return child.measure(job, environment, report)


class Together:
    """Measures jobs one after the other in one process, whose start is paid once.

    A job that does not end well has the next one begin another process: it may have left the GPU unusable.
    """

    def __init__(self) -> None:
        self._child: Child | None = None

    def execute(self, job: Job, environment: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> Record:
        """As `execute`, but for the process; of jobs that are alike in `deterministic`."""
        if self._child is not None and self._child.has_ended:
            # Nothing that this job did.
            self.close()
        if self._child is None:
            self._child = Child(job)
        well = False
        try:
            record = self._child.measure(job, environment, report)
            well = record["status"] == "ok"
        finally:
            if not well:
                self.close()
        return record

    def close(self) -> None:
        """End the process, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.close()


class Child:
    """A process that measures jobs on a device like that of its first, until it is closed."""

    def __init__(self, job: Job) -> None:
        if job.device == "cpu" and (job.scheme.compresses or job.together):
            # Here, so that a compiler's memory is in no child's peak.
            compile_loops()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._said = 0
        """Bytes of what libraries said on stderr in jobs before, which is none of a later one's errors."""
        # A session of its own: Ctrl-C reaches the parent alone, which then decides.
        self._process = subprocess.Popen(
            [*_WORKER, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=_ENVIRONMENT | (_DETERMINISTIC if job.deterministic else {}) | os.environ,
            start_new_session=True,
        )

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Kill the process if it is still there, and let go of what belongs to it."""
        process = self._process
        if process.poll() is None:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._errors.close()

    def measure(self, job: Job, environment: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> Record:
        """The record of `job`, whatever becomes of the process; see `execute`."""
        last: dict[str, Any] = {"epoch": 0}
        killed_before = _killed_for_memory()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        record: Record | None = None
        # If the child died before it read, its exit status tells.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job.to_json()) + "\n")
            process.stdin.flush()
            if not job.together:
                process.stdin.close()
        for line in process.stdout:
            event = _read(line)
            if "epoch" in event:
                last = event["epoch"]
                report(last)
            record = event.get("record", record)
            if record is not None and job.together:
                break
        if record is not None:
            self._said = os.fstat(self._errors.fileno()).st_size
            return record
        process.wait()
        self._errors.seek(self._said)
        stderr = self._errors.read().decode(errors="replace")
        by_kernel = process.returncode == -signal.SIGKILL and _killed_for_memory() > killed_before
        record = _epitaph(blank_record(job, environment), process.returncode, last, stderr)
        if by_kernel or says_out_of_memory(stderr):
            record["status"] = "oom"
        return record


def _killed_for_memory() -> int:
    """How many processes the kernel has killed because memory ran out (`oom_kill`), 0 where it does not tell."""
    try:
        counters = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in counters.splitlines() if line.startswith("oom_kill ")), 0)


def _read(line: str) -> dict[str, Any]:
    """An event, or nothing for a line that a dying child cut short."""
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        return {}
    return event


def _epitaph(record: Record, code: int, last: dict[str, Any], stderr: str) -> Record:
    killed = code < 0
    how = f"ended by signal {signal.Signals(-code).name}" if killed else f"ended with exit status {code}"
    hint = "; the kernel does this when memory runs out" if code == -signal.SIGKILL else ""
    record["status"] = "killed" if killed else "error"
    record["error"] = {
        "type": "ProcessDied",
        "message": f"the child process {how} in epoch {last['epoch'] + 1}{hint}",
        "epoch": last["epoch"] + 1,
        "traceback": stderr[-_STDERR_TAIL:],
    }
    record["saved_bytes"] = last.get("saved_bytes")
    return record
