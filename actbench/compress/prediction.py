"""What a model's forward keeps for backward, by arithmetic alone: no tensor is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from actbench.compress.codec import GENERATOR_BYTES, Noise, Quantized, dropout_bytes, is_smaller
from actbench.errors import SchemeError
from actbench.quant import Rectifier
from actbench.quant.layout import mask_bytes
from actbench.scheme import PROJECTED, Scheme

FLOAT_BYTES = 4
BFLOAT16_BYTES = 2
_NO_NOISE = Noise(0, 0)
_LAYERS = ("layer", "layer_input")


@dataclass(frozen=True)
class Operation:
    """One operation of a forward pass on a float32 matrix [rows, width].

    `tensor` names what FP32 keeps: the input of a linear, batch norm, leaky ReLU or aggregation, the output of a ReLU,
    the mask of a dropout, the choice of an edge dropout among [rows, width] edges. Equal names are one tensor; the name
    "data" is the graph's own features, which are there anyway. An "exact" one is kept as it is under every scheme. A
    "layer" begins one that `run_layer` runs, and names its input; a "layer_input" is a further one of the same layer.

    `derived_from` is what a derived scheme has the tensor from: of a ReLU's the batch norm that alone made its input,
    of a linear's input the ReLU whose output it is, dropped out or not, or the data, also by way of the adjacency;
    of a dropout's mask the data if that is what it drops, which no other scheme's backward asks for.

    Under autocast the tensor is bfloat16, unless it is `whole`, float32 all the same; a linear or addmm then makes a
    copy of its own. `weight` is how many elements of its weight it keeps a copy of: none where its input needs no
    gradient.
    """

    kind: Literal[
        "linear",
        "addmm",
        "batch_norm",
        "relu",
        "leaky_relu",
        "dropout",
        "edge_dropout",
        "aggregate",
        "exact",
        "layer",
        "layer_input",
    ]
    tensor: str
    rows: int
    width: int
    whole: bool = False
    weight: int = 0
    derived_from: str | None = None

    @property
    def numel(self) -> int:
        """Elements of the matrix."""
        return self.rows * self.width


def predict_saved_bytes(operations: Iterable[Operation], scheme: Scheme, device: str) -> int:
    """Saved-for-backward bytes of `operations` under `scheme` on `device` ("cpu" or "cuda"); of `offload`, on the GPU.

    The device matters for dropout and checkpoint alone: FP32 keeps a byte an element of a dropout on CUDA and the
    tensor's own dtype on a CPU, and the state of a generator is smaller on CUDA.
    """
    if scheme.name == "bf16":
        return _autocast_bytes(operations, device)
    if scheme.name == "checkpoint":
        return _checkpoint_bytes(operations, device)
    if scheme.name == "offload":
        return 0
    if scheme.derives:
        return _derived_bytes(operations, scheme, device)
    calls: Counter[str] = Counter()
    kept: dict[str, int] = {"data": 0}
    packed_bytes = 0
    bits: dict[str, int] = {}
    for operation in operations:
        calls[operation.kind] += 1
        at = scheme.for_call(operation.kind, calls[operation.kind], of_data=operation.tensor == "data")
        if operation.kind in _LAYERS or _drops_data(operation):
            continue
        if at.compresses and operation.kind == "relu":
            bits[operation.tensor] = mask_bytes(operation.numel)
            continue
        if at.compresses:
            packed_bytes += _compressed_bytes(operation, at, device)
            continue
        kept.setdefault(operation.tensor, operation.numel * (_mask_bytes(operation, device) or FLOAT_BYTES))
        packed_bytes += _statistics_bytes(operation)
    # A ReLU's bits give way where a later call keeps its output as it is.
    return sum(kept.values()) + packed_bytes + sum(size for tensor, size in bits.items() if tensor not in kept)


def require_calls(operations: Iterable[Operation], scheme: Scheme) -> None:
    """Raise `SchemeError` if `scheme` overrides a call that is not among `operations`."""
    calls = Counter(operation.kind for operation in operations)
    for override in scheme.overrides:
        count = calls[override.operation]  # type: ignore[index]
        if override.call > count:
            known = f"calls {override.operation} {count} times" if count else f"does not call {override.operation}"
            raise SchemeError(f"scheme '{scheme}' overrides {override.place}, but the model {known} in a forward pass.")


def _autocast_bytes(operations: Iterable[Operation], device: str) -> int:
    kept: dict[str, int] = {}
    copied_bytes = 0
    for operation in operations:
        if operation.kind in _LAYERS or _drops_data(operation):
            continue
        copied_bytes += _statistics_bytes(operation) + BFLOAT16_BYTES * operation.weight
        if operation.kind in ("linear", "addmm") and operation.whole:
            copied_bytes += BFLOAT16_BYTES * operation.numel
            continue
        each = FLOAT_BYTES if operation.whole else BFLOAT16_BYTES
        kept.setdefault(operation.tensor, operation.numel * (_mask_bytes(operation, device) or each))
    return sum(kept.values()) + copied_bytes


def _checkpoint_bytes(operations: Iterable[Operation], device: str) -> int:
    inputs = [operation for operation in operations if operation.kind in _LAYERS]
    kept = {each.tensor: FLOAT_BYTES * each.numel for each in inputs if each.tensor != "data"}
    return sum(kept.values()) + GENERATOR_BYTES[device] * sum(each.kind == "layer" for each in inputs)


def _derived_bytes(operations: Iterable[Operation], scheme: Scheme, device: str) -> int:
    kept: dict[str, int] = {}
    statistics_bytes = 0
    trace = list(operations)
    rectified = {each.derived_from for each in trace if each.kind == "relu"}
    for operation in trace:
        shape = torch.Size((operation.rows, operation.width))
        if operation.kind == "relu":
            size = Rectifier.of(shape, torch.float32, scheme).layout.total_bytes
        elif operation.kind == "dropout":
            size = dropout_bytes(operation.numel, scheme, device)
        elif operation.kind == "batch_norm":
            # Its mean plays no part in what backward derives x̂ from.
            statistics_bytes += FLOAT_BYTES * operation.width
            size = 0 if operation.tensor in rectified else _packed_bytes(operation, scheme, 1)
        elif operation.kind in ("linear", "addmm", "aggregate"):
            size = 0 if operation.derived_from else _packed_bytes(operation, scheme, 1)
        elif operation.kind in _LAYERS:
            continue
        else:
            size = _compressed_bytes(operation, scheme, device)
        kept.setdefault(operation.tensor, size)
    return sum(kept.values()) + statistics_bytes


def _drops_data(operation: Operation) -> bool:
    """Whether it is a dropout of data, whose mask only a derived input needs."""
    return operation.kind == "dropout" and operation.derived_from is not None


def _mask_bytes(operation: Operation, device: str) -> int | None:
    """Bytes an element of a mask that torch keeps as bool; None for what has the tensor's own dtype."""
    return 1 if operation.kind == "edge_dropout" or (operation.kind == "dropout" and device == "cuda") else None


def _compressed_bytes(operation: Operation, scheme: Scheme, device: str) -> int:
    if operation.kind == "exact":
        return operation.numel * FLOAT_BYTES
    if operation.kind in ("relu", "leaky_relu", "edge_dropout"):
        return mask_bytes(operation.numel)
    if operation.kind == "dropout":
        return dropout_bytes(operation.numel, scheme, device)
    ratio = scheme.projection if operation.kind in PROJECTED else 1
    return _packed_bytes(operation, scheme, ratio) + _statistics_bytes(operation)


def _packed_bytes(operation: Operation, scheme: Scheme, ratio: int) -> int:
    if not is_smaller(operation.rows, operation.width, torch.float32, scheme, ratio):
        return FLOAT_BYTES * operation.numel
    kept = Quantized.of(operation.rows, operation.width, torch.float32, scheme, _NO_NOISE, ratio)
    return kept.packing.layout.total_bytes


def _statistics_bytes(operation: Operation) -> int:
    """A batch norm keeps its batch's mean and inverse standard deviation under every scheme."""
    return 2 * FLOAT_BYTES * operation.width if operation.kind == "batch_norm" else 0
