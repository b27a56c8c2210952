"""cuda.py with the emulator in CuPy's place: every function hands its kernels the right arguments."""

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import actbench.quant
from actbench.quant import reference
from actbench.quant.cuda import ordered
from actbench.quant.cuda.launch import BANDS, THREADS, Launch, fits_tile
from actbench.quant.layout import BlockCode
from actbench.quant.levels import level_table
from actbench.quant.operations import kernel_names
from tests.quant.cuda import emulate, parity

NAME = "actbench.quant.cuda.backend"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    machine = emulate.emulator()
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    real = vars(actbench.quant.cuda).get("backend")
    module = importlib.import_module(NAME)

    def run(launches: list[Launch], _device: torch.device) -> None:
        machine.run(launches)

    monkeypatch.setattr(module, "_run", run)
    yield module
    # The next to import it must meet the real CuPy, or its absence.
    del sys.modules[NAME], actbench.quant.cuda.backend
    if real is not None:
        vars(actbench.quant.cuda)["backend"] = real


def flags() -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.zeros(2, 1, dtype=torch.int32).unbind()
    return first, second


@pytest.mark.parametrize("block_length", [16, 13])
@pytest.mark.parametrize("kind", ["normal", "broken"])
def test_quantize_and_dequantize(cuda: Any, kind: str, block_length: int) -> None:
    x = parity.make_values(kind, 600, torch.float16, 1).view(20, 30)
    parameters = block_length, 2, level_table("clipped-normal", 2, block_length)
    told, expected_told = flags()
    actual = cuda.quantize(x, BlockCode(*parameters), 7, 3, told)
    expected = reference.quantize(x, BlockCode(*parameters), 7, 3, expected_told)
    parity.assert_same_packed((*actual, told), (*expected, expected_told))
    parity.assert_same_packed((*cuda.quantize(x, BlockCode(*parameters), 7, 3), told), (*expected, expected_told))
    values = cuda.dequantize(*actual, 600, BlockCode(*parameters), torch.bfloat16)
    parity.assert_same(values, reference.dequantize(*expected, 600, BlockCode(*parameters), torch.bfloat16), "values")


@pytest.mark.parametrize(("projected", "block_length"), [(5, 10), (5, 4097), (1, 4)])
@pytest.mark.parametrize("kind", ["normal", "broken"])
@pytest.mark.parametrize("rows", [270, 0])
def test_project_quantize_and_dequantize_unproject(
    cuda: Any, rows: int, kind: str, projected: int, block_length: int
) -> None:
    assert fits_tile(projected, block_length) == (block_length != 4097)
    x = parity.make_values(kind, rows * 33, torch.float32, 1).view(rows, 33)
    parameters = block_length, 4, level_table("clipped-normal", 4, block_length)
    told, expected_told = flags()
    actual = cuda.project_quantize(x, projected, BlockCode(*parameters), 7, 11, 3, told)
    expected = reference.project_quantize(x, projected, BlockCode(*parameters), 7, 11, 3, expected_told)
    parity.assert_same_packed((*actual, told), (*expected, expected_told))
    shape = rows, 33, projected
    values = cuda.dequantize_unproject(*actual, *shape, BlockCode(*parameters), torch.float16, 7, 11)
    expected_values = reference.dequantize_unproject(*expected, *shape, BlockCode(*parameters), torch.float16, 7, 11)
    parity.assert_same(values, expected_values, "values")


