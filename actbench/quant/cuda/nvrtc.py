"""NVRTC through ctypes: compiles the kernels for any architecture without a GPU, a driver or CuPy."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from actbench.errors import DeviceError
from actbench.quant.cuda.sources import compile_options, kernel_folder, locale_kept
from actbench.quant.operations import kernel_names

ARCHITECTURES: Final = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
_CUPY_OPTIONS: Final = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy 14 adds to the options of its caller (cupy/cuda/compiler.py)."""


@dataclass(frozen=True)
class Resources:
    """What one thread, or of `shared_bytes` one CTA, of a kernel takes on an architecture; spills go to memory."""

    source: str
    kernel: str
    architecture: str
    registers: int
    shared_bytes: int
    spilled_bytes: int


@dataclass(frozen=True)
class Compilation:
    """The PTX of some kernels of one source, and their resources in the same order."""

    ptx: str
    resources: tuple[Resources, ...]


def find_resources(architecture: str) -> list[Resources]:
    """Resources of every kernel of `kernel_names` on `architecture`, such as "sm_90".

    Raises `DeviceError` where there is no NVRTC, or for an architecture that is not one of `known_architectures`.
    """
    known = known_architectures()
    if architecture not in known:
        raise DeviceError(f"architecture {architecture} is not one of {', '.join(known)}.")
    names = kernel_names()
    found: list[Resources] = []
    for source in dict.fromkeys(source for source, _ in names):
        found += compile_kernels(source, [kernel for where, kernel in names if where == source], architecture).resources
    return found


def known_architectures() -> tuple[str, ...]:
    """Those of `ARCHITECTURES` that the compiler here knows; raises `DeviceError` where there is none."""
    library = _library()
    count = ctypes.c_int()
    _check(library, library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    numbers = (ctypes.c_int * count.value)()
    _check(library, library.nvrtcGetSupportedArchs(numbers))
    known = {f"sm_{number}" for number in numbers}
    return tuple(architecture for architecture in ARCHITECTURES if architecture in known)


def compile_kernels(source: str, kernels: list[str], architecture: str) -> Compilation:
    """Compile `kernels` of `source`; raises `DeviceError` with the compiler's log if that fails."""
    library = _library()
    text = (kernel_folder() / source).read_bytes()
    options = (*compile_options(), *_CUPY_OPTIONS, f"-arch={architecture}", "--ptxas-options=-v")
    program = ctypes.c_void_p()
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), 0, None, None))
    try:
        for kernel in kernels:
            _check(library, library.nvrtcAddNameExpression(program, kernel.encode()))
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        with locale_kept():
            code = library.nvrtcCompileProgram(program, len(options), array)
        log = _read(library, program, "ProgramLog")
        if code != 0:
            raise DeviceError(f"{source} does not compile for {architecture}: {log.strip()}")
        resources = tuple(
            _parse_resources(log, source, kernel, _lowered_name(library, program, kernel), architecture)
            for kernel in kernels
        )
        return Compilation(_read(library, program, "PTX"), resources)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _parse_resources(log: str, source: str, kernel: str, lowered: str, architecture: str) -> Resources:
    """The part of ptxas' report that is about the function `lowered`."""
    _, _, report = log.partition(f"Compiling entry function '{lowered}'")
    report = report.partition("Compiling entry function")[0]

    def number(pattern: str) -> int:
        return sum(int(match) for match in re.findall(pattern, report))

    return Resources(
        source,
        kernel,
        architecture,
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes smem"),
        number(r"(\d+) bytes (?:stack frame|spill)"),
    )


def _library() -> ctypes.CDLL:
    package = importlib.util.find_spec("nvidia")
    for folder in package.submodule_search_locations or () if package else ():
        for path in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            return _load(path)
    raise DeviceError("NVRTC, which compiles the kernels, is not installed: pip install nvidia-cuda-nvrtc.")


@cache
def _load(path: Path) -> ctypes.CDLL:
    # The compiler of CUDA 13.0 looks for these where the system's libraries are, and finds them once they are loaded.
    for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
        ctypes.CDLL(str(builtins))
    return ctypes.CDLL(str(path))


def _lowered_name(library: ctypes.CDLL, program: ctypes.c_void_p, kernel: str) -> str:
    lowered = ctypes.c_char_p()
    _check(library, library.nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(lowered)))
    return (lowered.value or b"").decode()


def _check(library: ctypes.CDLL, code: int) -> None:
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    if code != 0:
        raise DeviceError(f"NVRTC refuses its own call: {library.nvrtcGetErrorString(code).decode()}.")


def _read(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, buffer))
    return buffer.value.decode()
