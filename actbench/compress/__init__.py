"""Train an unmodified model while less of its activations is kept for backward."""

from actbench.compress.interception import Compression, compress, run_layer
from actbench.compress.ledger import Ledger, Saved
from actbench.compress.prediction import Operation, predict_saved_bytes, require_calls

__all__ = [
    "Compression",
    "Ledger",
    "Operation",
    "Saved",
    "compress",
    "predict_saved_bytes",
    "require_calls",
    "run_layer",
]
