"""What a machine has for actbench: what is there, what is broken, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Final, Literal

import torch
from packaging.requirements import Requirement

from actbench.benchmark import Shape, check_kernels
from actbench.errors import KernelError
from actbench.graphs import catalogue, present
from actbench.home import home_folder
from actbench.meters import describe_environment, find_gpus, free_memory, usable_cores, watch_process
from actbench.quant.cpu import loops
from actbench.quant.cuda.sources import cupy_extra, cupy_version_problem
from actbench.runs.device import Device

SCHEMA_VERSION: Final = 1
_CUPY: Final = ("cupy-cuda13x", "cupy-cuda12x")
_OLDEST_CAPABILITY: Final = (7, 5)
"""The oldest architecture that the tests compile the kernels for."""
# No multiple of 8 and, over 8, 26 columns: the last block, octet and byte are ragged.
_SHAPE: Final = Shape(37, 203)
_GIBIBYTE: Final = 2**30
_MEBIBYTE: Final = 2**20


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    A "problem" keeps something from working, a "warning" takes something away; both have a `remedy`, one sentence.
    """

    topic: str
    name: str
    value: str
    state: Literal["ok", "warning", "problem"] = "ok"
    remedy: str | None = None


def examine(device: Device, data_dir: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """All findings, as JSON values; `healthy` if none is a problem. That there is no GPU is none.

    The kernels of `device` are compared with the reference. `report` hears what is under way. Nothing is left behind
    but compiled kernels in the caches of their compilers.
    """
    environment = describe_environment(torch.device(device))
    findings = [*_versions(), *_gpu(environment)]
    report("the kernels' self-test, which compiles them the first time")
    findings += [*_self_test(device), *_caches(device), *_data(data_dir), *_machine(environment)]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "doctor",
        "healthy": not any(finding.state == "problem" for finding in findings),
        "environment": environment,
        "findings": [asdict(finding) for finding in findings],
    }


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "python", platform.python_version())
    yield Finding("versions", "actbench", version("actbench"))
    for text in requires("actbench") or ():
        wanted = Requirement(text)
        # What belongs to an extra is looked at with the GPU.
        if wanted.marker is None:
            yield _package(wanted)
    yield _cupy()


def _package(wanted: Requirement) -> Finding:
    found = _version(wanted.name)
    install = f"pip install '{wanted.name}{wanted.specifier}'"
    if found is None:
        remedy = f"{wanted.name} is not installed: {install}."
        return Finding("versions", wanted.name, "not installed", "problem", remedy)
    if not wanted.specifier.contains(found, prereleases=True):
        remedy = f"{wanted.name} {found} is not a version that actbench is tested with: {install}."
        return Finding("versions", wanted.name, found, "warning", remedy)
    built = torch.version.cuda
    about = f" (built for CUDA {built})" if built else " (a build without CUDA)"
    return Finding("versions", wanted.name, found + about if wanted.name == "torch" else found)


def _cupy() -> Finding:
    """CuPy's package, beside the CUDA version that torch is built for."""
    cuda = torch.version.cuda
    installed = [name for name in _CUPY if _version(name)]
    value = ", ".join(f"{name} {_version(name)}" for name in installed) or "not installed"
    if cuda is None:
        return Finding("versions", "CuPy", value if installed else f"{value}; needed on a GPU alone")
    extra = cupy_extra(cuda)
    install = f"pip install 'actbench[{extra}]'"
    fitting = f"cupy-{extra}x"
    # Without a GPU nothing asks for CuPy.
    state: Literal["warning", "problem"] = "problem" if torch.cuda.is_available() else "warning"
    if installed == [fitting]:
        problem = cupy_version_problem(cuda)
        if problem is None:
            return Finding("versions", "CuPy", f"{value}, fits torch's CUDA {cuda}")
        return Finding("versions", "CuPy", value, state, f"{problem[0].upper()}{problem[1:]}.")
    if installed:
        others = " ".join(name for name in installed if name != fitting)
        remedy = f"torch is built for CUDA {cuda}, which {others} does not fit: pip uninstall {others}, then {install}."
        return Finding("versions", "CuPy", value, state, remedy)
    if not torch.cuda.is_available():
        return Finding("versions", "CuPy", f"{value}; on a GPU {install}")
    remedy = f"CuPy, which compiles the kernels for the GPU, is not installed: {install}."
    return Finding("versions", "CuPy", value, state, remedy)


