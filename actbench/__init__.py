"""actbench measures what it costs to forget part of an activation."""

from importlib.metadata import version

from actbench.compress import compress, run_layer
from actbench.errors import ActbenchError
from actbench.scheme import Scheme

__all__ = ["ActbenchError", "Scheme", "__version__", "compress", "run_layer"]
__version__ = version("actbench")
