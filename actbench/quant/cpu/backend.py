"""The quantizer on CPU tensors: reference.py's functions and results, bit for bit, on all of torch's threads."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actbench.quant.cpu import loops, mersenne, rectified_loops
from actbench.quant.layout import CODES_A_BYTE, BlockCode, mask_bytes

# Handing work to another thread takes as long as some ten thousand values take on this one.
_VALUES_A_THREAD = 2**15
# Named everywhere, since a user may have set another default.
_CPU = torch.device("cpu")


def quantize(
    x: Tensor,
    code: BlockCode,
    seed: int,
    stream: int,
    broken: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize contiguous `x`; see reference.py."""
    values = _flat(x)
    layout = code.layout(values.numel())
    codes = torch.empty(layout.code_bytes, dtype=torch.uint8, device=_CPU)
    minimum = torch.empty(layout.blocks, dtype=torch.bfloat16, device=_CPU)
    scale = torch.empty_like(minimum)
    array, places = _array(values), (_array(minimum.view(torch.uint16)), _array(scale.view(torch.uint16)))
    noise = np.uint64(seed % 2**64), np.uint64(stream % 2**64)
    found = _share(
        loops.quantize,
        (
            array,
            array.view(np.int32),
            code.block_length,
            *_tables(code.levels),
            int(code.bits),
            *noise,
            _array(codes),
            *places,
        ),
        layout.blocks,
        8,
        _VALUES_A_THREAD // code.block_length,
    )
    if broken is not None and any(found):
        broken.fill_(1)
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
    out = torch.empty(numel, dtype=torch.float32, device=_CPU)
    edges, _, is_uniform = _tables(code.levels)
    places = _array(minimum.view(torch.uint16)), _array(scale.view(torch.uint16))
    _share(
        loops.dequantize,
        (_array(codes), *places, code.block_length, edges, is_uniform, int(code.bits), _array(out)),
        numel,
        8,
        _VALUES_A_THREAD,
    )
    return out.to(dtype)


