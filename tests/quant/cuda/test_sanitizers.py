"""Kernels under the compilers' sanitizers: no bad address, no undefined operation, no race."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actbench.quant import reference
from actbench.quant.cuda.launch import (
    BANDS,
    Launch,
    fits_tile,
    partial_shape,
    plan_dequantize,
    plan_dequantize_rectified,
    plan_dequantize_unproject,
    plan_keep_where,
    plan_norm_gradient,
    plan_norm_sums,
    plan_pack_mask,
    plan_pack_positive,
    plan_pass_rectified,
    plan_project_quantize,
    plan_projection,
    plan_quantize,
    plan_quantize_rectified,
    plan_scale_where,
    plan_sparse_product,
    plan_unpack_mask,
)
from actbench.quant.cuda.sources import kernel_folder
from actbench.quant.layout import BlockCode, Layout, RectifiedLayout, mask_bytes
from actbench.quant.levels import level_table
from tests.quant.cuda import emulate, parity

KERNELS = [
    ("quantize.cu", "quantize_blocks<float, 2, 2>"),
    ("quantize.cu", "quantize_blocks<float, 1, 2>"),
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
    ("mask.cu", "pack_positive<Float16>"),
    ("mask.cu", "keep_where<Float16>"),
    ("mask.cu", "scale_where<Float16>"),
    ("projection.cu", "fill_projection<unsigned>"),
    ("sparse.cu", "multiply_rows<int>"),
    ("project.cu", "project_quantize<float, 2>"),
    ("project.cu", "project_quantize<Float16, 1>"),
    ("project.cu", "project<Float16>"),
    ("project.cu", "project<float>"),
    ("unproject.cu", "dequantize_unproject<float, 2>"),
    ("unproject.cu", "dequantize_unproject<Float16, 1>"),
    *(("rectify.cu", f"find_scales<{dtype}>") for dtype in ("float", "Float16")),
    *(("rectify.cu", f"quantize_rectified<{what}>") for what in ("float, 3", "Float16, 4")),
    *(
        ("rectified.cu", f"{kernel}_rectified<{what}>")
        for kernel in ("dequantize", "pass")
        for what in ("float, 3", "Float16, 4")
    ),
    *(("norm.cu", f"norm_{kernel}<{what}>") for kernel in ("sums", "gradient") for what in ("float, 3", "Float16, 4")),
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


def make_packed(numel: int, block_length: int, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, minima, scales and the broken flag."""
    layout = Layout(numel, block_length, bits)
    minimum, scale = torch.zeros(2, layout.blocks, dtype=torch.bfloat16).unbind()
    return torch.zeros(layout.code_bytes, dtype=torch.uint8), minimum, scale, torch.zeros(1, dtype=torch.int32)


