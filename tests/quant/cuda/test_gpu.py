"""The kernels on a real GPU: the reference's results, the caller's stream, no hidden memory."""

import importlib.util

import pytest
import torch

from actbench.quant import reference
from actbench.quant.layout import Layout, mask_bytes
from actbench.quant.levels import level_table
from tests.quant.cuda import parity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy"),
]

LENGTHS = (1, 3, 8, 13, 16, 24, 63, 64, 76, 128, 256, 602, 1000, 1024, 1025, 4096, 2**20)


def assert_parity(
    x: torch.Tensor, block_length: int, bits: int, levels: tuple[float, ...], seed: int = 7, stream: int = 3
) -> None:
    from actbench.quant import cuda

    actual = cuda.quantize(x.cuda(), block_length, bits, levels, seed, stream)
    expected = reference.quantize(x, block_length, bits, levels, seed, stream)
    for one, other, what in zip(actual, expected, ("codes", "minima", "scales"), strict=True):
        parity.assert_same(one.cpu(), other, what)
    values = cuda.dequantize(*actual, x.numel(), block_length, bits, levels, x.dtype)
    expected_values = reference.dequantize(*expected, x.numel(), block_length, bits, levels, x.dtype)
    parity.assert_same(values.cpu(), expected_values, "values")


@pytest.mark.parametrize("bits", parity.BITS)
@pytest.mark.parametrize("dtype", parity.DTYPES, ids=str)
@pytest.mark.parametrize("block_length", LENGTHS)
def test_quantize_is_the_reference(block_length: int, dtype: torch.dtype, bits: int) -> None:
    levels = level_table("clipped-normal", bits, block_length)
    for numel in (0, 1, 7, 3 * block_length + 5, 100_003):
        assert_parity(parity.make_values("normal", numel, dtype, numel), block_length, bits, levels)


@pytest.mark.parametrize("kind", parity.KINDS)
@pytest.mark.parametrize("block_length", [13, 64])
def test_strange_blocks_are_the_reference(block_length: int, kind: str) -> None:
    for dtype in parity.DTYPES:
        x = parity.make_values(kind, 50_021, dtype, 1)
        assert_parity(x, block_length, 2, level_table("uniform", 2, block_length))


@pytest.mark.parametrize("case", parity.EDGE_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("block_length", [64, 63])
def test_the_edges_of_float32_are_the_reference(case: parity.EdgeCase, block_length: int) -> None:
    # 63 takes the kernels for any block length, 64 the one for the usual lengths.
    assert_parity(case.x, block_length, case.bits, case.levels, parity.EDGE_SEED, case.stream)


def test_a_view_without_16_byte_alignment_is_read() -> None:
    from actbench.quant import cuda

    x, levels = torch.randn(4001), level_table("uniform", 2, 128)
    actual = cuda.quantize(x.cuda()[1:], 128, 2, levels, 7, 3)
    for one, other in zip(actual, reference.quantize(x[1:], 128, 2, levels, 7, 3), strict=True):
        assert torch.equal(one.cpu(), other)


def test_masks_and_projections_are_the_reference() -> None:
    from actbench.quant import cuda

    for numel in (0, 1, 15, 16, 17, 1_000_003):
        mask = torch.rand(numel) < 0.5
        packed = cuda.pack_mask(mask.cuda())
        assert torch.equal(packed.cpu(), reference.pack_mask(mask))
        assert torch.equal(cuda.unpack_mask(packed, numel).cpu(), mask)
    for dtype in parity.DTYPES:
        actual = cuda.projection(602, 76, 7, 3, dtype, torch.device("cuda"))
        assert torch.equal(actual.cpu(), reference.projection(602, 76, 7, 3, dtype, torch.device("cpu")))


def test_kernels_run_on_the_callers_stream() -> None:
    from actbench.quant import cuda

    levels = level_table("uniform", 2, 128)
    x = torch.randn(2**22)
    expected = reference.quantize(x, 128, 2, levels, 7, 3)
    source = x.cuda()
    cuda.quantize(source, 128, 2, levels, 7, 3)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # Long enough that a kernel on any other stream would read the zeros.
        late = torch.zeros_like(source)
        torch.cuda._sleep(50_000_000)
        late.copy_(source)
        actual = cuda.quantize(late, 128, 2, levels, 7, 3)
    stream.synchronize()
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("block_length", [100, 128])
def test_calls_can_be_captured_into_a_graph(block_length: int) -> None:
    from actbench.quant import cuda

    levels = level_table("clipped-normal", 2, block_length)
    x = torch.randn(50_000, device="cuda")

    def round_trip() -> torch.Tensor:
        packed = cuda.quantize(x, block_length, 2, levels, 7, 3)
        return cuda.dequantize(*packed, x.numel(), block_length, 2, levels, x.dtype)

    round_trip()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = round_trip()
    x.copy_(torch.randn(50_000))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, round_trip())


def test_the_allocator_sees_what_the_layout_says() -> None:
    from actbench.quant import cuda

    def rounded(size: int) -> int:
        return -(-size // 512) * 512

    levels = level_table("clipped-normal", 8, 128)
    x = torch.randn(1_000_003, device="cuda")
    layout = Layout(x.numel(), 128, 8)
    cuda.quantize(x, 128, 8, levels, 7, 3)
    before = torch.cuda.memory_allocated()
    kept = cuda.quantize(x, 128, 8, levels, 7, 3)
    grown = torch.cuda.memory_allocated() - before
    metadata = layout.total_bytes - layout.code_bytes
    assert grown == rounded(layout.code_bytes) + 2 * rounded(metadata // 2)
    assert sum(tensor.nbytes for tensor in kept) == layout.total_bytes
    mask = x > 0
    before = torch.cuda.memory_allocated()
    packed = cuda.pack_mask(mask)
    assert torch.cuda.memory_allocated() - before == rounded(mask_bytes(x.numel()))
    assert packed.nbytes == mask_bytes(x.numel())


def test_a_tensor_that_is_not_contiguous_is_refused() -> None:
    from actbench.quant import cuda

    with pytest.raises(ValueError, match=r"has strides \(1, 4\): pass tensor.contiguous\(\)"):
        cuda.quantize(torch.zeros(8, 4, device="cuda").t(), 8, 2, level_table("uniform", 2, 8), 7, 3)