def _gpu(environment: dict[str, Any]) -> Iterator[Finding]:
    seen, reason = find_gpus()
    if not torch.cuda.is_available():
        yield _unused(seen)
        yield Finding("GPU", "NVML", reason or f"sees {', '.join(seen)}")
        return
    first = torch.device("cuda")
    properties = torch.cuda.get_device_properties(first)
    capability = (properties.major, properties.minor)
    others = torch.cuda.device_count() - 1
    yield Finding("GPU", "device", properties.name + (f", and {others} more, which are not used" if others else ""))
    yield Finding("GPU", "memory", f"{properties.total_memory / _GIBIBYTE:.1f} GiB")
    yield Finding("GPU", "driver", environment["driver"] or describe_environment(first)["driver"] or "not told by NVML")
    yield _capability(capability)
    if reason is None:
        # NVML lists a process once it holds memory.
        torch.zeros(1, device=first)
        reason = watch_process(first)
    if reason is None:
        yield Finding("GPU", "NVML", "sees this process's memory")
        return
    remedy = (
        f"{reason}, so that records have no peak by NVML: in a container --pid=host lets it see processes, and "
        "without NVML the peaks of torch's allocator are there all the same."
    )
    yield Finding("GPU", "NVML", reason, "warning", remedy)


def _unused(seen: list[str]) -> Finding:
    """Why torch sees no GPU, of those that NVML has `seen`."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not seen:
        return Finding("GPU", "device", "none: the CPU is used")
    if hidden is not None:
        return Finding("GPU", "device", f"none: CUDA_VISIBLE_DEVICES={hidden} hides {', '.join(seen)}")
    cuda = torch.version.cuda
    if cuda is None:
        remedy = (
            f"torch {torch.__version__} is a build without CUDA, which cannot use {seen[0]}: install one for CUDA, as "
            "pytorch.org says, or take --device cpu."
        )
    else:
        remedy = (
            f"torch, built for CUDA {cuda}, cannot use {seen[0]}: update NVIDIA's driver, or install a torch for an "
            "older CUDA."
        )
    return Finding("GPU", "device", f"none that torch can use; NVML sees {', '.join(seen)}", "problem", remedy)


def _capability(capability: tuple[int, int]) -> Finding:
    value = ".".join(map(str, capability))
    if capability >= _OLDEST_CAPABILITY:
        return Finding("GPU", "compute capability", value)
    oldest = ".".join(map(str, _OLDEST_CAPABILITY))
    remedy = f"Compute capability {value} is older than {oldest}, which the kernels are made for: take --device cpu."
    return Finding("GPU", "compute capability", value, "problem", remedy)


def _caches(device: Device) -> Iterator[Finding]:
    yield _numba_cache()
    if device == "cuda":
        yield _cupy_cache(Path(os.environ.get("CUPY_CACHE_DIR") or home_folder() / ".cupy" / "kernel_cache"))


def _numba_cache() -> Finding:
    """The folder that Numba has chosen for the CPU's loops, the first of its candidates that it could write to."""
    chosen = loops.dequantize.stats.cache_path  # type: ignore[attr-defined]
    remedy = "so that every process compiles the loops anew: let NUMBA_CACHE_DIR name a folder that can be written to."
    if chosen is None:
        remedy = f"Numba found no folder for its cache, {remedy}"
        return Finding("caches", "Numba", "none", "warning", remedy)
    folder = Path(chosen)
    reason = _cannot_write(folder)
    if reason is not None:
        return Finding("caches", "Numba", str(folder), "warning", f"{folder} cannot be written to ({reason}), {remedy}")
    return Finding("caches", "Numba", _sized(folder, "*.nb[ci]"))


