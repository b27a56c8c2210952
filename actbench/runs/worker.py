"""The child process: reads jobs from stdin, writes the progress and then the record of each to stdout, as JSON lines.

Its one argument is its parent's process number. It ends at once when that process does, be it killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any, Final

from actbench.runs.job import Job
from actbench.runs.measure import measure

_PR_SET_PDEATHSIG: Final = 1


def main() -> None:
    """Measure the jobs on stdin, a line each, until it ends."""
    # Libraries print; stdout is for the parent alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as events:
        os.dup2(2, 1)
        _end_with(int(sys.argv[1]))
        for line in sys.stdin:
            job = Job.from_json(json.loads(line))
            _send(events, "record", measure(job, lambda state: _send(events, "epoch", state)))


def _end_with(parent: int) -> None:
    # By the kernel, since a library that waits for memory for ever may hold Python's lock. prctl(2), Linux alone.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the command that started this run has ended")


def _send(events: Any, kind: str, content: dict[str, Any]) -> None:
    events.write(json.dumps({kind: content}) + "\n")
    events.flush()


if __name__ == "__main__":
    main()
