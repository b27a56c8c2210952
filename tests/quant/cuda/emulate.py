"""Builds the unchanged kernels for the CPU and runs launches on them; see emulator/cuda_emu.h."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import struct
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import numpy as np
import pytest
import torch
from torch import Tensor

from actbench.quant.cuda.launch import Launch
from actbench.quant.cuda.sources import kernel_folder
from actbench.quant.operations import kernel_names

EMULATOR = Path(__file__).parent / "emulator"
_COMPILE = ("-std=c++20", "-ffp-contract=off", "-fno-strict-aliasing", "-pthread", "-w")
# Libraries of different kernels, or of patched ones, must not share their functions' static variables.
_LIBRARY = ("-O1", "-fPIC", "-fno-gnu-unique")
_LINK = ("-shared", "-Wl,-Bsymbolic")
_ALL = 2**64 - 1


class Emulator:
    """`kernels` of `folder` as shared libraries; those of other sources are `others`'."""

    def __init__(self, kernels: Iterable[tuple[str, str]], folder: Path, others: Emulator | None = None) -> None:
        sources: dict[str, list[tuple[str, str]]] = {}
        for source, kernel in kernels:
            sources.setdefault(source, []).append((source, kernel))
        self._libraries: dict[str, ctypes.CDLL] = dict(others._libraries) if others else {}
        with TemporaryDirectory(prefix="actbench-emulator-") as build:
            outputs = {source: Path(build) / f"{source}.so" for source in sources}
            _compile_all(
                [
                    build_command("library.cpp", names, folder, outputs[source], *_LIBRARY, *_LINK, header=_header())
                    for source, names in sources.items()
                ]
            )
            self._libraries |= {source: ctypes.CDLL(str(output)) for source, output in outputs.items()}

    def run(self, launches: Iterable[Launch], first: int = 0, count: int = _ALL) -> None:
        """Run the `count` CTAs from `first` on of each launch."""
        for launch in launches:
            values = [np.ascontiguousarray(argument) for argument in launch.arguments]
            addresses = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
            unknown = self._libraries[launch.source].run(
                launch.kernel.encode(),
                ctypes.c_uint(launch.grid),
                ctypes.c_uint(launch.threads),
                addresses,
                ctypes.c_uint(1),
                ctypes.c_ulonglong(first),
                ctypes.c_ulonglong(count),
            )
            assert not unknown, f"{launch.kernel} is not one of kernel_names()"


@cache
def emulator() -> Emulator:
    """All kernels, built once a session."""
    require_compiler()
    return Emulator(kernel_names(), kernel_folder())


def require_compiler() -> None:
    """Skip the calling test where the CPU build is not possible."""
    if shutil.which("g++") is None or os.uname().machine != "x86_64":
        pytest.skip("the CUDA emulator needs g++ on x86-64")


def build_command(
    program: str,
    kernels: list[tuple[str, str]],
    folder: Path,
    output: Path,
    *options: str,
    header: Path = EMULATOR / "cuda_emu.h",
) -> tuple[str, ...]:
    """The g++ command that builds `program` of the emulator with `kernels` of `folder` in it."""
    listing = output.with_suffix(".h")
    entries = ",\n".join(f'    {{"{kernel}", emu::wrap({kernel})}}' for _, kernel in kernels)
    includes = "".join(f'#include "{source}"\n' for source in sorted({source for source, _ in kernels}))
    listing.write_text(
        f"#include <map>\n#include <string>\n{includes}"
        "static const std::map<std::string, emu::Kernel>& kernels() {\n"
        f"    static const std::map<std::string, emu::Kernel> all = {{\n{entries}}};\n    return all;\n}}\n"
    )
    where = (f"-I{folder}", "-include", str(header), f'-DKERNELS="{listing}"', str(EMULATOR / program))
    return "g++", *_COMPILE, *options, *where, "-o", str(output)


def compile_program(command: tuple[str, ...]) -> None:
    """Run one build command."""
    _compile_all([command])


def write_job(path: Path, tensors: list[Tensor], launches: list[Launch]) -> None:
    """The job file of emulator/driver.cpp for `launches` on `tensors`."""
    spans = [(tensor.data_ptr(), tensor.numel() * tensor.element_size()) for tensor in tensors]

    def sized(data: bytes) -> bytes:
        return struct.pack("<Q", len(data)) + data

    parts = [struct.pack("<Q", len(tensors))]
    parts += [sized(tensor.view(-1).view(torch.uint8).numpy().tobytes()) for tensor in tensors]
    parts.append(struct.pack("<Q", len(launches)))
    for launch in launches:
        parts.append(sized(launch.kernel.encode()))
        parts.append(struct.pack("<3Q", launch.grid, launch.threads, len(launch.arguments)))
        for argument in launch.arguments:
            owners = [
                (number + 1, int(argument) - start)
                for number, (start, size) in enumerate(spans)
                if isinstance(argument, np.uint64) and start <= int(argument) < start + size
            ]
            parts.append(struct.pack("<2Q", *owners[0]) if owners else bytes(8) + sized(argument.tobytes()))
    path.write_bytes(b"".join(parts))


def read_results(path: Path, tensors: list[Tensor]) -> list[Tensor]:
    """What the driver left in the place of `tensors`."""
    data = bytearray(path.read_bytes())
    results, at = [], 0
    for tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        results.append(torch.frombuffer(data[at : at + size], dtype=tensor.dtype))
        at += size
    return results


@cache
def _header() -> Path:
    """The emulator's header, precompiled: most of a small kernel's build time is spent in it."""
    folder = Path(mkdtemp(prefix="actbench-emulator-"))
    atexit.register(shutil.rmtree, folder)
    header = Path(shutil.copy(EMULATOR / "cuda_emu.h", folder))
    compile_program(("g++", *_COMPILE, *_LIBRARY, "-x", "c++-header", str(header), "-o", f"{header}.gch"))
    return header


def _compile_all(commands: list[tuple[str, ...]]) -> None:
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors[:2000]
