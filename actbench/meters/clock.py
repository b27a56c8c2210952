"""A clock that waits for the device before it is read."""

from __future__ import annotations

import time

import torch


class Clock:
    """Seconds on a monotonic clock at which all work given to `device` so far is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def read(self) -> float:
        """Seconds since an arbitrary moment."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
