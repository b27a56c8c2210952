import mmap
from dataclasses import replace
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actbench.quant import philox, reference
from actbench.quant.cuda.launch import (
    BANDS,
    THREADS,
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
    plan_quantize,
    plan_quantize_rectified,
    plan_scale_where,
    plan_unpack_mask,
)
from actbench.quant.layout import CODES_A_BYTE, BlockCode, RectifiedLayout, mask_bytes
from actbench.quant.levels import level_table
from tests.quant.cuda import emulate, parity

ODD_LENGTHS = (1, 2, 3, 5, 7, 9, 13, 31, 63, 76, 100, 301, 602, 1000, 1025, 4097)
USUAL_LENGTHS = (8, 16, 24, 32, 40, 64, 72, 128, 264, 512, 1016, 1024, 2048)

lengths = st.one_of(st.sampled_from(ODD_LENGTHS), st.sampled_from(USUAL_LENGTHS), st.integers(1, 3000))
threads = st.sampled_from((32, 64, 128, 256))
keys = st.one_of(st.sampled_from((0, -1, 2**63 + 5, 2**40 + 1)), st.integers(0, 2**64 - 1))
dtypes = st.sampled_from(parity.DTYPES)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    block_length=lengths,
    blocks=st.integers(0, 20),
    rest=st.integers(0, 40),
    offset=st.sampled_from((0, 0, 1, 3, 8)),
    bits=st.sampled_from(parity.BITS),
    dtype=dtypes,
    kind=st.sampled_from(parity.KINDS),
    table=st.sampled_from(("uniform", "clipped-normal")),
    seed=keys,
    stream=keys,
    cta=threads,
)
def test_codes_metadata_and_values_are_those_of_the_reference(
    block_length: int,
    blocks: int,
    rest: int,
    offset: int,
    bits: int,
    dtype: torch.dtype,
    kind: str,
    table: str,
    seed: int,
    stream: int,
    cta: int,
) -> None:
    numel = min(blocks * block_length, 8_000) + rest
    # An offset takes the 16-byte loads' alignment away.
    x = parity.make_values(kind, numel + offset, dtype, blocks)[offset:]
    parity.check_quantize(emulate.emulator(), x, block_length, bits, table, seed, stream, cta)


@pytest.mark.parametrize("block_length", [*ODD_LENGTHS, *USUAL_LENGTHS, 2**20])
@pytest.mark.parametrize("numel", [0, 1, 7, 8, 2 * 602 + 3])
def test_every_block_length_at_the_smallest_sizes(block_length: int, numel: int) -> None:
    x = parity.make_values("normal", numel, torch.float32, 1)
    parity.check_quantize(emulate.emulator(), x, block_length, 2, "clipped-normal")


def test_the_longest_block_is_searched_by_a_whole_cta() -> None:
    x = parity.make_values("normal", 2**20 + 100, torch.bfloat16, 1)
    parity.check_quantize(emulate.emulator(), x, 2**20, 2, "clipped-normal")


@pytest.mark.parametrize("case", parity.EDGE_CASES, ids=lambda case: case.name)
def test_the_edges_of_float32_round_as_in_the_reference(case: parity.EdgeCase) -> None:
    parity.check_quantize(
        emulate.emulator(), case.x, case.block_length, case.bits, case.levels, parity.EDGE_SEED, case.stream
    )


