"""Kernels under the compilers' sanitizers: no bad address, no undefined operation, no race."""

import os
import subprocess
from pathlib import Path

import torch
from torch import Tensor

from actbench.quant import reference
from actbench.quant.launch import (
    Launch,
    plan_dequantize,
    plan_pack_mask,
    plan_projection,
    plan_quantize,
    plan_unpack_mask,
)
from actbench.quant.layout import Layout, mask_bytes
from actbench.quant.levels import level_table
from actbench.quant.sources import kernel_folder
from tests.quant.cuda import emulate, parity

KERNELS = [
    ("quantize.cu", "quantize_blocks<float, 2, 2>"),
    ("quantize.cu", "quantize_blocks<Float16, 1, 4>"),
    ("quantize.cu", "find_ranges<float>"),
    ("quantize.cu", "encode<float, 2>"),
    ("quantize.cu", "find_ranges<BFloat16>"),
    ("quantize.cu", "encode<BFloat16, 8>"),
    ("dequantize.cu", "dequantize<float, 2>"),
    ("dequantize.cu", "dequantize<Float16, 1>"),
    ("dequantize.cu", "dequantize<BFloat16, 8>"),
    ("mask.cu", "pack_mask"),
    ("mask.cu", "unpack_mask"),
    ("projection.cu", "fill_projection<unsigned>"),
]
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-fsanitize=thread", "-DEMU_THREADS")


class Sanitized:
    """A build of the driver; `run` puts the outputs of a job into the place of its tensors."""

    def __init__(self, folder: Path, kernels: list[tuple[str, str]], sources: Path, sanitizer: tuple[str, ...]) -> None:
        emulate.require_compiler()
        self._folder = folder
        self._program = folder / "driver"
        command = emulate.build_command("driver.cpp", kernels, sources, self._program, "-O1", "-g", *sanitizer)
        emulate.compile_program(command)

    def run(self, tensors: list[Tensor], launches: list[Launch]) -> subprocess.CompletedProcess[str]:
        job, results = self._folder / "job", self._folder / "results"
        emulate.write_job(job, tensors, launches)
        # Exit code 66 is the thread sanitizer's for a report.
        environment = {**os.environ, "TSAN_OPTIONS": "exitcode=66", "ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run(
            [self._program, job, results], env=environment, capture_output=True, text=True, timeout=300
        )
        if done.returncode == 0:
            for tensor, result in zip(tensors, emulate.read_results(results, tensors), strict=True):
                tensor.copy_(result)
        return done


def run_clean(machine: Sanitized, tensors: list[Tensor], launches: list[Launch]) -> None:
    done = machine.run(tensors, launches)
    assert done.returncode == 0, done.stderr[:4000]


def check_all(machine: Sanitized, threads: int) -> None:
    """Every kernel at sizes where blocks, octets and CTAs end in the middle of one another."""
    for block_length, numel, bits, dtype in (
        (24, 24 * 40 + 13, 2, torch.float32),
        (72, 72 * 9 + 5, 1, torch.float16),
        (13, 13 * 70 + 3, 2, torch.float32),
        (1100, 1100 * 2 + 9, 8, torch.bfloat16),
    ):
        x = parity.make_values("normal", numel, dtype, 1)
        levels = level_table("clipped-normal", bits, block_length)
        layout = Layout(numel, block_length, bits)
        codes = torch.zeros(layout.code_bytes, dtype=torch.uint8)
        minimum, scale = torch.zeros(2, layout.blocks, dtype=torch.bfloat16).unbind()
        out = torch.zeros(numel, dtype=dtype)
        launches = plan_quantize(x, codes, minimum, scale, block_length, bits, levels, 7, 3, threads)
        launches += plan_dequantize(codes, minimum, scale, out, block_length, bits, levels, threads)
        run_clean(machine, [x, codes, minimum, scale, out], launches)
        expected = reference.quantize(x, block_length, bits, levels, 7, 3)
        parity.assert_same(codes, expected[0], "codes")
        values = reference.dequantize(*expected, numel, block_length, bits, levels, dtype)
        parity.assert_same(out, values, "values")

    mask = parity.make_values("normal", 1234, torch.float32, 1) > 0
    packed, unpacked = torch.zeros(mask_bytes(1234), dtype=torch.uint8), torch.zeros(1234, dtype=torch.bool)
    launches = plan_pack_mask(mask, packed, threads) + plan_unpack_mask(packed, unpacked, threads)
    run_clean(machine, [mask, packed, unpacked], launches)
    parity.assert_same(unpacked, mask, "masks")
    entries = torch.zeros(37, 11)
    run_clean(machine, [entries.view(-1)], plan_projection(entries, 7, 3, threads))


def test_no_address_or_operation_is_undefined(tmp_path: Path) -> None:
    check_all(Sanitized(tmp_path, KERNELS, kernel_folder(), ADDRESS), 64)


def test_no_two_threads_race(tmp_path: Path) -> None:
    check_all(Sanitized(tmp_path, KERNELS, kernel_folder(), THREAD), 64)


def patch(folder: Path, source: str, right: str, wrong: str) -> Path:
    sources = folder / "sources"
    sources.mkdir()
    for path in kernel_folder().glob("*.cu*"):
        text = path.read_text()
        if path.name == source:
            assert right in text
            text = text.replace(right, wrong)
        (sources / path.name).write_text(text)
    return sources


def test_the_thread_sanitizer_notices_a_missing_barrier(tmp_path: Path) -> None:
    sources = patch(tmp_path, "dequantize.cu", "__syncthreads();", "")
    machine = Sanitized(tmp_path, [("dequantize.cu", "dequantize<float, 2>")], sources, THREAD)
    codes, out = torch.zeros(16, dtype=torch.uint8), torch.zeros(64)
    minimum, scale = torch.ones(2, 1, dtype=torch.bfloat16).unbind()
    launches = plan_dequantize(codes, minimum, scale, out, 64, 2, level_table("uniform", 2, 64), 64)
    done = machine.run([codes, minimum, scale, out], launches)
    assert done.returncode == 66
    assert "data race" in done.stderr


def test_the_address_sanitizer_notices_a_read_behind_the_end(tmp_path: Path) -> None:
    sources = patch(tmp_path, "octets.cuh", "at[i < count ? i : 0]", "at[i]")
    machine = Sanitized(tmp_path, [("quantize.cu", "quantize_blocks<float, 2, 4>")], sources, ADDRESS)
    x, codes = torch.randn(61), torch.zeros(16, dtype=torch.uint8)
    minimum, scale = torch.zeros(2, 1, dtype=torch.bfloat16).unbind()
    launches = plan_quantize(x, codes, minimum, scale, 64, 2, level_table("uniform", 2, 64), 7, 3, 64)
    done = machine.run([x, codes, minimum, scale], launches)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
