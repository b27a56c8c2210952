"""How a tensor is kept for backward and read again from what is kept, with noise regenerated from its seed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from actbench.compress.watch import Watch
from actbench.errors import UsageError
from actbench.quant import Dropped, Packing, Projection, Rectifier, dense_sum, dequantize, quantize
from actbench.quant.layout import Layout, RectifiedLayout, mask_bytes, projected_width
from actbench.scheme import Scheme

GENERATOR_BYTES: Final = {"cpu": 5056, "cuda": 16}
"""What torch's generator of a device takes to be set back: a Mersenne twister's state, or a seed and an offset."""


class Sizing(Protocol):
    """Who answers for sizes in a run that stands for others: on other devices, and with other numbers of everything."""

    device: str
    """The kind of device that the run stands for."""

    def decide(self, question: Callable[..., bool], *sizes: int) -> bool:
        """What `question` says of the numbers that `sizes` stand for."""

    def define(self, of: Callable[..., int], *sizes: int) -> int:
        """`of(*sizes)`, or a number that stands for it."""

    def expect(self, layout: Callable[..., Layout], *shape: int) -> None:
        """A tensor of that shape is about to be packed."""


class _AsItIs:
    """Sizes that stand for themselves."""

    def decide(self, question: Callable[..., bool], *sizes: int) -> bool:
        return question(*sizes)

    def define(self, of: Callable[..., int], *sizes: int) -> int:
        return of(*sizes)

    def expect(self, layout: Callable[..., Layout], *shape: int) -> None:
        pass


_sizing = threading.local()
_AS_IT_IS: Final = _AsItIs()


@contextmanager
def sized_by(sizing: Sizing) -> Iterator[None]:
    """While open, in this thread, `sizing` answers."""
    before = getattr(_sizing, "sizing", None)
    _sizing.sizing = sizing
    try:
        yield
    finally:
        _sizing.sizing = before


def device_of(x: Tensor) -> str:
    """The kind of device that `x` is on, or stands for one on."""
    sizing: Sizing | None = getattr(_sizing, "sizing", None)
    return x.device.type if sizing is None else sizing.device


def _sizes() -> Sizing | _AsItIs:
    return getattr(_sizing, "sizing", None) or _AS_IT_IS


class Reading(Protocol):
    """How a tensor's values, a matrix x [rows, width], are read from the tensors that are kept for them."""

    def unpack(self, packed: tuple[Tensor, ...]) -> Tensor:
        """x or an unbiased estimate of it. Raises `NonFiniteError` if it is known that there is none."""

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """`left` [n, rows] times x or the estimate, times `scale`; x, if not projected, may be seen with other rows.

        Raises as `unpack`.
        """


class Codec(Reading, Protocol):
    """A way to keep a tensor, chosen by a scheme for the tensor's shape and dtype."""

    @property
    def bytes(self) -> int:
        """What the packed tensors take."""

    def pack(self, x: Tensor) -> tuple[Tensor, ...]:
        """What is kept of `x`. On a CPU raises `NonFiniteError` if it cannot be packed."""


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept of one tensor: from which tensors its values are read, and how."""

    reading: Reading
    tensors: tuple[Tensor, ...]

    @staticmethod
    def by(codec: Codec, x: Tensor) -> Kept:
        """`x` as `codec` packs it."""
        return Kept(codec, codec.pack(x.detach()))


@dataclass(frozen=True)
class Noise:
    """Where one kept tensor's random numbers come from: its own pair of Philox streams."""

    seed: int
    index: int

    @property
    def projection_stream(self) -> int:
        """Stream of the projection's signs."""
        return 2 * self.index

    @property
    def rounding_stream(self) -> int:
        """Stream of the rounding."""
        return 2 * self.index + 1


@dataclass(frozen=True)
class Exact:
    """A tensor kept by reference: data, or what is shorter as it is.

    Where FP32 would not read it again in backward, `content` is what `dense_sum` made of it.
    """

    content: Tensor | None = None

    def unpack(self, packed: tuple[Tensor, ...]) -> Tensor:
        """It itself. Raises `UsageError` if it is not what it was."""
        if self.content is not None:
            require_unchanged(self.content, dense_sum(packed[0]), "data that a layer read")
        return packed[0]

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """`left` [n, rows] times it, times `scale`."""
        return multiply(left, self.unpack(packed), scale)


