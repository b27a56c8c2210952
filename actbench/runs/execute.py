"""Run one job in a child process and return its record, whatever becomes of the child."""

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
from typing import IO, Any, Final

from actbench.quant.cpu import compile_loops
from actbench.runs.job import Job
from actbench.runs.measure import blank_record, says_out_of_memory
from actbench.runs.store import Record

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
    if job.device == "cpu" and job.scheme.compresses:
        # Here, so that a compiler's memory is in no child's peak.
        compile_loops()
    last: dict[str, Any] = {"epoch": 0}
    record: Record | None = None
    killed_before = _killed_for_memory()
    with tempfile.TemporaryFile() as errors:
        # A session of its own: Ctrl-C reaches the parent alone, which then decides.
        child = subprocess.Popen(
            [*_WORKER, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env=_ENVIRONMENT | (_DETERMINISTIC if job.deterministic else {}) | os.environ,
            start_new_session=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            _give(child.stdin, json.dumps(job.to_json()))
            for line in child.stdout:
                event = _read(line)
                if "epoch" in event:
                    last = event["epoch"]
                    report(last)
                record = event.get("record", record)
            child.wait()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            child.stdout.close()
        if record is not None:
            return record
        errors.seek(0)
        stderr = errors.read().decode(errors="replace")
        by_kernel = child.returncode == -signal.SIGKILL and _killed_for_memory() > killed_before
        record = _epitaph(blank_record(job, environment), child.returncode, last, stderr)
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


def _give(stdin: IO[str], text: str) -> None:
    # If the child died before it read, its exit status tells.
    with contextlib.suppress(BrokenPipeError):
        stdin.write(text)
        stdin.close()


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
