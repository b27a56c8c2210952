"""What estimates take, apart from what computes them: the command line names it without importing torch."""

from typing import Final

LARGEST_HIDDEN: Final = 2**24
LARGEST_NODES: Final = 2**40
"""How far the searches go, and the most that `estimate` takes of a width and of nodes."""
LARGEST_EDGES: Final = 2**48
LARGEST_LAYERS: Final = 256
