"""The table of operations: each gives the oracle's result, has the shapes that it declares, and is torch's as well."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from actbench.quant import reference
from actbench.quant.backend import Backend
from actbench.quant.cpu import backend as cpu
from actbench.quant.layout import BlockCode
from actbench.quant.operations import OPERATIONS, Operation

BACKENDS: tuple[Backend, ...] = (reference, cpu)
EACH = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


def inputs_of(operation: Operation) -> list[tuple[Any, ...]]:
    x = torch.randn(37, 12, generator=torch.Generator().manual_seed(0))
    return [inputs for length in (8, 63, 500) for inputs in operation.examples(x, length)]


def results(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def flattened(inputs: tuple[Any, ...]) -> list[Any]:
    """As a schema has them."""
    flat: list[Any] = []
    for each in inputs:
        flat += [each.block_length, each.bits, list(each.levels)] if isinstance(each, BlockCode) else [each]
    return flat


def test_the_table_has_all_that_a_backend_can_do() -> None:
    assert {operation.name for operation in OPERATIONS} == {name for name in vars(Backend) if not name.startswith("_")}


@EACH
def test_backends_agree_with_the_oracle_and_with_what_is_declared(operation: Operation) -> None:
    for inputs in inputs_of(operation):
        ours, expected = (results(getattr(backend, operation.name)(*inputs)) for backend in (cpu, reference))
        assert all(map(torch.equal, ours, expected))
        assert tuple((tuple(each.shape), each.dtype) for each in expected) == operation.outputs(*inputs)


@EACH
def test_torch_has_it_with_its_schema_and_shapes(operation: Operation) -> None:
    registered = getattr(torch.ops.actbench, operation.name).default
    for inputs in inputs_of(operation):
        flat = flattened(inputs)
        expected = results(getattr(cpu, operation.name)(*inputs))
        assert all(map(torch.equal, results(registered(*flat)), expected))
        torch.library.opcheck(registered, tuple(flat), test_utils=("test_schema", "test_faketensor"))


def test_a_compiled_graph_takes_an_operation_whole() -> None:
    levels = [0.0, 1.0, 2.0]

    def around(x: Tensor) -> Tensor:
        codes, scale = torch.ops.actbench.quantize_rectified(x * 2, 8, 2.0, levels, 7, 3)
        estimate: Tensor = torch.ops.actbench.dequantize_rectified(
            codes, scale, x.numel(), 8, 2.0, levels, torch.float32, None, 1.0
        )
        return estimate + 1

    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(around, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), around(x))
