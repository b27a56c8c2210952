import re

import pytest

from actbench.quant.launch import kernel_names
from tests.quant.cuda import nvrtc

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100")
EVERYDAY = re.compile(r"<float, 2|<float>|<Float16, 8|<unsigned>|_mask")


def compile_all(architecture: str, kernels: list[tuple[str, str]]) -> list[tuple[str, str]]:
    sources = sorted({source for source, _ in kernels})
    return [
        nvrtc.compile_kernels(source, [kernel for where, kernel in kernels if where == source], architecture)
        for source in sources
    ]


def assert_fit(compiled: list[tuple[str, str]], count: int) -> None:
    """No spills, and no instruction that rounds otherwise than the CPU."""
    spills = [int(size) for _, log in compiled for size in re.findall(r"(\d+) bytes stack frame", log)]
    assert spills == [0] * count
    for ptx, _ in compiled:
        assert ".ftz" not in ptx
        assert "fma" not in ptx


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_usual_kernels_compile_without_spills(architecture: str) -> None:
    kernels = [name for name in kernel_names() if EVERYDAY.search(name[1])]
    assert_fit(compile_all(architecture, kernels), len(kernels))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_compiles_without_spills(architecture: str) -> None:
    assert_fit(compile_all(architecture, kernel_names()), len(kernel_names()))
