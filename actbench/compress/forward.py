"""The forward pass as it is recorded: a node for every tensor, held weakly, from which it is decided what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from actbench.compress.codec import Kept
from actbench.compress.stands import Stand
from actbench.compress.tensors import has_memory, is_parameter, tensors_in
from actbench.compress.torch_internals import (
    StorageWeakRef,
    WeakTensorKeyDictionary,
    base_of,
    is_view,
    version_of,
)


@dataclass(eq=False)
class Node:
    """One tensor of a forward pass, as it was at `version`: data, opaque, or what an `operation` made of other tensors.

    `made` tells what needs no gradient and was made in the pass, so that it is no data. `operation` is what a rule says
    of how the tensor was made; None: nothing is known of it. `kept` is what its values are read from in backward, once
    something is kept of them.
    """

    version: int
    made: bool
    operation: Any = None
    kept: Kept | None = None


@dataclass
class _Place:
    """One storage: codes that stand for what it holds, whether that is kept in float, and who may write to it."""

    stands: list[Stand] = field(default_factory=list)
    kept_in_float: StorageWeakRef | None = None
    escaped: bool = False


class Forward:
    """The nodes of one forward pass and the storages that their tensors lie in.

    A node is forgotten with its tensor. What is said of values is forgotten once they are changed in place; that a
    tensor was made in the pass is not.
    """

    def __init__(self) -> None:
        self._nodes: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._places: dict[int, _Place] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._nodes.clear()
        self._places.clear()

    def node(self, x: Tensor) -> Node:
        """The node of `x` as it is now."""
        known: Node | None = self._nodes.get(x)
        if known is None or known.version != version_of(x):
            known = self._nodes[x] = Node(version_of(x), known is not None and known.made)
        return known

    def find(self, x: Tensor) -> Node | None:
        """The node of `x` as it is now, if anything is known of it."""
        known: Node | None = self._nodes.get(x)
        return known if known is not None and known.version == version_of(x) else None

    def record(self, x: Tensor, operation: Any) -> Node:
        """The node of `x`, which `operation` has just made."""
        node = self._nodes[x] = Node(version_of(x), False, operation)
        return node

    def nodes(self) -> Iterator[tuple[Tensor, Node]]:
        """Tensors that still live, unchanged, with their nodes."""
        for x, node in list(self._nodes.items()):
            if node.version == version_of(x):
                yield x, node

    def nodes_in(self, places: set[int]) -> Iterator[tuple[Tensor, Node]]:
        """Those whose memory begins at one of `places`."""
        return ((x, node) for x, node in self.nodes() if has_memory(x) and _address(x) in places)

    def made(self, x: Tensor) -> bool:
        """Whether `x`, which needs no gradient, was made in the pass, and be it changed since."""
        known, base = self._nodes.get(x), base_of(x)
        if known is None or not known.made:
            known = None if base is None else self._nodes.get(base)
        return known is not None and known.made

    def is_data(self, x: Tensor) -> bool:
        """Whether `x` stays anyway: it needs no gradient and was there before."""
        return not x.requires_grad and not self.made(x)

    def note_made(self, func: Callable[..., Any], out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See which tensors without gradient among what `func` returned it has made."""
        for each in tensors_in((out,)):
            if not each.requires_grad and self._is_new(func, each, args, kwargs):
                self.node(each).made = True

    def _is_new(self, func: Callable[..., Any], out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether `out` is a tensor of its own, and neither an argument nor a view of data."""
        taken = tensors_in((*args, *kwargs.values()))
        if not has_memory(out) or is_view(out) or any(out is each for each in taken):
            return False
        return func is not Tensor.detach or args[0].requires_grad or self.made(args[0])

    def stays(self, x: Tensor) -> bool:
        """Whether `x` is a parameter or kept in float by an operation that no rule covers: a code comes on top."""
        return is_parameter(x) or self.keeps_in_float(x)

    def keeps_in_float(self, x: Tensor) -> bool:
        """Whether an operation that no rule covers keeps the memory of `x`."""
        place = self._places.get(_address(x))
        return place is not None and place.kept_in_float is not None and not place.kept_in_float.expired()

    def keep_in_float(self, kept: Tensor) -> None:
        """Tell that an operation that no rule covers keeps `kept`: the codes of it give way."""
        place = self._place(kept)
        place.kept_in_float = StorageWeakRef(kept.untyped_storage())
        for stand in place.stands:
            stand.give_way(kept)
        place.stands.clear()
        for _, node in self.nodes_in({_address(kept)}):
            node.kept = None

    def stand_for(self, x: Tensor, stand: Stand) -> None:
        """Tell that `stand` is kept in place of `x`, until an operation that no rule covers keeps that itself."""
        stand.stand_for(x)
        self._place(x).stands.append(stand)

    def escape(self, x: Tensor) -> None:
        """Tell that the memory of `x` is in somebody's hands whose writing no mode and no version tells of."""
        self._place(x).escaped = True

    def escaped(self, x: Tensor) -> bool:
        """Whether it is."""
        place = self._places.get(_address(x))
        return place is not None and place.escaped

    def _place(self, x: Tensor) -> _Place:
        return self._places.setdefault(_address(x), _Place())


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
