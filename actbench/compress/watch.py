"""Which of the tensors that were kept could not be packed, told by the quantizer itself."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

import torch
from torch import Tensor

from actbench.errors import NonFiniteError

_WATCHED: Final = 2**14


class Watch:
    """Knows which of the tensors that were kept could not be packed, and their names.

    The quantizer itself notices a block that it cannot pack and sets the tensor's flag, which lies in host memory on
    every device: nothing is read twice and nobody waits for a GPU. Of all watches the last 16,384 tensors have flags.
    """

    def __init__(self) -> None:
        self._names: dict[tuple[str, int], tuple[int, str]] = {}
        self._kinds: set[str] = set()
        if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
            # Pinned memory cannot be had while a CUDA graph is captured.
            _flags("cuda")

    @contextmanager
    def packing(self, name: str, device: torch.device) -> Iterator[Tensor]:
        """A flag for packing the tensor `name`; on a CPU raises as `check` when that is done, and forgets the name."""
        flag = self.flag(name, device)
        yield flag
        if device.type == "cpu":
            self.check()
            self._names.pop((device.type, int(flag.storage_offset())), None)

    def flag(self, name: str, device: torch.device) -> Tensor:
        """int32 [1], to become 1 if the tensor `name` cannot be packed on `device`."""
        kind = device.type
        flags, number = _flags(kind), next(_numbers)
        slot = number % _WATCHED
        flags[slot] = 0
        _holders(kind)[slot] = number
        self._names[kind, slot] = number, name
        self._kinds.add(kind)
        return flags[slot : slot + 1]

    def check(self) -> None:
        """Raise `NonFiniteError` with the name of the first tensor whose flag is set, and forget them all."""
        if not any(_flags(kind).any() for kind in tuple(self._kinds)):
            return
        if "cuda" in self._kinds and not torch.cuda.is_current_stream_capturing():
            # What spoiled one tensor spoils those after it, whose kernels may still have to say so.
            torch.cuda.synchronize()
        found = []
        # Of a copy, since another thread may keep something meanwhile.
        for (kind, slot), (number, name) in list(self._names.items()):
            if _holders(kind)[slot] != number:
                self._names.pop((kind, slot), None)
            elif _flags(kind)[slot]:
                _flags(kind)[slot] = 0
                found.append((number, name))
        if not found:
            return
        _, name = min(found)
        raise NonFiniteError(
            f"{name} cannot be kept for backward: it has a NaN, an infinity or a range beyond float32; "
            "look at the data, or lower the learning rate."
        )


_numbers = itertools.count()


@cache
def _holders(kind: str) -> array[int]:
    """The number of the tensor that each flag is of."""
    return array("q", bytes(8 * _WATCHED))


@cache
def _flags(kind: str) -> Tensor:
    """Flags of the tensors on devices of a kind; never freed, since a kernel may be late to write to one."""
    return torch.zeros(_WATCHED, dtype=torch.int32, device="cpu", pin_memory=kind == "cuda")
