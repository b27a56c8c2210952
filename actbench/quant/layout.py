"""How many blocks and bytes a quantized tensor takes: pure integers, the same for every backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from actbench.scheme import TRIT_BITS

CODES_A_BYTE = {1: 8, TRIT_BITS: 5, 2: 4, 4: 2, 8: 1}


@dataclass(frozen=True)
class Layout:
    """`numel` values in blocks of `block_length`, the last one as short as need be, codes of `bits` bits.

    Codes lie one after the other across block borders, lowest bits first: value i has the bits from
    `i * bits % 8` of byte `i * bits // 8`. Trits, of 1.6 bits, are five digits of base 3 to a byte, lowest first.
    """

    numel: int
    block_length: int
    bits: float
    metadata_bytes: ClassVar[int] = 4
    """A block keeps its minimum and its scale, bfloat16 each."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.numel // self.block_length)

    @property
    def code_bytes(self) -> int:
        """Bytes of the packed codes."""
        return -(-self.numel // CODES_A_BYTE[self.bits])

    @property
    def total_bytes(self) -> int:
        """Bytes of codes and of what the blocks keep."""
        return self.code_bytes + self.metadata_bytes * self.blocks


class RectifiedLayout(Layout):
    """The same of rectified codes, whose blocks have a minimum of 0 and keep their scale alone."""

    metadata_bytes = 2


@dataclass(frozen=True)
class BlockCode:
    """How values are coded in blocks of `block_length`: `bits` a code, `levels` that the codes stand for.

    Levels are in units of a block's scale, from 0 on: 2^bits of them or, of rectified codes, whose code 0 is the mask,
    one less (two with 1.6 bits).
    """

    block_length: int
    bits: float
    levels: tuple[float, ...]

    def layout(self, numel: int) -> Layout:
        """What `numel` values take, with a minimum and a scale a block."""
        return Layout(numel, self.block_length, self.bits)

    def rectified_layout(self, numel: int) -> RectifiedLayout:
        """What `numel` rectified values take, with a scale a block."""
        return RectifiedLayout(numel, self.block_length, self.bits)


def mask_bytes(numel: int) -> int:
    """Bytes of a mask of `numel` bits."""
    return -(-numel // 8)


def projected_width(width: int, ratio: int) -> int:
    """R = ceil(D / ratio), the width of rows of D = `width` after projection."""
    return -(-width // ratio)
