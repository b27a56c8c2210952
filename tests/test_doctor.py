"""What `actbench doctor` finds, and that every fault comes with its remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pynvml
import pytest
import torch
from packaging.requirements import Requirement
from torch import Tensor

from actbench import benchmark, doctor
from actbench.doctor import Finding, examine
from actbench.meters import find_gpus
from actbench.quant import keep_where
from actbench.quant.cpu import loops
from actbench.quant.cuda import sources

# Nobody makes a file there, not even root.
UNWRITABLE = Path("/proc/self")


def found(findings: Iterable[Finding], name: str) -> Finding:
    """The finding of that name."""
    (one,) = (each for each in findings if each.name == name)
    return one


def of_topic(document: dict[str, Any], topic: str) -> list[Finding]:
    return [Finding(**each) for each in document["findings"] if each["topic"] == topic]


def is_one_sentence(text: str | None) -> bool:
    return text is not None and text[0] != " " and text.endswith(".") and "\n" not in text


def test_a_sound_machine_is_healthy_with_or_without_a_gpu(tmp_path: Path) -> None:
    document = examine("cpu", tmp_path, lambda _: None)
    assert json.loads(json.dumps(document)) == document
    assert document["healthy"]
    (backend,) = of_topic(document, "kernels")
    assert backend.value == "16 operations give the reference's results, bit for bit"
    packages = [each.name for each in of_topic(document, "versions")]
    assert {"python", "torch", "ogb", "numba", "nvidia-ml-py", "actbench", "CuPy"} <= set(packages)
    for each in document["findings"]:
        assert (each["state"] == "ok") == (each["remedy"] is None)
    assert os.listdir(tmp_path) == []


def test_a_kernel_that_differs_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(values: Tensor, packed: Tensor) -> Tensor:
        out = keep_where(values, packed)
        out[-1, -1] += 1
        return out

    monkeypatch.setattr(benchmark, "keep_where", wrong)
    document = examine("cpu", tmp_path, lambda _: None)
    assert not document["healthy"]
    (problem,) = (each for each in document["findings"] if each["state"] == "problem")
    assert problem["topic"] == "kernels"
    assert "ReLU backward of 37x203" in problem["remedy"]
    assert "trust no scheme that quantizes" in problem["remedy"]
    assert is_one_sentence(problem["remedy"])


def test_kernels_that_do_not_run_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("no kernel image\nand a long trace")

    monkeypatch.setattr(doctor, "check_kernels", fail)
    for device, remedy in (("cpu", "delete Numba's cache"), ("cuda", "take --device cpu")):
        (one,) = doctor._self_test(device)  # type: ignore[arg-type]
        assert one.state == "problem"
        assert one.remedy is not None
        assert "RuntimeError: no kernel image): " + remedy in one.remedy
        assert is_one_sentence(one.remedy)


@pytest.mark.parametrize(
    ("cuda", "installed", "gpu", "state", "says"),
    [
        (None, {}, False, "ok", ""),
        (None, {"cupy-cuda13x": "14.1"}, False, "ok", ""),
        ("13.0", {}, False, "ok", ""),
        ("13.0", {"cupy-cuda13x": "14.1"}, True, "ok", ""),
        ("12.8", {"cupy-cuda12x": "14.1"}, True, "ok", ""),
        ("12.8", {"cupy-cuda12x": "13.6.0"}, True, "problem", "pip install 'cupy-cuda12x<15,>=14.1'"),
        ("13.0", {"cupy-cuda13x": "15.0"}, False, "warning", "The kernels are not made for CuPy 15.0"),
        ("13.0", {}, True, "problem", "is not installed: pip install 'actbench[cuda13]'."),
        ("12.8", {}, True, "problem", "is not installed: pip install 'actbench[cuda12]'."),
        ("12.8", {"cupy-cuda13x": "14.1"}, True, "problem", "cupy-cuda13x, then pip install 'actbench[cuda12]'"),
        ("13.0", {"cupy-cuda12x": "14.1"}, False, "warning", "pip uninstall cupy-cuda12x"),
        ("13.0", {"cupy-cuda12x": "14.1", "cupy-cuda13x": "14.1"}, True, "problem", "pip uninstall cupy-cuda12x,"),
    ],
)  # fmt: skip
def test_cupy_beside_the_cuda_of_torch(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, installed: dict[str, str], gpu: bool, state: str, says: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(doctor, "_version", installed.get)
    monkeypatch.setattr(sources, "version", installed.get)
    one = doctor._cupy()
    assert one.state == state
    assert says in (one.remedy or "")
    assert one.remedy is None or is_one_sentence(one.remedy)
    if gpu and installed and not says:
        assert f"fits torch's CUDA {cuda}" in one.value


def test_packages_that_are_absent_or_of_another_version() -> None:
    assert doctor._package(Requirement("torch>=2.9")).state == "ok"
    absent = doctor._package(Requirement("no-such-package>=1"))
    assert (absent.state, absent.remedy) == (
        "problem", "no-such-package is not installed: pip install 'no-such-package>=1'.",
    )  # fmt: skip
    old = doctor._package(Requirement("typer>=99"))
    assert old.state == "warning"
    assert old.remedy is not None
    assert old.remedy.endswith("pip install 'typer>=99'.")


@pytest.mark.parametrize(
    ("cuda", "hidden", "seen", "state", "says"),
    [
        (None, None, [], "ok", ""),
        ("13.0", "", ["NVIDIA H100"], "ok", ""),
        (None, None, ["NVIDIA H100"], "problem", "is a build without CUDA, which cannot use NVIDIA H100"),
        ("13.0", None, ["NVIDIA H100"], "problem", "update NVIDIA's driver"),
    ],
)
def test_a_gpu_that_torch_cannot_use(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, hidden: str | None, seen: list[str], state: str, says: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    one = doctor._unused(seen)
    assert one.state == state
    assert says in (one.remedy or "")
    assert one.remedy is None or is_one_sentence(one.remedy)


def test_an_old_gpu() -> None:
    assert doctor._capability((7, 5)).state == doctor._capability((10, 0)).state == "ok"
    one = doctor._capability((7, 0))
    assert one.state == "problem"
    assert is_one_sentence(one.remedy)


def test_caches_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    one = doctor._cupy_cache(UNWRITABLE)
    assert one.state == "problem"
    assert one.remedy is not None
    assert "CUPY_CACHE_DIR" in one.remedy

    class Loop:
        def __init__(self, cache_path: str | None) -> None:
            self.cache_path = cache_path
            self.stats = self

    for path in (None, str(UNWRITABLE)):
        monkeypatch.setattr(loops, "dequantize", Loop(path))
        one = doctor._numba_cache()
        # Everything works, only later.
        assert one.state == "warning"
        assert one.remedy is not None
        assert "NUMBA_CACHE_DIR" in one.remedy
        assert is_one_sentence(one.remedy)


def test_a_cache_says_how_large_it_is(tmp_path: Path) -> None:
    (tmp_path / "kernel.cubin").write_bytes(bytes(3 * 2**20))
    assert doctor._cupy_cache(tmp_path) == Finding("caches", "CuPy", f"{tmp_path}, 3.0 MiB")
    # CuPy makes its folder itself.
    assert doctor._cupy_cache(tmp_path / "absent" / "folder").state == "ok"


@pytest.mark.parametrize(
    ("folder", "state", "says"),
    [
        (".", "ok", ""),
        ("absent", "warning", "`actbench pull NAME` makes it"),
        ("file", "problem", "is a file"),
        (UNWRITABLE, "warning", "what is there can be used; to pull more, let --data-dir or ACTBENCH_DATA"),
        (UNWRITABLE / "absent", "problem", "does not exist and cannot be made"),
    ],
)
def test_the_data_folder(tmp_path: Path, folder: str | Path, state: str, says: str) -> None:
    (tmp_path / "file").touch()
    one = found(doctor._data(tmp_path / folder), "folder")
    assert one.state == state
    assert says in (one.remedy or "")
    assert one.remedy is None or is_one_sentence(one.remedy)


def test_the_data_sets_that_are_there(data_dir: Path) -> None:
    assert "cora" in found(doctor._data(data_dir), "data sets").value.split(", ")


def test_a_current_folder_that_cannot_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: UNWRITABLE)
    one = found(doctor._data(tmp_path), "current folder")
    assert one.state == "warning"
    assert one.remedy is not None
    assert "--output" in one.remedy


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 1.5)
    one = found(doctor._machine({"cpu": "a processor", "threads": 8, "host_memory_bytes": 2**30}), "threads")
    assert one.state == "warning"
    assert one.remedy is not None
    assert one.remedy.endswith("set OMP_NUM_THREADS=1.")


def test_nvml_that_cannot_be_used_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    names, reason = find_gpus()
    assert names == []
    assert reason is not None
    assert "NVML cannot be used" in reason


@pytest.mark.gpu
def test_a_gpu_is_described_and_its_kernels_are_the_reference(tmp_path: Path) -> None:
    document = examine("cuda", tmp_path, lambda _: None)
    # Packages that a run does not need may be missing where a GPU is.
    problems = [each for each in document["findings"] if each["state"] == "problem" and each["topic"] != "versions"]
    assert problems == []
    assert found(of_topic(document, "GPU"), "device").value.startswith(torch.cuda.get_device_name())
    assert found(of_topic(document, "kernels"), "CUDA").value.endswith("bit for bit")
