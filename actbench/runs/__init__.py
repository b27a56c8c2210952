"""A job is planned, measured in a process of its own, and becomes a record."""

from actbench.completing import COMPLETING

if not COMPLETING:
    from actbench.runs.device import describe_device, require_device, resolve_device
    from actbench.runs.experiments import EXPERIMENTS, Experiment
    from actbench.runs.grid import Listener, run_grid
    from actbench.runs.job import Job, digest_of, plan
    from actbench.runs.measure import is_out_of_memory

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Job",
    "Listener",
    "describe_device",
    "digest_of",
    "is_out_of_memory",
    "plan",
    "require_device",
    "resolve_device",
    "run_grid",
]
