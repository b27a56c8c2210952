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
from actbench.quant.cuda.launch import (
    Launch,
    fits_tile,
    partial_shape,
    plan_dequantize,
    plan_dequantize_rectified,
    plan_dequantize_unproject,
    plan_keep_where,
    plan_norm_gradient,
    plan_norm_sums,
    plan_pack_mask,
    plan_pack_positive,
    plan_pass_rectified,
    plan_project_quantize,
    plan_projection,
    plan_quantize,
    plan_quantize_rectified,
    plan_scale_where,
    plan_sparse_product,
    plan_unpack_mask,
)
from actbench.quant.cuda.sources import (
    compile_options,
    cupy_problem,
    cupy_version_problem,
    kernel_folder,
    locale_kept,
)
from actbench.quant.layout import BlockCode, mask_bytes

try:
    import cupy
except ImportError as error:
    _problem = cupy_problem(torch.version.cuda) or f"CuPy cannot be imported ({error}): install it anew"
    raise DeviceError(f"CUDA tensors cannot be compressed: {_problem}.") from error
except OSError as error:
    # It makes its cache's folder as it is imported.
    raise DeviceError(
        f"CUDA tensors cannot be compressed: CuPy cannot be imported ({error}): let CUPY_CACHE_DIR name a folder that "
        "can be written to."
    ) from error
if _too_old := cupy_version_problem(torch.version.cuda):
    raise DeviceError(f"CUDA tensors cannot be compressed: {_too_old}.")


