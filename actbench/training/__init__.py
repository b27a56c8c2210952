"""How a network is trained and scored: no measuring, no printing."""

from actbench.training.loop import Scores, Trainer
from actbench.training.recipe import Recipe, recipe_for

__all__ = ["Recipe", "Scores", "Trainer", "recipe_for"]
