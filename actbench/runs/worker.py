"""The child process: reads a job from stdin, writes its progress and at last its record to stdout as JSON lines.

It ends at once when its stdin does, that is when its parent does, be that one killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from actbench.runs.job import Job
from actbench.runs.measure import measure


def main() -> None:
    """Measure the job on stdin."""
    # Libraries print; stdout is for the parent alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as events:
        os.dup2(2, 1)
        job = Job.from_json(json.loads(sys.stdin.readline()))
        threading.Thread(target=_end_with_stdin, daemon=True).start()
        record = measure(job, lambda state: _send(events, "epoch", state))
        _send(events, "record", record)


def _end_with_stdin() -> None:
    # The descriptor itself: a thread that waits in sys.stdin would hold its lock when the interpreter ends.
    while os.read(0, 1):
        pass
    os._exit(1)


def _send(events: Any, kind: str, content: dict[str, Any]) -> None:
    events.write(json.dumps({kind: content}) + "\n")
    events.flush()


if __name__ == "__main__":
    main()