def _cupy_cache(folder: Path) -> Finding:
    reason = _cannot_write(folder)
    if reason is not None:
        remedy = (
            f"CuPy cannot write to {folder} ({reason}), where it keeps compiled kernels: let CUPY_CACHE_DIR name a "
            "folder that can be written to."
        )
        return Finding("caches", "CuPy", str(folder), "problem", remedy)
    return Finding("caches", "CuPy", _sized(folder, "*"))


def _self_test(device: Device) -> Iterator[Finding]:
    backend = "CUDA" if device == "cuda" else "CPU"
    try:
        checked = check_kernels(_SHAPE, torch.device(device))
    except KernelError as error:
        remedy = f"{str(error).removesuffix('.')}, and trust no scheme that quantizes until then."
        yield Finding("kernels", backend, "not the reference's results", "problem", remedy)
    # Compilers, drivers and their libraries raise errors of their own.
    except Exception as error:
        instead = "take --device cpu" if device == "cuda" else "delete Numba's cache"
        told = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        remedy = f"The kernels do not run ({told}): {instead}, and report this line if that does not help."
        yield Finding("kernels", backend, "cannot run", "problem", remedy)
    else:
        yield Finding("kernels", backend, f"{checked} operations give the reference's results, bit for bit")


def _data(data_dir: Path) -> Iterator[Finding]:
    yield _data_folder(data_dir)
    there = [entry.name for entry in catalogue() if not entry.synthetic and present(entry.name, data_dir)]
    yield Finding("data", "data sets", ", ".join(there) or "only those that are generated")
    yield Finding("data", "free space", f"{shutil.disk_usage(_existing(data_dir)).free / _GIBIBYTE:,.1f} GiB")
    here = Path.cwd()
    reason = _cannot_write(here)
    if reason is None:
        yield Finding("data", "current folder", str(here))
        return
    remedy = f"{here} cannot be written to ({reason}): run elsewhere, or let --output name a file in another folder."
    yield Finding("data", "current folder", str(here), "warning", remedy)


def _data_folder(folder: Path) -> Finding:
    reason = _cannot_write(folder)
    another = "let --data-dir or ACTBENCH_DATA name another folder"
    if folder.exists() and not folder.is_dir():
        return Finding("data", "folder", str(folder), "problem", f"{folder} is a file: {another}.")
    if not folder.exists() and reason is not None:
        remedy = f"{folder} does not exist and cannot be made ({reason}): {another}."
        return Finding("data", "folder", str(folder), "problem", remedy)
    if not folder.exists():
        remedy = f"{folder} does not exist yet: `actbench pull NAME` makes it, or {another}."
        return Finding("data", "folder", f"{folder} (absent)", "warning", remedy)
    if reason is not None:
        remedy = f"{folder} cannot be written to ({reason}): what is there can be used; to pull more, {another}."
        return Finding("data", "folder", f"{folder} (read-only)", "warning", remedy)
    return Finding("data", "folder", str(folder))


def _machine(environment: dict[str, Any]) -> Iterator[Finding]:
    yield Finding("machine", "CPU", environment["cpu"])
    cores, threads = usable_cores(), environment["threads"]
    value = f"{threads} on {cores:g} cores"
    if threads > cores:
        remedy = (
            f"torch has {threads} threads for {cores:g} cores, so that they wait for each other: set "
            f"OMP_NUM_THREADS={max(int(cores), 1)}."
        )
        yield Finding("machine", "threads", value, "warning", remedy)
    else:
        yield Finding("machine", "threads", value)
    free, whole = free_memory()
    told = [reading.reason or f"{(reading.value_bytes or 0) / _GIBIBYTE:,.1f} GiB" for reading in (free, whole)]
    yield Finding("machine", "memory", free.reason or f"{told[0]} free of {told[1]}")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _existing(path: Path) -> Path:
    """The nearest folder above `path`, or itself, that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _cannot_write(folder: Path) -> str | None:
    """Why no file can be made in `folder`, or in the folder that it would be made in; None if one can."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            return None
    except OSError as error:
        return error.strerror or type(error).__name__


def _sized(folder: Path, pattern: str) -> str:
    size = sum(file.stat().st_size for file in folder.glob(pattern) if file.is_file())
    return f"{folder}, {size / _MEBIBYTE:.1f} MiB"