def project_quantize(
    x: Tensor,
    projected: int,
    code: BlockCode,
    seed: int,
    sign_stream: int,
    stream: int,
    broken: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize x P, P the projection of (`seed`, `sign_stream`); see reference.py."""
    signs = _signs(x.shape[1], projected, seed, sign_stream)
    return quantize(_signed_product(x, signs, projected, projected), code, seed, stream, broken)


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
    """What `project_quantize` packed times Pᵀ, `dtype` [rows, width]; see reference.py."""
    u = dequantize(codes, minimum, scale, rows * projected, code, torch.float32)
    signs = _signs(width, projected, seed, sign_stream)[:, :projected].T
    return _signed_product(u.view(rows, projected), np.ascontiguousarray(signs), width, projected).to(dtype)


def projection(width: int, projected: int, seed: int, stream: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The random projection P: `dtype` [width, projected], entries ±1/√projected, E[P Pᵀ] = I."""
    signs = torch.from_numpy(_signs(width, projected, seed, stream))
    return signs[:, :projected].mul(projected**-0.5).to(dtype)


def quantize_rectified(
    x: Tensor,
    code: BlockCode,
    seed: int,
    stream: int,
    broken: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rectified codes of contiguous `x`; see reference.py."""
    values = _flat(x)
    layout = code.rectified_layout(values.numel())
    codes = torch.empty(layout.code_bytes, dtype=torch.uint8, device=_CPU)
    scale = torch.empty(layout.blocks, dtype=torch.bfloat16, device=_CPU)
    array, table = _array(values), _rectified_tables(code.levels)
    noise = np.uint64(seed % 2**64), np.uint64(stream % 2**64)
    places = _array(codes), _array(scale.view(torch.uint16))
    found = _share(
        rectified_loops.quantize,
        (array, array.view(np.int32), code.block_length, *table, CODES_A_BYTE[code.bits], *noise, *places),
        layout.blocks,
        40,
        _VALUES_A_THREAD // code.block_length,
    )
    if broken is not None and any(found):
        broken.fill_(1)
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
    """What `quantize_rectified` packed, and a dropout made of it, `dtype` [numel]; see reference.py."""
    out = torch.empty(numel, dtype=torch.float32, device=_CPU)
    _share(
        rectified_loops.dequantize,
        (*_rectified(codes, scale, code), *_dropped(mask, factor), _array(out)),
        numel,
        1,
        _VALUES_A_THREAD,
    )
    return out.to(dtype)


def pass_rectified(
    gradient: Tensor, codes: Tensor, code: BlockCode, mask: Tensor | None = None, factor: float = 1.0
) -> Tensor:
    """Contiguous `gradient` through a ReLU, and the dropout after it; see reference.py."""
    out = torch.empty_like(gradient, dtype=torch.float32)
    _share(
        rectified_loops.pass_where,
        (
            _array(_flat(gradient)),
            _array(codes),
            CODES_A_BYTE[code.bits],
            *_dropped(mask, factor),
            _array(out.view(-1)),
        ),
        gradient.numel(),
        1,
        _VALUES_A_THREAD,
    )
    return out.to(gradient.dtype)


def norm_sums(
    gradient: Tensor,
    codes: Tensor,
    scale: Tensor,
    code: BlockCode,
    mask: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Σ g, Σ g ŷ, Σ ŷ and the count of positive ŷ by column, float64 [4, C]; see reference.py."""
    rows, width = gradient.shape
    parts = _share(
        rectified_loops.norm_sums,
        (
            _array(_flat(gradient).view(rows, width)),
            *_rectified(codes, scale, code),
            *_dropped(mask, factor),
        ),
        rows,
        1,
        _VALUES_A_THREAD // width,
    )
    return torch.from_numpy(sum(parts, np.zeros((4, width))))


def norm_gradient(
    gradient: Tensor,
    codes: Tensor,
    scale: Tensor,
    code: BlockCode,
    coefficients: Tensor,
    mask: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """a g - b - c ŷ where ŷ is positive, d elsewhere, the gradient's dtype [N, C]; see reference.py."""
    rows, width = gradient.shape
    out = torch.empty(rows, width, dtype=torch.float32, device=_CPU)
    _share(
        rectified_loops.norm_gradient,
        (
            _array(_flat(gradient).view(rows, width)),
            *_rectified(codes, scale, code),
            *_dropped(mask, factor),
            _array(coefficients),
            _array(out),
        ),
        rows,
        1,
        _VALUES_A_THREAD // width,
    )
    return out.to(gradient.dtype)


def pack_positive(x: Tensor) -> Tensor:
    """Bits of ¬(x <= 0), lowest first: uint8 [⌈numel/8⌉]."""
    packed = torch.empty(mask_bytes(x.numel()), dtype=torch.uint8, device=_CPU)
    _share_bytes(loops.pack_positive, _array(_flat(x)), _array(packed))
    return packed


def pack_mask(mask: Tensor) -> Tensor:
    """Bits of a contiguous boolean or int32 tensor, lowest first: uint8 [⌈numel/8⌉]."""
    packed = torch.empty(mask_bytes(mask.numel()), dtype=torch.uint8, device=_CPU)
    flat = mask.view(-1)
    flat = flat.view(torch.uint8) if mask.dtype == torch.bool else flat
    _share_bytes(loops.pack_mask, _array(flat), _array(packed))
    return packed


def draw_mask(numel: int, p: float, generator: torch.Generator) -> Tensor:
    """Bits of what `torch.empty(numel).bernoulli_(p, generator=generator)` draws: uint8 [⌈numel/8⌉], as `pack_mask`.

    Not while another thread draws from `generator`, unless by this function.
    """
    if mersenne.matches_torch():
        return mersenne.draw_bits(numel, p, generator)
    return pack_mask(torch.empty(numel, dtype=torch.int32, device=_CPU).bernoulli_(p, generator=generator))


def unpack_mask(packed: Tensor, numel: int) -> Tensor:
    """The mask that `pack_mask` packed: bool [numel]."""
    mask = torch.empty(numel, dtype=torch.bool, device=_CPU)
    _share_bytes(loops.unpack_mask, _array(packed), _array(mask.view(torch.uint8)))
    return mask


def keep_where(values: Tensor, packed: Tensor) -> Tensor:
    """Contiguous `values` where their bit is set, 0 elsewhere."""
    out = torch.empty_like(values, dtype=torch.float32)
    source, target = _array(_flat(values)), _array(out.view(-1))
    _share_bytes(loops.keep_where, source.view(np.int32), _array(packed), target.view(np.int32))
    return out.to(values.dtype)


def scale_where(values: Tensor, packed: Tensor, factor: float) -> Tensor:
    """Contiguous `values` times `factor` where their bit is set, times 0 elsewhere."""
    out = torch.empty_like(values, dtype=torch.float32)
    _share_bytes(loops.scale_where, _array(_flat(values)), _array(packed), np.float32(factor), _array(out.view(-1)))
    return out.to(values.dtype)


def share_content(function: Callable[..., Any], tensors: tuple[Tensor, ...], count: int) -> Tensor:
    """The sum of what `function` of content_loops.py finds in parts of `count` rows or runs of `tensors`: int64."""
    arrays = tuple(map(_array, tensors))
    least = _VALUES_A_THREAD * count // max(*(array.size for array in arrays), 1) if count else 1
    parts = _share(function, arrays, count, 1, least) if count else [function(*arrays, 0, 0)]
    return torch.from_numpy(sum(parts[1:], parts[0]).view(np.int64))


def _array(tensor: Tensor) -> Any:
    """Contiguous `tensor`'s memory as an array; unlike by `Tensor.numpy`, its storage may still be resized."""
    return np.asarray(_Memory(tensor))


class _Memory:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "typestr": _TYPES[tensor.dtype],
            "data": (tensor.data_ptr(), False),
        }


_TYPES = {
    torch.float32: "<f4",
    torch.int64: "<i8",
    torch.int32: "<i4",
    torch.uint16: "<u2",
    torch.uint8: "|u1",
}


def _flat(x: Tensor) -> Tensor:
    """All of `x` in a row, float32, without its gradient."""
    return x.detach().reshape(-1).to(torch.float32).resolve_neg()


@lru_cache(maxsize=256)
def _tables(levels: tuple[float, ...]) -> tuple[loops.Floats, loops.Floats, bool]:
    """Edges, inverse widths, and whether the levels are 0, 1, 2, …."""
    edges = np.array(levels, dtype=np.float32)
    return edges, np.float32(1) / np.diff(edges), levels == tuple(range(len(levels)))


@lru_cache(maxsize=256)
def _rectified_tables(levels: tuple[float, ...]) -> tuple[loops.Floats, loops.Floats, bool]:
    """The value of every code in units of the scale, inverse widths, and whether the levels are 0, 1, 2, …."""
    edges, inverse_widths, is_uniform = _tables(levels)
    return np.concatenate((np.zeros(1, np.float32), edges)), inverse_widths, is_uniform


def _rectified(
    codes: Tensor,
    scale: Tensor,
    code: BlockCode,
) -> tuple[Any, ...]:
    """What the loops take of packed rectified codes."""
    table, _, is_uniform = _rectified_tables(code.levels)
    return (
        _array(codes),
        _array(scale.view(torch.uint16)),
        code.block_length,
        table,
        is_uniform,
        CODES_A_BYTE[code.bits],
    )


def _dropped(mask: Tensor | None, factor: float) -> tuple[Any, ...]:
    """What the loops take of a dropout's bits."""
    return (np.empty(0, np.uint8) if mask is None else _array(mask)), np.float32(factor)


def _signs(width: int, projected: int, seed: int, stream: int) -> loops.Floats:
    """Signs of the projection [width, projected], with columns of zeros up to a whole vector register."""
    signs = np.zeros((width, -(-projected // loops.LANES) * loops.LANES), dtype=np.float32)
    loops.fill_signs(np.uint64(seed % 2**64), np.uint64(stream % 2**64), width, projected, signs)
    return signs


def _signed_product(x: Tensor, signs: loops.Floats, columns: int, projected: int) -> Tensor:
    out = torch.empty(x.shape[0], columns, dtype=torch.float32, device=_CPU)
    factor = np.float32(projected**-0.5)
    source = _array(x.detach().to(torch.float32).contiguous().resolve_neg())
    _share(
        loops.signed_product,
        (source, signs, factor, _array(out)),
        x.shape[0],
        1,
        _VALUES_A_THREAD // max(signs.size // loops.LANES, 1) + 1,
    )
    return out


def _share_bytes(function: Callable[..., Any], *arguments: Any) -> None:
    """Share a function of masks by its packed bytes."""
    values = max(argument.size for argument in arguments if isinstance(argument, np.ndarray))
    _share(function, arguments, mask_bytes(values), 1, _VALUES_A_THREAD // 8)


def _share(function: Callable[..., Any], arguments: tuple[Any, ...], count: int, step: int, least: int) -> list[Any]:
    """`function(*arguments, first, last)` on parts of 0 … count - 1, one a thread; their results in order.

    Parts begin on multiples of `step` and are not much shorter than `least`.
    """
    threads = max(min(torch.get_num_threads(), count // max(least, step)), 1)
    length = max(-(-count // (threads * step)) * step, 1)
    waiting = [(first, min(first + length, count)) for first in range(0, count, length)]
    run = _team() if len(waiting) > 1 else None
    if run is None:
        return [function(*arguments, *part) for part in waiting]
    results: dict[int, Any] = {}
    errors: list[BaseException] = []
    finished: set[int] = set()

    def work(_: None) -> None:
        # A team may turn out smaller than asked for, so parts are not tied to threads.
        try:
            while waiting:
                try:
                    part = waiting.pop()
                except IndexError:
                    break
                results[part[0]] = function(*arguments, *part)
            finished.add(threading.get_ident())
        except BaseException as error:
            errors.append(error)

    run(_WORK(work), None, len(waiting), 0)
    if errors:
        raise errors[0]
    if threading.get_ident() not in finished:
        # ctypes prints what interrupts a callback before its first line, and forgets it.
        raise KeyboardInterrupt
    # Whichever thread was first: sums of results have the same bits every time.
    return [results[first] for first in sorted(results)]


_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _team() -> Callable[..., Any] | None:
    """`GOMP_parallel` of the OpenMP that torch itself runs on, or None where there is none: then one thread works.

    Between two of torch's operations its threads spin, and threads of any other kind wait until they stop.
    """
    if _forked:
        return None
    try:
        parallel = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = (_WORK, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel


_forked = False


def _remember_fork() -> None:
    """A forked process has none of its parent's threads, and OpenMP would wait for them for ever."""
    global _forked
    _forked = True
    _team.cache_clear()


os.register_at_fork(after_in_child=_remember_fork)
