"""One of two processes that train a model together over gloo: `python -m tests.compress.two_processes RANK FOLDER`.

Writes to FOLDER, under every scheme, the gradients that the process ends with and those that it would have alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import actbench
from actbench.graphs import mean_adjacency
from actbench.models import Architecture, Network

SCHEMES = ("fp32", "blockwise-vm", "derived", "bf16", "checkpoint")


def step(network: nn.Module, scheme: str, rank: int) -> list[Tensor]:
    """Gradients of a step on this process's own graph, with its own mask and noise."""
    torch.manual_seed(rank)
    edge_index = torch.unique(torch.randint(60, (2, 300)), dim=1)
    x, adjacency = torch.randn(60, 16), mean_adjacency(edge_index, 60)
    network.zero_grad()
    with actbench.compress(scheme, seed=rank):
        out = network(x, adjacency)
    out.square().mean().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def noise_of(scheme: str) -> Tensor:
    """A gradient under noise that no seed is given for, of data and torch's seed that all processes share."""
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 4), torch.randn(40, 64)
    with actbench.compress(scheme):
        out = linear(x)
    out.square().sum().backward()
    assert linear.weight.grad is not None
    return linear.weight.grad


def main(rank: int, folder: Path) -> None:
    """Write `rank`.pt: for each scheme the gradients together and alone; and what noise without a seed made."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {}
    for scheme in SCHEMES:
        torch.manual_seed(7)
        network = Network(Architecture("sage", 2, 24, 0.4, True), 16, 5)
        alone = step(network, scheme, rank)
        found[scheme] = step(DistributedDataParallel(network), scheme, rank), alone
    torch.save((found, noise_of("exact")), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
