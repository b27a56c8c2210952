"""The bias and noise of a scheme's gradient by family of models and by step, as JSON on stdout.

    python examples/bias.py --dataset computers --data-dir DATA > bias.json

PyTorch Geometric's own GraphSAGE, GCN, GIN and GAT, 3 layers of 64 with batch norm and without dropout, cross-entropy
over the training nodes, at initialisation and after 40 steps of Adam in FP32. The bias is ‖E ĝ - g‖² / ‖g‖² of all
parameters' gradients, estimated without bias of its own from pairs of draws; the noise E‖ĝ - g‖² / ‖g‖².
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN, GIN, GraphSAGE

import actbench
from actbench.graphs import mean_adjacency
from actbench.graphs.loading import load
from actbench.meters.environment import describe_environment
from actbench.studies.gradient_noise import bias_of_mean

FAMILIES = {"GraphSAGE": GraphSAGE, "GCN": GCN, "GIN": GIN, "GAT": GAT}
SCHEMES = ("derived", "derived-fine", "int4")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="synthetic:arxiv@0.02")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    graph = load(given.dataset, given.data_dir, 0)
    x, y, nodes = graph.x.to_dense().float(), graph.y, graph.x.shape[0]
    adjacency = mean_adjacency(graph.edge_index, nodes)
    ones = torch.ones_like(adjacency.values())
    plain = torch.sparse_csr_tensor(adjacency.crow_indices(), adjacency.col_indices(), ones, adjacency.shape)
    rows = []
    for family, kind in FAMILIES.items():
        for seed in range(given.seeds):
            torch.manual_seed(seed)
            network = kind(x.shape[1], 64, 3, graph.classes, norm="batch_norm")
            edges = graph.edge_index if family == "GAT" else adjacency if family == "GraphSAGE" else plain

            def gradient(scheme: str, draw: int = 0, network: nn.Module = network, edges: Tensor = edges) -> Tensor:
                network.zero_grad()
                with actbench.compress(scheme, seed=draw):
                    out = network(x, edges)
                F.cross_entropy(out[graph.train], y[graph.train]).backward()
                found = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
                return torch.cat(found).double()

            optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
            for step in (0, given.steps):
                for _ in range(step):
                    gradient("fp32")
                    optimizer.step()
                exact = gradient("fp32")
                for scheme in SCHEMES:
                    off = torch.stack([gradient(scheme, draw) - exact for draw in range(given.draws)])
                    off /= exact.norm()
                    bias = bias_of_mean(off @ off.t())
                    row = {"family": family, "seed": seed, "step": step, "scheme": scheme}
                    row |= {"bias": bias.mean, "bias_standard_error": bias.standard_error}
                    rows.append(row | {"noise": float(off.square().sum(1).mean())})
                    sys.stderr.write(json.dumps(rows[-1]) + "\n")
    document = {"dataset": given.dataset, "nodes": nodes, "draws": given.draws, "seeds": given.seeds, "rows": rows}
    json.dump(document | {"environment": describe_environment(torch.device("cpu"))}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
