"""Meters: time, memory and the environment, each able to say why it has no figure."""

from actbench.meters.clock import Clock
from actbench.meters.environment import describe_environment, usable_cores
from actbench.meters.memory import MemoryMeter, Reading, free_memory
from actbench.meters.nvml import find_gpus, watch_process

__all__ = [
    "Clock",
    "MemoryMeter",
    "Reading",
    "describe_environment",
    "find_gpus",
    "free_memory",
    "usable_cores",
    "watch_process",
]
