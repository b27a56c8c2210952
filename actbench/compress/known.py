"""What is known of tensors as long as they live and are not changed in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from actbench.compress.torch_internals import WeakTensorKeyDictionary, version_of


class Known:
    """Facts by tensor, each forgotten with its tensor or once that is changed in place."""

    def __init__(self) -> None:
        self._entries: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __setitem__(self, tensor: Tensor, what: Any) -> None:
        self._entries[tensor] = version_of(tensor), what

    def get(self, tensor: Tensor) -> Any:
        """What was set for `tensor`; None if nothing is known."""
        entry = self._entries.get(tensor)
        return entry[1] if entry is not None and entry[0] == version_of(tensor) else None

    def pop(self, tensor: Tensor) -> Any:
        """As `get`, and forgotten."""
        found = self.get(tensor)
        self._entries.pop(tensor, None)
        return found

    def items(self) -> Iterator[tuple[Tensor, Any]]:
        """Tensors that still live, unchanged, with what is known of them."""
        for tensor, (version, what) in list(self._entries.items()):
            if version == version_of(tensor):
                yield tensor, what

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
