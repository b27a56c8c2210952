"""Meters: time, memory and the environment, each able to say why it has no figure."""

from actbench.meters.clock import Clock
from actbench.meters.environment import describe_environment
from actbench.meters.memory import MemoryMeter, Reading

__all__ = ["Clock", "MemoryMeter", "Reading", "describe_environment"]
