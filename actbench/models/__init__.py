"""The networks that are trained: stock PyG layers, written once for every scheme."""

from actbench.models.network import Architecture, Model, Network, adjacency_of

__all__ = ["Architecture", "Model", "Network", "adjacency_of"]
