"""One step of a network, recorded on a tiny graph: what it takes of memory at any size."""

from actbench.trace.quantities import Values
from actbench.trace.record import Peak, Subject, Trace, predict_saved_bytes, record, require_calls

__all__ = ["Peak", "Subject", "Trace", "Values", "predict_saved_bytes", "record", "require_calls"]
