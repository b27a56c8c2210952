"""What training takes of memory, by arithmetic alone: the networks and torch's backward written down by hand.

The independent proof of what `actbench.trace` reads from a run, for GraphSAGE, GCN and GCNII (but under derived ones).

One epoch is walked through as torch runs it: forward, loss, backward, update, evaluation. Every tensor is taken when
it is made and dropped when nothing holds it any more; the peak is the most that was live at once. docs/estimate.md
states the rules, and what lies outside of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, Literal

import torch

from actbench.compress.codec import GENERATOR_BYTES, Noise, Quantized, keeps_seed
from actbench.graphs import Entry
from actbench.graphs.catalogue import seeded_sizes
from actbench.models import Architecture
from actbench.quant import Rectifier
from actbench.quant.cuda.launch import fits_tile
from actbench.quant.layout import mask_bytes
from actbench.scheme import Scheme
from tests.by_hand.operations import FLOAT_BYTES

Device = Literal["cpu", "cuda"]

CUDA_ROUNDING: Final = 512
"""Torch's CUDA allocator hands out whole multiples of so many bytes (c10/cuda/CUDACachingAllocator, kMinBlockSize)."""
_INDEX_BYTES: Final = 8
_NO_NOISE: Final = Noise(0, 0)


@dataclass(frozen=True)
class Workload:
    """One network trained on one graph."""

    graph: Entry
    architecture: Architecture
    weight_decay: float
    device: Device
    undirected: bool = True


def walk_peak(workload: Workload, scheme: Scheme) -> tuple[int, str]:
    """Most bytes at any moment of an epoch, but for cuBLAS's workspaces, and when that is."""
    # No byte depends on where the levels lie, and finding them takes time.
    uniform = replace(scheme, levels="uniform")
    graph, architecture = workload.graph, workload.architecture
    steps = list(_steps(architecture, graph.features, graph.classes))
    parameters = _parameter_sizes(steps)
    buffers = [size for step in steps if step.kind == "batch_norm" for size in _buffers(step.width)]
    walk = _walk_of(workload, uniform)
    memory = walk.memory
    memory.hold(_graph_sizes(graph, architecture))
    memory.hold([*parameters, *buffers])
    memory.hold(_optimizer_sizes(parameters, workload.device))
    walk.train(steps, parameters)
    walk.evaluate(steps)
    return memory.peak, memory.peak_at


def _walk_of(workload: Workload, scheme: Scheme) -> _Walk:
    return (_DerivedWalk if scheme.derives else _Walk)(workload, scheme)


def _split_sizes(graph: Entry) -> tuple[int, int, int]:
    return graph.split_sizes or seeded_sizes(graph.nodes)


def _stored_edges(graph: Entry, architecture: Architecture) -> int:
    """Edges of the adjacency; all models but SAGE add a self-loop to every node."""
    return graph.edges + (graph.nodes if architecture.model != "sage" else 0)


def _index_bytes(edges: int) -> int:
    return 4 if edges <= torch.iinfo(torch.int32).max else 8


def _graph_sizes(graph: Entry, architecture: Architecture) -> list[int]:
    edges = _stored_edges(graph, architecture)
    index = _index_bytes(edges)
    multi_label = graph.task == "multi-label"
    y = graph.nodes * (graph.classes * FLOAT_BYTES if multi_label else _INDEX_BYTES)
    adjacency = [index * (graph.nodes + 1), index * edges, FLOAT_BYTES * edges]
    return [
        graph.nodes * graph.features * FLOAT_BYTES,
        y,
        *adjacency,
        *(_INDEX_BYTES * size for size in _split_sizes(graph)),
    ]


def _buffers(width: int) -> list[int]:
    """Running mean and variance, and how many batches there were."""
    return [FLOAT_BYTES * width, FLOAT_BYTES * width, _INDEX_BYTES]


def _parameter_sizes(steps: list[Step]) -> list[int]:
    """In the network's order: convolutions, then norms."""
    ordered = sorted(steps, key=lambda step: step.kind == "batch_norm")
    return [numel * FLOAT_BYTES for step in ordered for numel in step.parameters]


