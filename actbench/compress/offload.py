"""Saved tensors in host memory: copied there while forward goes on, and back ahead of backward's need."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from actbench.compress.torch_internals import StorageWeakRef, unmoded, version_of

_open = threading.local()


class Offload:
    """A context that copies what autograd keeps on devices of type `source` to host memory, each storage once.

    `forward_bytes` lay in host memory when the context was last left.

    What shares storage with a tensor of `resident` stays, and so do sparse tensors and lazily conjugated or negated
    ones. On CUDA the host memory is pinned, and copies in both directions go through a stream of their own. On a CPU,
    where they gain nothing, they are plain.
    """

    def __init__(self, resident: Iterable[Tensor] = (), source: str = "cuda") -> None:
        self.source = source
        self.found = False
        self.forward_bytes = 0
        self._resident = {_storage(tensor).data_ptr() for tensor in resident if tensor.layout == torch.strided}
        # By address and version: what was changed in place since it was kept is another content.
        self._known: dict[tuple[int, int], tuple[StorageWeakRef, weakref.ref[_HostCopy]]] = {}
        self.copies: weakref.WeakSet[_HostCopy] = weakref.WeakSet()
        self._last: weakref.ref[_HostCopy] | None = None
        self._hooks: saved_tensors_hooks | None = None

    @property
    def host_bytes(self) -> int:
        """Bytes that lie in host memory for a backward yet to come."""
        return sum(copy.host.numel() for copy in self.copies)

    def __enter__(self) -> Self:
        self.found = False
        self._known = {}
        self._last = None
        _open.stack = [*getattr(_open, "stack", ()), self]
        self._hooks = saved_tensors_hooks(self.pack, self.unpack)
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hooks is not None
        self._hooks.__exit__(kind, error, trace)
        _open.stack.pop()
        self.forward_bytes = self.host_bytes

    def pack(self, tensor: Tensor) -> Any:
        """A tensor that stays, or where its copy is and how it looks."""
        # What copies must not be mistaken for the model's own.
        with unmoded(), torch.no_grad():
            plain = tensor.layout == torch.strided and not (tensor.is_conj() or tensor.is_neg())
            if tensor.device.type != self.source or not plain or tensor.numel() == 0:
                return tensor.detach()
            storage = _storage(tensor)
            if storage.data_ptr() in self._resident:
                # An operation's own output, handed back as it is, would keep its graph alive in a cycle for ever.
                return tensor.detach()
            self.found = True
            key = storage.data_ptr(), version_of(tensor)
            reference, known = self._known.get(key, (None, None))
            copy = known() if known is not None and reference is not None and not reference.expired() else None
            if copy is None:
                copy = _HostCopy(tensor, self._last)
                self.copies.add(copy)
                self._last = weakref.ref(copy)
                self._known[key] = StorageWeakRef(storage), self._last
            return copy, tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset()

    def unpack(self, packed: Any) -> Tensor:
        """The tensor as it was; fetches the one that was kept before it, which backward is likely to need next."""
        if isinstance(packed, Tensor):
            return packed
        copy, dtype, size, stride, offset = packed
        with unmoded(), torch.no_grad():
            storage = copy.wait()
            before = copy.before() if copy.before else None
            if before is not None:
                before.fetch()
            tensor = torch.empty(0, dtype=dtype, device=storage.device)
            return tensor.set_(storage, offset, size, stride)


class _HostCopy:
    """A storage's bytes in host memory, and the copy `before` it; it goes with the last packed tensor that has it."""

    def __init__(self, tensor: Tensor, before: weakref.ref[_HostCopy] | None) -> None:
        self.before = before
        self.device = tensor.device
        self._stream = _side_stream(tensor.device)
        self._fetched: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None
        whole = _bytes(_storage(tensor), tensor.device)
        if self._stream is None:
            self.host = whole.clone()
            return
        self.host = torch.empty(whole.numel(), dtype=torch.uint8, device="cpu", pin_memory=True)
        # The side stream must not read before the current one has written.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            self.host.copy_(whole, non_blocking=True)
        # Forward drops the storage soon; its memory must not be given away before the side stream has read it.
        whole.record_stream(self._stream)

    def fetch(self) -> None:
        """Begin the copy back, unless it has begun; the storage then stays until backward has no use for it."""
        if self._fetched is not None:
            return
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            # Of the side stream's own memory, so that the copy need not wait for what the current stream still does;
            # the copy out lies before it on the same stream.
            self._fetched = torch.empty(self.host.numel(), dtype=torch.uint8, device=self.device)
            self._fetched.copy_(self.host, non_blocking=True)
            self._arrived = self._stream.record_event() if self._stream else None

    def wait(self) -> torch.UntypedStorage:
        """The storage on its device again, whole as soon as the current stream comes to use it."""
        self.fetch()
        assert self._fetched is not None
        if self._arrived is not None:
            current = torch.cuda.current_stream(self.device)
            # For this copy, not for the one that was begun after it.
            current.wait_event(self._arrived)
            # It is the side stream's memory, which must not be given away before the current stream has read it.
            self._fetched.record_stream(current)
        return self._fetched.untyped_storage()


def innermost_offload() -> Offload | None:
    """The innermost of this thread's open contexts."""
    stack: list[Offload] = getattr(_open, "stack", [])
    return stack[-1] if stack else None


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream | None:
    """The stream that copies from and to `device` go through; none where there are no streams."""
    if device.type != "cuda":
        return None
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)
    return _streams[device]


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _bytes(storage: torch.UntypedStorage, device: torch.device) -> Tensor:
    """The storage as uint8 [nbytes]."""
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
