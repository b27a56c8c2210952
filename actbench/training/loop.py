"""Full-batch training of one network on one graph."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from actbench.graphs import Graph
from actbench.models import Network, adjacency_of
from actbench.training.recipe import Recipe
from actbench.training.scores import score


@dataclass(frozen=True)
class Scores:
    """The data set's metric on its three parts, each in [0, 1]."""

    train: float
    valid: float
    test: float


class Trainer:
    """A network, its optimizer and its graph on one device.

    Weights are drawn from torch's generator; seed it before, and two trainers start alike.
    """

    def __init__(self, graph: Graph, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        self.task, self.metric = graph.task, graph.metric
        self.x, self.y = graph.x.to(device), graph.y.to(device)
        self.train, self.valid, self.test = (part.to(device) for part in (graph.train, graph.valid, graph.test))
        model = recipe.architecture.model
        self.adjacency = adjacency_of(model, graph.edge_index, graph.nodes).to(device)
        self.network = Network(recipe.architecture, graph.features, graph.classes).to(device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )

    @property
    def resident(self) -> list[Tensor]:
        """Tensors that stay whatever is kept for backward: graph data, parameters and buffers."""
        graph = [self.x, self.y, self.adjacency, self.train, self.valid, self.test]
        return [*graph, *self.network.parameters(), *self.network.buffers()]

    def step(
        self,
        around_forward: AbstractContextManager[object] = nullcontext(),  # noqa: B008
        around_loss: AbstractContextManager[object] = nullcontext(),  # noqa: B008
    ) -> float:
        """One epoch: forward inside `around_forward`, loss inside `around_loss`, backward, update.

        Returns the training loss. Raises `FloatingPointError` if it is not finite, before any weight changes.
        """
        self.network.train()
        self.optimizer.zero_grad()
        with around_forward:
            logits = self.network(self.x, self.adjacency)
        with around_loss:
            loss = self.loss(logits[self.train], self.y[self.train])
        value = float(loss.detach())
        if value != value or value in (float("inf"), float("-inf")):
            raise FloatingPointError(f"the training loss is {value}: lower the learning rate or use more bits.")
        loss.backward()
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        return value

    @torch.no_grad()
    def evaluate(self) -> Scores:
        """The metric on all three parts, with dropout off and batch norm's running statistics."""
        self.network.eval()
        logits = self.network(self.x, self.adjacency)
        train, valid, test = (
            score(self.metric, logits[part], self.y[part]) for part in (self.train, self.valid, self.test)
        )
        return Scores(train, valid, test)

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The training loss of logits [n, classes] against their labels, a scalar with its graph."""
        if self.task == "multi-label":
            return F.binary_cross_entropy_with_logits(logits, y)
        return F.cross_entropy(logits, y)
