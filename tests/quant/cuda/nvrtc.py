"""NVRTC through ctypes: compiles kernels without a GPU, a driver or CuPy."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path

import pytest

from actbench.quant.sources import compile_options, kernel_folder

# What CuPy adds to the options of its caller.
CUPY_OPTIONS = ("-ftz=true",)


def compile_kernels(source: str, kernels: list[str], architecture: str) -> tuple[str, str]:
    """PTX and ptxas' report of `kernels` of `source`; an AssertionError with the compiler's log if there are none."""
    library = _library()
    text = (kernel_folder() / source).read_bytes()
    options = (*compile_options(), *CUPY_OPTIONS, f"-arch={architecture}", "--ptxas-options=-v")
    program = ctypes.c_void_p()
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), text, source.encode(), 0, None, None))
    try:
        for kernel in kernels:
            _check(library, library.nvrtcAddNameExpression(program, kernel.encode()))
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        code = library.nvrtcCompileProgram(program, len(options), array)
        log = _read(library, program, "ProgramLog")
        assert code == 0, log
        for kernel in kernels:
            lowered = ctypes.c_char_p()
            _check(library, library.nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(lowered)))
        return _read(library, program, "PTX"), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


@cache
def _library() -> ctypes.CDLL:
    package = importlib.util.find_spec("nvidia")
    for folder in package.submodule_search_locations or () if package else ():
        for path in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            return ctypes.CDLL(str(path))
    pytest.skip("libnvrtc is not here: pip install nvidia-cuda-nvrtc")


def _check(library: ctypes.CDLL, code: int) -> None:
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    assert code == 0, library.nvrtcGetErrorString(code).decode()


def _read(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> str:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, buffer))
    return buffer.value.decode()
