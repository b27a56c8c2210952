import mmap
import os
import types
from pathlib import Path
from typing import Any

import pynvml
import pytest
import torch

from actbench.meters import (
    Clock,
    MemoryMeter,
    Reading,
    describe_environment,
    environment,
    free_memory,
    memory,
    usable_cores,
)
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


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", None), ("150000 100000", 1.5), ("9900000 100000", None)])
def test_a_containers_quota_bounds_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: float | None
) -> None:
    bound = float(len(os.sched_getaffinity(0)))
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(environment, "_CPU_QUOTA", tmp_path / "cpu.max")
    assert usable_cores() == (bound if cores is None else min(cores, bound))
    monkeypatch.setattr(environment, "_CPU_QUOTA", tmp_path / "absent")
    assert usable_cores() == bound


def test_free_memory_is_the_hosts_or_what_a_containers_limit_leaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host, container = tmp_path / "meminfo", tmp_path / "cgroup"
    host.write_text("MemTotal:       1000 kB\nMemFree:         1 kB\nMemAvailable:    600 kB\n")
    monkeypatch.setattr(memory, "_HOST", host)
    monkeypatch.setattr(memory, "_CONTAINER", container)
    assert free_memory() == (Reading(600 * 1024), Reading(1000 * 1024))
    container.mkdir()
    for name, text in (("max", "max"), ("current", "5"), ("stat", "anon 1\ninactive_file 1024\n")):
        (container / f"memory.{name}").write_text(text)
    assert free_memory() == (Reading(600 * 1024), Reading(1000 * 1024))
    (container / "memory.max").write_text(str(500 * 1024))
    (container / "memory.current").write_text(str(100 * 1024))
    assert free_memory() == (Reading(401 * 1024), Reading(500 * 1024))
    host.unlink()
    assert free_memory()[0].reason == "the kernel tells no free memory"


def test_a_commit_is_told_by_the_repository_or_by_who_copied_the_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACTBENCH_COMMIT", "0123456789ab")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "actbench" / "meters" / "environment.py"))
    assert environment._commit() == "0123456789ab"
    monkeypatch.delenv("ACTBENCH_COMMIT")
    assert environment._commit() is None
