"""How many blocks and bytes a quantized tensor takes: pure integers, the same for every backend."""

from __future__ import annotations

from dataclasses import dataclass

METADATA_BYTES = 4
"""A block keeps its minimum and its scale, bfloat16 each."""


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


def mask_bytes(numel: int) -> int:
    """Bytes of a mask of `numel` bits."""
    return -(-numel // 8)


def projected_width(width: int, ratio: int) -> int:
    """R = ceil(D / ratio), the width of rows of D = `width` after projection."""
    return -(-width // ratio)
