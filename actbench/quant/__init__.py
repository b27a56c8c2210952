"""Quantization: level tables, layout, and one quantizer with a backend for each device."""

from actbench.quant.backend import Packed, RectifiedCodes
from actbench.quant.content import asymmetry_sums, dense_sum
from actbench.quant.cuda.ordered import ordered_products
from actbench.quant.packed import (
    Packing,
    Projection,
    dequantize,
    draw_mask,
    instead,
    keep_where,
    pack_mask,
    pack_positive,
    quantize,
    scale_where,
    unpack_mask,
)
from actbench.quant.rectified import Dropped, Rectifier

__all__ = [
    "Dropped",
    "Packed",
    "Packing",
    "Projection",
    "RectifiedCodes",
    "Rectifier",
    "asymmetry_sums",
    "dense_sum",
    "dequantize",
    "draw_mask",
    "instead",
    "keep_where",
    "ordered_products",
    "pack_mask",
    "pack_positive",
    "quantize",
    "scale_where",
    "unpack_mask",
]
