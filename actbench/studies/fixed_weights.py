"""A network at weights that do not change: its gradients under equal dropout masks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from actbench.compress import Compression, Ledger, compress
from actbench.errors import ActbenchError
from actbench.graphs import Graph
from actbench.scheme import Scheme
from actbench.training import Recipe, Trainer


class FixedWeights:
    """A network after some epochs of FP32 training; nothing here changes its weights any more.

    Gradients are those of one step, on the whole graph or, with a sampler, on one sample of it: `batch`. Every forward
    pass draws the same dropout masks, from torch's generator set back; a scheme's noise comes from
    Philox streams of its own.
    """

    def __init__(self, trainer: Trainer, mask_seed: int = 0) -> None:
        self.trainer = trainer
        self.batch = next(trainer.batches())
        self._mask_seed = mask_seed

    @staticmethod
    def trained(
        graph: Graph,
        recipe: Recipe,
        device: torch.device,
        seed: int,
        report: Callable[[int], None] = lambda epoch: None,
    ) -> FixedWeights:
        """Weights drawn from `seed` and trained for the recipe's epochs, 0 included; `report` is told each.

        Raises `ActbenchError` if the loss leaves the finite numbers.
        """
        torch.manual_seed(seed)
        trainer = Trainer(graph, recipe, device)
        for epoch in range(1, recipe.epochs + 1):
            try:
                trainer.epoch()
            except FloatingPointError as error:
                raise ActbenchError(f"In epoch {epoch} of FP32 {error}") from error
            report(epoch)
        return FixedWeights(trainer, seed)

    @property
    def _data(self) -> list[Tensor]:
        """What is there whatever is kept for backward."""
        return [*self.trainer.resident, *self.batch.tensors]

    def compress(self, scheme: Scheme, seed: int) -> Compression:
        """The context that this network's forward passes under `scheme` belong in, with noise of `seed`."""
        return compress(scheme, seed, self._data)

    def forward(self, compression: Compression | None = None, ledger: Ledger | None = None) -> Tensor:
        """The training loss, a scalar with its graph; `ledger` counts what the model's forward pass keeps."""
        trainer, batch = self.trainer, self.batch
        device = trainer.x.device
        trainer.network.train()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self._mask_seed)
            with compression or nullcontext(), ledger or nullcontext():
                logits = trainer.network(batch.x, batch.adjacency)
            with compression.around_loss if compression else nullcontext():
                return trainer.loss(logits[batch.train], batch.y[batch.train])

    def gradients(self, compression: Compression | None = None) -> dict[str, Tensor]:
        """The loss's gradient by every parameter, by name; raises `ActbenchError` if one is not finite."""
        gradients = self.backward(self.forward(compression))
        if compression:
            compression.check()
        return gradients

    def backward(self, loss: Tensor, again: bool = False) -> dict[str, Tensor]:
        """Gradients of a loss of `forward`, which can go backward `again`; raises as `gradients`."""
        named = {name: p for name, p in self.trainer.network.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=again)
        gradients = {name: g for name, g in zip(named, found, strict=True) if g is not None}
        for name, gradient in gradients.items():
            if not bool(torch.isfinite(gradient).all()):
                raise ActbenchError(f"The gradient of {name} is not finite: lower the learning rate or use more bits.")
        return gradients

    def saved_bytes(self, scheme: Scheme) -> int:
        """Saved-for-backward bytes of a forward pass under `scheme`, measured, without the loss."""
        ledger = Ledger(exclude=self._data)
        # What is kept is counted when the ledger closes, while the pass still holds it.
        self.forward(self.compress(scheme, 0), ledger)
        return ledger.total_bytes