def test_every_float16_is_read_and_written_exactly() -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    # Blocks of one: the minimum is the value rounded down to bfloat16, the scale 0 or what it takes to reach it.
    parity.check_quantize(emulate.emulator(), every, 1, 1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(numel=st.integers(0, 5000), offset=st.integers(0, 17), cta=threads)
def test_masks_are_those_of_the_reference(numel: int, offset: int, cta: int) -> None:
    mask = parity.make_values("normal", numel + offset, torch.float32, numel)[offset:] > 0
    whole = torch.zeros(numel + offset, dtype=torch.bool)
    whole[offset:] = mask
    parity.check_mask(emulate.emulator(), whole[offset:], cta)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 60),
    columns=st.integers(0, 50),
    width=st.one_of(st.sampled_from((1, 7, 8, 64, 128, 300)), st.integers(0, 70)),
    offset=st.sampled_from((0, 0, 1, 3)),
    index=st.sampled_from((torch.int32, torch.int64)),
    kind=st.sampled_from(("normal", *parity.KINDS)),
    cta=threads,
)
def test_sparse_products_are_those_of_the_reference(
    rows: int, columns: int, width: int, offset: int, index: torch.dtype, kind: str, cta: int
) -> None:
    x = parity.make_values(kind, columns * width + offset, torch.float32, rows)[offset:].view(columns, width)
    parity.check_sparse_product(emulate.emulator(), parity.make_csr(rows, columns, rows, index), x, cta)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(width=st.integers(0, 90), projected=st.integers(1, 40), dtype=dtypes, seed=keys, stream=keys, cta=threads)
def test_projections_are_those_of_the_reference(
    width: int, projected: int, dtype: torch.dtype, seed: int, stream: int, cta: int
) -> None:
    parity.check_projection(emulate.emulator(), width, projected, dtype, seed, stream, cta)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    numel=st.integers(0, 3000),
    offset=st.integers(0, 9),
    dtype=dtypes,
    kind=st.sampled_from(parity.KINDS),
    factor=st.sampled_from((2.0, 1 / 0.7, -1.5, 1e-39, 3e38)),
    cta=threads,
)
def test_masked_values_are_those_of_the_reference(
    numel: int, offset: int, dtype: torch.dtype, kind: str, factor: float, cta: int
) -> None:
    x = parity.make_values(kind, numel + offset, dtype, numel)[offset:]
    mask = parity.make_values("normal", numel, torch.float32, 1) > 0
    parity.check_masked(emulate.emulator(), x, mask, factor, cta)


@pytest.mark.parametrize("dtype", parity.DTYPES, ids=str)
def test_every_16_bit_pattern_is_positive_kept_and_scaled_as_in_the_reference(dtype: torch.dtype) -> None:
    every = torch.arange(2**16, dtype=torch.int32)
    # Of float32 the patterns whose lower half is that of the smallest subnormal.
    x = (every << 16 | 1).view(torch.float32) if dtype == torch.float32 else every.to(torch.int16).view(dtype)
    mask = parity.make_values("normal", 2**16, torch.float32, 1) > 0
    parity.check_masked(emulate.emulator(), x, mask, 1 / 0.7)


