"""What training will take of memory: a recorded epoch, evaluated at the sizes that are asked for.

No GPU is asked and no tensor of the graph's size is made: the network runs once on a tiny graph, the size of every
allocation is read back as an expression, and the peak is the most that would be live at once. docs/estimate.md states
the rules, and what lies outside of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from actbench.analysis.bounds import LARGEST_HIDDEN, LARGEST_NODES
from actbench.errors import UsageError
from actbench.graphs import Entry
from actbench.graphs.catalogue import seeded_sizes
from actbench.scheme import Scheme
from actbench.trace import Subject, Trace, Values, record

Device = Literal["cpu", "cuda"]

CUDA_ROUNDING: Final = 512
"""Torch's CUDA allocator hands out whole multiples of so many bytes (c10/cuda/CUDACachingAllocator, kMinBlockSize)."""
CUBLAS_BYTES: Final = 8_519_680
"""cuBLAS's workspace for one thread and stream, 2 x 4096 KiB and 8 x 16 KiB (aten/src/ATen/cuda/CublasHandlePool)."""
CUBLAS_BYTES_HOPPER: Final = 32 * 2**20
"""The same on GPUs of compute capability 9.0."""

_GRAPH_KEYS: Final = ("name", "nodes", "edges", "features", "classes", "task", "split_sizes", "synthetic")
_LEFT_OUT: Final[dict[Device, str]] = {
    "cuda": "The peak is that of torch's tensors and cuBLAS's workspaces; the CUDA context, the allocator's "
    "fragmentation and the workspaces of cuSPARSE and cuDNN come on top: leave room for them.",
    "cpu": "The peak is that of torch's tensors alone; the process holds the interpreter, its libraries and compiled "
    "loops as well: leave room for them.",
}
_MOST_ELEMENTS: Final = 2**62
_THREADS_WITH_CUBLAS: Final = 2
"""Forward's, and the one that autograd runs backward on."""


@dataclass(frozen=True)
class Workload:
    """One network trained on one graph: `graph` gives sizes alone, its other fields are not looked at."""

    graph: Entry
    subject: Subject
    device: Device
    hopper: bool = False
    """Whether the GPU is of compute capability 9.0, whose cuBLAS workspaces are larger."""


@dataclass(frozen=True)
class Estimate:
    """Bytes under one scheme, by kind; the kinds sum to the peak."""

    scheme: str
    graph_bytes: int
    """Features, labels, adjacency and split."""
    parameter_bytes: int
    """Weights, and batch norm's buffers."""
    optimizer_bytes: int
    """Adam's two moments and its steps."""
    cublas_bytes: int
    """Workspaces that cuBLAS keeps."""
    saved_bytes: int
    """Activations: what is kept for backward after the model's forward pass."""
    peak_bytes: int
    """Most that tensors take at any moment of an epoch."""
    peak_at: str

    @property
    def transient_bytes(self) -> int:
        """What the peak holds beyond the other kinds: gradients, outputs, the workspaces of operations."""
        held = self.graph_bytes + self.parameter_bytes + self.optimizer_bytes + self.cublas_bytes
        return self.peak_bytes - held - self.saved_bytes

    @property
    def saved_share(self) -> float:
        """Activations as a share of the peak."""
        return self.saved_bytes / self.peak_bytes


def estimate(workload: Workload, scheme: Scheme) -> Estimate:
    """The bytes of `workload` under `scheme`. Raises `UsageError` for sizes that cannot be counted or told."""
    graph, architecture = workload.graph, workload.subject.recipe.architecture
    widest = max(architecture.widths(graph.features, graph.classes))
    if graph.nodes * widest > _MOST_ELEMENTS:
        raise UsageError(f"{graph.nodes} nodes times {widest} columns are too many to count: make one of them smaller.")
    trace, values = traced(workload, scheme)
    cuda = workload.device == "cuda"
    cublas_bytes = _THREADS_WITH_CUBLAS * (CUBLAS_BYTES_HOPPER if workload.hopper else CUBLAS_BYTES) if cuda else 0
    found = trace.peak(values, CUDA_ROUNDING if cuda else 1, cublas_bytes)
    return Estimate(
        str(scheme),
        found.held["graph"],
        found.held["parameter"],
        found.held["optimizer"],
        cublas_bytes,
        saved_bytes=found.saved,
        peak_bytes=found.peak,
        peak_at=found.at,
    )


