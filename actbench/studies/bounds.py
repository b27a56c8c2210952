"""What studies take, apart from what computes them: the command line names it without importing torch."""

from typing import Final

LEAST_DRAWS: Final = 3
"""Fewer leave no standard error of the bias."""
