"""Where the CUDA sources lie and how they are compiled: shared by the GPU backend and the tests, so free of CuPy."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from pathlib import Path


def kernel_folder() -> Path:
    """The folder of the .cu and .cuh files: inside an installed package, else at the top of the checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "kernels"
    return installed if installed.is_dir() else package.parent / "kernels"


@lru_cache(maxsize=1)
def compile_options() -> tuple[str, ...]:
    """Options of every kernel's compilation by NVRTC, the architecture excepted."""
    folder = kernel_folder()
    digest = sha256()
    for source in sorted(folder.glob("*.cu*")):
        digest.update(source.name.encode() + source.read_bytes())
    # CuPy's cache of compiled kernels does not look into included headers; the hash makes it.
    return "-std=c++17", "--fmad=false", f"-I{folder}", f"-DKERNELS_HASH=0x{digest.hexdigest()[:16]}"


def cupy_extra(cuda: str | None) -> str:
    """The extra of this package whose CuPy fits a torch built for CUDA version `cuda`, such as "12.8"."""
    return "cuda12" if (cuda or "").startswith("12.") else "cuda13"
