"""The kernels on a real GPU: the reference's results, the caller's stream, no hidden memory."""

import importlib.util

import pytest
import torch

from actbench.quant import ordered_products, reference
from actbench.quant.cuda.launch import BANDS, THREADS, fits_tile
from actbench.quant.layout import BlockCode, Layout, mask_bytes
from actbench.quant.levels import level_table
from tests.quant.cuda import parity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy"),
]

LENGTHS = (1, 3, 8, 13, 16, 24, 63, 64, 76, 128, 256, 602, 1000, 1024, 1025, 4096, 2**20)


# Rows, width, projected width, block length: several tiles, the last one ragged; with and without a buffer for x P.
PROJECTED = (
    (10_007, 128, 16, 16),
    (5_003, 128, 16, 256),
    (3_001, 602, 76, 76),
    (3_001, 602, 76, 256),
    (2_001, 500, 63, 100),
    (1_001, 7, 1, 1),
    (1_001, 1, 3, 64),
    (41, 1201, 151, 151),
    (301, 1433, 180, 2048),
    (0, 128, 16, 16),
)


def make_flag() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int32).pin_memory()


def on_cpu(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.cpu() for tensor in tensors)


def assert_projected_parity(
    x: torch.Tensor, projected: int, block_length: int, bits: int, on_gpu: torch.Tensor
) -> None:
    """`on_gpu` is `x` on the GPU, wherever it lies there."""
    from actbench.quant.cuda import backend as cuda

    rows, width = x.shape
    parameters = block_length, bits, level_table("clipped-normal", bits, block_length)
    shape = rows, width, projected
    told, expected_told = make_flag(), torch.zeros(1, dtype=torch.int32)
    actual = cuda.project_quantize(on_gpu, projected, BlockCode(*parameters), 7, 11, 3, told)
    expected = reference.project_quantize(x, projected, BlockCode(*parameters), 7, 11, 3, expected_told)
    torch.cuda.synchronize()
    parity.assert_same_packed(on_cpu(*actual, told), (*expected, expected_told))
    values = cuda.dequantize_unproject(*actual, *shape, BlockCode(*parameters), x.dtype, 7, 11)
    expected_values = reference.dequantize_unproject(*expected, *shape, BlockCode(*parameters), x.dtype, 7, 11)
    parity.assert_same(values.cpu(), expected_values, "values")


def assert_parity(
    x: torch.Tensor, block_length: int, bits: int, levels: tuple[float, ...], seed: int = 7, stream: int = 3
) -> None:
    from actbench.quant.cuda import backend as cuda

    told, expected_told = make_flag(), torch.zeros(1, dtype=torch.int32)
    actual = cuda.quantize(x.cuda(), BlockCode(block_length, bits, levels), seed, stream, told)
    expected = reference.quantize(x, BlockCode(block_length, bits, levels), seed, stream, expected_told)
    torch.cuda.synchronize()
    parity.assert_same_packed(on_cpu(*actual, told), (*expected, expected_told))
    values = cuda.dequantize(*actual, x.numel(), BlockCode(block_length, bits, levels), x.dtype)
    expected_values = reference.dequantize(*expected, x.numel(), BlockCode(block_length, bits, levels), x.dtype)
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


def assert_rectified_parity(case: parity.Rectified) -> None:
    from actbench.quant.cuda import backend as cuda

    x, numel = case.x, case.x.numel()
    mask = None if case.mask is None else case.mask.cuda()
    told, expected_told = make_flag(), torch.zeros(1, dtype=torch.int32)
    codes, scale = cuda.quantize_rectified(x.cuda(), case.code, 7, 3, told)
    expected = reference.quantize_rectified(x, case.code, 7, 3, expected_told)
    torch.cuda.synchronize()
    for one, other, what in zip(
        on_cpu(scale, codes, told), (expected[1], expected[0], expected_told), ("scales", "codes", "flags"), strict=True
    ):
        parity.assert_same(one, other, what)
    values = cuda.dequantize_rectified(codes, scale, numel, case.code, x.dtype, mask, case.factor)
    oracle = reference.dequantize_rectified(expected[0], expected[1], numel, case.code, x.dtype, *case.dropped)
    parity.assert_same(values.cpu(), oracle, "values")
    passed = cuda.pass_rectified(-x.cuda(), codes, case.code, mask, case.factor)
    parity.assert_same(passed.cpu(), reference.pass_rectified(-x, expected[0], case.code, *case.dropped), "gradients")


