"""How a linear or batch-norm input is kept and used again: packed, with noise regenerated from its seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from actbench.errors import NonFiniteError
from actbench.quant import Packing, Projection, dequantize, quantize
from actbench.quant.layout import mask_bytes, projected_width
from actbench.quant.packed import Packed
from actbench.scheme import Scheme

GENERATOR_BYTES: Final = {"cpu": 5056, "cuda": 16}
"""What torch's generator of a device takes to be set back: a Mersenne twister's state, or a seed and an offset."""
_WATCHED: Final = 1024


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


def keeps_seed(numel: int, scheme: Scheme, device: str) -> bool:
    """Whether `scheme` keeps the seed of a dropout of `numel` elements instead of its bits."""
    return scheme.dropout == "seed" and GENERATOR_BYTES[device] < mask_bytes(numel)


def dropout_bytes(numel: int, scheme: Scheme, device: str) -> int:
    """What `scheme` keeps of a dropout of `numel` elements."""
    return GENERATOR_BYTES[device] if keeps_seed(numel, scheme, device) else mask_bytes(numel)


class Watch:
    """Knows the names of the last 1,024 tensors that were kept, and which of them could not be packed.

    The quantizer itself notices a block that it cannot pack and sets the tensor's flag, which lies in host memory on
    every device: nothing is read twice and nobody waits for a GPU.
    """

    def __init__(self) -> None:
        self._flags: dict[str, Tensor] = {}
        self._kept: dict[int, tuple[int, str]] = {}

    def flag(self, index: int, name: str, device: torch.device) -> Tensor:
        """int32 [1], to become 1 if the tensor `name`, the one with this number, cannot be packed on `device`."""
        flags = self._flags.get(device.type)
        if flags is None:
            flags = torch.zeros(_WATCHED, dtype=torch.int32, pin_memory=device.type == "cuda")
            self._flags[device.type] = flags
        slot = index % _WATCHED
        self._kept[slot] = index, name
        return flags[slot : slot + 1]

    def check(self) -> None:
        """Raise `NonFiniteError` if a flag is set, with the name of the first; then all are forgotten."""
        for flags in self._flags.values():
            if flags.any():
                _, name = min(self._kept[slot] for slot in flags.nonzero().flatten().tolist())
                flags.zero_()
                raise NonFiniteError(
                    f"{name} cannot be kept for backward: it has a NaN, an infinity or a range beyond float32; "
                    "look at the data, or lower the learning rate."
                )


@dataclass(frozen=True)
class Kept:
    """A matrix [rows, width] that was kept, projected to `packing.shape[1]` columns where that is fewer.

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
    ) -> Kept:
        """How `scheme` keeps such a matrix under projection ratio `ratio` (1: not projected)."""
        shape = torch.Size((rows, projected_width(width, ratio)))
        return Kept(width, Packing.of(shape, dtype, scheme), noise, name, watch or Watch())

    @property
    def projection(self) -> Projection | None:
        """The projection that x went through before it was packed."""
        projected = self.packing.shape[1]
        if projected == self.width:
            return None
        return Projection(self.width, projected, self.noise.seed, self.noise.projection_stream)

    def pack(self, x: Tensor) -> Packed:
        """Pack `x` [rows, width]. On a CPU raises `NonFiniteError` if that cannot be done."""
        flag = self.watch.flag(self.noise.index, self.name, x.device)
        packed = quantize(x, self.packing, self.noise.seed, self.noise.rounding_stream, self.projection, flag)
        if not x.is_cuda:
            self.watch.check()
        return packed

    def recover(self, packed: Packed) -> Tensor:
        """An unbiased estimate of x, [rows, width]. Raises `NonFiniteError` if it is known that there is none."""
        self.watch.check()
        return dequantize(packed, self.packing, self.projection)

    def left_product(self, left: Tensor, packed: Packed) -> Tensor:
        """`left` [n, rows] times the estimate of x, without ever forming it: (left û) Pᵀ. Raises as `recover`."""
        self.watch.check()
        product = left @ dequantize(packed, self.packing).to(left.dtype)
        return product @ self.projection.matrix(product).t() if self.projection else product
