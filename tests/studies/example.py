"""One small study that the tests of analyses and reports share."""

from functools import cache
from typing import Any

from actbench.records.study import Study
from actbench.runs import Job
from actbench.scheme import Scheme
from actbench.studies.study import run_study
from tests.runs.example import example_job

SCHEMES = ("fp32", "exact", "blockwise", "blockwise-vm")


@cache
def _document() -> dict[str, Any]:
    job = example_job("fp32", epochs=1)
    return run_study(job, [Scheme.parse(text) for text in SCHEMES], 3)


def study(file: str = "analysis.json", **changes: Any) -> Study:
    """The study of the network that `example_job` trains, with `changes` to its document."""
    return Study(_document() | changes, file)


def job() -> Job:
    """What the study is of."""
    return example_job("fp32", epochs=1)
