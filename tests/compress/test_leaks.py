"""What compression lets go of: floats of what it packed in forward, codes in backward, and all of it epoch by epoch."""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import actbench
from actbench.compress.watch import _flags
from actbench.models import Architecture, Model, Network, adjacency_of
from actbench.runs.execute import execute
from actbench.scheme import NAMED
from tests.runs.example import ENVIRONMENT, example_job

NODES, FEATURES, CLASSES = 60, 16, 5
COMPRESSING = [name for name, scheme in NAMED.items() if scheme.compresses]
QUICK = ("blockwise-vm", "derived")
"""One of each kind."""
ARCHITECTURES: dict[Model, Architecture] = {
    "sage": Architecture("sage", 3, 24, 0.4, True),
    "gcn": Architecture("gcn", 3, 24, 0.4, True, input_dropout=0.2),
    "gcnii": Architecture("gcnii", 3, 24, 0.4, True, alpha=0.1, theta=0.5, residual=True),
    "gat": Architecture("gat", 3, 8, 0.4, True, heads=3, edge_dropout=0.2),
}


class Made(TorchDispatchMode):
    """Knows the storages that torch's operations make while it is open, those inside autograd functions included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: dict[int, tuple[StorageWeakRef, int, torch.dtype]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, Tensor) and each.layout == torch.strided:
                storage = each.untyped_storage()
                # Held weakly, a storage's address is nobody else's.
                reference = StorageWeakRef(storage)
                self._seen.setdefault(reference.cdata, (reference, storage.nbytes(), each.dtype))
        return out

    def alive(self, *but: Tensor) -> list[tuple[int, torch.dtype]]:
        """Bytes and dtype of each that lives, sorted, without the storages of `but`."""
        self._seen = {address: made for address, made in self._seen.items() if not made[0].expired()}
        parts = [part for each in but for part in _parts(each)]
        known = {StorageWeakRef(part.untyped_storage()).cdata for part in parts}
        return sorted(
            ((size, dtype) for address, (_, size, dtype) in self._seen.items() if address not in known), key=str
        )


def _parts(tensor: Tensor) -> list[Tensor]:
    sparse = tensor.layout == torch.sparse_csr
    return [tensor.crow_indices(), tensor.col_indices(), tensor.values()] if sparse else [tensor]


@contextmanager
def collector(enabled: bool) -> Iterator[None]:
    """Python's cycle collector switched on or off."""
    if not enabled:
        gc.disable()
    try:
        yield
    finally:
        gc.enable()


def system(model: Model) -> tuple[Network, Tensor, Tensor]:
    torch.manual_seed(0)
    edge_index = torch.unique(torch.randint(NODES, (2, 300)), dim=1)
    network = Network(ARCHITECTURES[model], FEATURES, CLASSES)
    return network, torch.randn(NODES, FEATURES), adjacency_of(model, edge_index, NODES)


@pytest.mark.parametrize("scheme", [pytest.param(s, marks=[] if s in QUICK else pytest.mark.slow) for s in COMPRESSING])
@pytest.mark.parametrize("model", ARCHITECTURES)
def test_no_float_of_an_activation_outlives_forward_and_no_code_backward(model: Model, scheme: str) -> None:
    """Attention coefficients alone stay float, as every scheme leaves them: [E', heads] a layer."""
    network, x, adjacency = system(model)
    stays = [x, adjacency, *network.parameters(), *network.buffers(), _flags("cpu")]
    edges = adjacency.values().numel() - int(0.2 * adjacency.values().numel())
    coefficients = [edges * 3 * 4] * 3 if model == "gat" else []
    for enabled in (True, False):
        network.zero_grad()
        with collector(enabled), Made() as made:
            with actbench.compress(scheme):
                logits = network(x, adjacency)
                inside = made.alive(logits, *stays)
            after = made.alive(logits, *stays)
            for alive in (inside, after):
                # The narrowest activation is the logits' size; a code has one minimum and scale a row at most.
                floats = [size for size, dtype in alive if dtype.is_floating_point and size >= NODES * CLASSES * 4]
                assert floats == coefficients
            assert any(dtype == torch.uint8 for _, dtype in after)
            loss = logits.square().sum()
            loss.backward()
            gradients = [p.grad for p in network.parameters() if p.grad is not None]
            del logits, loss
            assert made.alive(*gradients, *stays) == []


def train(model: Model, scheme: str, epochs: int, look: list[int]) -> list[Counter[tuple[int, torch.dtype]]]:
    """How many storages of each size and dtype live after the epochs `look` of training, 1 the first."""
    network, x, adjacency = system(model)
    optimizer = torch.optim.Adam(network.parameters())
    compression = actbench.compress(scheme, seed=0)
    found = []
    with Made() as made:
        for epoch in range(1, epochs + 1):
            network.train()
            optimizer.zero_grad()
            with compression:
                logits = network(x, adjacency)
            logits.square().mean().backward()
            optimizer.step()
            network.eval()
            with torch.no_grad():
                logits = network(x, adjacency)
            del logits
            if epoch in look:
                found.append(Counter(made.alive()))
    assert compression.rules.watch._names == {}
    return found


@pytest.mark.parametrize(
    ("model", "scheme"),
    [
        pytest.param(model, scheme, marks=[] if (model, scheme) == ("sage", "derived") else pytest.mark.slow)
        for model in ARCHITECTURES
        for scheme in ("fp32", "bf16", "checkpoint", *COMPRESSING)
    ],
)
def test_two_hundred_epochs_leave_what_ten_left(model: Model, scheme: str) -> None:
    """As many storages of every size and dtype."""
    ten, two_hundred = train(model, scheme, 200, [10, 200])
    assert ten == two_hundred
    assert ten


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "blockwise-vm", "derived"])
def test_two_hundred_epochs_leave_the_process_as_large_as_fifty(scheme: str) -> None:
    """From then on it grows by less than if every epoch left its smallest code behind, a bit an element."""
    job = example_job(scheme, epochs=200, dataset="synthetic:arxiv@0.05")
    job = replace(job, recipe=job.recipe.overridden(hidden=128))
    resident: list[int] = []
    record = execute(job, ENVIRONMENT, lambda state: resident.append(state["occupied_bytes"]))
    assert record["status"] == "ok", record["error"]
    assert resident[-1] - resident[49] < 150 * record["graph"]["nodes"] * 128 // 8
