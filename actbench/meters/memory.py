"""Peaks of memory: the CUDA allocator's two, NVML's view of this process, and its resident set."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch

from actbench.meters.nvml import ProcessMemorySampler

_STATUS: Final = Path("/proc/self/status")
_HOST: Final = Path("/proc/meminfo")
_CONTAINER: Final = Path("/sys/fs/cgroup")
_CLEAR: Final = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclass(frozen=True)
class Reading:
    """A figure in bytes, or None and the reason."""

    value_bytes: int | None
    reason: str | None = None


class MemoryMeter:
    """A context that watches this process's memory on `device`; peaks count from the last `reset`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sampler = ProcessMemorySampler(device) if device.type == "cuda" else None
        self._rss_reset = False

    def __enter__(self) -> Self:
        if self._sampler:
            self._sampler.start()
        self.reset()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sampler:
            self._sampler.stop()

    def reset(self) -> None:
        """Forget all peaks so far."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        if self._sampler:
            self._sampler.reset()
        try:
            _CLEAR.write_text(_RESET_PEAK)
            self._rss_reset = True
        except OSError:
            self._rss_reset = False

    def peak_allocated(self) -> Reading:
        """Most bytes that tensors took from torch's CUDA allocator."""
        if self._device.type != "cuda":
            return Reading(None, "torch keeps no allocation figures on a CPU")
        return Reading(torch.cuda.max_memory_allocated(self._device))

    def peak_reserved(self) -> Reading:
        """Most bytes that torch's CUDA allocator held from the driver."""
        if self._device.type != "cuda":
            return Reading(None, "torch keeps no allocation figures on a CPU")
        return Reading(torch.cuda.max_memory_reserved(self._device))

    def nvml_peak(self) -> Reading:
        """Most device memory that NVML saw this process hold, context and libraries included."""
        if self._sampler is None:
            return Reading(None, "NVML sees GPUs only")
        return Reading(self._sampler.peak_bytes, self._sampler.reason)

    def other_gpu_processes(self) -> int | None:
        """Most processes that NVML saw on the device beside this one, since the meter was entered."""
        return self._sampler.other_processes if self._sampler else None

    def rss_peak(self) -> Reading:
        """Most host memory resident, interpreter and libraries included."""
        if not self._rss_reset:
            return Reading(None, "the kernel gives no resident peak that can be reset")
        return Reading(_status_bytes("VmHWM"))

    def occupied_bytes(self) -> int | None:
        """Memory in use now: allocated on a GPU, resident on a CPU."""
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        return _status_bytes("VmRSS")


def free_memory() -> tuple[Reading, Reading]:
    """Host memory that could be had now, and all that there is: of a container with a limit, of that limit."""
    free, whole = (_kilobytes(_HOST, field) for field in ("MemAvailable", "MemTotal"))
    if free is None or whole is None:
        return (Reading(None, "the kernel tells no free memory"),) * 2
    try:
        limit = int((_CONTAINER / "memory.max").read_text())
        used = int((_CONTAINER / "memory.current").read_text())
        found = re.search(r"^inactive_file (\d+)$", (_CONTAINER / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return Reading(free), Reading(whole)
    # Pages of files that nobody has touched lately are let go before memory runs out.
    left = limit - used + (int(found[1]) if found else 0)
    return Reading(min(free, left)), Reading(min(whole, limit))


def _status_bytes(field: str) -> int | None:
    return _kilobytes(_STATUS, field)


def _kilobytes(file: Path, field: str) -> int | None:
    """The bytes of a line `field: 12 kB`."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB$", file.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
