"""The benchmark of the quantizer: what it compares, and that it times nothing that is wrong."""

import json
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actbench import benchmark
from actbench.benchmark import Shape, benchmark_kernels
from actbench.errors import KernelError
from actbench.quant import Projection, keep_where

CPU = torch.device("cpu")
# No multiple of 8 and, over 8, 26 columns: the last block, octet and byte are ragged.
SHAPE = Shape(37, 203)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return benchmark_kernels([SHAPE], CPU, 3, False, lambda _: None)


def test_every_operation_is_timed_beside_a_copy_and_eager_torch(record: dict[str, Any]) -> None:
    assert json.loads(json.dumps(record)) == record
    assert [(row["operation"], row["block_length"]) for row in record["rows"]] == [
        ("quantize", 203),
        ("dequantize", 203),
        ("project + quantize", 26),
        ("dequantize + unproject", 26),
        ("quantize", 1015),
        ("dequantize", 1015),
        ("project + quantize", 962),
        ("dequantize + unproject", 962),
        ("ReLU bits", None),
        ("dropout bits", None),
        ("ReLU backward", None),
        ("dropout backward", None),
        ("quantize rectified", 128),
        ("dequantize rectified", 128),
        ("batch norm sums", 128),
        ("batch norm backward", 128),
    ]
    for row in record["rows"]:
        assert set(row["seconds"]) == {"copy", "ours", "eager"}
        for name in row["seconds"]:
            assert 0 < row["seconds"][name]["p10"] <= row["seconds"][name]["median"] <= row["seconds"][name]["p90"]
        assert row["bytes_per_second"] * row["seconds"]["ours"]["median"] == pytest.approx(row["moved_bytes"], rel=1e-9)
        assert row["floor_seconds"] * row["copy_bytes_per_second"] == pytest.approx(row["moved_bytes"], rel=1e-9)


def test_the_record_is_there_as_it_grows_with_a_floor_in_each_row() -> None:
    seen: list[tuple[int, bool]] = []

    def keep(record: dict[str, Any]) -> None:
        assert all(row["floor_seconds"] > 0 for row in record["rows"])
        seen.append((len(json.loads(json.dumps(record))["rows"]), record["complete"]))

    benchmark_kernels([Shape(8, 8), Shape(9, 8)], CPU, 1, False, lambda _: None, keep)
    assert seen == [*((number, False) for number in range(1, 33)), (32, True)]


def test_on_a_gpu_a_buffer_comes_round_when_no_cache_holds_it_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = 2**20
    properties = types.SimpleNamespace(L2_cache_size=cache)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    gpu = torch.device("cuda")
    for case in benchmark._cases(Shape(1024, 128), CPU):
        inputs = benchmark._rotated(case.inputs, case.moved_bytes, gpu)
        assert len(inputs) * case.moved_bytes >= 4 * cache
        assert not benchmark._stays_in_cache(case.moved_bytes, gpu)
        assert len(inputs) >= len(case.inputs)
        places = [part.data_ptr() for each in inputs for part in each]
        assert len(places) == len(set(places))
        # The same values in turn, so that what was checked is what is timed.
        for number, each in enumerate(inputs):
            assert all(map(torch.equal, each, case.inputs[number % len(case.inputs)]))
    assert benchmark._rotated(case.inputs, case.moved_bytes, CPU) is case.inputs
    for case in benchmark._cases(Shape(16, 16), CPU):
        # Millions of buffers would be needed, and as many nodes of a graph.
        assert len(benchmark._rotated(case.inputs, case.moved_bytes, gpu)) == 64
        assert benchmark._stays_in_cache(case.moved_bytes, gpu)


