"""Codes that stand for a tensor until an operation that no rule covers keeps the tensor itself: then they are given up.

A ReLU's bits, or a linear's packed input, are made before anybody can know that a convolution will keep the same values
in float. FP32 keeps those once; so does this.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks

from actbench.compress.codec import Reading, multiply
from actbench.compress.torch_internals import StorageWeakRef, foreign_hooks, pack_hook, unmoded, version_of
from actbench.quant import Dropped, RectifiedCodes, Rectifier, scale_where


class _Cell:
    """What autograd holds of one saved tensor: the tensor, or what has taken its place."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.version = version_of(tensor)


class Stand:
    """Codes in place of one tensor [any shape]; `whole` once it is the tensor itself that is kept.

    `tensors` are those that `function.apply` keeps for it, `reading` is how they are read if they are.
    """

    def __init__(self, tensors: tuple[Tensor, ...], reading: Reading | None = None) -> None:
        self.whole = False
        self._reading = reading
        self._places = {each.data_ptr() for each in tensors}
        self._cells: list[weakref.ref[_Cell]] = []
        self._storage: StorageWeakRef | None = None
        self._version = 0
        self._view: tuple[Any, ...] = ()

    def apply(self, function: type[Function], *arguments: Any) -> Any:
        """`function.apply(*arguments)`, whose codes may be given up later. Hooks of a user's see them as they are."""
        if foreign_hooks():
            return function.apply(*arguments)
        around = pack_hook() or (lambda tensor: tensor)
        with saved_tensors_hooks(lambda tensor: self._pack(around(tensor)), _unpack):
            return function.apply(*arguments)

    def stand_for(self, x: Tensor) -> None:
        """The tensor whose place the codes have; as it is now."""
        self._storage = StorageWeakRef(x.untyped_storage())
        self._version, self._view = version_of(x), (x.size(), x.stride(), x.storage_offset())

    def give_way(self, kept: Tensor) -> None:
        """To the tensor, which somebody keeps: `kept` is it or a view of its memory."""
        cells = [cell for each in self._cells if (cell := each()) is not None]
        alive = self._storage is not None and not self._storage.expired()
        if self.whole or not cells or not alive or version_of(kept) != self._version:
            return
        with unmoded(), torch.no_grad():
            cells[0].tensor = kept.detach().as_strided(*self._view)
            cells[0].version = version_of(kept)
            for cell in cells[1:]:
                cell.tensor = kept.new_empty(0)
                cell.version = 0
        self.whole = True

    def unpack(self, packed: tuple[Tensor, ...]) -> Tensor:
        """The tensor, or the estimate of it."""
        assert self._reading is not None
        return packed[0] if self.whole else self._reading.unpack(packed)

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """`left` [n, rows] times that, times `scale`."""
        assert self._reading is not None
        return multiply(left, packed[0], scale) if self.whole else self._reading.left_product(left, packed, scale)

    def _pack(self, tensor: Tensor) -> Any:
        if tensor.layout == torch.strided and tensor.data_ptr() in self._places:
            cell = _Cell(tensor)
            self._cells.append(weakref.ref(cell))
            return cell
        return _Cell(tensor)


def _unpack(cell: _Cell) -> Tensor:
    if version_of(cell.tensor) != cell.version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: "
            f"[{cell.tensor.type()} {list(cell.tensor.shape)}] is at version {version_of(cell.tensor)}; expected "
            f"version {cell.version} instead."
        )
    return cell.tensor


def pass_relu(
    stand: Stand | None, rectifier: Rectifier, gradient: Tensor, codes: RectifiedCodes, dropped: Dropped | None
) -> Tensor:
    """`Rectifier.passed`, of the codes or, where those gave way, of the ReLU's output itself."""
    if stand is None or not stand.whole:
        return rectifier.passed(gradient, codes, dropped)
    gradient = gradient if dropped is None else scale_where(gradient, dropped.mask, dropped.factor)
    return gradient.masked_fill(codes[0] <= 0, 0)