def quantize(
    x: Tensor,
    code: BlockCode,
    seed: int,
    stream: int,
    broken: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize contiguous `x` (float32, float16 or bfloat16, any shape) with stochastic rounding.

    Returns packed codes uint8 [⌈numel·bits/8⌉] and the blocks' minimum and scale, bfloat16 [blocks]. `broken`, int32
    [1] in pinned host memory, holds 1 once the kernels have run if a block is broken, and has to live until then.
    Raises ValueError for a tensor that is not contiguous.
    """
    _require_contiguous(x)
    codes, minimum, scale = _empty_packed(x.numel(), code, x.device)
    _run(plan_quantize(x, codes, minimum, scale, code, seed, stream, broken), x.device)
    return codes, minimum, scale


def dequantize(
    codes: Tensor,
    minimum: Tensor,
    scale: Tensor,
    numel: int,
    code: BlockCode,
    dtype: torch.dtype,
) -> Tensor:
    """The values that `quantize` packed, `dtype` [numel]."""
    _require_contiguous(codes, minimum, scale)
    out = torch.empty(numel, dtype=dtype, device=codes.device)
    _run(plan_dequantize(codes, minimum, scale, out, code), codes.device)
    return out


def project_quantize(
    x: Tensor,
    projected: int,
    code: BlockCode,
    seed: int,
    sign_stream: int,
    stream: int,
    broken: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize x P of contiguous `x` [rows, width], P the projection [width, projected] of (`seed`, `sign_stream`).

    Blocks are formed of x P [rows, projected], which stays float32 for an `x` of any dtype, and which is written to
    memory for the time of the call only where its blocks do not fit a CTA. `broken` is that of `quantize`.
    """
    _require_contiguous(x)
    rows = x.shape[0]
    codes, minimum, scale = _empty_packed(rows * projected, code, x.device)
    u = None
    if not fits_tile(projected, code.block_length):
        u = torch.empty(rows, projected, dtype=torch.float32, device=x.device)
    parameters = projected, code, seed, sign_stream, stream, broken
    _run(plan_project_quantize(x, u, codes, minimum, scale, *parameters), x.device)
    return codes, minimum, scale


def dequantize_unproject(
    codes: Tensor,
    minimum: Tensor,
    scale: Tensor,
    rows: int,
    width: int,
    projected: int,
    code: BlockCode,
    dtype: torch.dtype,
    seed: int,
    sign_stream: int,
) -> Tensor:
    """What `project_quantize` packed, read back and times Pᵀ: `dtype` [rows, width]."""
    _require_contiguous(codes, minimum, scale)
    out = torch.empty(rows, width, dtype=dtype, device=codes.device)
    parameters = projected, code, seed, sign_stream
    _run(plan_dequantize_unproject(codes, minimum, scale, out, *parameters), codes.device)
    return out


def quantize_rectified(
    x: Tensor,
    code: BlockCode,
    seed: int,
    stream: int,
    broken: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rectified codes of contiguous `x` (float32, float16 or bfloat16, any shape), a ReLU's input or output.

    Returns packed codes uint8 [⌈numel·bits/8⌉] and the blocks' scales, bfloat16 [blocks]. `broken` is that of
    `quantize`.
    """
    _require_contiguous(x)
    layout = code.rectified_layout(x.numel())
    codes = torch.empty(layout.code_bytes, dtype=torch.uint8, device=x.device)
    scale = torch.empty(layout.blocks, dtype=torch.bfloat16, device=x.device)
    _run(plan_quantize_rectified(x, codes, scale, code, seed, stream, broken), x.device)
    return codes, scale


def dequantize_rectified(
    codes: Tensor,
    scale: Tensor,
    numel: int,
    code: BlockCode,
    dtype: torch.dtype,
    mask: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """What `quantize_rectified` packed, `dtype` [numel]: the estimate of a ReLU's output.

    With `mask`, bits of a dropout that came after, that of the dropout's output: times the float32 of `factor` where
    its bit is set, 0 elsewhere.
    """
    _require_contiguous(codes, scale, *_given(mask))
    out = torch.empty(numel, dtype=dtype, device=codes.device)
    _run(plan_dequantize_rectified(codes, scale, out, code, mask, factor), codes.device)
    return out


def pass_rectified(
    gradient: Tensor, codes: Tensor, code: BlockCode, mask: Tensor | None = None, factor: float = 1.0
) -> Tensor:
    """Contiguous `gradient` by a ReLU's output, or by that of the dropout after it, as gradient by the ReLU's input.

    Exact: times the float32 of `factor` where the code is not 0 and, with `mask`, its bit is set; 0 elsewhere.
    """
    _require_contiguous(gradient, codes, *_given(mask))
    out = torch.empty_like(gradient)
    _run(plan_pass_rectified(gradient, codes, out, code, mask, factor), gradient.device)
    return out


def norm_sums(
    gradient: Tensor,
    codes: Tensor,
    scale: Tensor,
    code: BlockCode,
    mask: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """What batch norm's backward needs of every column, float64 [4, C]: Σ g, Σ g ŷ, Σ ŷ and how many ŷ are positive.

    `gradient` [N, C] is as in `pass_rectified`, g what that makes of it, ŷ the estimate of the ReLU's output. The same
    call gives the same bits: float32 sums over the rows of a thread block, kept for the time of the call, are added in
    float64.
    """
    _require_contiguous(gradient, codes, scale, *_given(mask))
    rows, width = gradient.shape
    partial = torch.empty(partial_shape(rows, width), dtype=torch.float32, device=gradient.device)
    _run(plan_norm_sums(gradient, codes, scale, partial, code, mask, factor), gradient.device)
    return partial.sum((0, 2), dtype=torch.float64)


def norm_gradient(
    gradient: Tensor,
    codes: Tensor,
    scale: Tensor,
    code: BlockCode,
    coefficients: Tensor,
    mask: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Gradient by a batch norm's input, the gradient's dtype [N, C]: of `gradient` and the codes as in `norm_sums`.

    `coefficients` are float32 [4, C], a, b, c, d: a g - b - c ŷ where ŷ is positive and d elsewhere, each operation one
    float32 rounding.
    """
    _require_contiguous(gradient, codes, scale, coefficients, *_given(mask))
    out = torch.empty_like(gradient)
    rest = code, mask, factor
    _run(plan_norm_gradient(gradient, codes, scale, coefficients, out, *rest), gradient.device)
    return out


def pack_positive(x: Tensor) -> Tensor:
    """Bits of ¬(x <= 0) of contiguous `x`, lowest first: uint8 [⌈numel/8⌉]; a NaN's bit is set."""
    _require_contiguous(x)
    packed = torch.empty(mask_bytes(x.numel()), dtype=torch.uint8, device=x.device)
    _run(plan_pack_positive(x, packed), x.device)
    return packed


def keep_where(values: Tensor, packed: Tensor) -> Tensor:
    """Contiguous `values` (float32, float16 or bfloat16) where their bit is set, 0 elsewhere."""
    _require_contiguous(values, packed)
    out = torch.empty_like(values)
    _run(plan_keep_where(values, packed, out), values.device)
    return out


def scale_where(values: Tensor, packed: Tensor, factor: float) -> Tensor:
    """Contiguous `values` times the float32 of `factor` where their bit is set, times 0 elsewhere.

    An infinity times 0 is NaN.
    """
    _require_contiguous(values, packed)
    out = torch.empty_like(values)
    _run(plan_scale_where(values, packed, factor, out), values.device)
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


def sparse_product(crow: Tensor, col: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """The CSR matrix of `crow` [n + 1], `col` [E] (int32 or int64) and `values` [E] times `x` [m, C]: [n, C].

    Float32 alone. Each sum has the order of its row's entries, so that the same call gives the same bits.
    """
    _require_contiguous(crow, col, values, x)
    out = torch.empty(crow.numel() - 1, x.shape[1], dtype=x.dtype, device=x.device)
    _run(plan_sparse_product(crow, col, values, x, out), x.device)
    return out


def _empty_packed(numel: int, code: BlockCode, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    layout = code.layout(numel)
    codes = torch.empty(layout.code_bytes, dtype=torch.uint8, device=device)
    minimum = torch.empty(layout.blocks, dtype=torch.bfloat16, device=device)
    return codes, minimum, torch.empty_like(minimum)


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
    with locale_kept():
        return module.get_function(kernel)


def _given(mask: Tensor | None) -> tuple[Tensor, ...]:
    return () if mask is None else (mask,)


def _require_contiguous(*tensors: Tensor) -> None:
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(
                f"a tensor of shape {tuple(tensor.shape)} has strides {tensor.stride()}: pass tensor.contiguous()"
            )
