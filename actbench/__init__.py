"""actbench measures what it costs to forget part of an activation."""

from importlib.metadata import version

from actbench.compress import compress
from actbench.errors import ActbenchError
from actbench.scheme import Scheme

__all__ = ["ActbenchError", "Scheme", "__version__", "compress"]
__version__ = version("actbench")