widths = st.one_of(st.sampled_from((1, 2, 15, 16, 17, 63, 100, 128, 129, 200)), st.integers(1, 150))
few_widths = st.one_of(st.sampled_from((1, 2, 4, 8, 13, 16, 17, 32, 76, 100, 128, 129, 140)), st.integers(1, 150))


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    rows=st.one_of(st.integers(0, 70), st.integers(0, 600)),
    width=widths,
    projected=few_widths,
    block_length=st.one_of(st.integers(1, 40), st.sampled_from((64, 128, 256, 1000, 1024, 2048))),
    block_rows=st.sampled_from((0, 0, 1, 2, 4, 5, 16)),
    offset=st.sampled_from((0, 0, 1, 3)),
    bits=st.sampled_from(parity.BITS),
    dtype=dtypes,
    kind=st.sampled_from(("normal", "normal", *parity.KINDS)),
    seed=keys,
    sign_stream=keys,
    stream=keys,
    cta=st.sampled_from((128, 128, 64, 32)),
)
def test_projected_codes_and_values_are_those_of_the_reference(
    rows: int,
    width: int,
    projected: int,
    block_length: int,
    block_rows: int,
    offset: int,
    bits: int,
    dtype: torch.dtype,
    kind: str,
    seed: int,
    sign_stream: int,
    stream: int,
    cta: int,
) -> None:
    rows = min(rows, 400_000 // (width * projected) + 5)
    x = parity.make_values(kind, rows * width + offset, dtype, rows)[offset:].view(rows, width)
    length = block_rows * projected or block_length
    parity.check_project(
        emulate.emulator(), x, projected, length, bits, "clipped-normal", seed, sign_stream, stream, cta
    )


# Rows, width, projected width, block length; the usual shapes with more than one tile, the last one ragged.
FUSED = (
    (300, 128, 16, 16),
    (517, 33, 16, 256),
    (300, 40, 4, 3),
    (131, 50, 7, 20),
    (60, 602, 76, 76),
    (100, 64, 32, 2048),
    (70, 30, 128, 4096),
)
BUFFERED = ((300, 33, 16, 4097), (70, 30, 128, 4104), (40, 20, 129, 129), (60, 64, 76, 256), (9, 1300, 163, 163))


@pytest.mark.parametrize("cta", [64, 128])
@pytest.mark.parametrize("shape", FUSED + BUFFERED, ids=str)
def test_a_projection_is_one_kernel_where_blocks_fit_a_tile(shape: tuple[int, int, int, int], cta: int) -> None:
    rows, width, projected, block_length = shape
    assert fits_tile(projected, block_length) == (shape in FUSED)
    x = parity.make_values("normal", rows * width, torch.float32, 1).view(rows, width)
    parity.check_project(emulate.emulator(), x, projected, block_length, 2, "clipped-normal", threads=cta)


@pytest.mark.parametrize("kind", parity.KINDS)
@pytest.mark.parametrize("dtype", parity.DTYPES, ids=str)
def test_strange_values_are_projected_as_in_the_reference(dtype: torch.dtype, kind: str) -> None:
    x = parity.make_values(kind, 270 * 20, dtype, 1).view(270, 20)
    for block_length in (10, 13):
        parity.check_project(emulate.emulator(), x, 5, block_length, 2)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(70, 8415, 1052, 1052), (33, 8415, 1052, 2048), (20, 1433, 180, 64)], ids=str)
@pytest.mark.parametrize("dtype", parity.DTYPES, ids=str)
def test_wide_projections_are_those_of_the_reference(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    rows, width, projected, block_length = shape
    x = parity.make_values("normal", rows * width, dtype, 1).view(rows, width)
    parity.check_project(emulate.emulator(), x, projected, block_length, 2)


def test_a_tensor_without_columns_projects_to_zeros() -> None:
    parity.check_project(emulate.emulator(), torch.zeros(30, 0), 4, 4, 2)


@pytest.mark.parametrize("block_length", [8, 13, 1100])
@pytest.mark.parametrize("at", [None, 0, 2200])
def test_a_broken_block_is_told_wherever_it_is(at: int | None, block_length: int) -> None:
    x = parity.make_values("normal", 2201, torch.float32, 1)
    if at is not None:
        x[at] = torch.inf
    flag = torch.zeros(1, dtype=torch.int32)
    reference.quantize(x, BlockCode(block_length, 2, level_table("uniform", 2, block_length)), 7, 3, flag)
    assert flag.item() == (at is not None)
    parity.check_quantize(emulate.emulator(), x, block_length, 2)
    parity.check_project(emulate.emulator(), x.view(-1, 31), 8, block_length, 2)


def test_a_broken_block_need_not_be_told() -> None:
    x = torch.full((300, 8), torch.nan)
    levels = level_table("uniform", 2, 8)
    codes, minimum, scale = (output.tensor for output in parity.make_outputs(2400, 8, 2)[:3])
    emulate.emulator().run(plan_quantize(x, codes, minimum, scale, BlockCode(8, 2, levels), 7, 3))
    emulate.emulator().run(plan_project_quantize(x, None, codes, minimum, scale, 8, BlockCode(8, 2, levels), 7, 11, 3))
    assert scale.isnan().all()


rectified = st.sampled_from(parity.RECTIFIED)
kept = st.sampled_from((None, 0.7, 0.0))
factors = st.sampled_from((2.0, 1 / 0.7, 1e-39))


def make_rectified(
    kind: str, numel: int, dtype: torch.dtype, block_length: int, how: tuple[float, tuple[float, ...]], **rest: Any
) -> parity.Rectified:
    return parity.Rectified(parity.make_values(kind, numel, dtype, numel), block_length, *how, **rest)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    block_length=lengths,
    blocks=st.integers(0, 20),
    rest=st.integers(0, 40),
    offset=st.sampled_from((0, 0, 1, 3, 8)),
    how=rectified,
    dtype=dtypes,
    kind=st.sampled_from(parity.KINDS),
    kept=kept,
    factor=factors,
    seed=keys,
    stream=keys,
    cta=threads,
)
def test_rectified_codes_and_what_they_estimate_are_those_of_the_reference(
    block_length: int,
    blocks: int,
    rest: int,
    offset: int,
    how: tuple[float, tuple[float, ...]],
    dtype: torch.dtype,
    kind: str,
    kept: float | None,
    factor: float,
    seed: int,
    stream: int,
    cta: int,
) -> None:
    numel = min(blocks * block_length, 8_000) + rest
    x = parity.make_values(kind, numel + offset, dtype, blocks)[offset:]
    mask = None if kept is None else parity.make_mask(numel, kept)
    case = parity.Rectified(x, block_length, *how, mask, factor, seed, stream)
    parity.check_rectified(emulate.emulator(), case, cta)