def check_all(machine: Sanitized, threads: int) -> None:
    """Every kernel at sizes where blocks, octets and CTAs end in the middle of one another."""
    for block_length, numel, bits, dtype in (
        (24, 24 * 40 + 13, 2, torch.float32),
        (72, 72 * 9 + 5, 1, torch.float16),
        (13, 13 * 70 + 3, 2, torch.float32),
        (1100, 1100 * 2 + 9, 8, torch.bfloat16),
    ):
        x = parity.make_values("normal", numel, dtype, 1)
        x[numel // 2] = torch.inf  # in one block: the store of more than one is a race, though a harmless one
        levels = level_table("clipped-normal", bits, block_length)
        codes, minimum, scale, broken = make_packed(numel, block_length, bits)
        out = torch.zeros(numel, dtype=dtype)
        launches = plan_quantize(x, codes, minimum, scale, BlockCode(block_length, bits, levels), 7, 3, broken, threads)
        launches += plan_dequantize(codes, minimum, scale, out, BlockCode(block_length, bits, levels), threads)
        run_clean(machine, [x, codes, minimum, scale, broken, out], launches)
        expected = reference.quantize(x, BlockCode(block_length, bits, levels), 7, 3)
        parity.assert_same(codes, expected[0], "codes")
        assert broken.item() == 1
        values = reference.dequantize(*expected, numel, BlockCode(block_length, bits, levels), dtype)
        parity.assert_same(out, values, "values")

    mask = parity.make_values("normal", 1234, torch.float32, 1) > 0
    packed, unpacked = torch.zeros(mask_bytes(1234), dtype=torch.uint8), torch.zeros(1234, dtype=torch.bool)
    launches = plan_pack_mask(mask, packed, threads) + plan_unpack_mask(packed, unpacked, threads)
    run_clean(machine, [mask, packed, unpacked], launches)
    parity.assert_same(unpacked, mask, "masks")
    x = parity.make_values("normal", 1235, torch.float16, 1)[1:]
    kept, scaled = torch.zeros(2, 1234, dtype=torch.float16).unbind()
    launches = plan_pack_positive(x, packed, threads) + plan_keep_where(x, packed, kept, threads)
    launches += plan_scale_where(x, packed, 1.5, scaled, threads)
    run_clean(machine, [x, packed, kept, scaled], launches)
    parity.assert_same(kept, x.clamp(min=0), "kept values")
    parity.assert_same(scaled, reference.scale_where(x, packed, 1.5), "scaled values")
    entries = torch.zeros(37, 11)
    run_clean(machine, [entries.view(-1)], plan_projection(entries, 7, 3, threads))
    crow, col, values = csr = parity.make_csr(37, 29, 1, torch.int32)
    x, out = torch.randn(29, 13), torch.zeros(37, 13)
    launches = plan_sparse_product(*csr, x, out, threads)
    run_clean(machine, [crow, col, values, x.view(-1), out.view(-1)], launches)
    parity.assert_same(out, reference.sparse_product(*csr, x), "products")


def check_rectified(machine: Sanitized, threads: int) -> None:
    """The kernels of rectified codes where tiles, bands and trits end in the middle of one another."""
    for rows, width, block_length, how, dtype in (
        (39, 20, 24, parity.RECTIFIED[0], torch.float32),
        (41, 13, 1100, parity.RECTIFIED[0], torch.float32),
        (37, 264, 128, parity.RECTIFIED[2], torch.float16),
        (30, 19, 4097, parity.RECTIFIED[2], torch.float16),
    ):
        numel, layout = rows * width, RectifiedLayout(rows * width, block_length, how[0])
        x = parity.make_values("normal", numel, dtype, 1).view(rows, width)
        mask = parity.make_mask(numel)
        code, dropped = BlockCode(block_length, *how), (mask, 1.25)
        codes, scale = (
            torch.zeros(layout.code_bytes, dtype=torch.uint8),
            torch.zeros(layout.blocks, dtype=torch.bfloat16),
        )
        run_clean(
            machine,
            [x.view(-1), codes, scale],
            plan_quantize_rectified(x, codes, scale, code, 7, 3, None, threads),
        )
        expected_codes, expected_scale = reference.quantize_rectified(x, code, 7, 3)
        parity.assert_same(codes, expected_codes, "codes")
        parity.assert_same(scale, expected_scale, "scales")
        out, passed, by_x = (torch.zeros(rows, width, dtype=dtype) for _ in range(3))
        shape = partial_shape(rows, width, threads)
        partial = torch.zeros(shape).view(-1)
        coefficients = parity.make_values("normal", 4 * width, torch.float32, 2).view(4, width)
        launches = plan_dequantize_rectified(codes, scale, out, code, *dropped, threads)
        launches += plan_pass_rectified(x, codes, passed, code, *dropped, threads)
        launches += plan_norm_sums(x, codes, scale, partial, code, *dropped, threads)
        launches += plan_norm_gradient(x, codes, scale, coefficients, by_x, code, None, 1.0, threads)
        tensors = [x, codes, scale, mask, out, passed, partial, coefficients, by_x]
        run_clean(machine, [each.view(-1) for each in tensors], launches)
        values = reference.dequantize_rectified(codes, scale, numel, code, dtype, *dropped)
        parity.assert_same(out.view(-1), values, "values")
        parity.assert_same(passed, reference.pass_rectified(x, codes, code, *dropped), "gradients")
        expected = reference.norm_gradient(x, codes, scale, code, coefficients)
        parity.assert_same(by_x, expected, "gradients")
        case = parity.Rectified(x, block_length, *how, *dropped)
        sums = partial.view(shape).sum((0, 2), dtype=torch.float64)
        parity.assert_same_sums(sums, x, (codes, scale), case, BANDS + threads)


def check_projections(machine: Sanitized, threads: int) -> None:
    """The kernels with a projection, through a buffer and without, where tiles end in the middle of blocks and rows."""
    for rows, width, projected, block_length, bits, dtype in (
        (70, 36, 13, 24, 2, torch.float32),
        (141, 18, 16, 16, 1, torch.float16),
        (21, 131, 131, 100, 2, torch.float32),
    ):
        x = parity.make_values("normal", rows * width, dtype, 1).view(rows, width)
        parameters = block_length, bits, level_table("clipped-normal", bits, block_length)
        expected = reference.project_quantize(x, projected, BlockCode(*parameters), 7, 11, 3)
        u, out = torch.zeros(rows * projected), torch.zeros(rows * width, dtype=dtype)
        for product in (u, None) if fits_tile(projected, block_length, threads) else (u,):
            codes, minimum, scale, broken = make_packed(rows * projected, block_length, bits)
            packed = codes, minimum, scale
            launches = plan_project_quantize(
                x, product, *packed, projected, BlockCode(*parameters), 7, 11, 3, broken, threads
            )
            launches += plan_dequantize_unproject(
                *packed, out.view(rows, width), projected, BlockCode(*parameters), 7, 11, threads
            )
            run_clean(machine, [x.view(-1), u, *packed, broken, out], launches)
            parity.assert_same(codes, expected[0], "codes")
            values = reference.dequantize_unproject(
                *expected, rows, width, projected, BlockCode(*parameters), dtype, 7, 11
            )
            parity.assert_same(out, values.view(-1), "values")


@pytest.mark.slow
def test_no_address_or_operation_is_undefined(tmp_path: Path) -> None:
    machine = Sanitized(tmp_path, KERNELS, kernel_folder(), ADDRESS)
    check_all(machine, 64)
    check_projections(machine, 64)
    check_rectified(machine, 64)


@pytest.mark.slow
def test_no_two_threads_race(tmp_path: Path) -> None:
    machine = Sanitized(tmp_path, KERNELS, kernel_folder(), THREAD)
    check_all(machine, 64)
    check_projections(machine, 32)
    check_rectified(machine, 64)


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
    launches = plan_dequantize(codes, minimum, scale, out, BlockCode(64, 2, level_table("uniform", 2, 64)), 64)
    done = machine.run([codes, minimum, scale, out], launches)
    assert done.returncode == 66
    assert "data race" in done.stderr


def test_the_thread_sanitizer_notices_signs_that_are_used_too_early(tmp_path: Path) -> None:
    # The CTA's threads one after another, as in the other tests, would not show it.
    barrier = "seed, stream);\n            __syncthreads();"
    sources = patch(tmp_path, "project.cu", barrier, "seed, stream);")
    machine = Sanitized(tmp_path, [("project.cu", "project_quantize<float, 2>")], sources, THREAD)
    x = torch.randn(40, 20)
    codes, minimum, scale, broken = make_packed(160, 4, 2)
    levels = level_table("uniform", 2, 4)
    launches = plan_project_quantize(x, None, codes, minimum, scale, 4, BlockCode(4, 2, levels), 7, 11, 3, broken, 64)
    done = machine.run([x.view(-1), codes, minimum, scale, broken], launches)
    assert done.returncode == 66
    assert "data race" in done.stderr


def test_the_thread_sanitizer_notices_sums_that_are_overwritten_too_early(tmp_path: Path) -> None:
    sources = patch(tmp_path, "norm.cu", "++quantity) {\n        __syncthreads();", "++quantity) {")
    machine = Sanitized(tmp_path, [("norm.cu", "norm_sums<float, 3>")], sources, THREAD)
    gradient = torch.randn(40, 16)
    codes, scale = torch.zeros(128, dtype=torch.uint8), torch.ones(5, dtype=torch.bfloat16)
    partial = torch.zeros(partial_shape(40, 16, 64)).view(-1)
    launches = plan_norm_sums(gradient, codes, scale, partial, BlockCode(128, 1.6, (0.0, 1.0)), threads=64)
    done = machine.run([gradient.view(-1), codes, scale, partial], launches)
    assert done.returncode == 66
    assert "data race" in done.stderr


def test_the_address_sanitizer_notices_a_read_behind_the_end(tmp_path: Path) -> None:
    sources = patch(tmp_path, "octets.cuh", "at[i < count ? i : 0]", "at[i]")
    machine = Sanitized(tmp_path, [("quantize.cu", "quantize_blocks<float, 2, 4>")], sources, ADDRESS)
    x, codes = torch.randn(61), torch.zeros(16, dtype=torch.uint8)
    minimum, scale = torch.zeros(2, 1, dtype=torch.bfloat16).unbind()
    launches = plan_quantize(x, codes, minimum, scale, BlockCode(64, 2, level_table("uniform", 2, 64)), 7, 3, None, 64)
    done = machine.run([x, codes, minimum, scale], launches)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
