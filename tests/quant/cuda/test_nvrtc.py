import locale
import re
import subprocess
import sys
from pathlib import Path

import pytest

from actbench.errors import DeviceError
from actbench.quant.cuda import nvrtc
from actbench.quant.cuda.nvrtc import Compilation, known_architectures
from actbench.quant.operations import kernel_names

EVERYDAY = re.compile(r"<float, [23]|<float, 4>|<float>|<Float16, 8|<unsigned>|_mask|<int>")
# What CUDA 12.4 to 13.5 bring: torch's own wheels pin one of these, or one between them.
COMPILERS = (
    ("nvidia-cuda-nvrtc-cu12", "12.4.127"),
    ("nvidia-cuda-nvrtc-cu12", "12.8.93"),
    ("nvidia-cuda-nvrtc", "13.0.88"),
    ("nvidia-cuda-nvrtc", "13.5.37"),
)
# A product with ±1 is exact, so a multiply-add that is asked for has one rounding; none comes from a contraction.
MULTIPLY_ADD = {"project.cu", "unproject.cu"}
ASSEMBLY = re.compile(r"// begin inline asm.*?// end inline asm", re.DOTALL)


@pytest.fixture(autouse=True)
def _library() -> None:
    try:
        nvrtc._library()
    except DeviceError as error:
        pytest.skip(str(error))


def compile_all(architecture: str, kernels: list[tuple[str, str]]) -> dict[str, Compilation]:
    return {
        source: nvrtc.compile_kernels(source, [kernel for where, kernel in kernels if where == source], architecture)
        for source in sorted({source for source, _ in kernels})
    }


def assert_fit(compiled: dict[str, Compilation], kernels: list[tuple[str, str]]) -> None:
    """Resources of every kernel, no spills, and no instruction that rounds otherwise than the CPU."""
    resources = [each for one in compiled.values() for each in one.resources]
    assert sorted((each.source, each.kernel) for each in resources) == sorted(kernels)
    assert [each for each in resources if each.spilled_bytes] == []
    assert all(16 <= each.registers <= 255 and each.shared_bytes <= 48 * 1024 for each in resources)
    for source, one in compiled.items():
        assert ".ftz" not in one.ptx
        assert "fma" not in ASSEMBLY.sub("", one.ptx)
        assert ("fma.rn.f32" in one.ptx) == ("fma" in one.ptx) == (source in MULTIPLY_ADD)


def test_the_usual_kernels_compile_without_spills() -> None:
    kernels = [name for name in kernel_names() if EVERYDAY.search(name[1])]
    assert_fit(compile_all("sm_90", kernels), kernels)


@pytest.mark.slow
@pytest.mark.parametrize(("package", "version"), COMPILERS)
def test_every_kernel_compiles_without_spills(
    package: str, version: str, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pytestconfig.cache.mkdir(f"nvrtc-{version}")
    if not list(folder.glob("nvidia/*/lib/libnvrtc.so.*")):
        wheel = f"{package}=={version}"
        pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), wheel)
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{wheel} is not to be had: {done.stderr[-200:]}")
    (library,) = (path for path in Path(folder).glob("nvidia/*/lib/libnvrtc.so.*"))
    monkeypatch.setattr(nvrtc, "_library", lambda: nvrtc._load(library))
    encoding = locale.nl_langinfo(locale.CODESET)
    for architecture in known_architectures():
        assert_fit(compile_all(architecture, kernel_names()), kernel_names())
    assert locale.nl_langinfo(locale.CODESET) == encoding
    expected = nvrtc.ARCHITECTURES[: 5 if version == "12.4.127" else None]
    assert known_architectures() == expected


def test_the_report_of_ptxas_is_read_kernel_by_kernel() -> None:
    log = (
        "ptxas info    : Compiling entry function 'a' for 'sm_90'\n"
        "ptxas info    : Function properties for a\n"
        "    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n"
        "ptxas info    : Used 255 registers, used 1 barriers, 96 bytes smem\n"
        "ptxas info    : Compiling entry function 'ab' for 'sm_90'\n"
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
        "ptxas info    : Used 32 registers\n"
    )
    spilled = nvrtc._parse_resources(log, "x.cu", "A", "a", "sm_90")
    assert (spilled.registers, spilled.shared_bytes, spilled.spilled_bytes) == (255, 96, 28)
    clean = nvrtc._parse_resources(log, "x.cu", "B", "ab", "sm_90")
    assert (clean.registers, clean.shared_bytes, clean.spilled_bytes) == (32, 0, 0)


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(DeviceError, match="sm_42 is not one of sm_75"):
        nvrtc.find_resources("sm_42")