@dataclass(frozen=True)
class Quantized:
    """The codec of a matrix [rows, width], projected to `packing.shape[1]` columns where that is fewer.

    `name` says which one it is to a user, `watch` is told if it cannot be packed.
    """

    width: int
    packing: Packing
    noise: Noise
    name: str
    watch: Watch

    @staticmethod
    def of(
        rows: int,
        width: int,
        dtype: torch.dtype,
        scheme: Scheme,
        noise: Noise,
        ratio: int,
        name: str = "a matrix",
        watch: Watch | None = None,
    ) -> Quantized:
        """How `scheme` keeps such a matrix under projection ratio `ratio` (1: not projected)."""
        sizes = _sizes()
        projected = width
        if ratio != 1:
            projected = sizes.define(lambda width: projected_width(width, ratio), width)

        def layout(rows: int, width: int) -> Layout:
            return Packing.of(torch.Size((rows, width)), dtype, scheme).layout

        sizes.expect(layout, rows, projected)
        packing = Packing.of(torch.Size((rows, projected)), dtype, scheme)
        return Quantized(width, packing, noise, name, watch or Watch())

    @property
    def bytes(self) -> int:
        """Of codes, minima and scales."""
        return self.packing.layout.total_bytes

    @property
    def projection(self) -> Projection | None:
        """The projection that x went through before it was packed."""
        projected = self.packing.shape[1]
        if projected == self.width:
            return None
        return Projection(self.width, projected, self.noise.seed, self.noise.projection_stream)

    def pack(self, x: Tensor) -> tuple[Tensor, ...]:
        """Pack `x` [rows, width]. On a CPU raises `NonFiniteError` if that cannot be done."""
        with self.watch.packing(self.name, x.device) as flag:
            return quantize(x, self.packing, self.noise.seed, self.noise.rounding_stream, self.projection, flag)

    def unpack(self, packed: tuple[Tensor, ...]) -> Tensor:
        """An unbiased estimate of x, [rows, width]. Raises `NonFiniteError` if it is known that there is none."""
        self.watch.check()
        return dequantize(packed, self.packing, self.projection)

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """`left` [n, rows] times the estimate of x, never formed, times `scale`: (left û) Pᵀ. Raises as `unpack`."""
        self.watch.check()
        values = dequantize(packed, self.packing).to(left.dtype)
        if not self.projection:
            return multiply(left, values, scale)
        product = left @ values
        del values
        product = product @ self.projection.matrix(product).t()
        return product if scale == 1 else product * scale


@dataclass(frozen=True)
class Rectified:
    """The codec of a ReLU's output, made of its input or output: the mask, and estimates of what is positive."""

    rectifier: Rectifier
    noise: Noise
    name: str
    watch: Watch

    @staticmethod
    def of(shape: torch.Size, dtype: torch.dtype, scheme: Scheme, noise: Noise, name: str, watch: Watch) -> Rectified:
        """How `scheme` keeps a ReLU's output of that shape."""

        def layout(*shape: int) -> RectifiedLayout:
            return Rectifier.of(torch.Size(shape), dtype, scheme).layout

        _sizes().expect(layout, *shape)
        return Rectified(Rectifier.of(shape, dtype, scheme), noise, name, watch)

    @property
    def bytes(self) -> int:
        """Of codes and scales."""
        return self.rectifier.layout.total_bytes

    def pack(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Codes of what is positive in `x`. On a CPU raises `NonFiniteError` if that cannot be done."""
        with self.watch.packing(self.name, x.device) as flag:
            return self.rectifier.quantize(x, self.noise.seed, self.noise.rounding_stream, flag)

    def unpack(self, packed: tuple[Tensor, ...], dropped: Dropped | None = None) -> Tensor:
        """An unbiased estimate, of the dropout's output after it if there was one."""
        self.watch.check()
        codes, scale = packed
        return self.rectifier.dequantize((codes, scale), dropped)

    def left_product(self, left: Tensor, packed: tuple[Tensor, ...], scale: float = 1.0) -> Tensor:
        """`left` [n, rows] times the estimate, times `scale`."""
        return multiply(left, self.unpack(packed), scale)


def multiply(left: Tensor, x: Tensor, scale: float) -> Tensor:
    """`left` [n, rows] times `x`, whose elements are those of [rows, width], times `scale`."""
    product = left @ x.reshape(left.shape[1], -1).to(left.dtype)
    return product if scale == 1 else product * scale


def keeps_seed(numel: int, scheme: Scheme, device: str) -> bool:
    """Whether `scheme` keeps the seed of a dropout of `numel` elements instead of its bits."""
    if scheme.dropout != "seed":
        return False
    return _sizes().decide(lambda numel: GENERATOR_BYTES[device] < mask_bytes(numel), numel)


def dropout_bytes(numel: int, scheme: Scheme, device: str) -> int:
    """What `scheme` keeps of a dropout of `numel` elements."""
    return GENERATOR_BYTES[device] if keeps_seed(numel, scheme, device) else mask_bytes(numel)


def is_smaller(rows: int, width: int, dtype: torch.dtype, scheme: Scheme, ratio: int) -> bool:
    """Whether a matrix [rows, width] takes less packed by `scheme` than as it is.

    Rows of few elements do not if each is a block, nor does a matrix shorter than one. Blocks of a length that somebody
    has asked for, and that the matrix has, are what was asked for.
    """

    def question(rows: int, width: int) -> bool:
        shape = torch.Size((rows, projected_width(width, ratio)))
        if not scheme.block.in_rows and shape.numel() >= scheme.block.size:
            return True
        return Packing.of(shape, dtype, scheme).layout.total_bytes < rows * width * dtype.itemsize

    return _sizes().decide(question, rows, width)


def require_unchanged(before: Tensor, now: Tensor, what: str) -> None:
    """Raise `UsageError` if the sums of a content differ; `what` says to a user of what. Waits for a GPU."""
    if now.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if not torch.equal(before, now):
        raise UsageError(
            f"{what} in forward was changed before backward came to read it again, in memory that it shares with "
            "another tensor or array: change a copy, or open compress('fp32') around that part."
        )