def _optimizer_sizes(parameters: list[int], device: Device) -> list[int]:
    # On a GPU Adam counts its steps in host memory.
    steps = [FLOAT_BYTES] * len(parameters) if device == "cpu" else []
    return [*parameters, *parameters, *steps]


@dataclass(frozen=True)
class Step:
    """One operation of a network on matrices with a row for every node.

    `inputs` and `output` name tensors, "data" the graph's features; `given` is the width of the first input's rows,
    `width` that of the output's. `parameters` are the numbers of elements of the step's weights. After the step no
    variable holds the tensors `released` any more; autograd may.
    """

    kind: Literal["product", "linear", "bias", "add", "batch_norm", "relu", "dropout", "damp", "share", "mix", "addmm"]
    inputs: tuple[str, ...]
    output: str
    given: int
    width: int
    parameters: tuple[int, ...] = ()
    released: tuple[str, ...] = ()


def _sage(x: str, out: str, given: int, width: int) -> Iterator[Step]:
    """PyG's SAGEConv: W_l (A x) + b + W_r x."""
    mean, neighbours, own = (f"{part} of {out}" for part in ("mean", "neighbours", "own"))
    yield Step("product", (x,), mean, given, given)
    yield Step("linear", (mean,), neighbours, given, width, (width * given, width), (mean,))
    yield Step("linear", (x,), own, given, width, (width * given,))
    yield Step("add", (neighbours, own), out, width, width, released=(neighbours, own))


def _gcn(x: str, out: str, given: int, width: int) -> Iterator[Step]:
    """PyG's GCNConv without normalisation of its own: A (W x) + b."""
    own, gathered = f"own of {out}", f"gathered of {out}"
    yield Step("linear", (x,), own, given, width, (width * given,))
    yield Step("product", (own,), gathered, width, width)
    yield Step("bias", (gathered,), out, width, width, (width,), (gathered, own))


def _gcnii(x: str, out: str, width: int, first: str) -> Iterator[Step]:
    """PyG's GCN2Conv with one weight: h = (1 - α) A x + α x_0, then (1 - β) h + β h W."""
    gathered, damped, share, mixed = (f"{part} of {out}" for part in ("gathered", "damped", "share", "mixed"))
    yield Step("product", (x,), gathered, width, width)
    yield Step("damp", (gathered,), damped, width, width, released=(gathered,))
    yield Step("share", (first,), share, width, width)
    yield Step("mix", (damped, share), mixed, width, width, released=(damped,))
    yield Step("addmm", (mixed,), out, width, width, (width * width,), (mixed, share))


_CONVOLUTIONS: Final[dict[str, Callable[[str, str, int, int], Iterator[Step]]]] = {"sage": _sage, "gcn": _gcn}


def _steps(architecture: Architecture, features: int, classes: int) -> Iterator[Step]:
    """The steps of `Network.forward` in training."""
    if architecture.model == "gcnii":
        yield from _gcnii_steps(architecture, features, classes)
        return
    convolution = _CONVOLUTIONS[architecture.model]
    x = "data"
    for i, (given, width) in enumerate(pairwise(architecture.widths(features, classes)), 1):
        out, given_x = f"convolution {i}", x
        *inner, last = convolution(x, out, given, width)
        yield from inner
        if i == architecture.layers:
            yield replace(last, released=(*last.released, given_x))
            break
        yield last
        x = out
        if architecture.batch_norm:
            yield Step("batch_norm", (x,), f"batch norm {i}", width, width, (width, width), (x,))
            x = f"batch norm {i}"
        # The network's loop holds what it gave to a layer until that returns.
        yield from _activation(architecture, x, i, width, (x, given_x))
        x = f"dropout {i}" if architecture.dropout > 0 else f"relu {i}"


