"""What a model's forward keeps for backward, by arithmetic alone: no tensor is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from actbench.compress.saved import Kept, Noise, dropout_bytes
from actbench.quant.layout import mask_bytes
from actbench.scheme import Scheme

FLOAT_BYTES = 4
_NO_NOISE = Noise(0, 0)


@dataclass(frozen=True)
class Operation:
    """One operation of a forward pass on a float32 matrix [rows, width].

    `tensor` names what FP32 keeps: the input of a linear, batch norm, leaky ReLU or aggregation, the output of a ReLU,
    the mask of a dropout, the choice of an edge dropout among [rows, width] edges. Equal names are one tensor; the name
    "data" is the graph's own features, which are there anyway. An "exact" one is kept as it is under every scheme.
    """

    kind: Literal["linear", "batch_norm", "relu", "leaky_relu", "dropout", "edge_dropout", "aggregate", "exact"]
    tensor: str
    rows: int
    width: int


def predict_saved_bytes(operations: Iterable[Operation], scheme: Scheme, device: str) -> int:
    """Saved-for-backward bytes of `operations` under `scheme` on `device` ("cpu" or "cuda").

    The device matters for dropout of elements alone: FP32 keeps a byte an element on CUDA and four on a CPU, and the
    state of a generator, which dropout=seed keeps, is smaller on CUDA.
    """
    if scheme.compresses:
        return sum(_compressed_bytes(operation, scheme, device) for operation in operations)
    kept: dict[str, int] = {"data": 0}
    statistics = 0
    for operation in operations:
        numel = operation.rows * operation.width
        byte = operation.kind == "edge_dropout" or (operation.kind == "dropout" and device == "cuda")
        each = 1 if byte else FLOAT_BYTES
        kept.setdefault(operation.tensor, numel * each)
        statistics += _statistics_bytes(operation)
    return sum(kept.values()) + statistics


def _compressed_bytes(operation: Operation, scheme: Scheme, device: str) -> int:
    numel = operation.rows * operation.width
    if operation.kind == "exact":
        return numel * FLOAT_BYTES
    if operation.kind in ("relu", "leaky_relu", "edge_dropout"):
        return mask_bytes(numel)
    if operation.kind == "dropout":
        return dropout_bytes(numel, scheme, device)
    ratio = scheme.projection if operation.kind == "linear" else 1
    kept = Kept.of(operation.rows, operation.width, torch.float32, scheme, _NO_NOISE, ratio)
    return kept.packing.layout.total_bytes + _statistics_bytes(operation)


def _statistics_bytes(operation: Operation) -> int:
    """A batch norm keeps its batch's mean and inverse standard deviation under every scheme."""
    return 2 * FLOAT_BYTES * operation.width if operation.kind == "batch_norm" else 0
