import mmap
from tempfile import TemporaryFile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actbench.quant import reference
from actbench.quant.launch import plan_dequantize, plan_pack_mask, plan_quantize, plan_unpack_mask
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


@settings(max_examples=50, deadline=None, derandomize=True)
@given(width=st.integers(0, 90), projected=st.integers(1, 40), dtype=dtypes, seed=keys, stream=keys, cta=threads)
def test_projections_are_those_of_the_reference(
    width: int, projected: int, dtype: torch.dtype, seed: int, stream: int, cta: int
) -> None:
    parity.check_projection(emulate.emulator(), width, projected, dtype, seed, stream, cta)


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
    levels = level_table("clipped-normal", bits, block_length)
    machine = emulate.emulator()

    for launch in plan_quantize(x, codes, minimum, scale, block_length, bits, levels, seed, stream):
        machine.run([launch], first * launch.grid // numel - 2)
    edges, inverse_widths = reference._tables(levels, x.device)
    expected = reference._quantize_chunk(x[first:], first, block_length, bits, edges, inverse_widths, seed, stream)
    parity.assert_same(codes[first // 4 :], expected[0], "codes")
    parity.assert_same(minimum[first // block_length :], expected[1], "minima")
    parity.assert_same(scale[first // block_length :], expected[2], "scales")

    out = make_sparse(numel, torch.bfloat16)
    (launch,) = plan_dequantize(codes, minimum, scale, out, block_length, bits, levels)
    machine.run([launch], first * launch.grid // numel - 2)
    values = reference.dequantize(*expected, numel - first, block_length, bits, levels, torch.bfloat16)
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


def test_level_tables_travel_by_value() -> None:
    x = parity.make_values("normal", 64, torch.float32, 1)
    codes, minimum = torch.empty(64, dtype=torch.uint8), torch.empty(1, dtype=torch.bfloat16)
    (launch,) = plan_quantize(x, codes, minimum, minimum, 64, 8, level_table("uniform", 8, 64), 7, 3)
    table = launch.arguments[-1]
    # CuPy hands a one-entry array over by value, and CUDA takes up to 4,096 bytes of arguments.
    assert isinstance(table, np.ndarray)
    assert table.size == 1
    assert table.nbytes == 256 * 8
