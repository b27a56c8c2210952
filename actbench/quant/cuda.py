"""The quantizer on CUDA tensors: reference.py's functions and results, bit for bit.

Outputs come from torch's allocator and kernels run on torch's current stream without waiting for it, so a call can be
captured into a CUDA graph once the same call has been made outside of one (which compiles its kernels).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from actbench.errors import DeviceError
from actbench.quant.launch import (
    Launch,
    plan_dequantize,
    plan_pack_mask,
    plan_projection,
    plan_quantize,
    plan_unpack_mask,
)
from actbench.quant.layout import Layout, mask_bytes
from actbench.quant.sources import compile_options, cupy_extra, kernel_folder

try:
    import cupy
except ImportError as error:
    _extra = cupy_extra(torch.version.cuda)
    raise DeviceError(
        f"CUDA tensors are compressed by kernels that CuPy compiles, and it is not installed: "
        f"pip install 'actbench[{_extra}]'."
    ) from error


def quantize(
    x: Tensor, block_length: int, bits: int, levels: tuple[float, ...], seed: int, stream: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize contiguous `x` (float32, float16 or bfloat16, any shape) with stochastic rounding.

    Returns packed codes uint8 [⌈numel·bits/8⌉] and the blocks' minimum and scale, bfloat16 [blocks]. Raises ValueError
    for a tensor that is not contiguous.
    """
    _require_contiguous(x)
    layout = Layout(x.numel(), block_length, bits)
    codes = torch.empty(layout.code_bytes, dtype=torch.uint8, device=x.device)
    minimum = torch.empty(layout.blocks, dtype=torch.bfloat16, device=x.device)
    scale = torch.empty_like(minimum)
    _run(plan_quantize(x, codes, minimum, scale, block_length, bits, levels, seed, stream), x.device)
    return codes, minimum, scale


def dequantize(
    codes: Tensor,
    minimum: Tensor,
    scale: Tensor,
    numel: int,
    block_length: int,
    bits: int,
    levels: tuple[float, ...],
    dtype: torch.dtype,
) -> Tensor:
    """The values that `quantize` packed, `dtype` [numel]."""
    _require_contiguous(codes, minimum, scale)
    out = torch.empty(numel, dtype=dtype, device=codes.device)
    _run(plan_dequantize(codes, minimum, scale, out, block_length, bits, levels), codes.device)
    return out


def pack_mask(mask: Tensor) -> Tensor:
    """Bits of a contiguous boolean tensor, lowest first: uint8 [⌈numel/8⌉]."""
    _require_contiguous(mask)
    packed = torch.empty(mask_bytes(mask.numel()), dtype=torch.uint8, device=mask.device)
    _run(plan_pack_mask(mask, packed), mask.device)
    return packed


def unpack_mask(packed: Tensor, numel: int) -> Tensor:
    """The mask that `pack_mask` packed: bool [numel]."""
    _require_contiguous(packed)
    mask = torch.empty(numel, dtype=torch.bool, device=packed.device)
    _run(plan_unpack_mask(packed, mask), packed.device)
    return mask


def projection(width: int, projected: int, seed: int, stream: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The random projection P: `dtype` [width, projected], entries ±1/√projected, E[P Pᵀ] = I."""
    out = torch.empty(width, projected, dtype=dtype, device=device)
    _run(plan_projection(out, seed, stream), out.device)
    return out


class _TorchStream:
    """A torch stream under CuPy's stream protocol, which not every torch that we run on speaks itself."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.cuda_stream


def _run(launches: list[Launch], device: torch.device) -> None:
    if not launches:
        return
    with torch.cuda.device(device):
        stream = cupy.cuda.Stream.from_external(_TorchStream(torch.cuda.current_stream(device)))
        with stream:
            for launch in launches:
                kernel = _compile(launch.source, launch.kernel, torch.cuda.current_device())
                kernel((launch.grid,), (launch.threads,), launch.arguments)


@cache
def _compile(source: str, kernel: str, _device: int) -> Any:
    text = (kernel_folder() / source).read_text(encoding="utf-8")
    module = cupy.RawModule(code=text, options=compile_options(), name_expressions=(kernel,))
    return module.get_function(kernel)


def _require_contiguous(*tensors: Tensor) -> None:
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} has strides {tensor.stride()}: pass tensor.contiguous()"
            )
