"""actbench measures what it costs to forget part of an activation."""

from importlib.metadata import version

from actbench.completing import COMPLETING
from actbench.errors import ActbenchError
from actbench.scheme import Scheme

if not COMPLETING:
    from actbench.compress import compress, run_layer

__all__ = ["ActbenchError", "Scheme", "__version__", "compress", "run_layer"]
__version__ = version("actbench")
