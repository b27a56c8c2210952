"""What torch's operations allocate, seen where they are dispatched, in the order of the allocations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from actbench.compress.codec import GENERATOR_BYTES
from actbench.compress.torch_internals import StorageWeakRef
from actbench.trace.quantities import Reader, Size

INDEX_BYTES: Final = 0
"""Instead of bytes: those of an index into the adjacency's entries, of which there may be more than 2^31."""


@dataclass(frozen=True)
class Storage:
    """One storage: `count` elements of `element_bytes`, taken when `label` ran."""

    count: Size
    element_bytes: int
    label: str


Event = tuple[bool, int]
"""Whether a storage is taken or dropped, and its number."""


class Recording(TorchDispatchMode):
    """Records, while open, every storage that an operation makes and when nobody holds it any more.

    An operation's inner allocations, which nobody sees, are those that `workspaces` knows for `device`.
    """

    def __init__(self, reader: Reader, device: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: list[Storage] = []
        self.events: list[Event] = []
        self.label = self._phase = ""
        self._reader = reader
        self._device = device
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._unseen = False

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self._unseen:
            return func(*args, **(kwargs or {}))
        self.sweep()
        self.known([args, *(kwargs or {}).values()])
        self.label = f"{self._phase}: {func.__name__.partition('.')[0].strip('_')}"
        out = func(*args, **(kwargs or {}))
        workspace = _WORKSPACES.get(func.overloadpacket)
        if workspace is None:
            self.note(out)
        else:
            workspace(self, args, out)
        return out

    def begin(self, phase: str) -> None:
        """What is made from now on is part of `phase`."""
        self.label = self._phase = phase

    @contextmanager
    def phase(self, name: str, context: AbstractContextManager[object], after: str) -> Iterator[None]:
        """A phase inside of `context`, and the one that comes after it."""
        self.begin(name)
        with context:
            yield
        self.begin(after)

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """A context whose allocations play no part."""
        before, self._unseen = self._unseen, True
        try:
            yield
        finally:
            self._unseen = before

    def known(self, values: Any) -> None:
        """Tell of tensors that are there already, of which no operation makes anything new."""
        for part in _parts(values):
            storage = part.untyped_storage()
            if _is_new(self._live.get(storage.data_ptr())):
                self._live[storage.data_ptr()] = StorageWeakRef(storage), -1

    def saved(self, tensor: Tensor) -> Tensor:
        """`tensor`, which is kept for backward, and taken now if no operation has made it."""
        self.note(tensor)
        # An operation's own output, handed back as it is, would keep its graph alive in a cycle for ever.
        return tensor.detach()

    def note(self, out: Any) -> None:
        """Take the new storages among what an operation returned."""
        for part in _parts(out):
            storage = part.untyped_storage()
            if storage.nbytes() == 0 or not _is_new(self._live.get(storage.data_ptr())):
                continue
            count = storage.nbytes() // part.element_size()
            number = self.take(count, part.element_size(), part)
            self._live[storage.data_ptr()] = StorageWeakRef(storage), number

    def take(self, count: int, element_bytes: int, like: Tensor | None = None) -> int:
        """A storage of so many elements; returns its number."""
        sizes = tuple(map(self._reader.read, like.shape)) if like is not None and like.numel() == count else ()
        if len(sizes) > 1:
            size = self._reader.product(sizes)
        else:
            packed = like is not None and like.dtype in (torch.uint8, torch.bfloat16)
            size = self._reader.expected(count) if packed else self._reader.read(count)
        if self.on_cuda and element_bytes == 1 and count == GENERATOR_BYTES["cpu"]:
            # A generator's state, which lies in host memory.
            size = Size(0)
        if like is not None and like.dtype == torch.int32 and count > 1:
            element_bytes = INDEX_BYTES
        return self.take_size(size, element_bytes)

    def take_size(self, count: Size, element_bytes: int) -> int:
        """The same of what is read already."""
        self.storages.append(Storage(count, element_bytes, self.label))
        self.events.append((True, len(self.storages) - 1))
        return len(self.storages) - 1

    def sum_words(self, words: int) -> None:
        """What a sum of a content takes meanwhile, on CUDA, in torch's own operations: see quant/content.py."""
        if self.on_cuda:
            self.drop(self.take_size(self._reader.of(_summing_bytes, words), 1))

    def drop(self, *numbers: int) -> None:
        """Storages that nobody holds any more."""
        self.events.extend((False, number) for number in numbers)

    def use(self, *counts: tuple[int, int]) -> None:
        """Storages of so many elements and bytes each, taken together and dropped."""
        self.drop(*[self.take(*count) for count in counts])

    def pass_on(self, source: Tensor, out: Tensor) -> None:
        """Take `out` for `source`, of which nothing else is read any more."""
        storage, address = out.untyped_storage(), source.untyped_storage().data_ptr()
        reference, number = self._live[address]
        if storage.data_ptr() != address:
            self._live[storage.data_ptr()] = StorageWeakRef(storage), number
            self._live[address] = reference, -1

    def at(self, address: int) -> Storage | None:
        """The storage that lies at `address`; None if it was made otherwise."""
        reference, number = self._live.get(address, (None, -1))
        return None if reference is None or reference.expired() or number < 0 else self.storages[number]

    def elsewhere(self, tensors: list[Tensor]) -> None:
        """Tell of tensors that stand for some in host memory: they take nothing."""
        for tensor in tensors:
            number = self._live[tensor.untyped_storage().data_ptr()][1]
            self.storages[number] = replace(self.storages[number], count=Size(0))

    def sweep(self) -> None:
        """Drop what has died."""
        dead = [address for address, (reference, _) in self._live.items() if reference.expired()]
        for address in dead:
            number = self._live.pop(address)[1]
            if number >= 0:
                self.drop(number)

    @property
    def on_cuda(self) -> bool:
        """Whether it stands for a GPU."""
        return self._device == "cuda"


_CHUNK_WORDS: Final = 2**22


def _summing_bytes(words: int) -> int:
    """Three int64 a word of a chunk, and a fourth where there is another chunk before it."""
    return 24 * words if words <= _CHUNK_WORDS else 32 * _CHUNK_WORDS


def _is_new(known: tuple[StorageWeakRef, int] | None) -> bool:
    return known is None or known[0].expired()


def _parts(values: Any) -> Iterator[Tensor]:
    """The strided tensors among `values`."""
    for value in values if isinstance(values, list | tuple) else (values,):
        if isinstance(value, list | tuple):
            yield from _parts(value)
        elif isinstance(value, Tensor):
            if value.layout == torch.sparse_csr:
                yield from (value.crow_indices(), value.col_indices(), value.values())
            elif value.layout == torch.sparse_csc:
                yield from (value.ccol_indices(), value.row_indices(), value.values())
            else:
                yield value


Workspace = Callable[[Recording, tuple[Any, ...], Any], None]


def _sparse_product(recording: Recording, args: tuple[Any, ...], out: Any) -> None:
    """A CSC matrix is turned round first; the product is added to a matrix of zeros."""
    left = args[0]
    turned = _turn(recording, left) if left.layout == torch.sparse_csc else []
    zeros = recording.take(out.numel(), out.element_size(), out) if left.layout != torch.strided else None
    recording.note(out)
    if zeros is not None:
        recording.drop(zeros)
    recording.drop(*turned)


def _to_csr(recording: Recording, args: tuple[Any, ...], out: Any) -> None:
    turned = _turn(recording, args[0]) if args[0].layout == torch.sparse_csc else []
    recording.drop(*turned)
    recording.note(out)


def _turn(recording: Recording, matrix: Tensor) -> list[int]:
    """The storages of a matrix's transpose in CSR, for which torch sorts its entries."""
    nodes, entries = matrix.shape[0], matrix.values().numel()
    pointers = matrix.ccol_indices()
    recording.use((nodes, 8), (nodes, 8))
    rows = recording.take(nodes + 1, 4, pointers)
    pairs = recording.take(2 * entries, INDEX_BYTES)
    recording.use((entries, INDEX_BYTES), (entries, INDEX_BYTES))
    keys = recording.take(entries, 8)
    in_order, order = recording.take(entries, 8), recording.take(entries, 8)
    # On CUDA the radix sort has a second copy of keys and order.
    recording.use(*[(entries, 8)] * (3 if recording.on_cuda else 1))
    recording.drop(in_order)
    turned = [
        recording.take(2 * entries, INDEX_BYTES),
        recording.take(entries, 4),
        recording.take(nodes + 1, 4, pointers),
    ]
    recording.use((nodes + 1, INDEX_BYTES), (nodes + 1, INDEX_BYTES))
    recording.drop(order, keys, pairs, rows)
    return turned


def _batch_norm_backward(recording: Recording, args: tuple[Any, ...], out: Any) -> None:
    """A CPU forms the gradient by the input from one more matrix."""
    by_x = out[0]
    recording.note(by_x)
    extra = None
    if by_x is not None and not recording.on_cuda:
        extra = recording.take(by_x.numel(), by_x.element_size(), by_x)
    recording.note(out[1:])
    if extra is not None:
        recording.drop(extra)


def _reduced_product_backward(recording: Recording, args: tuple[Any, ...], out: Any) -> None:
    """Torch sorts the entries, for which it has seven words an entry, eight at most, and a row's pointers."""
    nodes, entries = args[0].shape[0], args[0].values().numel()
    recording.use((entries, 32))
    turned = recording.take(entries, 28), recording.take(nodes + 1, 4, args[0].crow_indices())
    recording.note(out)
    recording.drop(*turned)


def _index_put(recording: Recording, args: tuple[Any, ...], out: Any) -> None:
    """On CUDA the indices are sorted: they, the sorted ones, the order, and what the sort itself needs.

    A gradient by what was indexed is put into a matrix of zeros in place, unless such a mode as this looks on.
    """
    recording.pass_on(args[0], out)
    indices = [each for each in args[1] if each is not None]
    if recording.on_cuda and indices and indices[0].dtype == torch.int64:
        recording.use(*[(indices[0].numel(), 8)] * 6)


_ATEN = torch.ops.aten
_WORKSPACES: Final[dict[Any, Workspace]] = {
    _ATEN.mm: _sparse_product,
    _ATEN._to_sparse_csr: _to_csr,
    _ATEN.native_batch_norm_backward: _batch_norm_backward,
    _ATEN._sparse_mm_reduce_impl_backward: _reduced_product_backward,
    _ATEN.index_put: _index_put,
    _ATEN.index_put_: _index_put,
}
