"""The ledger: every byte that autograd keeps for backward while it is open, each storage once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from actbench.compress.offload import innermost_offload
from actbench.compress.torch_internals import StorageWeakRef, is_traceable_wrapper_subclass, unmoded
from actbench.errors import UsageError

_open = threading.local()


@dataclass(frozen=True)
class Saved:
    """One storage kept for backward: by which call of which operation, and how it looks."""

    operation: str
    call: int
    shape: tuple[int, ...]
    dtype: str
    saved_bytes: int


class Ledger:
    """A context that counts saved-for-backward bytes; open it inside `compress`, around the forward pass.

    What shares storage with a tensor of `exclude` (parameters, buffers, graph data) is not counted. A storage counts
    once, however often it is saved, and only if it is still alive when the context closes; what an earlier ledger,
    `beyond`, has counted is left to that one. What `offload` has moved to host memory is not alive and not counted.
    Where nobody holds a result, the latest one's are counted. Closing it raises `UsageError` if tensors were kept and
    none is alive, as after backward, and so does a tensor whose memory cannot be found.
    """

    def __init__(self, exclude: Iterable[Tensor] = (), beyond: Ledger | None = None) -> None:
        # The looking must not be mistaken for what is looked at.
        with unmoded():
            self._excluded = {part.untyped_storage().data_ptr() for tensor in exclude for part in _parts(tensor)}
        self._beyond = beyond._counted if beyond else {}
        self._counted: dict[int, tuple[StorageWeakRef, Saved]] = {}
        self._labels = _Labels()
        self._contexts = ExitStack()
        self.entries: tuple[Saved, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Bytes of all entries; the entries stand once the context is closed."""
        return sum(entry.saved_bytes for entry in self.entries)

    def kept(self) -> Iterator[tuple[int, Saved]]:
        """Where each storage lies that is still kept, and its entry."""
        return ((address, saved) for address, (held, saved) in self._counted.items() if not held.expired())

    def __enter__(self) -> Self:
        # Of nested hooks torch calls the innermost alone, so offload's are called from here.
        offload = innermost_offload()
        pack, unpack = (offload.pack, offload.unpack) if offload else (_itself, _itself)
        self._contexts.enter_context(saved_tensors_hooks(lambda tensor: pack(self._record(tensor)), unpack))
        self._contexts.enter_context(self._labels)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for callback in getattr(_open, "callbacks", ()):
                    callback()
        finally:
            self._contexts.close()
        self.entries = tuple(saved for _, saved in self.kept())
        self._labels.last = None
        if kind is None and self._counted and not self.entries and innermost_offload() is None:
            raise UsageError(
                "the ledger found nothing of what was kept for backward alive any more: hold the model's output until "
                "the ledger is closed, and close it before backward."
            )

    def _record(self, tensor: Tensor) -> Tensor:
        with unmoded():
            self._count(tensor)
            # An operation's own output, handed back as it is, would keep its graph alive in a cycle for ever.
            return tensor.detach()

    def _count(self, tensor: Tensor) -> None:
        for part in _parts(tensor):
            storage = part.untyped_storage()
            address = storage.data_ptr()
            known = self._counted.get(address) or self._beyond.get(address)
            if storage.nbytes() == 0 or address in self._excluded or (known and not known[0].expired()):
                continue
            name = str(part.dtype).removeprefix("torch.")
            saved = Saved(self._labels.operation, self._labels.call, tuple(part.shape), name, storage.nbytes())
            self._counted[address] = StorageWeakRef(storage), saved


@contextmanager
def before_closing(callback: Callable[[], None]) -> Iterator[None]:
    """While open, `callback` is called before a ledger of this thread closes, and may keep what is yet to be kept."""
    _open.callbacks = [*getattr(_open, "callbacks", ()), callback]
    try:
        yield
    finally:
        _open.callbacks.remove(callback)


@contextmanager
def labelled(operation: str) -> Iterator[None]:
    """What open ledgers of this thread call that which no torch function inside keeps: the next call of `operation`."""
    labels: list[_Labels] = list(getattr(_open, "labels", ()))
    with ExitStack() as contexts:
        for each in labels:
            contexts.enter_context(each.named(operation))
        yield


class _Labels(TorchFunctionMode):
    """Knows which torch function is running, and how many calls of it there were."""

    def __init__(self) -> None:
        super().__init__()
        self.operation = "no torch function"
        self._calls: Counter[str] = Counter()
        self.last: Any = None
        """The latest operation that has a backward: whether its result is held or not, it holds what backward needs."""

    def __enter__(self) -> Self:
        _open.labels = [*getattr(_open, "labels", ()), self]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        _open.labels.pop()

    @property
    def call(self) -> int:
        return self._calls[self.operation]

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        with self.named(getattr(func, "__name__", str(func)).strip("_")):
            out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor) and each.grad_fn is not None:
                self.last = each.grad_fn
        return out

    @contextmanager
    def named(self, operation: str) -> Iterator[None]:
        """The next call of `operation`, while open."""
        before, self.operation = self.operation, operation
        self._calls[operation] += 1
        try:
            yield
        finally:
            self.operation = before


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The strided tensors that hold `tensor`'s data. Raises `UsageError` where they cannot be had."""
    if is_traceable_wrapper_subclass(tensor):
        # As PyG's EdgeIndex or a DTensor: it says itself what it is made of.
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _parts(getattr(tensor, name))
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    elif tensor.layout == torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    else:
        try:
            tensor.untyped_storage().data_ptr()
        except RuntimeError as error:
            raise UsageError(
                f"the ledger cannot count a {type(tensor).__name__} of layout {tensor.layout}, whose memory it cannot "
                "find: keep that part of the model outside of the ledger."
            ) from error
        yield tensor
