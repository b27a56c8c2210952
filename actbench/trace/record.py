"""A step of training and an evaluation on a tiny graph, and what they take of memory on any other."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module

from actbench.compress import Compression, Ledger, compress, kept_edges
from actbench.compress.codec import GENERATOR_BYTES, sized_by
from actbench.compress.offload import Offload
from actbench.errors import SchemeError, UsageError
from actbench.graphs import Graph, mean_adjacency
from actbench.graphs.catalogue import Metric, Task
from actbench.quant import instead
from actbench.quant.cuda.launch import fits_tile
from actbench.quant.layout import Layout
from actbench.scheme import Scheme
from actbench.trace.quantities import AmbiguousError, Reader, Size, Values
from actbench.trace.recording import INDEX_BYTES, Event, Recording, Storage
from actbench.trace.shapes import Shapes
from actbench.training import Recipe, Trainer
from actbench.training.loop import Batch

_TINY: Final = (
    {"features": 167, "hidden": 149, "classes": 137, "train": 101, "valid": 67, "test": 71, "pairs": 311},
    {"features": 191, "hidden": 227, "classes": 163, "train": 103, "valid": 61, "test": 107, "pairs": 331},
    {"features": 523, "hidden": 727, "classes": 337, "train": 127, "valid": 83, "test": 97, "pairs": 313},
)
"""Sizes to try, one set after the other; `pairs` of nodes, an edge each way or one each."""
_TINY_BATCH: Final = {"train": 53, "valid": 31, "test": 47, "pairs": 173}
"""Those of the part of a graph that a sampler's step trains on."""
_MOST_INDEX: Final = torch.iinfo(torch.int32).max
Question = tuple[Callable[..., bool], tuple[Size, ...], bool]
"""What was asked of which sizes, and the answer."""


@dataclass(frozen=True)
class Subject:
    """What is trained on a graph: the network of a recipe, or one of a user's.

    `module` makes one of so many features and classes, which is called with x and an `edge_index` int64 [2, E] or, with
    `adj_t`, the mean's adjacency, float32 CSR [N, N]. With `undirected` every edge stands in both directions.
    """

    recipe: Recipe
    task: Task
    undirected: bool = True
    module: Callable[[int, int], Module] | None = None
    adj_t: bool = False
    name: str = ""
    """How a user calls the module."""

    @property
    def samples(self) -> bool:
        """Whether a step trains on a part of the graph."""
        return self.recipe.sampler != "full"


@dataclass(frozen=True)
class Peak:
    """Bytes: what is `held` all the time by kind, what is `saved` after forward, and the most at any moment."""

    held: dict[str, int]
    saved: int
    peak: int
    at: str