@pytest.mark.parametrize("how", parity.RECTIFIED, ids=str)
@pytest.mark.parametrize("dtype", parity.DTYPES, ids=str)
@pytest.mark.parametrize("block_length", LENGTHS)
def test_rectified_codes_are_the_reference(
    block_length: int, dtype: torch.dtype, how: tuple[float, tuple[float, ...]]
) -> None:
    for numel in (0, 1, 7, 3 * block_length + 5, 100_003):
        x = parity.make_values("normal", numel, dtype, numel)
        assert_rectified_parity(parity.Rectified(x, block_length, *how))
        assert_rectified_parity(parity.Rectified(x, block_length, *how, parity.make_mask(numel), 1 / 0.7))


@pytest.mark.parametrize("kind", parity.KINDS)
@pytest.mark.parametrize("block_length", [13, 64, 4097])
def test_strange_blocks_are_rectified_as_in_the_reference(block_length: int, kind: str) -> None:
    for dtype in parity.DTYPES:
        x = parity.make_values(kind, 50_021, dtype, 1)
        for how in parity.RECTIFIED[:3]:
            assert_rectified_parity(parity.Rectified(x, block_length, *how, parity.make_mask(50_021), 2.0))


@pytest.mark.parametrize("name", parity.RECTIFIED_EDGE_CASES)
def test_the_edges_of_float32_are_rectified_as_in_the_reference(name: str) -> None:
    assert_rectified_parity(parity.RECTIFIED_EDGE_CASES[name])


@pytest.mark.parametrize("shape", [(10_007, 128), (5_003, 100), (3_001, 602), (2_001, 7), (41, 8415), (0, 16)], ids=str)
@pytest.mark.parametrize("how", parity.RECTIFIED[:3], ids=str)
@pytest.mark.parametrize("dtype", parity.DTYPES, ids=str)
def test_batch_norms_backward_is_the_reference(
    dtype: torch.dtype, how: tuple[float, tuple[float, ...]], shape: tuple[int, int]
) -> None:
    from actbench.quant.cuda import backend as cuda

    rows, width = shape
    y = parity.make_values("normal", rows * width, torch.float32, 1)
    gradient = parity.make_values("normal", rows * width, dtype, 2).view(shape)
    coefficients = parity.make_values("normal", 4 * width, torch.float32, 3).view(4, width)
    for mask in (None, parity.make_mask(y.numel())):
        case = parity.Rectified(y, 128, *how, mask, 1.25)
        on_gpu = None if mask is None else mask.cuda()
        packed = codes, scale = reference.quantize_rectified(y, case.code, 7, 3)
        arguments = gradient.cuda(), codes.cuda(), scale.cuda(), case.code
        sums = cuda.norm_sums(*arguments, on_gpu, 1.25)
        parity.assert_same_sums(sums.cpu(), gradient, packed, case, BANDS + THREADS)
        assert torch.equal(sums, cuda.norm_sums(*arguments, on_gpu, 1.25))
        by_x = cuda.norm_gradient(*arguments, coefficients.cuda(), on_gpu, 1.25)
        oracle = reference.norm_gradient(gradient, codes, scale, case.code, coefficients, *case.dropped)
        parity.assert_same(by_x.cpu(), oracle, "gradients")


@pytest.mark.parametrize("block_length", [128, 4097])
def test_rectified_codes_can_be_captured_into_a_graph(block_length: int) -> None:
    from actbench.quant.cuda import backend as cuda

    code = BlockCode(block_length, *parity.RECTIFIED[0])
    x, coefficients = torch.randn(3_000, 100, device="cuda"), torch.randn(4, 100, device="cuda")

    def round_trip() -> tuple[torch.Tensor, ...]:
        codes, scale = cuda.quantize_rectified(x, code, 7, 3)
        values = cuda.dequantize_rectified(codes, scale, x.numel(), code, x.dtype)
        passed = cuda.pass_rectified(x, codes, code)
        sums = cuda.norm_sums(x, codes, scale, code)
        return values, passed, sums, cuda.norm_gradient(x, codes, scale, code, coefficients)

    round_trip()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = round_trip()
    x.copy_(torch.randn(3_000, 100))
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, out, round_trip()))