_traces: dict[tuple[Subject, Scheme, Device], list[Trace]] = {}
"""What was recorded so far, for every network whatever its widths: traces that differ by the answers in them."""


def traced(workload: Workload, scheme: Scheme) -> tuple[Trace, Values]:
    """A trace that stands for `workload`, and its sizes."""
    values = Values(sizes(workload))
    recipe = workload.subject.recipe
    narrow = replace(recipe, architecture=replace(recipe.architecture, hidden=1))
    # No byte depends on where the levels lie.
    key = replace(workload.subject, recipe=narrow), replace(scheme, levels="uniform"), workload.device
    known = _traces.setdefault(key, [])
    for trace in known:
        if trace.stands_for(values):
            return trace, values
    known.append(record(workload.subject, scheme, workload.device, values.quantities))
    return known[-1], values


def sizes(workload: Workload) -> dict[str, int]:
    """The quantities that a trace is a function of; those of a step's batch as `_assumptions` says."""
    graph, recipe = workload.graph, workload.subject.recipe
    train, valid, test = _split_sizes(graph)
    found = {"nodes": graph.nodes, "edges": graph.edges, "features": graph.features, "classes": graph.classes}
    found |= {"hidden": recipe.architecture.hidden, "train": train, "valid": valid, "test": test}
    if not workload.subject.samples:
        return found
    if recipe.sampler == "saint":
        assert recipe.roots is not None
        assert recipe.walk_length is not None
        nodes = min(recipe.roots * (recipe.walk_length + 1), graph.nodes)
    else:
        assert recipe.parts is not None
        assert recipe.parts_per_batch is not None
        nodes = -(-graph.nodes * recipe.parts_per_batch // recipe.parts)
    of_graph = {"batch_edges": graph.edges, "batch_train": train}
    return found | {"batch_nodes": nodes} | {key: -(-of * nodes // graph.nodes) for key, of in of_graph.items()}


def largest_hidden(workload: Workload, scheme: Scheme, budget_bytes: int) -> int | None:
    """The largest hidden width whose peak fits into `budget_bytes`, 0 if none does; None if no width is too large."""

    def fits(hidden: int) -> bool:
        recipe = workload.subject.recipe
        wider = replace(recipe, architecture=replace(recipe.architecture, hidden=hidden))
        subject = replace(workload.subject, recipe=wider)
        return estimate(replace(workload, subject=subject), scheme).peak_bytes <= budget_bytes

    return _last(fits, LARGEST_HIDDEN)


def largest_nodes(workload: Workload, scheme: Scheme, budget_bytes: int) -> int | None:
    """The most nodes, with edges and split in proportion, whose peak fits into `budget_bytes`; 0 if no graph does."""

    def fits(nodes: int) -> bool:
        return estimate(replace(workload, graph=scaled(workload.graph, nodes)), scheme).peak_bytes <= budget_bytes

    return _last(fits, LARGEST_NODES)


def forecast(workload: Workload, schemes: Sequence[Scheme], budget_bytes: int | None) -> dict[str, Any]:
    """Estimates under all `schemes` as JSON values, the graph and the network they are of, and what they leave out.

    With a budget each row also says whether it `fits`, and `largest_hidden`, `largest_nodes` and `largest_edges`, which
    are None without a budget and where nothing is too large. A module of a user's has no `largest_hidden`.
    """
    graph, subject = replace(workload.graph, split_sizes=_split_sizes(workload.graph)), workload.subject
    network = asdict(subject.recipe.architecture) if subject.module is None else {"module": subject.name}
    return {
        "estimated": True,
        "graph": {key: getattr(graph, key) for key in _GRAPH_KEYS},
        "network": network | {"weight_decay": subject.recipe.weight_decay, "sampler": subject.recipe.sampler},
        "device": workload.device,
        "hopper": workload.hopper,
        "budget_bytes": budget_bytes,
        "rows": [_row(workload, scheme, budget_bytes) for scheme in schemes],
        "left_out": [_LEFT_OUT[workload.device], *_assumptions(workload, schemes)],
    }


def _row(workload: Workload, scheme: Scheme, budget_bytes: int | None) -> dict[str, Any]:
    found = estimate(workload, scheme)
    row = asdict(found) | {"transient_bytes": found.transient_bytes, "saved_share": found.saved_share}
    row |= dict.fromkeys(("fits", "largest_hidden", "largest_nodes", "largest_edges"))
    if budget_bytes is not None:
        nodes = largest_nodes(workload, scheme, budget_bytes)
        row["fits"] = found.peak_bytes <= budget_bytes
        if workload.subject.module is None:
            row["largest_hidden"] = largest_hidden(workload, scheme, budget_bytes)
        row["largest_nodes"] = nodes
        row["largest_edges"] = None if nodes is None else scaled(workload.graph, nodes).edges
    return row


def _assumptions(workload: Workload, schemes: Sequence[Scheme]) -> list[str]:
    subject, at = workload.subject, sizes(workload)
    assumptions = []
    if subject.undirected and any(scheme.derives for scheme in schemes):
        assumptions.append(
            "The graph is taken to be undirected, each edge in both directions: there a derived scheme does not turn "
            "the adjacency round."
        )
    if workload.graph.split_sizes is None:
        assumptions.append("60 % of the nodes are taken to be for training, 20 % for validation.")
    if traced(workload, schemes[0])[0].looped:
        model = subject.recipe.architecture.model
        assumptions.append(f"{model} adds a self-loop to every node; the graph is taken to have none of its own.")
    if subject.recipe.sampler == "saint":
        assumptions.append(
            f"A step is taken to train on {at['batch_nodes']:,} nodes, as many as its walks reach if no two meet, and "
            f"on their share of the edges, {at['batch_edges']:,}; what samples are drawn from is left out."
        )
    if subject.recipe.sampler == "cluster":
        assumptions.append(
            f"A step is taken to train on {at['batch_nodes']:,} nodes, in parts of equal size, and on their share of "
            f"the edges, {at['batch_edges']:,}, none of them cut; what samples are drawn from is left out."
        )
    names = [scheme.name for scheme in schemes]
    if "bf16" in names and workload.device == "cpu":
        assumptions.append("What oneDNN takes for a product of bfloat16 on a CPU comes on top: up to a sixth.")
    if "offload" in names:
        assumptions.append("Of offload, copies that are under way come on top.")
    return assumptions


def scaled(graph: Entry, nodes: int) -> Entry:
    """A graph of `nodes` nodes with the edges and the split of `graph` in proportion."""

    def part(size: int) -> int:
        return (size * nodes + graph.nodes // 2) // graph.nodes

    train, valid, _ = _split_sizes(graph)
    first = part(train)
    second = part(train + valid) - first
    return replace(graph, nodes=nodes, edges=part(graph.edges), split_sizes=(first, second, nodes - first - second))


def _last(fits: Callable[[int], bool], limit: int) -> int | None:
    """The largest number that fits, by doubling and bisection: it fits and the next does not. None if `limit` fits."""
    too_large = 1
    while too_large < limit and fits(too_large):
        too_large *= 2
    if too_large >= limit and fits(limit):
        return None
    low, high = too_large // 2, min(too_large, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _split_sizes(graph: Entry) -> tuple[int, int, int]:
    return graph.split_sizes or seeded_sizes(graph.nodes)