def test_masks(cuda: Any) -> None:
    x = parity.make_values("broken", 333, torch.bfloat16, 1).view(9, 37)
    packed = cuda.pack_positive(x)
    parity.assert_same(packed, reference.pack_positive(x), "packed masks")
    parity.assert_same(cuda.pack_mask(x > 0), reference.pack_mask(x > 0), "packed masks")
    parity.assert_same(cuda.unpack_mask(packed, 333), reference.unpack_mask(packed, 333), "masks")
    parity.assert_same(cuda.keep_where(x, packed), reference.keep_where(x, packed), "kept values")
    parity.assert_same(cuda.scale_where(x, packed, 1.25), reference.scale_where(x, packed, 1.25), "scaled values")


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc])
def test_products_are_summed_in_the_order_of_their_entries(
    cuda: Any, layout: torch.layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward of every product that a network may ask for; the CPU's dispatch key stands for CUDA's."""
    monkeypatch.setattr(ordered, "sparse_product", cuda.sparse_product)
    csr = parity.make_csr(30, 40, 1, torch.int64)
    matrix = torch.sparse_csr_tensor(*csr, (30, 40), check_invariants=False).to_dense().to_sparse_csr()
    parts = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    if layout == torch.sparse_csc:
        matrix = matrix.to_sparse_csc()
    turned = matrix.to_dense().t().to_sparse_csr()
    back = turned.crow_indices(), turned.col_indices(), turned.values()
    x, bias = torch.randn(40, 12), torch.randn(30, 12)
    expected, g = reference.sparse_product(*parts, x), torch.randn(30, 12)
    by_x = reference.sparse_product(*back, g)
    products: list[tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]] = [
        (lambda x: matrix @ x, expected),
        (lambda x: torch.mm(matrix, x), expected),
        (lambda x: torch.sparse.mm(matrix, x), expected),
        (lambda x: (x.t() @ matrix.t()).t(), expected),
        (lambda x: torch.addmm(bias, matrix, x, beta=0.5), expected + bias * 0.5),
        (lambda x: torch.addmm(bias, matrix, x, alpha=2.0), expected * 2 + bias),
    ]
    for number, (product, result) in enumerate(products):
        leaf = x.clone().requires_grad_()
        with ordered.ordered_products("SparseCsrCPU"):
            out = product(leaf)
            out.backward(g)
        assert torch.equal(out.detach(), result), number
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, by_x * (2 if number == 5 else 1)), number


def test_a_product_without_an_order_is_refused_while_one_is_asked_for(cuda: Any) -> None:
    matrix = torch.eye(4, dtype=torch.float64).to_sparse_csr()
    with (
        ordered.ordered_products("SparseCsrCPU"),
        pytest.raises(RuntimeError, match=r"float64 and torch\.strided does not have a deterministic implementation"),
    ):
        matrix @ torch.ones(4, 2, dtype=torch.float64)
    assert torch.equal(matrix @ torch.ones(4, 2, dtype=torch.float64), torch.ones(4, 2, dtype=torch.float64))


def test_projection(cuda: Any) -> None:
    device = torch.device("cpu")
    parity.assert_same(
        cuda.projection(13, 7, 7, 3, torch.float16, device),
        reference.projection(13, 7, 7, 3, torch.float16, device),
        "entries",
    )


@pytest.mark.parametrize(("bits", "levels"), parity.RECTIFIED[:3])
@pytest.mark.parametrize("block_length", [16, 4097])
@pytest.mark.parametrize("kind", ["normal", "broken"])
@pytest.mark.parametrize("rows", [270, 0])
@pytest.mark.parametrize("kept", [None, 0.7])
def test_rectified_codes(
    cuda: Any, bits: float, levels: tuple[float, ...], block_length: int, kind: str, rows: int, kept: float | None
) -> None:
    x = parity.make_values(kind, rows * 12, torch.bfloat16, 1).view(rows, 12)
    mask = None if kept is None else parity.make_mask(x.numel(), kept)
    code, dropped = BlockCode(block_length, bits, levels), (mask, 1.25)
    told, expected_told = flags()
    actual = cuda.quantize_rectified(x, code, 7, 3, told)
    expected = reference.quantize_rectified(x, code, 7, 3, expected_told)
    for one, other, what in zip((*actual, told), (*expected, expected_told), ("codes", "scales", "flag"), strict=True):
        parity.assert_same(one, other, what)
    parity.assert_same(cuda.quantize_rectified(x, code, 7, 3)[0], expected[0], "codes")
    values = cuda.dequantize_rectified(*actual, x.numel(), code, torch.float16, *dropped)
    oracle = reference.dequantize_rectified(expected[0], expected[1], x.numel(), code, torch.float16, *dropped)
    parity.assert_same(values, oracle, "values")
    passed = cuda.pass_rectified(x, actual[0], code, *dropped)
    parity.assert_same(passed, reference.pass_rectified(x, expected[0], code, *dropped), "gradients")
    coefficients = parity.make_values("normal", 4 * 12, torch.float32, 2).view(4, 12)
    gradient = cuda.norm_gradient(x, *actual, code, coefficients, *dropped)
    oracle = reference.norm_gradient(x, expected[0], expected[1], code, coefficients, *dropped)
    parity.assert_same(gradient, oracle, "gradients")


@pytest.mark.parametrize("width", [8, 12, 13, 300])
@pytest.mark.parametrize("rows", [1000, 3, 0])
@pytest.mark.parametrize("kept", [None, 0.7])
def test_the_sums_of_a_batch_norm(cuda: Any, rows: int, width: int, kept: float | None) -> None:
    y = parity.make_values("normal", rows * width, torch.float32, 1).view(rows, width)
    mask = None if kept is None else parity.make_mask(y.numel(), kept)
    case = parity.Rectified(y, 64, *parity.RECTIFIED[0], mask, 1.25)
    packed = cuda.quantize_rectified(y, case.code, 7, 3)
    gradient = parity.make_values("normal", rows * width, torch.float16, 2).view(rows, width)
    sums = cuda.norm_sums(gradient, *packed, case.code, *case.dropped)
    parity.assert_same_sums(sums, gradient, packed, case, BANDS + THREADS)
    assert torch.equal(sums, cuda.norm_sums(gradient, *packed, case.code, *case.dropped))


def test_only_contiguous_tensors_are_taken(cuda: Any) -> None:
    x, levels = torch.zeros(8, 4).t(), level_table("uniform", 2, 8)
    packed = torch.zeros(4, dtype=torch.uint8)
    calls: tuple[Callable[[], object], ...] = (
        lambda: cuda.quantize(x, BlockCode(8, 2, levels), 7, 3),
        lambda: cuda.project_quantize(x, 2, BlockCode(8, 2, levels), 7, 11, 3),
        lambda: cuda.pack_positive(x),
        lambda: cuda.keep_where(x, packed),
        lambda: cuda.scale_where(x, packed, 2.0),
        lambda: cuda.quantize_rectified(x, BlockCode(8, 2, levels[:3]), 7, 3),
        lambda: cuda.pass_rectified(x, packed, 2),
        lambda: cuda.norm_sums(x, packed, packed, BlockCode(8, 2, levels[:3])),
        lambda: cuda.norm_gradient(packed, packed, packed, BlockCode(8, 2, levels[:3]), x),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"has strides \(1, 4\): pass tensor.contiguous\(\)"):
            call()


def test_the_race_check_of_a_gpu_runs_every_kind_of_kernel(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `.ci/gpu` has it, with the emulator in the GPU's place: its slot is no place to find a wrong argument."""
    script = (Path(__file__).resolve().parents[3] / ".ci" / "gpu").read_text()
    (program,) = re.findall(r'^KERNELS = """\n(.*?)^"""', script, re.DOTALL | re.MULTILINE)
    ran: set[str] = set()
    run = cuda._run

    def note(launches: list[Launch], device: torch.device) -> None:
        ran.update(launch.source for launch in launches)
        run(launches, device)

    monkeypatch.setattr(cuda, "_run", note)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    exec(program.replace(', device="cuda"', ""), {})
    assert ran == {source for source, _ in kernel_names()}