def test_a_view_without_16_byte_alignment_is_read() -> None:
    from actbench.quant.cuda import backend as cuda

    x, levels = torch.randn(4001), level_table("uniform", 2, 128)
    actual = cuda.quantize(x.cuda()[1:], BlockCode(128, 2, levels), 7, 3)
    for one, other in zip(actual, reference.quantize(x[1:], BlockCode(128, 2, levels), 7, 3), strict=True):
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("width", [1, 40, 128, 602])
def test_sparse_products_are_the_reference(width: int, index: torch.dtype) -> None:
    from actbench.quant.cuda import backend as cuda

    csr, x = parity.make_csr(5_011, 703, 1, index), torch.randn(703, width)
    crow, col, values = (part.cuda() for part in csr)
    expected = reference.sparse_product(crow, col, values, x.cuda())
    parity.assert_same(cuda.sparse_product(crow, col, values, x.cuda()).cpu(), expected.cpu(), "products")


def test_torchs_products_have_one_order_while_one_is_asked_for() -> None:
    crow, col, values = parity.make_csr(5_011, 5_011, 1, torch.int32)
    matrix = torch.sparse_csr_tensor(crow, col, values, (5_011, 5_011), check_invariants=False).cuda()
    x, g = torch.randn(5_011, 64, device="cuda"), torch.randn(5_011, 64, device="cuda")
    expected = reference.sparse_product(matrix.crow_indices(), matrix.col_indices(), matrix.values(), x)
    gradients = []
    for _ in range(3):
        leaf = x.clone().requires_grad_()
        with ordered_products():
            out = matrix @ leaf
            out.backward(g)
        assert torch.equal(out.detach(), expected)
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_masks_and_projections_are_the_reference() -> None:
    from actbench.quant.cuda import backend as cuda

    for numel in (0, 1, 15, 16, 17, 1_000_003):
        mask = torch.rand(numel) < 0.5
        packed = cuda.pack_mask(mask.cuda())
        assert torch.equal(packed.cpu(), reference.pack_mask(mask))
        assert torch.equal(cuda.unpack_mask(packed, numel).cpu(), mask)
    for dtype in parity.DTYPES:
        actual = cuda.projection(602, 76, 7, 3, dtype, torch.device("cuda"))
        assert torch.equal(actual.cpu(), reference.projection(602, 76, 7, 3, dtype, torch.device("cpu")))


@pytest.mark.parametrize("bits", parity.BITS)
@pytest.mark.parametrize("dtype", parity.DTYPES, ids=str)
@pytest.mark.parametrize("shape", PROJECTED, ids=str)
def test_projections_are_quantized_as_in_the_reference(
    shape: tuple[int, int, int, int], dtype: torch.dtype, bits: int
) -> None:
    assert_projection(shape, dtype, bits)


def test_wide_projections_are_quantized_as_in_the_reference() -> None:
    # Once: the reference, which goes over the columns, takes a second.
    assert_projection((41, 8415, 1052, 1052), torch.float32, 2)


def assert_projection(shape: tuple[int, int, int, int], dtype: torch.dtype, bits: int) -> None:
    rows, width, projected, block_length = shape
    x = parity.make_values("normal", rows * width, dtype, 1).view(rows, width)
    assert_projected_parity(x, projected, block_length, bits, x.cuda())


def test_both_ways_to_project_are_among_the_shapes() -> None:
    assert {fits_tile(*shape[2:]) for shape in PROJECTED} == {True, False}


@pytest.mark.parametrize("kind", parity.KINDS)
@pytest.mark.parametrize("block_length", [16, 13, 4097])
def test_strange_values_are_projected_as_in_the_reference(block_length: int, kind: str) -> None:
    for dtype in parity.DTYPES:
        x = parity.make_values(kind, 2_003 * 100, dtype, 1).view(2_003, 100)
        assert_projected_parity(x, 13, block_length, 2, x.cuda())


@pytest.mark.parametrize("width", [128, 100, 33])
def test_rows_without_alignment_are_projected(width: int) -> None:
    for dtype in parity.DTYPES:
        x = parity.make_values("normal", 1_001 * width + 1, dtype, 1)
        assert_projected_parity(x[1:].view(1_001, width), 16, 64, 2, x.cuda()[1:].view(1_001, width))