def _gcnii_steps(architecture: Architecture, features: int, classes: int) -> Iterator[Step]:
    """A linear layer, convolutions of one width that all start from its output, and another linear layer."""
    width, first = architecture.hidden, "relu 0"
    yield Step("linear", ("data",), "first linear", features, width, (width * features, width), ("data",))
    yield Step("relu", ("first linear",), first, width, width, released=("first linear",))
    x = first
    if architecture.dropout > 0:
        x = "dropout 0"
        yield Step("dropout", (first,), x, width, width)
    for i in range(1, architecture.layers + 1):
        before, out = x, f"convolution {i}"
        yield from _gcnii(x, out, width, first)
        x = out
        if architecture.batch_norm:
            yield Step("batch_norm", (x,), f"batch norm {i}", width, width, (width, width), (x,))
            x = f"batch norm {i}"
        if architecture.residual:
            yield Step("add", (x, before), f"residual {i}", width, width, released=(x,))
            x = f"residual {i}"
        kept_by_caller = () if before == first else (before,)
        yield from _activation(architecture, x, i, width, (x, *kept_by_caller))
        x = f"dropout {i}" if architecture.dropout > 0 else f"relu {i}"
    released = (x,) if x == first else (x, first)
    yield Step("linear", (x,), "last linear", width, classes, (classes * width, classes), released)


def _activation(architecture: Architecture, x: str, i: int, width: int, released: tuple[str, ...]) -> Iterator[Step]:
    """F.dropout(F.relu(x)), which holds x until both are done."""
    dropped = architecture.dropout > 0
    yield Step("relu", (x,), f"relu {i}", width, width, released=() if dropped else released)
    if dropped:
        yield Step("dropout", (f"relu {i}",), f"dropout {i}", width, width, released=(*released, f"relu {i}"))


@dataclass(eq=False)
class _Tensor:
    size: int
    holders: int = 1
    is_view: bool = False


