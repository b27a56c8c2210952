"""NVML's view of this process's device memory, sampled on a thread."""

from __future__ import annotations

import os
import threading
from typing import Any

import pynvml
import torch

SAMPLE_SECONDS = 0.1
"""Seldom, since each sample takes Python's lock from the epochs that are timed."""


class ProcessMemorySampler:
    """Samples the device memory of this process every 100 ms; what lasts shorter between samples goes unseen.

    `other_processes` is the most that were seen beside it on the device, None where it was not seen itself.
    `peak_bytes` is None, with a `reason`, where NVML is missing or does not see this process (as in many containers).
    """

    def __init__(self, device: torch.device) -> None:
        self.peak_bytes: int | None = None
        self.reason: str | None = "NVML has taken no sample yet"
        self.other_processes: int | None = None
        self._device = device
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="nvml", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> None:
        """Take no further sample; the peak stays."""
        self._stopping.set()
        self._thread.join()

    def reset(self) -> None:
        """Forget the peak so far."""
        self.peak_bytes, self.reason = None, self.reason or "NVML has taken no sample since the last reset"

    def _sample_until_stopped(self) -> None:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.reason = f"NVML cannot be used: {error}"
            return
        try:
            handle = _handle(self._device)
            while True:
                self.take(handle)
                if self._stopping.wait(SAMPLE_SECONDS):
                    break
        except pynvml.NVMLError as error:
            self.peak_bytes, self.reason = None, f"NVML stopped answering: {error}"
        finally:
            pynvml.nvmlShutdown()

    def take(self, handle: Any) -> None:
        """Take one sample on NVML's device `handle`."""
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        if any(process.pid == os.getpid() for process in processes):
            # In a container this one may go by another number, and be among what look like others.
            self.other_processes = max(self.other_processes or 0, len(processes) - 1)
        used_bytes = _used_bytes(processes)
        if used_bytes is None:
            if self.peak_bytes is None:
                self.reason = "NVML does not list this process, as is usual in a container"
            return
        self.reason = None
        self.peak_bytes = max(self.peak_bytes or 0, used_bytes)


def find_gpus() -> tuple[list[str], str | None]:
    """Names of the GPUs that NVML sees, whatever torch sees; with the reason where NVML cannot be used."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"NVML cannot be used: {error}"
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles], None
    except pynvml.NVMLError as error:
        return [], f"NVML stopped answering: {error}"
    finally:
        pynvml.nvmlShutdown()


def watch_process(device: torch.device) -> str | None:
    """Why NVML gives no memory of this process, which holds some on `device`; None if it does."""
    sampler = ProcessMemorySampler(device)
    sampler.start()
    sampler.stop()
    return sampler.reason


def _handle(device: torch.device) -> Any:
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")


def _used_bytes(processes: Any) -> int | None:
    """Device memory of this process, or None if NVML does not list it or withholds the figure."""
    for process in processes:
        if process.pid == os.getpid() and process.usedGpuMemory is not None:
            return int(process.usedGpuMemory)
    return None