def test_masked_values_are_the_reference() -> None:
    from actbench.quant.cuda import backend as cuda

    for dtype in parity.DTYPES:
        for kind in parity.KINDS:
            for numel in (0, 1, 7, 16, 17, 100_003):
                whole = parity.make_values(kind, numel + 1, dtype, 1)
                for x, on_gpu in ((whole, whole.cuda()), (whole[1:], whole.cuda()[1:])):
                    packed = reference.pack_mask(torch.rand(x.numel()) < 0.5)
                    parity.assert_same(cuda.pack_positive(on_gpu).cpu(), reference.pack_positive(x), "packed masks")
                    kept = cuda.keep_where(on_gpu, packed.cuda())
                    parity.assert_same(kept.cpu(), reference.keep_where(x, packed), "kept values")
                    scaled = cuda.scale_where(on_gpu, packed.cuda(), 1 / 0.7)
                    parity.assert_same(scaled.cpu(), reference.scale_where(x, packed, 1 / 0.7), "scaled values")


def test_masked_values_keep_their_shape() -> None:
    from actbench.quant.cuda import backend as cuda

    x = torch.randn(30, 5, device="cuda")
    packed = cuda.pack_positive(x)
    assert torch.equal(cuda.keep_where(x, packed), x.clamp(min=0))
    assert torch.equal(cuda.scale_where(x.abs(), packed, 2.0), x.abs() * (x > 0) * 2)


@pytest.mark.parametrize("block_length", [16, 4097])
def test_a_broken_block_is_told_in_pinned_memory(block_length: int) -> None:
    from actbench.quant.cuda import backend as cuda

    levels, told = level_table("uniform", 2, block_length), make_flag()
    x = torch.randn(3_000, 32, device="cuda")
    cuda.quantize(x, BlockCode(block_length, 2, levels), 7, 3, told)
    cuda.project_quantize(x, 4, BlockCode(block_length, 2, levels), 7, 11, 3, told)
    torch.cuda.synchronize()
    assert told.item() == 0
    x[-1, -1] = torch.inf
    cuda.quantize(x, BlockCode(block_length, 2, levels), 7, 3, told)
    torch.cuda.synchronize()
    assert told.item() == 1
    told.zero_()
    cuda.project_quantize(x, 4, BlockCode(block_length, 2, levels), 7, 11, 3, told)
    torch.cuda.synchronize()
    assert told.item() == 1


def test_projections_run_on_the_callers_stream() -> None:
    from actbench.quant.cuda import backend as cuda

    parameters, shape = (64, 2, level_table("uniform", 2, 64)), (2**15, 128, 16)
    x = torch.randn(2**15, 128)
    expected = reference.project_quantize(x, 16, BlockCode(*parameters), 7, 11, 3)
    expected_values = reference.dequantize_unproject(*expected, *shape, BlockCode(*parameters), x.dtype, 7, 11)
    source = x.cuda()
    warm = cuda.project_quantize(source, 16, BlockCode(*parameters), 7, 11, 3)
    cuda.dequantize_unproject(*warm, *shape, BlockCode(*parameters), x.dtype, 7, 11)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(source)
        torch.cuda._sleep(50_000_000)
        late.copy_(source)
        actual = cuda.project_quantize(late, 16, BlockCode(*parameters), 7, 11, 3)
        values = cuda.dequantize_unproject(*actual, *shape, BlockCode(*parameters), x.dtype, 7, 11)
    stream.synchronize()
    for one, other in zip((*actual, values), (*expected, expected_values), strict=True):
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("block_length", [64, 4097])
def test_projections_can_be_captured_into_a_graph(block_length: int) -> None:
    from actbench.quant.cuda import backend as cuda

    parameters, shape = (block_length, 2, level_table("clipped-normal", 2, block_length)), (3_000, 128, 16)
    x, told = torch.randn(3_000, 128, device="cuda"), make_flag()

    def round_trip() -> torch.Tensor:
        packed = cuda.project_quantize(x, 16, BlockCode(*parameters), 7, 11, 3, told)
        return cuda.dequantize_unproject(*packed, *shape, BlockCode(*parameters), x.dtype, 7, 11)

    round_trip()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = round_trip()
    x.copy_(torch.randn(3_000, 128))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, round_trip())
    assert told.item() == 0
    x[5, 5] = torch.nan
    graph.replay()
    torch.cuda.synchronize()
    assert told.item() == 1


