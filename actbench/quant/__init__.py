"""Quantization: level tables, layout, and one quantizer with a backend for each device."""

from actbench.quant.packed import Packing, dequantize, pack_mask, projection, quantize, unpack_mask

__all__ = ["Packing", "dequantize", "pack_mask", "projection", "quantize", "unpack_mask"]
