"""Where the CUDA sources lie and by what they are compiled: shared by the GPU backend and the tests, free of CuPy."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement


def kernel_folder() -> Path:
    """The folder of the .cu and .cuh files: inside an installed package, else at the top of the checkout."""
    package = Path(__file__).resolve().parents[2]
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


@contextmanager
def locale_kept() -> Iterator[None]:
    """Give the thread its locale back: CUDA 12.4's NVRTC leaves it "C", where Python takes text files for ASCII."""
    library = ctypes.CDLL(None)
    # https://man7.org/linux/man-pages/man3/uselocale.3.html
    library.uselocale.restype, library.uselocale.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    before = library.uselocale(None)
    try:
        yield
    finally:
        library.uselocale(before)


def cupy_extra(cuda: str | None) -> str:
    """The extra of this package whose CuPy fits a torch built for CUDA version `cuda`, such as "12.8"."""
    return "cuda12" if (cuda or "").startswith("12.") else "cuda13"


def cupy_requirement(cuda: str | None) -> Requirement | None:
    """The CuPy that the extra of `cupy_extra` asks for; None where this package is not installed."""
    name = f"cupy-{cupy_extra(cuda)}x"
    try:
        wanted = map(Requirement, requires("actbench") or ())
    except PackageNotFoundError:
        return None
    return next((each for each in wanted if each.name == name), None)


def cupy_problem(cuda: str | None) -> str | None:
    """Why no kernel can be compiled beside a torch built for CUDA version `cuda`, and what to install; else None."""
    if find_spec("cupy") is None:
        return f"CuPy, which compiles the kernels, is not installed: pip install 'actbench[{cupy_extra(cuda)}]'"
    return cupy_version_problem(cuda)


def cupy_version_problem(cuda: str | None) -> str | None:
    """As `cupy_problem` of a CuPy that is there; before 14 it takes no stream of another library."""
    wanted = cupy_requirement(cuda)
    if wanted is None:
        return None
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return None
    if wanted.specifier.contains(found, prereleases=True):
        return None
    return f"the kernels are not made for CuPy {found}: pip install '{wanted.name}{wanted.specifier}'"
