"""`compress` on a GPU: forward is FP32's, the bytes are those predicted, and an error names its tensor."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import actbench
from actbench.compress import Ledger
from actbench.compress.offload import Offload
from actbench.errors import NonFiniteError
from actbench.models import Architecture, Model, Network, adjacency_of
from actbench.scheme import Scheme
from tests.by_hand.operations import operations, predict_saved_bytes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy"),
]

SAGE = Architecture("sage", 3, 32, 0.5, True)
SCHEMES = [
    "fp32",
    "exact",
    "blockwise",
    "blockwise-vm",
    "blockwise:dropout=seed",
    "int8",
    "int4/linear2:bits=32/batch_norm1:block=64",
    "checkpoint",
    "offload",
]
NODES, FEATURES, CLASSES = 3000, 40, 7


GCNII = Architecture("gcnii", 3, 32, 0.5, True, input_dropout=0.1, alpha=0.1, theta=0.5, residual=True)
GAT = Architecture("gat", 3, 16, 0.5, True, heads=2, edge_dropout=0.3)


def inputs(model: Model = "sage") -> tuple[Tensor, Tensor]:
    """Features, and the adjacency of a ring, whose rows have one entry and a loop: their sums know no order."""
    nodes = torch.arange(NODES)
    ring = torch.stack((nodes, nodes.roll(1)))
    return torch.randn(NODES, FEATURES).cuda(), adjacency_of(model, ring, NODES).cuda()


@pytest.mark.parametrize("architecture", [SAGE, GCNII, GAT], ids=lambda architecture: architecture.model)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_forward_is_fp32s_and_the_bytes_are_those_predicted(scheme: str, architecture: Architecture) -> None:
    torch.manual_seed(0)
    network = Network(architecture, FEATURES, CLASSES).cuda()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    x, adjacency = inputs(architecture.model)
    results = []
    for name in ("fp32", scheme):
        network.load_state_dict(state)
        torch.manual_seed(3)
        stays = [x, adjacency, *network.parameters(), *network.buffers()]
        with actbench.compress(name, 5, stays), Ledger(stays) as kept:
            logits = network(x, adjacency)
        network.zero_grad()
        logits.sum().backward()
        exact = [p.grad for p in network.parameters()] if scheme in ("checkpoint", "offload") else []
        results.append((logits.detach(), torch.rand(3, device="cuda"), *(b.clone() for b in network.buffers()), *exact))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    trace = operations(architecture, NODES, FEATURES, CLASSES, adjacency.values().numel())
    assert kept.total_bytes == predict_saved_bytes(trace, Scheme.parse(scheme), "cuda")


def test_bf16_keeps_what_is_predicted() -> None:
    network = Network(SAGE, FEATURES, CLASSES).cuda()
    x, adjacency = inputs()
    with actbench.compress("bf16"), Ledger([x, adjacency, *network.parameters(), *network.buffers()]) as kept:
        logits = network(x, adjacency)
    logits.float().sum().backward()
    trace = operations(SAGE, NODES, FEATURES, CLASSES)
    assert kept.total_bytes == predict_saved_bytes(trace, Scheme.parse("bf16"), "cuda")


def test_offload_holds_pinned_memory_and_lowers_the_peak() -> None:
    """Many layers, each of which keeps 64 MiB: what is offloaded peaks at a few of them, not at all."""
    layers = nn.Sequential(*(module for _ in range(12) for module in (nn.Linear(1024, 1024), nn.ReLU()))).cuda()
    x = torch.randn(2**14, 1024, device="cuda")
    stays = [x, *layers.parameters()]
    peaks, gradients = [], []
    for scheme in ("fp32", "offload"):
        layers.zero_grad()
        compression = actbench.compress(scheme, 0, stays)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with compression:
            out = layers(x)
        if compression.offload:
            # A ReLU's result is the next layer's input: one storage, with a copy of its own.
            assert compression.offload.host_bytes == 12 * x.numel() * 4
            assert all(copy.host.is_pinned() for copy in compression.offload.copies)
            # Copies are not waited for one by one. What the side stream has read by now the allocator notices when it
            # is next asked for memory.
            torch.cuda.synchronize()
            torch.empty(1, device="cuda")
            assert torch.cuda.memory_allocated() - before <= 2 * x.numel() * 4
        out.square().mean().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        gradients.append([p.grad for p in layers.parameters()])
        del out
    assert peaks[1] < peaks[0]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_what_the_side_stream_has_yet_to_read_is_not_given_away() -> None:
    """Storages are dropped at once and their memory asked for again, while the copies still wait behind a slow one."""
    offload = Offload()
    kept = []
    with offload:
        for value in range(64):
            tensor = torch.full((2**20,), float(value), device="cuda")
            kept.append(offload.pack(tensor))
            del tensor
            torch.full((2**20,), -1.0, device="cuda")
    for value, packed in reversed(list(enumerate(kept))):
        back = offload.unpack(packed)
        assert bool((back == value).all())


@pytest.mark.parametrize("scheme", ["exact", "exact:dropout=seed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inplace", [False, True])
def test_relu_and_dropout_have_the_stock_result_and_gradient(inplace: bool, dtype: torch.dtype, scheme: str) -> None:
    x = torch.randn(400, 252, device="cuda").to(dtype)
    # For some of them 1 / (1 - p) differs in its last bit by how a device divides.
    for p in (0.1, 0.3, 0.35, 0.4, 0.6, 0.7, 0.85, 0.9):
        results: list[Tensor] = []
        for name in ("fp32", scheme):
            leaf = x.clone().requires_grad_()
            torch.manual_seed(3)
            with actbench.compress(name):
                out = F.dropout(F.relu(leaf * 1, inplace), p, inplace=inplace)
            out.backward(torch.linspace(-1, 1, x.numel(), device="cuda").view(x.shape).to(dtype))
            assert leaf.grad is not None
            results += [out.detach(), leaf.grad]
        assert torch.equal(results[0], results[2]), p
        assert torch.equal(results[1], results[3]), p


def test_a_cpu_and_a_gpu_estimate_the_same_gradient() -> None:
    """The codes are the same; what is left are two orders of 3,000 products, each side rounded to float32."""
    x, gradient = torch.randn(NODES, FEATURES), torch.randn(NODES, CLASSES)
    weights = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        linear = nn.Linear(FEATURES, CLASSES).to(device)
        with actbench.compress("blockwise", seed=1):
            out = linear(x.to(device))
        out.backward(gradient.to(device))
        assert linear.weight.grad is not None
        weights.append(linear.weight.grad.cpu())
    # |x̂| stays below 8 R^½ · R^½ with R = 5, the sums of |gradient| below 2 · NODES.
    assert torch.allclose(weights[0], weights[1], rtol=0, atol=NODES * 2.0**-23 * 40 * 2)


def test_what_cannot_be_packed_is_named_in_backward() -> None:
    linear = nn.Linear(5, 2).cuda()
    x = torch.randn(20, 5, device="cuda")
    x[13, 2] = torch.nan
    with actbench.compress("exact") as compression:
        out = linear(x)
    torch.cuda.synchronize()
    with pytest.raises(NonFiniteError, match=r"the input of linear 1 \(float32 \[20, 5\]\) cannot be kept"):
        out.sum().backward()
    with compression:
        linear(x)
    with pytest.raises(NonFiniteError, match="the input of linear 1"):
        compression.check()
