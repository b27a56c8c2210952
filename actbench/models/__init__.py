"""The networks that are trained: stock PyG layers, written once for every scheme."""

from actbench.models.network import MODELS, Architecture, Model, Network, adjacency_of, operations

__all__ = ["MODELS", "Architecture", "Model", "Network", "adjacency_of", "operations"]
