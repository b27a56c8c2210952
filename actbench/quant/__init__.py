"""Quantization: level tables, layout, and one quantizer with a backend for each device."""

from actbench.quant.packed import (
    Packing,
    Projection,
    dequantize,
    keep_where,
    pack_mask,
    pack_positive,
    quantize,
    scale_where,
    unpack_mask,
)

__all__ = [
    "Packing",
    "Projection",
    "dequantize",
    "keep_where",
    "pack_mask",
    "pack_positive",
    "quantize",
    "scale_where",
    "unpack_mask",
]
