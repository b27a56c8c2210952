"""The CPU backend gives the oracle's results, bit for bit, however its work is shared."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actbench.quant import reference
from actbench.quant.cpu import backend as cpu
from actbench.quant.cpu import loops
from actbench.quant.layout import BlockCode
from actbench.quant.levels import level_table
from tests.quant.cuda.parity import BITS, DTYPES, EDGE_CASES, EDGE_SEED, KINDS, EdgeCase, assert_same, make_values

ODD_LENGTHS = (1, 2, 3, 5, 7, 9, 13, 63, 76, 100, 602, 1000, 1025, 4097)
USUAL_LENGTHS = (8, 16, 64, 128, 256, 1008, 1024, 2**20)
lengths = st.one_of(st.sampled_from(ODD_LENGTHS), st.sampled_from(USUAL_LENGTHS), st.integers(1, 5000))
keys = st.one_of(st.sampled_from((0, -1, 2**63 + 5, 2**40 + 1)), st.integers(0, 2**64 - 1))
dtypes = st.sampled_from(DTYPES)


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    # So that tensors of a test's size are shared at all.
    monkeypatch.setattr(cpu, "_VALUES_A_THREAD", 64)
    yield
    torch.set_num_threads(before)


def check_quantize(
    x: torch.Tensor, block_length: int, bits: int, levels: tuple[float, ...], seed: int = 7, stream: int = 3
) -> None:
    flags = torch.zeros(2, 1, dtype=torch.int32)
    actual = cpu.quantize(x, BlockCode(block_length, bits, levels), seed, stream, flags[0])
    expected = reference.quantize(x, BlockCode(block_length, bits, levels), seed, stream, flags[1])
    for one, other, what in zip(actual, expected, ("codes", "minima", "scales"), strict=True):
        assert_same(one, other, what)
    assert flags[0] == flags[1]
    values = cpu.dequantize(*expected, x.numel(), BlockCode(block_length, bits, levels), x.dtype)
    assert_same(
        values, reference.dequantize(*expected, x.numel(), BlockCode(block_length, bits, levels), x.dtype), "values"
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    block_length=lengths,
    blocks=st.integers(0, 40),
    rest=st.integers(0, 40),
    bits=st.sampled_from(BITS),
    dtype=dtypes,
    kind=st.sampled_from(KINDS),
    table=st.sampled_from(("uniform", "clipped-normal")),
    seed=keys,
    stream=keys,
)
def test_codes_metadata_and_values_are_the_oracles(
    block_length: int,
    blocks: int,
    rest: int,
    bits: int,
    dtype: torch.dtype,
    kind: str,
    table: str,
    seed: int,
    stream: int,
) -> None:
    x = make_values(kind, min(blocks * block_length, 30_000) + rest, dtype, blocks)
    check_quantize(x, block_length, bits, level_table(table, bits, block_length), seed, stream)


@pytest.mark.parametrize("case", EDGE_CASES, ids=lambda case: case.name)
def test_the_edges_of_float32_round_as_the_oracle_does(case: EdgeCase) -> None:
    check_quantize(case.x, case.block_length, case.bits, case.levels, EDGE_SEED, case.stream)


def test_a_piece_may_end_anywhere_in_a_block() -> None:
    for numel in (loops.PIECE - 1, loops.PIECE, 3 * loops.PIECE + 5, 2**17 + 1):
        check_quantize(make_values("normal", numel, torch.float32, 1), 2 * loops.PIECE + 1, 2, (0.0, 1.0, 2.0, 3.0))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 90),
    width=st.integers(1, 70),
    projected=st.integers(1, 40),
    block_length=lengths,
    dtype=dtypes,
    kind=st.sampled_from(("normal", "integers", "tiny and large", "broken")),
    zeros=st.floats(0, 1),
    seed=keys,
    streams=st.tuples(keys, keys),
)
def test_projections_are_the_oracles(
    rows: int,
    width: int,
    projected: int,
    block_length: int,
    dtype: torch.dtype,
    kind: str,
    zeros: float,
    seed: int,
    streams: tuple[int, int],
) -> None:
    x = make_values(kind, rows * width, dtype, 1).view(rows, width)
    # Rows with runs of zeros, as a ReLU and a bag of words leave them, are taken in a shorter way.
    x[torch.rand(rows, width, generator=torch.Generator().manual_seed(2)) < zeros] = 0
    levels = level_table("clipped-normal", 2, block_length)
    how = block_length, 2, levels
    flags = torch.zeros(2, 1, dtype=torch.int32)
    actual = cpu.project_quantize(x, projected, BlockCode(*how), seed, *streams, flags[0])
    expected = reference.project_quantize(x, projected, BlockCode(*how), seed, *streams, flags[1])
    for one, other, what in zip(actual, expected, ("codes", "minima", "scales"), strict=True):
        assert_same(one, other, what)
    assert flags[0] == flags[1]
    back = cpu.dequantize_unproject(*expected, rows, width, projected, BlockCode(*how), dtype, seed, streams[0])
    oracle = reference.dequantize_unproject(*expected, rows, width, projected, BlockCode(*how), dtype, seed, streams[0])
    assert_same(back, oracle, "values")
    entries = cpu.projection(width, projected, seed, streams[0], dtype, x.device)
    assert_same(entries, reference.projection(width, projected, seed, streams[0], dtype, x.device), "entries")


@pytest.mark.parametrize(("row", "total"), [((2.0**24, 1, 1), 2.0**24), ((1, 1, 2.0**24), 2.0**24 + 2)])
def test_a_projection_sums_in_the_order_of_the_columns(row: tuple[float, ...], total: float) -> None:
    # 2**24 swallows a 1 that comes after it, but not the 2 that two of them before it have become.
    x, signs = torch.tensor([row]), torch.ones(3, 1)
    assert reference._signed_product(x, signs, 1).item() == total
    assert cpu._signed_product(x, signs.numpy(), 1, 1).item() == total


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    numel=st.integers(0, 5000), dtype=dtypes, kind=st.sampled_from(KINDS), factor=st.sampled_from((2.0, 1 / 0.3, 1e-40))
)
def test_masks_are_the_oracles(numel: int, dtype: torch.dtype, kind: str, factor: float) -> None:
    x = make_values(kind, numel, dtype, 5)
    packed = reference.pack_positive(x)
    assert_same(cpu.pack_positive(x), packed, "bits")
    for mask in (x > 0, (x > 0).int() * 3):
        assert_same(cpu.pack_mask(mask), reference.pack_mask(mask), "bits")
    assert_same(cpu.unpack_mask(packed, numel), reference.unpack_mask(packed, numel), "masks")
    assert_same(cpu.keep_where(x, packed), reference.keep_where(x, packed), "values")
    assert_same(cpu.scale_where(x, packed, factor), reference.scale_where(x, packed, factor), "values")


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def fail(first: int, last: int) -> None:
        if first:
            raise ValueError(f"part from {first} to {last}")

    with pytest.raises(ValueError, match="part from") if torch.get_num_threads() > 1 else nullcontext():
        cpu._share(fail, (), 1000, 8, 1)


def test_results_come_in_the_order_of_the_parts() -> None:
    # Sums of floats depend on it.
    found = cpu._share(lambda first, last: (first, last), (), 1000, 8, 1)
    assert len(found) == torch.get_num_threads()
    assert found[0][0] == 0
    assert found[-1][1] == 1000
    assert all(one[1] == other[0] for one, other in pairwise(found))


def test_without_openmp_one_thread_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_team", lambda: None)
    check_quantize(make_values("normal", 20_011, torch.float32, 1), 100, 2, level_table("uniform", 2, 100))


def test_calls_from_many_threads_do_not_mix() -> None:
    xs = [make_values("normal", 20_011, torch.float32, seed) for seed in range(8)]
    levels = level_table("clipped-normal", 2, 100)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: cpu.quantize(x, BlockCode(100, 2, levels), 7, 3)[0], xs))
    for x, codes in zip(xs, results, strict=True):
        assert_same(codes, reference.quantize(x, BlockCode(100, 2, levels), 7, 3)[0], "codes")


def test_a_forked_process_does_not_wait_for_its_parents_threads() -> None:
    x = torch.randn(5000)
    cpu.pack_positive(x)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_pack_in_child, (x,)).get(timeout=60) == reference.pack_positive(x).tolist()


def _pack_in_child(x: torch.Tensor) -> list[int]:
    packed: list[int] = cpu.pack_positive(x).tolist()
    return packed
