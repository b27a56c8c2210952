"""The quantizer on CPU tensors, by loops that Numba compiles."""
