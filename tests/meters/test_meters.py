import mmap
import types
from typing import Any

import pynvml
import pytest
import torch

from actbench.meters import Clock, MemoryMeter, describe_environment
from actbench.meters.nvml import ProcessMemorySampler

CPU = torch.device("cpu")
MEBIBYTE = 2**20
FILLING = bytes(64 * MEBIBYTE)


def test_resident_peak_sees_a_known_allocation_and_forgets_it_on_reset() -> None:
    with MemoryMeter(CPU) as memory:
        before = memory.rss_peak().value_bytes
        if before is None:
            pytest.skip(str(memory.rss_peak().reason))
        # Straight from the kernel: an allocator may have resident pages to spare.
        with mmap.mmap(-1, 64 * MEBIBYTE) as block:
            block.write(FILLING)
            grown = memory.rss_peak().value_bytes
        memory.reset()
        after = memory.rss_peak().value_bytes
    assert grown is not None
    assert after is not None
    # Pages are counted in kernel batches per thread; 4 MiB is far above that and far below what was allocated.
    assert abs(grown - before - 64 * MEBIBYTE) < 4 * MEBIBYTE
    assert grown - after > 60 * MEBIBYTE


def test_a_cpu_says_why_it_has_no_allocator_figures() -> None:
    with MemoryMeter(CPU) as memory:
        readings = (memory.peak_allocated(), memory.peak_reserved(), memory.nvml_peak())
    assert all(reading.value_bytes is None and reading.reason for reading in readings)


def test_a_clock_does_not_go_back() -> None:
    clock = Clock(CPU)
    readings = [clock.read() for _ in range(5)]
    assert readings == sorted(readings)


def test_environment_names_the_machine_and_its_software() -> None:
    environment = describe_environment(CPU)
    assert environment["device"] == "cpu"
    assert environment["device_name"]
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()


class FakeNvml:
    """Stands in for the driver: processes as NVML lists them, one list a sample."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, samples: list[Any]) -> None:
        self.samples = iter(samples)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", self.processes)
        monkeypatch.setattr("os.getpid", lambda: 42)

    def processes(self, handle: Any) -> list[Any]:
        return [types.SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in next(self.samples)]


def test_nvml_takes_the_peak_of_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch, [[(42, 100), (7, 999)], [(42, 300)], [(42, 200)]])
    sampler = ProcessMemorySampler(CPU)
    for _ in range(3):
        sampler.take(object())
    assert (sampler.peak_bytes, sampler.reason) == (300, None)
    assert sampler.other_processes == 1
    sampler.reset()
    assert sampler.peak_bytes is None


@pytest.mark.parametrize("sample", [[], [(7, 100)], [(42, None)]])
def test_nvml_that_does_not_see_this_process_says_so(sample: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch, [sample])
    sampler = ProcessMemorySampler(CPU)
    sampler.take(object())
    assert sampler.peak_bytes is None
    assert sampler.other_processes in (None, 0)
    assert "does not list this process" in str(sampler.reason)


def test_no_driver_is_a_reason_and_no_error() -> None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        pass
    else:
        pytest.skip("this machine has a driver")
    sampler = ProcessMemorySampler(CPU)
    sampler.start()
    sampler.stop()
    assert sampler.peak_bytes is None
    assert "NVML cannot be used" in str(sampler.reason)
