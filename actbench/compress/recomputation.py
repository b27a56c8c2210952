"""A layer that keeps its inputs and runs again in backward, as if it had run once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint

from actbench.compress.functions import generator_of
from actbench.compress.ledger import labelled
from actbench.compress.torch_internals import unseen_writes

Output = TypeVar("Output")


def recompute(module: Module, function: Callable[..., Output], *inputs: Tensor) -> Output:
    """`function(*inputs)`, keeping `inputs` and the state of the first one's generator alone.

    Backward runs it again (Chen et al., arXiv 1604.06174) with the same random numbers, and leaves the generator and
    `module`'s buffers, such as a batch norm's running statistics, as it found them. Threads do so one after the other;
    none must draw from the generator or run `module` forward while another goes backward.
    """
    generator = generator_of(inputs[0])

    def run(state: Tensor, *inputs: Tensor) -> Output:
        # Among the inputs, the state is kept where a ledger sees it; `preserve_rng_state` hides it in a closure.
        generator.set_state(state)
        return function(*inputs)

    with labelled("layer"):
        out: Output = checkpoint(
            run,
            generator.get_state(),
            *inputs,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), _Undone(module, generator)),
        )
    return out


_one_at_a_time = threading.RLock()


class _Undone:
    """A context that undoes what happens inside to the generator and to the module's buffers; may be entered again.

    One is open at a time in all threads, which share the generator and perhaps the module.
    """

    def __init__(self, module: Module, generator: torch.Generator) -> None:
        self._module, self._generator = module, generator
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._state = generator.get_state()

    def __enter__(self) -> None:
        _one_at_a_time.acquire()
        self._state = self._generator.get_state()
        self._buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._generator.set_state(self._state)
        for buffer, before in self._buffers:
            # As if nobody had touched it: a batch norm keeps its statistics for a backward that has no use for them.
            with torch.no_grad(), unseen_writes(buffer):
                buffer.copy_(before)
        self._buffers = []
        _one_at_a_time.release()