@pytest.mark.parametrize("how", [parity.RECTIFIED[0], parity.RECTIFIED[1]], ids=("trits", "bits"))
@pytest.mark.parametrize("block_length", [*ODD_LENGTHS, *USUAL_LENGTHS, 2**20])
@pytest.mark.parametrize("numel", [0, 1, 4, 5, 7, 8, 2 * 602 + 3, 4_200])
def test_every_block_length_is_rectified_at_the_smallest_sizes(
    numel: int, block_length: int, how: tuple[float, tuple[float, ...]]
) -> None:
    parity.check_rectified(emulate.emulator(), make_rectified("normal", numel, torch.float32, block_length, how))


@pytest.mark.parametrize("dtype", parity.DTYPES, ids=str)
@pytest.mark.parametrize("how", parity.RECTIFIED[:2], ids=("trits", "bits"))
def test_every_16_bit_pattern_is_rectified_as_in_the_reference(
    how: tuple[float, tuple[float, ...]], dtype: torch.dtype
) -> None:
    every = torch.arange(2**16, dtype=torch.int32)
    # Of float32 the patterns whose lower half is that of the smallest subnormal.
    x = (every << 16 | 1).view(torch.float32) if dtype == torch.float32 else every.to(torch.int16).view(dtype)
    for block_length in (1, 8):
        parity.check_rectified(emulate.emulator(), parity.Rectified(x, block_length, *how))


