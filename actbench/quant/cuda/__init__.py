"""The quantizer on CUDA tensors: sources, what is launched and how, and the backend, which alone needs CuPy."""
