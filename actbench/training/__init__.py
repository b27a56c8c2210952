"""How a network is trained and scored: no measuring, no printing."""

from actbench.training.loop import Batch, Scores, Trainer
from actbench.training.recipe import DEFAULTS, Optimizer, Recipe, Sampler, recipe_for

__all__ = ["DEFAULTS", "Batch", "Optimizer", "Recipe", "Sampler", "Scores", "Trainer", "recipe_for"]
