"""Training of one network on one graph, on the whole of it or on samples."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from actbench.errors import DataError
from actbench.graphs import Graph
from actbench.models import Network, adjacency_of
from actbench.training.recipe import Recipe
from actbench.training.samples import samples_of
from actbench.training.scores import score


@dataclass(frozen=True)
class Scores:
    """The data set's metric on its three parts, each in [0, 1]."""

    train: float
    valid: float
    test: float


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step trains on: a graph or a part of it, and `train`, the nodes whose labels it predicts."""

    x: Tensor
    adjacency: Tensor
    y: Tensor
    train: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """All of it: data, and no activations."""
        return [self.x, self.adjacency, self.y, self.train]


_MOST_DRAWS: Final = 100
"""Epochs of samples that are drawn in a row for one that has a training node."""


class Trainer:
    """A network, its optimizer and its graph on one device.

    Weights are drawn from torch's generator; seed it before, and two trainers start alike. A `network` takes the place
    of the recipe's, and an `adjacency`, what it is called with besides x, that of the model's. Raises `DataError` if
    the recipe wants more parts than there are nodes.
    """

    def __init__(
        self,
        graph: Graph,
        recipe: Recipe,
        device: torch.device,
        network: Module | None = None,
        adjacency: Tensor | None = None,
    ) -> None:
        self.recipe = recipe
        self.task, self.metric = graph.task, graph.metric
        self.x, self.y, self.classes = graph.x.to(device), graph.y.to(device), graph.classes
        self.train, self.valid, self.test = (part.to(device) for part in (graph.train, graph.valid, graph.test))
        if adjacency is None:
            adjacency = adjacency_of(recipe.architecture.model, graph.edge_index, graph.nodes)
        self.adjacency = adjacency.to(device)
        self.network = (network or Network(recipe.architecture, graph.features, graph.classes)).to(device)
        optimizer = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.RMSprop
        self.optimizer = optimizer(self.network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self._samples = samples_of(graph, recipe)
        self._trains = torch.zeros(graph.nodes, dtype=torch.bool).index_fill_(0, graph.train, True)

    @property
    def resident(self) -> list[Tensor]:
        """Tensors that stay whatever is kept for backward: graph data, parameters and buffers."""
        graph = [self.x, self.y, self.adjacency, self.train, self.valid, self.test]
        return [*graph, *self.network.parameters(), *self.network.buffers()]

    def batches(self) -> Iterator[Batch]:
        """What the steps of one epoch train on, each made when it is asked for; samples without training nodes are not.

        Random walks may miss all training nodes; the epoch is then drawn anew. Raises `DataError` if that does not
        help, or for a sample of one node, which has no variance for batch norm to divide by.
        """
        if self._samples is None:
            yield self._batch(self.x, self.adjacency, self.y, self.train)
            return
        found = False
        for _ in range(_MOST_DRAWS):
            for batch in self._sampled_batches():
                found = True
                yield batch
            if found:
                return
        raise DataError("no sample has a training node: take more roots, steps or parts a batch.")

    def _sampled_batches(self) -> Iterator[Batch]:
        assert self._samples is not None
        device = self.x.device
        for nodes, edge_index in self._samples.draw():
            train = self._trains[nodes].nonzero().view(-1)
            if not train.numel():
                continue
            if nodes.numel() == 1 and self.recipe.architecture.batch_norm:
                raise DataError(
                    "a sample has one node, of which batch norm knows no variance: take more roots or parts a batch, "
                    "or no batch norm."
                )
            here = nodes.to(device)
            yield self.sample(self.x[here], self.y[here], edge_index, train)

    def sample(self, x: Tensor, y: Tensor, edge_index: Tensor, train: Tensor) -> Batch:
        """A batch of the nodes of `x`, with the edges and the training nodes among them."""
        adjacency = adjacency_of(self.recipe.architecture.model, edge_index, x.shape[0]).to(x.device)
        return self._batch(x, adjacency, y, train.to(x.device))

    def epoch(
        self,
        around_forward: AbstractContextManager[object] = nullcontext(),  # noqa: B008
        around_loss: AbstractContextManager[object] = nullcontext(),  # noqa: B008
    ) -> float:
        """One epoch: a step for each of `batches`, within the contexts as `step` has them; the mean of their losses."""
        losses = []
        for batch in self.batches():
            losses.append(self.step(around_forward, around_loss, batch))
            # Before the next one is made.
            del batch
        return sum(losses) / len(losses)

    def step(
        self,
        around_forward: AbstractContextManager[object] = nullcontext(),  # noqa: B008
        around_loss: AbstractContextManager[object] = nullcontext(),  # noqa: B008
        batch: Batch | None = None,
    ) -> float:
        """One step on `batch`, or on an epoch's first: forward inside `around_forward`, loss inside `around_loss`,
        backward, update.

        Returns the training loss. Raises `FloatingPointError`, naming the layer that it comes from, if it is not
        finite, before any weight changes.
        """
        batch = batch or next(self.batches())
        self.network.train()
        self.optimizer.zero_grad()
        with around_forward:
            logits = self.network(batch.x, batch.adjacency)
        with around_loss:
            loss = self.loss(logits[batch.train], batch.y[batch.train])
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"the training loss is {value}: {self._origin(batch.x, batch.adjacency)}")
        loss.backward()
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.optimizer.step()
        return value

    @torch.no_grad()
    def evaluate(self) -> Scores:
        """The metric on all three parts of the whole graph, with dropout off and batch norm's running statistics.

        With labels as input, all training labels are given. Raises `FloatingPointError`, naming the layer that it
        comes from, if a logit is not finite: of such, the best class is one all the same.
        """
        self.network.eval()
        x = self._inputs(self.x, self.y, self.train)
        logits = self.network(x, self.adjacency)
        if not _is_finite(logits):
            raise FloatingPointError(f"not all logits are finite: {self._origin(x, self.adjacency)}")
        train, valid, test = (
            score(self.metric, logits[part], self.y[part]) for part in (self.train, self.valid, self.test)
        )
        return Scores(train, valid, test)

    def _batch(self, x: Tensor, adjacency: Tensor, y: Tensor, train: Tensor) -> Batch:
        if self.recipe.mask_rate is None:
            return Batch(x, adjacency, y, train)
        # At least one label is hidden, or nothing would be predicted.
        given = int(train.numel() * (1 - self.recipe.mask_rate))
        order = torch.randperm(train.numel(), device=train.device)
        return Batch(self._inputs(x, y, train[order[:given]]), adjacency, y, train[order[given:]])

    def _inputs(self, x: Tensor, y: Tensor, given: Tensor) -> Tensor:
        """The features x [n, F], with labels as input beside the labels y of the nodes `given`, 0 for the others."""
        if not self.recipe.architecture.labels_as_input:
            return x
        labels = x.new_zeros(x.shape[0], self.classes)
        labels[given] = F.one_hot(y[given], self.classes).to(x.dtype) if y.dim() == 1 else y[given]
        return torch.cat((x, labels), dim=1)

    @torch.no_grad()
    def _origin(self, x: Tensor, adjacency: Tensor) -> str:
        """Which part of the network first leaves the finite numbers on this input, and what to do about it."""
        advice = "lower the learning rate, or use more bits."
        for name, parameter in self.network.named_parameters():
            if not _is_finite(parameter):
                return f"the last step left {name} not finite; {advice}"
        found: list[str] = []

        def look(name: str, out: Any) -> None:
            if not all(_is_finite(each) for each in (out if isinstance(out, tuple) else (out,))):
                found.append(name)

        modules = [(name, module) for name, module in self.network.named_modules() if name]
        hooks = [
            module.register_forward_hook(lambda _module, _inputs, out, name=name: look(name, out))
            for name, module in modules
        ]
        try:
            self.network(x, adjacency)
        finally:
            for hook in hooks:
                hook.remove()
        where = f"the first output that is not is that of {found[0]}" if found else "in FP32 every layer's output is"
        return f"{where}; {advice}"

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The training loss of logits [n, classes] against their labels, a scalar with its graph."""
        if self.task == "multi-label":
            return F.binary_cross_entropy_with_logits(logits, y)
        return F.cross_entropy(logits, y)


def _is_finite(x: Tensor) -> bool:
    """Whether all of `x`, floats of any number, are finite; NaN is its own minimum."""
    return x.numel() == 0 or bool(torch.stack(x.detach().aminmax()).isfinite().all())