@dataclass(frozen=True, eq=False)
class Trace:
    """One epoch of a network as torch allocates it, with every size a function of the graph's and the network's."""

    held: dict[str, list[tuple[Size, int]]]
    """Sizes and bytes an element of what stays: of the graph, the parameters and the optimizer."""
    storages: list[Storage]
    events: list[Event]
    saved: list[tuple[Size, int]]
    """What is kept for backward when forward ends."""
    questions: list[Question]
    entries: Size
    """Of the adjacency."""
    looped: bool
    """Whether the adjacency has a self-loop at every node."""
    calls: Counter[str]
    """How many calls of each operation keep an input."""

    def stands_for(self, values: Values) -> bool:
        """Whether the same would happen at these sizes."""
        return all(question(*map(values.at, sizes)) == answer for question, sizes, answer in self.questions)

    def saved_bytes(self, values: Values) -> int:
        """Bytes kept for backward at these sizes."""
        return sum(self._bytes(values, *each) for each in self.saved)

    def peak(self, values: Values, rounding: int, held_besides: int = 0) -> Peak:
        """At these sizes; each storage is rounded up to a multiple of `rounding` bytes."""

        def rounded(count: Size, element_bytes: int) -> int:
            return -(-self._bytes(values, count, element_bytes) // rounding) * rounding

        held = {kind: sum(rounded(*each) for each in sizes) for kind, sizes in self.held.items()}
        sizes = [rounded(storage.count, storage.element_bytes) for storage in self.storages]
        live = peak = sum(held.values()) + held_besides
        at = "start"
        for taken, number in self.events:
            live += sizes[number] if taken else -sizes[number]
            if live > peak:
                peak, at = live, self.storages[number].label
        return Peak(held, self.saved_bytes(values), peak, at)

    def _bytes(self, values: Values, count: Size, element_bytes: int) -> int:
        if element_bytes == INDEX_BYTES:
            element_bytes = 4 if values.at(self.entries) <= _MOST_INDEX else 8
        return values.at(count) * element_bytes


def record(
    subject: Subject, scheme: Scheme, device: str, real: Mapping[str, int], forward_alone: bool = False
) -> Trace:
    """A trace that stands for sizes `real`: nodes, edges, features, hidden, classes, train, valid and test.

    If the recipe samples, also batch_nodes, batch_edges and batch_train. `forward_alone`: it knows what is saved and
    no peak. Raises `UsageError` if the sizes of a user's module do not follow from those, or if those of a scheme
    cannot be told apart.
    """
    found: list[tuple[_Tracer, Trace]] = []
    for tiny in _TINY:
        tracer = _Tracer(subject, scheme, device, tiny, real)
        try:
            found.append((tracer, tracer.trace(forward_alone)))
        except AmbiguousError:
            continue
        if subject.module is None or len(found) == 2:
            break
    if not found:
        raise UsageError(f"the memory of scheme '{scheme}' cannot be told from shapes: `actbench run` measures it.")
    if subject.module is not None and not _agree(*found):
        raise UsageError(
            "the memory of that module does not follow from the numbers of nodes, edges, features and classes alone: "
            "train it under `actbench.compress` and measure it."
        )
    return found[0][1]


def _agree(first: tuple[_Tracer, Trace], second: tuple[_Tracer, Trace]) -> bool:
    """Whether what was read in one run says what happened in the other."""
    (_, read), (there, happened) = first, second
    values = there.itself
    if read.events != happened.events:
        return False
    pairs = zip(read.storages, happened.storages, strict=True)
    return all(values.at(a.count) == values.at(b.count) and a.element_bytes == b.element_bytes for a, b in pairs)


def predict_saved_bytes(
    subject: Subject, scheme: Scheme, device: str, sizes: Mapping[str, int], own_loops: int = 0, batch_entries: int = 0
) -> int:
    """Bytes kept for backward at `sizes`, as `record` has them, on a graph that has self-loops of its own.

    Of a batch the entries of its adjacency are given in place of its edges.
    """
    trace = record(subject, scheme, device, sizes, forward_alone=True)
    if subject.samples:
        loops = sizes["batch_nodes"] if trace.looped else 0
        return trace.saved_bytes(Values({**sizes, "batch_edges": batch_entries - loops}))
    return trace.saved_bytes(Values({**sizes, "edges": sizes["edges"] - own_loops * trace.looped}))


def require_calls(subject: Subject, scheme: Scheme) -> None:
    """Raise `SchemeError` if `scheme` overrides a call that the network does not make."""
    if not scheme.overrides:
        return
    sizes = dict.fromkeys(("nodes", "edges", "features", "hidden", "classes", "train", "valid", "test"), 1000)
    batch = dict.fromkeys(("batch_nodes", "batch_edges", "batch_train"), 1000)
    calls = record(subject, replace(scheme, overrides=()), "cpu", sizes | batch, forward_alone=True).calls
    for override in scheme.overrides:
        count = calls[override.operation]
        if override.call > count:
            known = f"calls {override.operation} {count} times" if count else f"does not call {override.operation}"
            raise SchemeError(f"scheme '{scheme}' overrides {override.place}, but the model {known} in a forward pass.")


class _Tracer:
    """One recording, and who answers for the sizes in it."""

    def __init__(
        self, subject: Subject, scheme: Scheme, device: str, tiny: Mapping[str, int], real: Mapping[str, int]
    ) -> None:
        self.device = device
        self.subject = subject
        self.graph = _tiny_graph(tiny, tiny, subject)
        self.part = _tiny_graph(tiny, _TINY_BATCH, subject) if subject.samples else None
        recipe = subject.recipe
        self.recipe = replace(recipe, architecture=replace(recipe.architecture, hidden=tiny["hidden"]), sampler="full")
        # No byte depends on where the levels lie, and finding them takes time.
        self.scheme = replace(
            scheme, levels="uniform", overrides=tuple(replace(o, levels=None) for o in scheme.overrides)
        )
        quantities = {name: number for name, number in tiny.items() if name != "pairs"}
        quantities |= {"nodes": self.graph.nodes, "edges": self.graph.edges}
        if self.part is not None:
            part = {"nodes": self.part.nodes, "edges": self.part.edges, "train": self.part.train.numel()}
            quantities |= {f"batch_{name}": number for name, number in part.items()}
        self.itself, self.real = Values(quantities), Values(real)
        others: list[dict[str, int]] = [{**quantities, **{name: other[name] for name in tiny}} for other in _TINY]
        self.reader = Reader(quantities, [*others, {name: 2 * number for name, number in quantities.items()}])
        self.questions: list[Question] = []
        self.calls: Counter[str] = Counter()
        self._packed: tuple[Callable[..., Layout], tuple[int, ...]] | None = None

    def decide(self, question: Callable[..., bool], *sizes: int) -> bool:
        """What `question` says of the real sizes."""
        read = tuple(map(self.reader.read, sizes))
        answer = question(*map(self.real.at, read))
        self.questions.append((question, read, answer))
        return answer

    def define(self, of: Callable[..., int], *sizes: int) -> int:
        """A number that will be read as what it is."""
        return self.reader.invent(of, *sizes)

    def expect(self, layout: Callable[..., Layout], *shape: int) -> None:
        """A tensor of that shape is about to be packed."""
        self._packed = layout, shape
        self.reader.expect(lambda *shape: layout(*shape).code_bytes, *shape)
        self.reader.expect(lambda *shape: layout(*shape).blocks, *shape)

    def fits(self) -> bool:
        """Whether the product that is about to be packed need not be written to memory."""
        assert self._packed is not None
        layout, shape = self._packed
        if self.device != "cuda":
            return False
        return self.decide(lambda rows, width: fits_tile(width, layout(rows, width).block_length), *shape)

    def trace(self, forward_alone: bool) -> Trace:
        """A forward pass for what is saved; for the peak an epoch, before which another has made all that stays."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), ExitStack() as contexts:
            torch.manual_seed(0)
            # A module that nothing is compressed of is estimated all the same.
            warnings.simplefilter("ignore")
            trainer = self._trainer()
            if self.device == "cuda":
                _update_together(trainer.optimizer)
                contexts.enter_context(_drawn_as_on_cuda())
            self._define(trainer.adjacency)
            saved = self._pass(trainer)
            recording = Recording(self.reader, self.device)
            if not forward_alone:
                self._epoch(trainer, Recording(self.reader, self.device))
                self._epoch(trainer, recording)
        entries = _entries(trainer.adjacency)
        return Trace(
            self._held(trainer),
            recording.storages,
            recording.events,
            saved,
            self.questions,
            self.reader.read(entries),
            entries != self.graph.edges,
            self.calls,
        )

    def _trainer(self) -> Trainer:
        cpu, graph, make = torch.device("cpu"), self.graph, self.subject.module
        if make is None:
            return Trainer(graph, self.recipe, cpu)
        adjacency = mean_adjacency(graph.edge_index, graph.nodes) if self.subject.adj_t else graph.edge_index
        return Trainer(graph, self.recipe, cpu, make(graph.features, graph.classes), adjacency)

    def _define(self, adjacency: Tensor) -> None:
        """What sizes there are besides the quantities."""
        a, rate, define = self.recipe.architecture, self.recipe.mask_rate, self.reader.define
        looped = _entries(adjacency) != self.graph.edges
        for graph in (self.graph, *([self.part] if self.part else [])):
            define(lambda nodes: nodes + 1, graph.nodes)
            with_loops = define(lambda edges, nodes: edges + nodes, graph.edges, graph.nodes)
            entries = with_loops if looped else graph.edges
            define(lambda entries: entries + 1, entries)
            if a.edge_dropout:
                define(lambda entries: kept_edges(entries, a.edge_dropout), entries)
            if rate is not None:
                train = graph.train.numel()
                given = define(lambda train: int(train * (1 - rate)), train)
                define(lambda train, given: train - given, train, given)
        if a.labels_as_input:
            define(lambda features, classes: features + classes, self.graph.features, self.graph.classes)

    @contextmanager
    def _recorded(self, trainer: Trainer, recording: Recording) -> Iterator[None]:
        recording.known([*trainer.resident, *_state(trainer.optimizer)])
        shapes = Shapes(recording.unseen, self.fits, self.reader.expect, recording.sum_words)
        with sized_by(self), instead(shapes), recording:
            recording.begin("batch")
            yield

    def _pass(self, trainer: Trainer) -> list[tuple[Size, int]]:
        """A forward pass; what is saved when it ends."""
        recording, context = Recording(self.reader, self.device), self._context(trainer)
        with self._recorded(trainer, recording):
            batch = self._batch(trainer, recording)
            ledger = Ledger(exclude=[*trainer.resident, *batch.tensors])
            with self._forward(recording, context), ledger:
                # Held until the ledger is closed.
                logits = trainer.network(batch.x, batch.adjacency)
            saved = list(self._saved(recording, ledger))
            del logits
        self.calls = Counter(context.rules.calls)
        return saved

    def _epoch(self, trainer: Trainer, recording: Recording) -> None:
        trainer.optimizer.zero_grad()
        context = self._context(trainer)
        update = trainer.optimizer.register_step_pre_hook(lambda *_: recording.begin("update"))
        with self._recorded(trainer, recording):
            batch = self._batch(trainer, recording)
            loss = recording.phase("loss", context.around_loss, "backward")
            trainer.step(self._forward(recording, context), loss, batch)
            recording.begin("evaluation")
            del batch
            trainer.evaluate()
            recording.sweep()
        update.remove()

    def _batch(self, trainer: Trainer, recording: Recording) -> Batch:
        if self.part is None:
            return next(trainer.batches())
        part = self.part
        with recording.unseen():
            batch = trainer.sample(part.x.clone(), part.y.clone(), part.edge_index, part.train.clone())
            recording.note(batch.tensors)
        return batch

    def _context(self, trainer: Trainer) -> Compression:
        context = compress(self.scheme, 0)
        if self.scheme.name == "offload":
            context = Compression(context.rules, Offload(trainer.resident, source="cpu"))
        return context

    @contextmanager
    def _forward(self, recording: Recording, context: Compression) -> Iterator[None]:
        # Of nested hooks torch asks the innermost alone.
        hooks = nullcontext() if context.offload else saved_tensors_hooks(recording.saved, lambda tensor: tensor)
        with hooks, recording.phase("forward", context, "loss"):
            yield
            if context.offload:
                recording.elsewhere([copy.host for copy in context.offload.copies])

    def _saved(self, recording: Recording, ledger: Ledger) -> Iterator[tuple[Size, int]]:
        for address, entry in ledger.kept():
            storage = recording.at(address)
            if entry.dtype == "uint8" and entry.saved_bytes == GENERATOR_BYTES["cpu"]:
                yield Size(GENERATOR_BYTES[self.device]), 1
            elif storage is not None:
                yield storage.count, storage.element_bytes
            else:
                yield self.reader.read(entry.saved_bytes), 1

    def _held(self, trainer: Trainer) -> dict[str, list[tuple[Size, int]]]:
        state = _state(trainer.optimizer)
        if self.device == "cuda":
            # On a GPU Adam counts its steps in host memory.
            state = [each for each in state if each.dim()]
        graph = trainer.x, trainer.y, *_parts(trainer.adjacency), trainer.train, trainer.valid, trainer.test
        return {
            "graph": list(map(self._sized, graph)),
            "parameter": list(map(self._sized, (*trainer.network.parameters(), *trainer.network.buffers()))),
            "optimizer": list(map(self._sized, state)),
        }

    def _sized(self, x: Tensor) -> tuple[Size, int]:
        size = self.reader.product(tuple(map(self.reader.read, x.shape)))
        return size, INDEX_BYTES if x.dtype == torch.int32 else x.element_size()


def _entries(adjacency: Tensor) -> int:
    return adjacency.values().numel() if adjacency.layout == torch.sparse_csr else adjacency.shape[1]


def _parts(adjacency: Tensor) -> tuple[Tensor, ...]:
    if adjacency.layout != torch.sparse_csr:
        return (adjacency,)
    return adjacency.crow_indices(), adjacency.col_indices(), adjacency.values()


@contextmanager
def _drawn_as_on_cuda() -> Iterator[None]:
    """While open, a dropout in training is CUDA's: a kernel of its own, which keeps its mask as bool."""
    library = torch.library.Library("aten", "IMPL")
    # torch says that there was a kernel before.
    library.impl("dropout", _drop, "AutogradCPU")
    try:
        yield
    finally:
        library._destroy()


def _drop(x: Tensor, p: float, train: bool) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if train and 0 < p < 1 else x


def _update_together(optimizer: torch.optim.Optimizer) -> None:
    """Let `optimizer` update all parameters at once, as it does on a GPU."""
    for group in optimizer.param_groups:
        group["foreach"] = True


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def _tiny_graph(widths: Mapping[str, int], sizes: Mapping[str, int], subject: Subject) -> Graph:
    """A random graph of those sizes, without self-loops, whose degrees differ."""
    generator = torch.Generator().manual_seed(0)
    nodes, classes = sizes["train"] + sizes["valid"] + sizes["test"], widths["classes"]
    above = torch.triu_indices(nodes, nodes, 1)
    pairs = above[:, torch.randperm(above.shape[1], generator=generator)[: sizes["pairs"]]]
    edges = torch.cat((pairs, pairs.flip(0)), 1) if subject.undirected else pairs
    edges = edges[:, (edges[0] * nodes + edges[1]).argsort()]
    y = torch.randint(classes, (nodes,), generator=generator)
    train, valid, test = torch.arange(nodes).split([sizes["train"], sizes["valid"], sizes["test"]])
    x = torch.randn(nodes, widths["features"], generator=generator)
    if subject.task == "multi-label":
        y = F.one_hot(y, classes).float()
    metric: Metric = "micro-F1" if subject.task == "multi-label" else "accuracy"
    return Graph("tiny", x, edges, y, train, valid, test, classes, task=subject.task, metric=metric)
