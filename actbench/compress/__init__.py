"""Train an unmodified model while less of its activations is kept for backward."""

from actbench.compress.attention import Edges, aggregate, drop_edges, edge_scores, edge_softmax, kept_edges
from actbench.compress.context import Compression, compress, run_layer
from actbench.compress.ledger import Ledger, Saved

__all__ = [
    "Compression",
    "Edges",
    "Ledger",
    "Saved",
    "aggregate",
    "compress",
    "drop_edges",
    "edge_scores",
    "edge_softmax",
    "kept_edges",
    "run_layer",
]