@dataclass
class _Memory:
    """Bytes that live tensors take, each rounded up to a multiple of `rounding`, and the most of them so far."""

    rounding: int
    live: int = 0
    peak: int = 0
    peak_at: str = ""
    now: str = ""

    def hold(self, sizes: list[int]) -> int:
        """Take tensors that stay; returns their bytes."""
        return sum(self.take(size).size for size in sizes)

    def take(self, size: int) -> _Tensor:
        tensor = _Tensor(-(-size // self.rounding) * self.rounding)
        self.live += tensor.size
        if self.live > self.peak:
            self.peak, self.peak_at = self.live, self.now
        return tensor

    def drop(self, *tensors: _Tensor) -> None:
        """Let go of each tensor once; its bytes are free when nobody holds it."""
        for tensor in tensors:
            tensor.holders -= 1
            if tensor.holders == 0:
                self.live -= tensor.size

    def use(self, *sizes: int) -> None:
        """Take tensors together and drop them again."""
        self.drop(*[self.take(size) for size in sizes])


@dataclass
class _Walk:
    """Goes through an epoch in torch's order of allocations."""

    workload: Workload
    scheme: Scheme
    memory: _Memory = field(init=False)
    values: dict[str, _Tensor] = field(init=False, default_factory=dict)
    gradients: dict[str, _Tensor] = field(init=False, default_factory=dict)
    returned: list[tuple[str, _Tensor]] = field(init=False, default_factory=list)
    """Gradients that the operation at hand returns, and of which tensors."""
    kept: dict[str, list[_Tensor]] = field(init=False, default_factory=dict)
    of_parameters: list[_Tensor] = field(init=False, default_factory=list)
    schemes: dict[str, Scheme] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.memory = _Memory(CUDA_ROUNDING if self.on_cuda else 1)
        graph = self.workload.graph
        self.nodes, self.classes = graph.nodes, graph.classes
        self.edges = _stored_edges(graph, self.workload.architecture)
        self.parts = _split_sizes(graph)

    @property
    def on_cuda(self) -> bool:
        return self.workload.device == "cuda"

    def scheme_of(self, step: Step) -> Scheme:
        """The scheme that the step's own input is kept under."""
        return self.schemes.get(step.output, self.scheme)

    def matrix(self, width: int) -> int:
        """Bytes of a float32 matrix [nodes, width]."""
        return FLOAT_BYTES * self.nodes * width

    def train(self, steps: list[Step], parameters: list[int]) -> None:
        memory = self.memory
        self.forward(steps, training=True)
        # The training loop holds the logits until the update is done.
        logits = self.values.pop(steps[-1].output)
        self.loss(steps[-1].output)
        trained = {"data": False}
        for step in steps:
            trained[step.output] = bool(step.parameters) or any(trained[name] for name in step.inputs)
        for step in reversed(steps):
            if trained[step.output]:
                memory.now = f"backward of {step.output}"
                self.backward(step, trained)
        memory.now = "update"
        self.update(parameters)
        memory.drop(logits)

    def evaluate(self, steps: list[Step]) -> None:
        """Without dropout, while the gradients of the parameters are still there."""
        self.forward(steps, training=False)
        memory = self.memory
        memory.now = "score"
        for nodes in self.parts:
            logits = FLOAT_BYTES * nodes * self.classes
            if self.workload.graph.task == "multi-label":
                # Predictions, labels and both: bool. A CPU sums them as int64.
                summed = 0 if self.on_cuda else _INDEX_BYTES * nodes * self.classes
                memory.use(logits, logits, *[nodes * self.classes] * 3, summed)
            else:
                memory.use(logits, _INDEX_BYTES * nodes, _INDEX_BYTES * nodes)
        memory.drop(self.values.pop(steps[-1].output), *self.of_parameters)

    def forward(self, steps: list[Step], training: bool) -> None:
        memory, values = self.memory, self.values
        calls: Counter[str] = Counter()
        for step in steps:
            calls[step.kind] += 1
            of_data = step.inputs[:1] == ("data",) and step.kind != "dropout" and not self.scheme.derives
            self.schemes[step.output] = self.scheme.for_call(step.kind, calls[step.kind], of_data)
        # The data is held with the graph.
        values["data"] = _Tensor(0)
        for step in steps:
            memory.now = f"{'forward' if training else 'evaluation'} of {step.output}"
            if step.kind in ("damp", "mix") or (step.kind == "dropout" and not training):
                # In place, or handed on.
                values[step.output] = self.shared(values[step.inputs[0]])
                self.kept[step.output] = []
            elif training and self.scheme_of(step).compresses:
                values[step.output] = self.compressed_forward(step)
            else:
                values[step.output] = self.stock_forward(step, training)
            for name in step.released:
                memory.drop(values.pop(name))

    def stock_forward(self, step: Step, training: bool) -> _Tensor:
        memory, values = self.memory, self.values
        kept = []
        if step.kind == "dropout":
            kept.append(memory.take(self.nodes * step.width * (1 if self.on_cuda else FLOAT_BYTES)))
        out = self.product(step.width) if step.kind == "product" else memory.take(self.matrix(step.width))
        if not training:
            return out
        if step.kind in ("linear", "addmm", "batch_norm"):
            kept.append(self.shared(values[step.inputs[0]]))
        if step.kind == "relu":
            kept.append(self.shared(out))
        if step.kind == "batch_norm":
            kept += self.statistics(step)
        self.kept[step.output] = kept
        return out

    def compressed_forward(self, step: Step) -> _Tensor:
        memory, numel = self.memory, self.nodes * step.width
        if step.kind in ("linear", "addmm", "batch_norm"):
            if step.kind != "batch_norm":
                kept = self.packed(step)
                out = memory.take(self.matrix(step.width))
            else:
                out = memory.take(self.matrix(step.width))
                kept = [*self.statistics(step), *self.packed(step)]
        elif step.kind == "relu":
            out = memory.take(self.matrix(step.width))
            kept = [memory.take(mask_bytes(numel))]
        elif step.kind == "dropout":
            out, kept = self.drawn_dropout(step)
        else:
            return self.stock_forward(step, training=True)
        self.kept[step.output] = kept
        return out

    def drawn_dropout(self, step: Step) -> tuple[_Tensor, list[_Tensor]]:
        """The result, and the bits or the generator's state that are kept."""
        memory, numel = self.memory, self.nodes * step.width
        by_seed = keeps_seed(numel, self.scheme, self.workload.device)
        # The generator's state lies in host memory.
        state = memory.take(0 if self.on_cuda else GENERATOR_BYTES["cpu"]) if by_seed else None
        if self.on_cuda:
            out = memory.take(self.matrix(step.width))
            mask = memory.take(numel)
            bits = memory.take(mask_bytes(numel) if state is None else 0)
            memory.drop(mask)
        else:
            # Where torch draws them as int32, that is gone before the output, as large, is made.
            bits = memory.take(mask_bytes(numel))
            out = memory.take(self.matrix(step.width))
        if state is None:
            return out, [bits]
        memory.drop(bits)
        return out, [state]

    def drawn_again(self, numel: int) -> list[_Tensor]:
        """The bits of a dropout's mask that is drawn from its seed; nothing where they were kept."""
        memory = self.memory
        if not keeps_seed(numel, self.scheme, self.workload.device):
            return []
        if not self.on_cuda:
            return [memory.take(mask_bytes(numel))]
        memory.use(FLOAT_BYTES * numel, FLOAT_BYTES * numel, numel)
        mask = memory.take(numel)
        bits = memory.take(mask_bytes(numel))
        memory.drop(mask)
        return [bits]

    def loss(self, logits: str) -> None:
        """Loss on the training nodes, and its backward up to the logits' gradient."""
        memory, train = self.memory, self.parts[0]
        memory.now = "loss"
        rows = FLOAT_BYTES * train * self.classes
        picked = memory.take(rows)
        if self.workload.graph.task == "multi-label":
            labels = memory.take(rows)
            memory.use(rows, rows)
            gradient = memory.take(rows)
            memory.drop(picked, labels)
        else:
            labels = memory.take(_INDEX_BYTES * train)
            log_softmax = memory.take(rows)
            memory.drop(picked)
            by_log_softmax = memory.take(rows)
            memory.drop(labels)
            gradient = memory.take(rows)
            memory.drop(by_log_softmax, log_softmax)
        self.gradients[logits] = memory.take(self.matrix(self.classes))
        if self.on_cuda:
            # index_put_ sorts the indices: they, the sorted ones, the order, and what the sort itself needs.
            memory.use(*[_INDEX_BYTES * train] * 6)
        memory.drop(gradient)

    def backward(self, step: Step, trained: dict[str, bool]) -> None:
        memory = self.memory
        gradient = self.gradients.pop(step.output)
        kept = self.kept.pop(step.output)
        for numel in step.parameters if step.kind == "bias" else ():
            self.of_parameters.append(memory.take(FLOAT_BYTES * numel))
        if step.kind in ("add", "bias", "mix"):
            for name in step.inputs:
                self.add_gradient(name, self.shared(gradient))
        elif step.kind == "linear":
            self.linear_backward(step, trained[step.inputs[0]])
        elif step.kind == "addmm":
            self.addmm_backward(step)
        elif step.kind == "damp":
            self.add_gradient(step.inputs[0], memory.take(self.matrix(step.width)))
        elif step.kind == "share":
            scaled = memory.take(self.matrix(step.width))
            # A slice of all rows: its gradient is copied into zeros.
            self.add_gradient(step.inputs[0], memory.take(self.matrix(step.width)))
            memory.drop(scaled)
        elif step.kind == "product":
            if trained[step.inputs[0]]:
                self.product_backward(step)
        elif step.kind == "batch_norm":
            self.batch_norm_backward(step)
        else:
            self.mask_backward(step, gradient)
        # Autograd lets go of what a function was given before it adds up what that returned.
        memory.drop(gradient, *kept)
        for name, returned in self.returned:
            self.sum_gradient(name, returned)
        self.returned = []

    def linear_backward(self, step: Step, input_trained: bool) -> None:
        memory, weights = self.memory, [FLOAT_BYTES * numel for numel in step.parameters]
        by_x = memory.take(self.matrix(step.given)) if input_trained else None
        if self.scheme_of(step).compresses:
            if by_x:
                by_x.is_view = True
            # (g û) Pᵀ, P [given, projected]
            projected = self.kept_as(step).packing.shape[1]
            read_back = memory.take(self.matrix(projected))
            product = memory.take(FLOAT_BYTES * step.width * projected)
            memory.drop(read_back)
            if projected == step.given:
                self.of_parameters.append(product)
            else:
                memory.now = f"weight gradient of {step.output}"
                p = memory.take(FLOAT_BYTES * step.given * projected)
                self.of_parameters.append(memory.take(weights[0]))
                memory.drop(product, p)
            weights = weights[1:]
        self.of_parameters += [memory.take(size) for size in weights]
        if by_x:
            self.add_gradient(step.inputs[0], by_x)

    def addmm_backward(self, step: Step) -> None:
        """β g Wᵀ + (1 - β) g; each factor makes a new tensor."""
        memory, matrix, weight = self.memory, self.matrix(step.width), FLOAT_BYTES * step.parameters[0]
        compresses = self.scheme_of(step).compresses
        straight = [memory.take(matrix)] if compresses else []
        product = memory.take(matrix)
        by_x = memory.take(matrix)
        memory.drop(product)
        if compresses:
            projected = self.kept_as(step).packing.shape[1]
            read_back = memory.take(self.matrix(projected))
            short = memory.take(FLOAT_BYTES * step.width * projected)
            memory.drop(read_back)
            if projected != step.given:
                p = memory.take(FLOAT_BYTES * step.given * projected)
                long = memory.take(weight)
                memory.drop(short, p)
                short = long
        else:
            short = memory.take(weight)
        self.of_parameters.append(memory.take(weight))
        memory.drop(short)
        if not compresses:
            straight = [memory.take(matrix)]
        memory.drop(*straight)
        self.add_gradient(step.inputs[0], by_x)

    def product_backward(self, step: Step) -> None:
        """Aᵀ times the gradient."""
        self.add_gradient(step.inputs[0], self.turned_product(step.width))

    def turned_product(self, width: int) -> _Tensor:
        """Aᵀ times a matrix [nodes, width]; torch sorts the edges anew for every such product."""
        memory, edges, nodes = self.memory, self.edges, self.nodes
        index = _index_bytes(edges)
        memory.use(_INDEX_BYTES * nodes, _INDEX_BYTES * nodes)
        rows = memory.take(index * (nodes + 1))
        pairs = memory.take(2 * index * edges)
        memory.use(index * edges, index * edges)
        keys = memory.take(_INDEX_BYTES * edges)
        sorted_keys, order = memory.take(_INDEX_BYTES * edges), memory.take(_INDEX_BYTES * edges)
        # On CUDA the radix sort has a second copy of keys and order.
        memory.use(*[_INDEX_BYTES * edges] * (3 if self.on_cuda else 1))
        memory.drop(sorted_keys)
        transposed = [memory.take(size) for size in (2 * index * edges, FLOAT_BYTES * edges, index * (nodes + 1))]
        memory.use(index * (nodes + 1), index * (nodes + 1))
        memory.drop(order, keys, pairs, rows)
        product = self.product(width)
        memory.drop(*transposed)
        return product

    def product(self, width: int) -> _Tensor:
        """A times a matrix [nodes, width], which torch adds to a matrix of zeros."""
        zeros = self.memory.take(self.matrix(width))
        out = self.memory.take(self.matrix(width))
        self.memory.drop(zeros)
        return out

    def batch_norm_backward(self, step: Step) -> None:
        memory, matrix = self.memory, self.matrix(step.width)
        estimated = [memory.take(matrix)] if self.scheme_of(step).compresses else []
        by_x = memory.take(matrix)
        # A CPU forms the gradient from one more matrix.
        extra = [] if self.on_cuda else [memory.take(matrix)]
        self.of_parameters += [memory.take(FLOAT_BYTES * numel) for numel in step.parameters]
        memory.drop(*estimated, *extra)
        self.add_gradient(step.inputs[0], by_x)

    def mask_backward(self, step: Step, gradient: _Tensor) -> None:
        memory = self.memory
        redrawn = step.kind == "dropout" and self.scheme.compresses
        bits = self.drawn_again(self.nodes * step.width) if redrawn else []
        by_x = memory.take(self.matrix(step.width))
        memory.drop(*bits)
        self.add_gradient(step.inputs[0], by_x)

    def add_gradient(self, name: str, gradient: _Tensor) -> None:
        """The operation at hand returns `gradient` for `name`."""
        self.returned.append((name, gradient))

    def sum_gradient(self, name: str, gradient: _Tensor) -> None:
        """Autograd adds up in place, but not into a view, which is what `Linear`'s backward in compress/ returns."""
        before = self.gradients.get(name)
        if before is None:
            self.gradients[name] = gradient
        elif before.is_view:
            self.gradients[name] = self.memory.take(gradient.size)
            self.memory.drop(before, gradient)
        else:
            self.memory.drop(gradient)

    def update(self, parameters: list[int]) -> None:
        """Adam: the square root of the second moment, and with weight decay another gradient."""
        memory, decayed = self.memory, self.workload.weight_decay != 0
        if self.on_cuda:
            memory.use(*parameters * (2 if decayed else 1))
            return
        # One parameter after the other, while a variable still holds the last one's denominator.
        last = memory.take(0)
        for size in parameters:
            gradient = [memory.take(size)] if decayed else []
            root, denominator = memory.take(size), memory.take(size)
            memory.drop(root, last, *gradient)
            last = denominator
        memory.drop(last)

    def shared(self, tensor: _Tensor) -> _Tensor:
        tensor.holders += 1
        return tensor

    def statistics(self, step: Step) -> list[_Tensor]:
        """The batch's mean and inverse standard deviation."""
        return [self.memory.take(FLOAT_BYTES * step.width) for _ in range(2)]

    def kept_as(self, step: Step) -> Quantized:
        scheme = self.scheme_of(step)
        ratio = 1 if step.kind == "batch_norm" else scheme.projection
        return Quantized.of(self.nodes, step.given, torch.float32, scheme, _NO_NOISE, ratio)

    def packed(self, step: Step) -> list[_Tensor]:
        """Codes, minima and scales, of a projection that is in memory meanwhile where the kernel cannot do without."""
        memory, kept = self.memory, self.kept_as(step)
        layout, projected = kept.packing.layout, kept.packing.shape[1]
        outright = projected == step.given or (self.on_cuda and fits_tile(projected, layout.block_length))
        u = [] if outright else [memory.take(self.matrix(projected))]
        ends = (layout.total_bytes - layout.code_bytes) // 2
        packed = [memory.take(size) for size in (layout.code_bytes, ends, ends)]
        memory.drop(*u)
        return packed


@dataclass
class _DerivedWalk(_Walk):
    """The same under a scheme of `scheme.DERIVED`, on graphs and networks whose every product its rules cover.

    Codes of ReLUs and masks of dropouts are all that is kept; `sources` are those that a tensor is read from. A
    product of the adjacency is not kept, nor does a gradient go through it: the linear behind it passes it on.
    """

    sources: dict[str, list[_Tensor]] = field(init=False, default_factory=lambda: {"data": []})
    makers: dict[str, Step] = field(init=False, default_factory=dict)
    bits: dict[str, list[_Tensor]] = field(init=False, default_factory=dict)
    """Masks of dropouts that a reader has drawn again, until the dropout's own backward."""
    undone: list[_Tensor] = field(init=False, default_factory=list)
    """What goes along with a gradient until the last of dropout, ReLU and batch norm uses it."""

    def compressed_forward(self, step: Step) -> _Tensor:
        memory = self.memory
        self.makers[step.output] = step
        kept: list[_Tensor] = []
        if step.kind == "dropout":
            out, kept = self.drawn_dropout(step)
            self.sources[step.output] = [*self.sources[step.inputs[0]], *kept]
        elif step.kind == "relu":
            shape = torch.Size((self.nodes, step.width))
            layout = Rectifier.of(shape, torch.float32, self.scheme).layout
            kept = [memory.take(size) for size in (layout.code_bytes, layout.total_bytes - layout.code_bytes)]
            out = memory.take(self.matrix(step.width))
            self.sources[step.output] = kept
        elif step.kind == "linear":
            kept = [self.shared(each) for each in self.sources[self.read(step)]]
            out = memory.take(self.matrix(step.width))
        elif step.kind == "batch_norm":
            out = memory.take(self.matrix(step.width))
            mean, inverse_std = self.statistics(step)
            memory.drop(mean)
            kept = [inverse_std]
        else:
            return self.stock_forward(step, training=True)
        self.kept[step.output] = kept
        return out

    def follows(self, step: Step, kind: str) -> bool:
        """Whether the step's input was made by an operation of that kind."""
        maker = self.makers.get(step.inputs[0])
        return maker is not None and maker.kind == kind

    def read(self, step: Step) -> str:
        """The tensor that a linear's weight gradient is made of: its input, or what the adjacency was multiplied by."""
        return self.makers[step.inputs[0]].inputs[0] if self.follows(step, "product") else step.inputs[0]

    def backward(self, step: Step, trained: dict[str, bool]) -> None:
        if step.kind == "product" and step.output not in self.gradients:
            self.kept.pop(step.output)
            return
        super().backward(step, trained)

    def linear_backward(self, step: Step, input_trained: bool) -> None:
        memory, x = self.memory, self.read(step)
        weight, *bias = (FLOAT_BYTES * numel for numel in step.parameters)
        turned: list[_Tensor] = []
        if x != step.inputs[0]:
            self.of_parameters += [memory.take(size) for size in bias]
            turned = [self.turned_product(step.width)]
        # The weight's gradient comes first behind a product, and last otherwise.
        by_x = memory.take(self.matrix(step.given)) if input_trained and not turned else None
        read_back = []
        if x != "data":
            self.mask_of(x)
            read_back = [memory.take(self.matrix(step.given))]
        self.of_parameters.append(memory.take(weight))
        memory.drop(*read_back)
        if input_trained and turned:
            by_x = memory.take(self.matrix(step.given))
        memory.drop(*turned)
        if not turned:
            self.of_parameters += [memory.take(size) for size in bias]
        if by_x:
            by_x.is_view = not turned
            self.add_gradient(x, by_x)

    def mask_of(self, x: str) -> list[_Tensor]:
        """The bits of the dropout that made `x`, drawn again unless they are there."""
        if self.makers[x].kind == "dropout" and x not in self.bits:
            self.bits[x] = self.drawn_again(self.nodes * self.makers[x].width)
        return self.bits.get(x, [])

    def turned_product(self, width: int) -> _Tensor:
        if not self.workload.undirected:
            return super().turned_product(width)
        if self.workload.architecture.model != "sage":
            return self.product(width)
        # The mean over neighbours: of every edge the value that its reverse has.
        row_values = self.memory.take(FLOAT_BYTES * self.nodes)
        values = self.memory.take(FLOAT_BYTES * self.edges)
        self.memory.drop(row_values)
        out = self.product(width)
        self.memory.drop(values)
        return out

    def mask_backward(self, step: Step, gradient: _Tensor) -> None:
        if step.kind == "dropout":
            self.undone += self.mask_of(step.output)
            by_x = self.shared(gradient)
        elif self.follows(step, "batch_norm"):
            self.undone += [self.shared(each) for each in self.sources[step.output]]
            by_x = self.shared(gradient)
        else:
            by_x = self.memory.take(self.matrix(step.width))
            self.let_go()
        self.add_gradient(step.inputs[0], by_x)

    def batch_norm_backward(self, step: Step) -> None:
        by_x = self.memory.take(self.matrix(step.width))
        self.of_parameters += [self.memory.take(FLOAT_BYTES * numel) for numel in step.parameters]
        self.let_go()
        self.add_gradient(step.inputs[0], by_x)

    def let_go(self) -> None:
        """Drop what went along with the gradient."""
        self.memory.drop(*self.undone)
        self.undone = []