def test_the_bytes_that_must_move_are_those_of_paper_and_pencil(record: dict[str, Any]) -> None:
    n = 37 * 203
    moved = {(row["operation"], row["block_length"]): row["moved_bytes"] for row in record["rows"]}
    # Codes of 2 bits, and 4 bytes for each of 37 or ceil(7511 / 1015) = 8 blocks.
    assert moved["quantize", 203] == moved["dequantize", 203] == 4 * n + 1878 + 4 * 37
    assert moved["quantize", 1015] == 4 * n + 1878 + 4 * 8
    assert moved["project + quantize", 26] == moved["dequantize + unproject", 26] == 4 * n + 241 + 4 * 37
    assert moved["ReLU bits", None] == 4 * n + 939
    assert moved["dropout bits", None] == n + 939
    assert moved["ReLU backward", None] == moved["dropout backward", None] == 8 * n + 939
    # 2 bytes for each of ceil(7511 / 128) = 59 blocks; 4 sums of 8 bytes or 4 coefficients of 4 bytes a column.
    assert moved["quantize rectified", 128] == moved["dequantize rectified", 128] == 4 * n + 1878 + 2 * 59
    assert moved["batch norm sums", 128] == 4 * n + 1878 + 2 * 59 + 939 + 4 * 8 * 203
    assert moved["batch norm backward", 128] == 8 * n + 1878 + 2 * 59 + 939 + 4 * 4 * 203


def test_eager_torch_does_the_same_mathematics() -> None:
    for case in benchmark._cases(SHAPE, CPU):
        inputs = case.inputs[0]
        ours, eager = case.ours(*inputs), case.eager(*inputs)
        if case.operation == "quantize rectified":
            _assert_rounds_a_relu_to_a_neighbour(inputs[0], eager)
        elif isinstance(eager, tuple):
            assert case.block_length
            (x,) = inputs
            values = x if case.operation == "quantize" else x @ Projection(203, 26, 7, 2).matrix(x)
            _assert_rounds_to_a_neighbour(values, eager, case.block_length)
        elif case.operation == "dequantize + unproject":
            # Of 26 terms of at most 8 in size each, summed in two orders.
            assert torch.allclose(ours, eager.view_as(ours), rtol=0, atol=26 * 26 * 8 * 2.0**-24)
        else:
            assert torch.equal(ours.flatten(), eager.flatten())


def _assert_rounds_to_a_neighbour(values: Tensor, packed: tuple[Tensor, ...], block_length: int) -> None:
    """What is read back is less than a level away, but for the rounding of minimum and scale to bfloat16."""
    codes, low, scale = packed[0], packed[1].flatten(), packed[2].flatten()
    back = benchmark._dequantize(codes, low, scale, values.numel(), block_length)
    level = scale.float().max() * (1 + 3 * 2.0**-8) + low.float().abs().max() * 2.0**-8
    assert float((back - values.flatten()).abs().max()) <= float(level)


def _assert_rounds_a_relu_to_a_neighbour(x: Tensor, packed: tuple[Tensor, ...]) -> None:
    codes, scale = benchmark._unpack_codes(packed[0], 2, x.numel()), packed[1]
    assert torch.equal(codes != 0, x.flatten() > 0)
    back = benchmark._dequantize_rectified(codes, scale, 128)
    level = float(scale.float().max()) * (1 + 3 * 2.0**-8)
    assert float((back - x.flatten().clamp(min=0)).abs().max()) <= level


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:

    def wrong(values: Tensor, packed: Tensor) -> Tensor:
        out = keep_where(values, packed)
        out[-1, -1] += 1
        return out

    monkeypatch.setattr(benchmark, "keep_where", wrong)
    with pytest.raises(KernelError, match="ReLU backward of 37x203 does not give the reference's result"):
        benchmark_kernels([SHAPE], CPU, 1, False, lambda _: None)


def test_torch_compile_that_fails_is_a_reason_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("no compiler\nand a long trace")

    monkeypatch.setattr(torch, "compile", refuse)
    record = benchmark_kernels([SHAPE], CPU, 1, True, lambda _: None)
    assert {row["no_compiled_reason"] for row in record["rows"]} == {"RuntimeError: no compiler"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    record = benchmark_kernels([Shape(64, 64)], CPU, 2, True, lambda _: None)
    assert {row["no_compiled_reason"] for row in record["rows"]} == {None}
    assert all(row["seconds"]["compiled"]["median"] > 0 for row in record["rows"])
