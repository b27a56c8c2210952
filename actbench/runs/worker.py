"""The child process: reads a job from stdin, writes its progress and at last its record to stdout as JSON lines."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from actbench.runs.job import Job
from actbench.runs.measure import measure


def main() -> None:
    """Measure the job on stdin."""
    # Libraries print; stdout is for the parent alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as events:
        os.dup2(2, 1)
        record = measure(Job.from_json(json.load(sys.stdin)), lambda state: _send(events, "epoch", state))
        _send(events, "record", record)


def _send(events: Any, kind: str, content: dict[str, Any]) -> None:
    events.write(json.dumps({kind: content}) + "\n")
    events.flush()


if __name__ == "__main__":
    main()
