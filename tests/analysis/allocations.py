"""Peaks of tensor bytes on a CPU as torch's own allocator reports them to its profiler."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from actbench.compress import compress
from actbench.graphs import Graph
from actbench.training import Recipe, Trainer


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of all storages, each once."""
    parts: list[Tensor] = []
    for tensor in tensors:
        if tensor.layout == torch.sparse_csr:
            parts += [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
        else:
            parts.append(tensor)
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}.values())


def peak_beyond(work: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator gave out during `work` beyond those before, temporaries included.

    What was allocated before and is freed meanwhile is not subtracted, so let that be nothing.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def epoch_peak(graph: Graph, recipe: Recipe, scheme: str) -> int:
    """Most bytes that tensors take during one epoch after the first: step and evaluation."""
    torch.manual_seed(0)
    return trainer_peak(Trainer(graph, recipe, torch.device("cpu")), scheme)


def trainer_peak(trainer: Trainer, scheme: str) -> int:
    """The same of a trainer that has not trained yet."""
    compression = compress(scheme, seed=0)

    def epoch() -> None:
        trainer.step(compression)
        trainer.evaluate()

    epoch()
    trainer.optimizer.zero_grad()
    moments = [value for state in trainer.optimizer.state.values() for value in state.values()]
    return storage_bytes([*trainer.resident, *moments]) + peak_beyond(epoch)
