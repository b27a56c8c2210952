"""Jobs and records that the tests of runs, analysis, report and cli share."""

from __future__ import annotations

from typing import Any

from actbench.runs import Job
from actbench.runs.measure import blank_record
from actbench.scheme import Scheme
from actbench.training import recipe_for

ENVIRONMENT = {
    "device": "cpu",
    "device_name": "a processor",
    "cuda": None,
    "threads": 2,
    "versions": {"actbench": "0.1.0", "torch": "2.13.0"},
}


def example_job(scheme: str = "fp32", seed: int = 0, epochs: int = 3, dataset: str = "synthetic:arxiv@0.002") -> Job:
    recipe = recipe_for("arxiv", "sage").overridden(epochs=epochs, hidden=16)
    return Job(dataset, "unused", None, Scheme.parse(scheme), seed, recipe, "cpu")


def example_record(scheme: str = "fp32", seed: int = 0, **values: Any) -> dict[str, Any]:
    """A record as a finished run leaves it, with `values` in place of its own."""
    record = blank_record(example_job(scheme, seed), ENVIRONMENT)
    record |= {
        "status": "ok",
        "graph": {"nodes": 339, "edges": 900, "features": 128, "classes": 40, "synthetic": True},
        "metrics": {"train": 0.5, "valid": 0.5, "test": 0.5, "name": "accuracy", "best_epoch": 3},
        "saved_bytes": 1000,
        "predicted_saved_bytes": 1000,
        "loss_saved_bytes": 10,
        "rss_peak_bytes": 2**20,
        "epoch_seconds": [9.0, 9.0, 0.5],
    }
    return record | values