def test_kernels_run_on_the_callers_stream() -> None:
    from actbench.quant.cuda import backend as cuda

    levels = level_table("uniform", 2, 128)
    x = torch.randn(2**22)
    expected = reference.quantize(x, BlockCode(128, 2, levels), 7, 3)
    source = x.cuda()
    cuda.quantize(source, BlockCode(128, 2, levels), 7, 3)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # Long enough that a kernel on any other stream would read the zeros.
        late = torch.zeros_like(source)
        torch.cuda._sleep(50_000_000)
        late.copy_(source)
        actual = cuda.quantize(late, BlockCode(128, 2, levels), 7, 3)
    stream.synchronize()
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one.cpu(), other)


@pytest.mark.parametrize("block_length", [100, 128])
def test_calls_can_be_captured_into_a_graph(block_length: int) -> None:
    from actbench.quant.cuda import backend as cuda

    levels = level_table("clipped-normal", 2, block_length)
    x = torch.randn(50_000, device="cuda")

    def round_trip() -> torch.Tensor:
        packed = cuda.quantize(x, BlockCode(block_length, 2, levels), 7, 3)
        return cuda.dequantize(*packed, x.numel(), BlockCode(block_length, 2, levels), x.dtype)

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
    from actbench.quant.cuda import backend as cuda

    def rounded(size: int) -> int:
        return -(-size // 512) * 512

    levels = level_table("clipped-normal", 8, 128)
    x = torch.randn(1_000_003, device="cuda")
    layout = Layout(x.numel(), 128, 8)
    cuda.quantize(x, BlockCode(128, 8, levels), 7, 3)
    before = torch.cuda.memory_allocated()
    kept = cuda.quantize(x, BlockCode(128, 8, levels), 7, 3)
    grown = torch.cuda.memory_allocated() - before
    metadata = layout.total_bytes - layout.code_bytes
    assert grown == rounded(layout.code_bytes) + 2 * rounded(metadata // 2)
    assert sum(tensor.nbytes for tensor in kept) == layout.total_bytes
    mask = x > 0
    before = torch.cuda.memory_allocated()
    packed = cuda.pack_mask(mask)
    assert torch.cuda.memory_allocated() - before == rounded(mask_bytes(x.numel()))
    assert packed.nbytes == mask_bytes(x.numel())
    before = torch.cuda.memory_allocated()
    positive = cuda.pack_positive(x)
    assert torch.cuda.memory_allocated() - before == rounded(mask_bytes(x.numel()))
    assert positive.nbytes == mask_bytes(x.numel())


@pytest.mark.parametrize("block_length", [64, 4097])
def test_a_projection_takes_no_memory_but_its_outputs_and_buffer(block_length: int) -> None:
    from actbench.quant.cuda import backend as cuda

    def requested(what: str) -> int:
        # Of blocks beyond 1 MiB the allocator may hand out more than was asked for.
        return int(torch.cuda.memory_stats()[f"requested_bytes.all.{what}"])

    rows, width, projected = shape = 100_003, 128, 16
    parameters = block_length, 2, level_table("clipped-normal", 2, block_length)
    x = torch.randn(rows, width, device="cuda")
    buffer_bytes = 0 if fits_tile(projected, block_length) else 4 * rows * projected
    packed = cuda.project_quantize(x, projected, BlockCode(*parameters), 7, 11, 3)
    torch.cuda.reset_peak_memory_stats()
    before = requested("current")
    again = cuda.project_quantize(x, projected, BlockCode(*parameters), 7, 11, 3)
    kept_bytes = Layout(rows * projected, block_length, 2).total_bytes
    assert requested("peak") - before == kept_bytes + buffer_bytes
    assert requested("current") - before == kept_bytes == sum(tensor.nbytes for tensor in again)
    torch.cuda.reset_peak_memory_stats()
    before = requested("current")
    values = cuda.dequantize_unproject(*packed, *shape, BlockCode(*parameters), x.dtype, 7, 11)
    assert requested("peak") - before == values.nbytes


def test_a_tensor_that_is_not_contiguous_is_refused() -> None:
    from actbench.quant.cuda import backend as cuda

    with pytest.raises(ValueError, match=r"has strides \(1, 4\): pass tensor.contiguous\(\)"):
        cuda.quantize(torch.zeros(8, 4, device="cuda").t(), BlockCode(8, 2, level_table("uniform", 2, 8)), 7, 3)