@pytest.mark.parametrize("name", parity.RECTIFIED_EDGE_CASES)
@pytest.mark.parametrize("block_length", [64, 4097])
def test_the_edges_of_float32_are_rectified_as_in_the_reference(name: str, block_length: int) -> None:
    case = replace(parity.RECTIFIED_EDGE_CASES[name], block_length=block_length)
    parity.check_rectified(emulate.emulator(), case)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    rows=st.one_of(st.integers(0, 40), st.integers(0, 900)),
    width=st.one_of(st.sampled_from((1, 2, 4, 7, 8, 12, 16, 100, 128, 257, 264, 602)), st.integers(1, 300)),
    block_length=lengths,
    offset=st.sampled_from((0, 0, 1, 4)),
    how=rectified,
    dtype=dtypes,
    kind=st.sampled_from(("normal", "normal", "zeros", "subnormal", "tiny and large", "integers")),
    kept=kept,
    factor=factors,
    cta=threads,
)
def test_norms_are_those_of_the_reference(
    rows: int,
    width: int,
    block_length: int,
    offset: int,
    how: tuple[float, tuple[float, ...]],
    dtype: torch.dtype,
    kind: str,
    kept: float | None,
    factor: float,
    cta: int,
) -> None:
    rows = min(rows, 30_000 // width + 2)
    mask = None if kept is None else parity.make_mask(rows * width, kept)
    case = make_rectified("normal", rows * width, torch.float32, block_length, how, mask=mask, factor=factor)
    gradient = parity.make_values(kind, rows * width + offset, dtype, rows)[offset:].view(rows, width)
    parity.check_norm(emulate.emulator(), gradient, case, cta)


@pytest.mark.parametrize("width", [5, 16])
def test_a_broken_block_breaks_the_sums_of_its_columns_alone(width: int) -> None:
    # The last octet is ragged when there are 5 columns, and the codes behind its end belong to no column.
    case = make_rectified("normal", 11 * width, torch.float32, 3, parity.RECTIFIED[0])
    case.x[-1] = torch.nan
    gradient = parity.make_values("normal", 11 * width, torch.float32, 1).view(11, width)
    parity.check_norm(emulate.emulator(), gradient, case)
    case.x[-1], case.x[3] = 1, torch.inf
    gradient[5, 2], gradient[6, 1] = torch.inf, torch.nan
    parity.check_norm(emulate.emulator(), gradient, case)


def make_sparse(numel: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros, of which only the pages that are touched take memory or disk."""
    with TemporaryFile() as file:
        file.truncate(numel * dtype.itemsize)
        return torch.frombuffer(mmap.mmap(file.fileno(), 0), dtype=dtype)


@pytest.mark.parametrize("block_length", [96, 100])
def test_the_end_of_a_tensor_beyond_32_bit_indices(block_length: int) -> None:
    bits, tail, seed, stream = 2, 48_000, 7, 3
    numel = 2**32 + 12_345
    first = (numel - tail) // (8 * block_length) * 8 * block_length  # where a chunk of the reference may start
    x = make_sparse(numel, torch.float16)
    x[first:] = parity.make_values("normal", numel - first, torch.float16, 1)
    blocks = -(-numel // block_length)
    codes = make_sparse(-(-numel // 4), torch.uint8)
    minimum, scale = make_sparse(blocks, torch.bfloat16), make_sparse(blocks, torch.bfloat16)
    code = BlockCode(block_length, bits, level_table("clipped-normal", bits, block_length))
    machine = emulate.emulator()

    for launch in plan_quantize(x, codes, minimum, scale, code, seed, stream):
        machine.run([launch], first * launch.grid // numel - 2)
    edges, inverse_widths = reference._tables(code.levels, x.device)
    expected = reference._quantize_chunk(x[first:], first, code, edges, inverse_widths, seed, stream)
    parity.assert_same(codes[first // 4 :], expected[0], "codes")
    parity.assert_same(minimum[first // block_length :], expected[1], "minima")
    parity.assert_same(scale[first // block_length :], expected[2], "scales")

    out = make_sparse(numel, torch.bfloat16)
    (launch,) = plan_dequantize(codes, minimum, scale, out, code)
    machine.run([launch], first * launch.grid // numel - 2)
    values = reference.dequantize(*expected, numel - first, code, torch.bfloat16)
    parity.assert_same(out[first:], values, "values")


def test_the_end_of_a_mask_beyond_32_bit_indices() -> None:
    numel, tail = 2**32 + 12_345, 16 * 1000 + 12_345 % 16
    mask, packed = make_sparse(numel, torch.bool), make_sparse(-(-numel // 8), torch.uint8)
    mask[-tail:] = parity.make_values("normal", tail, torch.float32, 1) > 0
    machine = emulate.emulator()
    (launch,) = plan_pack_mask(mask, packed)
    machine.run([launch], launch.grid - 10)
    parity.assert_same(packed[(numel - tail) // 8 :], reference.pack_mask(mask[-tail:]), "packed masks")
    out = make_sparse(numel, torch.bool)
    (launch,) = plan_unpack_mask(packed, out)
    machine.run([launch], launch.grid - 10)
    parity.assert_same(out[-tail:], mask[-tail:], "masks")


def run_end(launches: list[Launch], share: float) -> None:
    """Run the last `share` of the CTAs, and a few more."""
    for launch in launches:
        emulate.emulator().run([launch], max(int(launch.grid * (1 - share)) - 3, 0))


@pytest.mark.parametrize("fused", [True, False])
def test_the_end_of_a_projection_beyond_32_bit_indices(fused: bool) -> None:
    width = projected = block_length = 64
    bits, tail, seed, sign_stream, stream = 2, 500, 7, 11, 3
    rows = 2**26 + 77
    first = (rows - tail) // 64 * 64
    x = make_sparse(rows * width, torch.float16).view(rows, width)
    x[first:] = parity.make_values("normal", (rows - first) * width, torch.float16, 1).view(-1, width)
    codes = make_sparse(rows * projected // 4, torch.uint8)
    minimum, scale = make_sparse(rows, torch.bfloat16), make_sparse(rows, torch.bfloat16)
    u = None if fused else make_sparse(rows * projected, torch.float32)
    code = BlockCode(block_length, bits, level_table("clipped-normal", bits, block_length))
    share = (rows - first) / rows
    run_end(
        plan_project_quantize(x, u, codes, minimum, scale, projected, code, seed, sign_stream, stream),
        share,
    )
    signs = philox.signs(seed, sign_stream, width * projected, x.device).view(width, projected)
    product = reference._signed_product(x[first:], signs, projected).view(-1)
    tables = reference._tables(code.levels, x.device)
    expected = reference._quantize_chunk(product, first * projected, code, *tables, seed, stream)
    parity.assert_same(codes[first * projected // 4 :], expected[0], "codes")
    parity.assert_same(minimum[first:], expected[1], "minima")
    parity.assert_same(scale[first:], expected[2], "scales")

    out = make_sparse(rows * width, torch.bfloat16).view(rows, width)
    run_end(
        plan_dequantize_unproject(codes, minimum, scale, out, projected, code, seed, sign_stream),
        share,
    )
    values = reference.dequantize_unproject(
        *expected, rows - first, width, projected, code, torch.bfloat16, seed, sign_stream
    )
    parity.assert_same(out[first:], values, "values")


def test_the_end_of_masked_values_beyond_32_bit_indices() -> None:
    numel, tail = 2**32 + 12_345, 16_000 + 12_345 % 16
    x, packed = make_sparse(numel, torch.float16), make_sparse(-(-numel // 8), torch.uint8)
    x[-tail:] = parity.make_values("normal", tail, torch.float16, 1)
    run_end(plan_pack_positive(x, packed), tail / numel)
    bits = reference.pack_positive(x[-tail:])
    parity.assert_same(packed[-bits.numel() :], bits, "packed masks")
    out = make_sparse(numel, torch.float16)
    run_end(plan_keep_where(x, packed, out), tail / numel)
    parity.assert_same(out[-tail:], reference.keep_where(x[-tail:], bits), "kept values")
    run_end(plan_scale_where(x, packed, 1.25, out), tail / numel)
    parity.assert_same(out[-tail:], reference.scale_where(x[-tail:], bits, 1.25), "scaled values")


@pytest.mark.parametrize(("how", "block_length"), [(parity.RECTIFIED[0], 64), (parity.RECTIFIED[1], 4097)])
def test_the_end_of_rectified_codes_beyond_32_bit_indices(
    how: tuple[float, tuple[float, ...]], block_length: int
) -> None:
    bits, levels = how
    code = BlockCode(block_length, bits, levels)
    numel, seed, stream = 2**32 + 12_345, 7, 3
    a_byte, unit = CODES_A_BYTE[bits], 40 * block_length
    first = (numel - 12_000) // unit * unit  # where a chunk of the reference may start
    layout = RectifiedLayout(numel, block_length, bits)
    x, mask = make_sparse(numel, torch.float16), make_sparse(mask_bytes(numel), torch.uint8)
    x[first:] = parity.make_values("normal", numel - first, torch.float16, 1)
    mask[first // 8 :] = parity.make_mask(numel - first)
    codes, scale = make_sparse(layout.code_bytes, torch.uint8), make_sparse(layout.blocks, torch.bfloat16)
    share = (numel - first) / numel
    run_end(plan_quantize_rectified(x, codes, scale, BlockCode(block_length, bits, levels), seed, stream), share)
    tables = reference._tables(levels, x.device)
    expected = reference._rectify_chunk(x[first:], first, code, *tables, seed, stream)
    parity.assert_same(codes[first // a_byte :], expected[0], "codes")
    parity.assert_same(scale[first // block_length :], expected[1], "scales")

    out, passed = make_sparse(numel, torch.bfloat16), make_sparse(numel, torch.float16)
    end = mask[first // 8 :]
    run_end(plan_dequantize_rectified(codes, scale, out, code, mask, 1.25), share)
    values = reference.dequantize_rectified(expected[0], expected[1], numel - first, code, torch.bfloat16, end, 1.25)
    parity.assert_same(out[first:], values, "values")
    run_end(plan_pass_rectified(x, codes, passed, code, mask, 1.25), share)
    parity.assert_same(passed[first:], reference.pass_rectified(x[first:], expected[0], code, end, 1.25), "gradients")


def test_the_end_of_norms_beyond_32_bit_indices() -> None:
    bits, levels = parity.RECTIFIED[0]
    width, block_length, seed, stream = 100, 64, 7, 3
    code = BlockCode(block_length, bits, levels)
    rows = 2**32 // width + 77
    numel, unit = rows * width, 40 * block_length * width
    first_row = (numel - unit) // unit * unit // width
    first = first_row * width
    layout = RectifiedLayout(numel, block_length, bits)
    gradient = make_sparse(numel, torch.float16).view(rows, width)
    gradient[first_row:] = parity.make_values("normal", numel - first, torch.float16, 1).view(-1, width)
    tables = reference._tables(levels, gradient.device)
    y = parity.make_values("normal", numel - first, torch.float32, 2)
    packed = reference._rectify_chunk(y, first, code, *tables, seed, stream)
    codes, scale = make_sparse(layout.code_bytes, torch.uint8), make_sparse(layout.blocks, torch.bfloat16)
    codes[first // 5 :], scale[first // block_length :] = packed
    coefficients = parity.make_values("normal", 4 * width, torch.float32, 3).view(4, width)
    share = (numel - first) / numel

    out = make_sparse(numel, torch.float16).view(rows, width)
    run_end(plan_norm_gradient(gradient, codes, scale, coefficients, out, code), share)
    expected = reference.norm_gradient(gradient[first_row:], packed[0], packed[1], code, coefficients)
    parity.assert_same(out[first_row:], expected, "gradients")

    shape = partial_shape(rows, width)
    partial = make_sparse(torch.Size(shape).numel(), torch.float32).view(shape)
    run_end(plan_norm_sums(gradient, codes, scale, partial, code), share)
    # Those of the CTAs before are zeros on pages that are better not read.
    sums = partial[-(rows - first_row) // 300 :].sum((0, 2), dtype=torch.float64)
    case = parity.Rectified(y, block_length, bits, levels)
    parity.assert_same_sums(sums, gradient[first_row:], packed, case, BANDS + THREADS)


def test_level_tables_travel_by_value() -> None:
    x = parity.make_values("normal", 64, torch.float32, 1)
    codes, minimum = torch.empty(64, dtype=torch.uint8), torch.empty(1, dtype=torch.bfloat16)
    (launch,) = plan_quantize(x, codes, minimum, minimum, BlockCode(64, 8, level_table("uniform", 8, 64)), 7, 3)
    table = launch.arguments[-1]
    # CuPy hands a one-entry array over by value, and CUDA takes up to 4,096 bytes of arguments.
    assert isinstance(table, np.ndarray)
    assert table.size == 1
    assert table.nbytes == 256 * 8
