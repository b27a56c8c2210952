"""How many blocks and bytes a quantized tensor takes: pure integers, the same for every backend."""

from __future__ import annotations

from dataclasses import dataclass

from actbench.scheme import TRIT_BITS

METADATA_BYTES = 4
"""A block keeps its minimum and its scale, bfloat16 each."""
SCALE_BYTES = 2
"""A block of a rectified code keeps its scale alone: its minimum is 0."""
CODES_A_BYTE = {1: 8, TRIT_BITS: 5, 2: 4, 4: 2, 8: 1}


@dataclass(frozen=True)
class Layout:
    """`numel` values in blocks of `block_length`, the last one as short as need be, codes of `bits` bits.

    Codes lie one after the other across block borders, lowest bits first: value i has the bits from
    `i * bits % 8` of byte `i * bits // 8`.
    """

    numel: int
    block_length: int
    bits: int

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-self.numel // self.block_length)

    @property
    def code_bytes(self) -> int:
        """Bytes of the packed codes."""
        return -(-self.numel * self.bits // 8)

    @property
    def total_bytes(self) -> int:
        """Bytes of codes, minima and scales."""
        return self.code_bytes + METADATA_BYTES * self.blocks


@dataclass(frozen=True)
class RectifiedLayout:
    """`numel` rectified codes of `bits` bits, 1.6 for a trit, in blocks of `block_length`, the last one maybe shorter.

    Codes lie one after the other across block borders, lowest bits first; trits as digits of base 3, lowest first.
    """

    numel: int
    block_length: int
    bits: float

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
        """Bytes of codes and scales."""
        return self.code_bytes + SCALE_BYTES * self.blocks


def mask_bytes(numel: int) -> int:
    """Bytes of a mask of `numel` bits."""
    return -(-numel // 8)


def projected_width(width: int, ratio: int) -> int:
    """R = ceil(D / ratio), the width of rows of D = `width` after projection."""
    return -(-width // ratio)
