"""What each model's forward keeps for backward, written down by hand and counted by arithmetic alone.

The independent proof of what `actbench.trace` reads from a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from actbench.compress import kept_edges
from actbench.compress.codec import GENERATOR_BYTES, Noise, Quantized, dropout_bytes, is_smaller
from actbench.models import Architecture, Model
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


def adjacency_entries(model: Model, edge_index: Tensor, nodes: int) -> int:
    """How many entries the model's adjacency has, by counting alone."""
    edges = edge_index.shape[1]
    return edges if model == "sage" else edges + nodes - int((edge_index[0] == edge_index[1]).sum())


def operations(
    architecture: Architecture, nodes: int, features: int, classes: int, entries: int | None = None
) -> list[Operation]:
    """The operations of one training forward pass that keep activations, in order.

    `entries` are those of the model's adjacency, self-loops included, on which GAT alone depends; raises `ValueError`
    if it is not given them.
    """
    a = architecture
    widths = a.widths(features, classes)
    trace: list[Operation] = []
    x = "dropped data" if a.input_dropout > 0 else "data"
    if a.input_dropout > 0:
        trace.append(Operation("dropout", "data's mask", nodes, a.inputs(features, classes), derived_from="data"))
    if a.model == "gcnii":
        trace.append(Operation("layer", x, nodes, a.inputs(features, classes)))
        # The data needs no gradient, so that autocast keeps no copy of the weight.
        trace.append(Operation("linear", x, nodes, a.inputs(features, classes), whole=True, derived_from=x))
        x = _activation(trace, a, nodes, a.hidden, "first", whole=False)
    for i, (before, after) in enumerate(pairwise(widths)):
        trace.append(Operation("layer", x, nodes, before))
        if a.model == "gcnii":
            trace.append(Operation("layer_input", "relufirst", nodes, a.hidden))
        trace += _convolution_operations(a, i, x, nodes, before, after, entries)
        if i == a.layers - 1 and a.model != "gcnii":
            break
        # Under autocast a linear or addmm makes bfloat16, a sparse product or a sum with a bias float32; that is what
        # the convolution ends with.
        whole = a.model in ("gcn", "gat")
        if a.batch_norm:
            trace.append(Operation("batch_norm", f"convolution{i}", nodes, after, whole=whole))
        normed = f"convolution{i}" if a.batch_norm and not a.residual else None
        x = _activation(trace, a, nodes, after, str(i), whole, normed)
    if a.model == "gcnii":
        trace.append(Operation("layer", x, nodes, a.hidden))
        trace.append(Operation("linear", x, nodes, a.hidden, weight=a.hidden * classes, derived_from=x))
    return trace


def _activation(
    trace: list[Operation],
    a: Architecture,
    nodes: int,
    width: int,
    place: str,
    whole: bool,
    normed: str | None = None,
) -> str:
    """Append ReLU, of the batch norm of `normed` if that is given, and dropout; returns the name of their result."""
    trace.append(Operation("relu", f"relu{place}", nodes, width, whole=whole, derived_from=normed))
    if a.dropout == 0:
        return f"relu{place}"
    trace.append(Operation("dropout", f"mask{place}", nodes, width, whole=whole))
    return f"dropout{place}"


def _convolution_operations(
    a: Architecture, i: int, x: str, nodes: int, before: int, after: int, entries: int | None
) -> list[Operation]:
    # Of the first layer's input, which is data, nobody asks a gradient.
    weight = before * after if i else 0
    if a.model == "sage":
        return [
            Operation("linear", f"neighbours{i}", nodes, before, whole=True, weight=weight, derived_from=x),
            Operation("linear", x, nodes, before, whole=i == 0, weight=weight, derived_from=x),
        ]
    if a.model == "gcn":
        return [Operation("linear", x, nodes, before, whole=True, weight=weight, derived_from=x)]
    if a.model == "gcnii":
        return [Operation("addmm", f"neighbours{i}", nodes, before, whole=True, weight=before * after)]
    if entries is None:
        raise ValueError("what attention keeps depends on the number of entries of its adjacency")
    heads = a.heads or 1
    width = after * heads if i == a.layers - 1 else after
    kept = kept_edges(entries, a.edge_dropout)
    by_autocast = before * width if i else 0
    trace = [Operation("linear", x, nodes, before, whole=True, weight=by_autocast, derived_from=x)]
    if a.edge_dropout > 0:
        trace.append(Operation("edge_dropout", f"edges{i}", entries, 1))
    return [
        *trace,
        Operation("linear", f"transformed{i}", nodes, width),
        Operation("exact", f"attention vectors{i}", 2 * heads, width),
        Operation("leaky_relu", f"scores{i}", kept, heads),
        Operation("exact", f"coefficients{i}", kept, heads, whole=True),
        Operation("aggregate", f"transformed{i}", nodes, width),
    ]
