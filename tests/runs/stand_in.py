"""Stands in for the worker where faults are tested by the dozen: starts in milliseconds and trains nothing.

Run as `python stand_in.py RECORDS SECONDS PARENT`: takes SECONDS for each of five epochs, then gives the record that
RECORDS, a JSON object, has for the job on stdin.
"""

import json
import sys
import time


def main() -> None:
    """Answer the job on stdin."""
    job = json.load(sys.stdin)
    for epoch in range(1, 6):
        time.sleep(float(sys.argv[2]))
        tell("epoch", {"epoch": epoch, "saved_bytes": 1})
    with open(sys.argv[1]) as file:
        tell("record", json.load(file)[f"{job['scheme']} {job['seed']}"])


def tell(kind: str, content: object) -> None:
    sys.stdout.write(json.dumps({kind: content}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
