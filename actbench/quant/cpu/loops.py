"""The CPU backend's inner loops, compiled by Numba: reference.py's arithmetic, operation by operation.

Every function works on a part of its arrays, so that threads can share a call, and releases the GIL. Floats are
float32 and are compared as such; `patterns` are the same values' bits as int32, whose integer order is exact and
sees a NaN. Contraction is off but in `signed_product`, whose products are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Halves = npt.NDArray[np.uint16]
Integers = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]

_F = TypeVar("_F", bound=Callable[..., Any])

PIECE = 4096
"""Values that are rounded or read back at a time: noise and codes of a piece stay in the first-level cache."""
_CACHED = 2**16
LANES = 16
"""float32 values in the widest vector registers."""


def compiled(function: _F, **options: Any) -> _F:
    """Compiled at its first call, and kept on disk where there is a place for it."""
    dispatcher: _F
    try:
        dispatcher = njit(nogil=True, cache=True, error_model="numpy", **options)(function)
    except RuntimeError:
        dispatcher = njit(nogil=True, error_model="numpy", **options)(function)
    return dispatcher


def _contracted(function: _F) -> _F:
    """As `compiled`, free to fuse a product with a sum."""
    return compiled(function, fastmath={"contract"})


_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_FACTOR_A = np.uint64(0xD2511F53)
_FACTOR_C = np.uint64(0xCD9E8D57)
_WEYL_LOW = np.uint32(0x9E3779B9)
_WEYL_HIGH = np.uint32(0xBB67AE85)
_SIGN_SHIFT = np.int32(31)
_HIGHEST_KEY = np.int32(0x7FFFFFFF)
_FINITE_END = np.int32(0x7F800000)
_SMALLEST_RANGE = np.float32(2.0**-80)
_SMALLEST_NORMAL = np.int32(0x00800000)
_NAN = np.uint16(0x7FC0)
_UNUSED_BITS = np.uint32(8)
_ULP = np.float32(2.0**-24)
_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)


@compiled
def fill_words(seed: Any, stream: Any, first_group: int, words: Words) -> None:
    """Philox 4x32-10 (see philox.py): groups `first_group`, … of a stream, 4 words each."""
    stream_low, stream_high = np.uint32(stream & _WORD), np.uint32(stream >> _HALF)
    for group in range(words.size // 4):
        number = np.uint64(first_group + group)
        a, b, c, d = np.uint32(number & _WORD), np.uint32(number >> _HALF), stream_low, stream_high
        key_low, key_high = np.uint32(seed & _WORD), np.uint32(seed >> _HALF)
        for _ in range(10):
            product_a, product_c = np.uint64(a) * _FACTOR_A, np.uint64(c) * _FACTOR_C
            a = np.uint32(product_c >> _HALF) ^ b ^ key_low
            c = np.uint32(product_a >> _HALF) ^ d ^ key_high
            b, d = np.uint32(product_c & _WORD), np.uint32(product_a & _WORD)
            key_low, key_high = np.uint32(key_low + _WEYL_LOW), np.uint32(key_high + _WEYL_HIGH)
        words[4 * group], words[4 * group + 1] = a, b
        words[4 * group + 2], words[4 * group + 3] = c, d


@compiled
def fill_signs(seed: Any, stream: Any, width: int, projected: int, signs: Floats) -> None:
    """Signs ±1 of the projection [width, projected] into the left part of `signs` [width, …]; the rest stays."""
    words = np.empty(1024, np.uint32)
    for first in range(0, width * projected, 32 * words.size):
        fill_words(seed, stream, first // 128, words)
        for i in range(first, min(first + 32 * words.size, width * projected)):
            bit = words[(i - first) // 32] >> np.uint32(i % 32) & np.uint32(1)
            signs[i // projected, i % projected] = -_ONE if bit else _ONE


@compiled
def quantize(
    values: Floats,
    patterns: Integers,
    block_length: int,
    edges: Floats,
    inverse_widths: Floats,
    is_uniform: bool,
    bits: int,
    seed: Any,
    stream: Any,
    codes: Bytes,
    minimum: Halves,
    scale: Halves,
    first_block: int,
    last_block: int,
) -> bool:
    """Codes, minima and scales of blocks `first_block` (a multiple of 8) … `last_block - 1`; whether one is broken."""
    found = False
    # As many blocks as the second-level cache holds, so that values are read from memory once.
    blocks = max(_CACHED // block_length // 8 * 8, 8)
    for block in range(first_block, last_block, blocks):
        end = min(block + blocks, last_block)
        for each in range(block, end):
            minimum[each], scale[each] = _find_range(patterns, each, block_length, edges.size - 1)
            found = found or bool(scale[each] == _NAN)
        _encode(
            values,
            block_length,
            edges,
            inverse_widths,
            is_uniform,
            bits,
            seed,
            stream,
            codes,
            minimum,
            scale,
            block * block_length,
            min(end * block_length, values.size),
        )
    return found


@compiled
def _find_range(patterns: Integers, block: int, block_length: int, top: int) -> tuple[Any, Any]:
    """The block's minimum rounded down and its scale rounded up, as bits of bfloat16; NaN both if it is broken."""
    lowest, highest = _HIGHEST_KEY, ~_HIGHEST_KEY
    here = patterns[block * block_length : (block + 1) * block_length]
    for i in range(here.size):
        # With the lower bits of negative floats flipped, integers are in the order of floats, NaN beyond infinity.
        key = np.int32(here[i] ^ (here[i] >> _SIGN_SHIFT) & _HIGHEST_KEY)
        lowest = key if key < lowest else lowest
        highest = key if key > highest else highest
    low = np.int32(lowest ^ (lowest >> _SIGN_SHIFT) & _HIGHEST_KEY)
    high = np.int32(highest ^ (highest >> _SIGN_SHIFT) & _HIGHEST_KEY)
    # Truncation rounds towards zero, so a negative number needs its magnitude raised first.
    rounded = np.int32((low + 0xFFFF if low < 0 else low) & -0x10000)
    if rounded & 0x7FFFFFFF < _SMALLEST_NORMAL:
        rounded = np.int32(0)
    span = _as_float(high) - _as_float(rounded)
    step = np.int32(as_pattern(span / np.float32(top)) + 0xFFFF & -0x10000)
    if span < _SMALLEST_RANGE:
        step = np.int32(0)
    if not (_is_finite(low) and _is_finite(as_pattern(span)) and _is_finite(step)):
        return _NAN, _NAN
    return np.uint16(np.uint32(rounded) >> 16), np.uint16(np.uint32(step) >> 16)


@compiled
def _is_finite(pattern: Any) -> Any:
    return pattern & _FINITE_END != _FINITE_END


@compiled
def widen(half: int) -> Any:
    """The float32 of a bfloat16's bits."""
    return _as_float(np.int32(np.uint32(half) << np.uint32(16)))


@compiled
def _as_float(pattern: Any) -> Any:
    return np.int32(pattern).view(np.float32)


@compiled
def as_pattern(value: Any) -> Any:
    """The bits of a float32, as int32."""
    return np.float32(value).view(np.int32)


@compiled
def _round_block(
    values: Floats, words: Words, low: Any, inverse: Any, edges: Floats, inverse_widths: Floats, codes: Bytes
) -> None:
    """Codes of one block's `values`, rounded with a word of noise each."""
    top = np.float32(edges.size - 1)
    last = np.float32(edges.size - 2)
    for i in range(values.size):
        t = (values[i] - low) * inverse
        t = min(max(t, _ZERO), top)
        lower = min(np.float32(np.int32(t)), last)
        up = _ONE if np.float32(np.int32(words[i] >> _UNUSED_BITS)) * _ULP < t - lower else _ZERO
        codes[i] = np.uint8(np.int32(lower + up))


@compiled
def _round_block_on_four(
    values: Floats, words: Words, low: Any, inverse: Any, edges: Floats, inverse_widths: Floats, codes: Bytes
) -> None:
    """`_round_block` for any four levels."""
    first, second, top = edges[1], edges[2], edges[3]
    widths = inverse_widths[0], inverse_widths[1], inverse_widths[2]
    for i in range(values.size):
        t = (values[i] - low) * inverse
        t = min(max(t, _ZERO), top)
        lower = _ONE if t >= first else _ZERO
        edge = first if t >= first else _ZERO
        width = widths[1] if t >= first else widths[0]
        lower = _TWO if t >= second else lower
        edge = second if t >= second else edge
        width = widths[2] if t >= second else width
        up = _ONE if np.float32(np.int32(words[i] >> _UNUSED_BITS)) * _ULP < (t - edge) * width else _ZERO
        codes[i] = np.uint8(np.int32(lower + up))


@compiled
def _round_block_on_any(
    values: Floats, words: Words, low: Any, inverse: Any, edges: Floats, inverse_widths: Floats, codes: Bytes
) -> None:
    """`_round_block` for any levels."""
    top = edges[-1]
    for i in range(values.size):
        t = (values[i] - low) * inverse
        t = min(max(t, _ZERO), top)
        lower, step = 0, edges.size // 2
        while step > 0:
            if t >= edges[lower + step] and lower + step < edges.size - 1:
                lower += step
            step //= 2
        up = (
            1
            if np.float32(np.int32(words[i] >> _UNUSED_BITS)) * _ULP < (t - edges[lower]) * inverse_widths[lower]
            else 0
        )
        codes[i] = np.uint8(lower + up)


@compiled
def _encode(
    values: Floats,
    block_length: int,
    edges: Floats,
    inverse_widths: Floats,
    is_uniform: bool,
    bits: int,
    seed: Any,
    stream: Any,
    codes: Bytes,
    minimum: Halves,
    scale: Halves,
    first: int,
    last: int,
) -> None:
    """Packed codes of values `first` … `last - 1`, whose blocks have their ranges; `first` is a multiple of 8."""
    words = np.empty(PIECE, np.uint32)
    code = np.empty(PIECE, np.uint8)
    for start in range(first, last, PIECE):
        stop = min(start + PIECE, last)
        groups = (stop - start + 3) // 4
        fill_words(seed, stream, start // 4, words[: 4 * groups])
        block = start // block_length
        at = start
        while at < stop:
            end = min((block + 1) * block_length, stop)
            here = slice(at - start, end - start)
            step = scale[block]
            if step == _NAN:
                code[here] = 0
            else:
                low = widen(minimum[block])
                inverse = _ONE / widen(step) if step else _ZERO
                if is_uniform:
                    _round_block(values[at:end], words[here], low, inverse, edges, inverse_widths, code[here])
                elif bits == 2:
                    _round_block_on_four(values[at:end], words[here], low, inverse, edges, inverse_widths, code[here])
                else:
                    _round_block_on_any(values[at:end], words[here], low, inverse, edges, inverse_widths, code[here])
            at = end
            block += 1
        code[stop - start : (stop - start + 7) // 8 * 8] = 0
        pack(code, bits, codes[start * bits // 8 : (stop * bits + 7) // 8])


@compiled
def pack(code: Bytes, bits: int, packed: Bytes) -> None:
    """Codes of a byte each to `bits` bits each, lowest first."""
    if bits == 8:
        packed[:] = code[: packed.size]
    elif bits == 4:
        for i in range(packed.size):
            packed[i] = code[2 * i] | code[2 * i + 1] << 4
    elif bits == 2:
        for i in range(packed.size):
            packed[i] = code[4 * i] | code[4 * i + 1] << 2 | code[4 * i + 2] << 4 | code[4 * i + 3] << 6
    else:
        for i in range(packed.size):
            at = 8 * i
            low = code[at] | code[at + 1] << 1 | code[at + 2] << 2 | code[at + 3] << 3
            high = code[at + 4] | code[at + 5] << 1 | code[at + 6] << 2 | code[at + 7] << 3
            packed[i] = low | high << 4


@compiled
def unpack(packed: Bytes, bits: int, code: Bytes) -> None:
    """What `pack` packed; writes whole bytes' worth of codes."""
    if bits == 8:
        code[: packed.size] = packed
    elif bits == 4:
        for i in range(packed.size):
            code[2 * i], code[2 * i + 1] = packed[i] & 15, packed[i] >> 4
    elif bits == 2:
        for i in range(packed.size):
            code[4 * i], code[4 * i + 1] = packed[i] & 3, packed[i] >> 2 & 3
            code[4 * i + 2], code[4 * i + 3] = packed[i] >> 4 & 3, packed[i] >> 6
    else:
        for i in range(packed.size):
            at, byte = 8 * i, packed[i]
            code[at], code[at + 1] = byte & 1, byte >> 1 & 1
            code[at + 2], code[at + 3] = byte >> 2 & 1, byte >> 3 & 1
            code[at + 4], code[at + 5] = byte >> 4 & 1, byte >> 5 & 1
            code[at + 6], code[at + 7] = byte >> 6 & 1, byte >> 7


@compiled
def dequantize(
    codes: Bytes,
    minimum: Halves,
    scale: Halves,
    block_length: int,
    edges: Floats,
    is_uniform: bool,
    bits: int,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """Values `first` … `last - 1`, minimum + edge·scale; `first` is a multiple of 8."""
    code = np.empty(PIECE, np.uint8)
    for start in range(first, last, PIECE):
        stop = min(start + PIECE, last)
        unpack(codes[start * bits // 8 : (stop * bits + 7) // 8], bits, code)
        block = start // block_length
        at = start
        while at < stop:
            end = min((block + 1) * block_length, stop)
            low, step = widen(minimum[block]), widen(scale[block])
            # Slices, since an index that could be negative costs a loop its vector form.
            here, result = code[at - start : end - start], out[at:end]
            if is_uniform:
                for i in range(here.size):
                    result[i] = np.float32(np.int32(here[i])) * step + low
            else:
                for i in range(here.size):
                    result[i] = edges[here[i]] * step + low
            at = end
            block += 1


@_contracted
def signed_product(x: Floats, signs: Floats, factor: Any, out: Floats, first_row: int, last_row: int) -> None:
    """Rows `first_row` … of out [n, R] = (x [n, D] · signs [D, R' >= R]) · factor, summed in the order of D.

    The products are exact, so fused with the sums or not they give the same; and adding a zero changes no sum.
    """
    # As many rows as let their sums stay in the first-level cache while all signs pass by.
    rows, depth = 32, 8
    sums = np.empty((rows, signs.shape[1]), np.float32)
    for start in range(first_row, last_row, rows):
        count = min(rows, last_row - start)
        sums[:count] = 0
        whole = x.shape[1] // depth * depth
        for d in range(0, whole, depth):
            for i in range(start, start + count):
                total = sums[i - start]
                a, b, c, e = x[i, d], x[i, d + 1], x[i, d + 2], x[i, d + 3]
                f, g, h, j = x[i, d + 4], x[i, d + 5], x[i, d + 6], x[i, d + 7]
                if a == 0 and b == 0 and c == 0 and e == 0 and f == 0 and g == 0 and h == 0 and j == 0:
                    continue
                for r in range(signs.shape[1]):
                    sum_ = total[r] + a * signs[d, r] + b * signs[d + 1, r] + c * signs[d + 2, r]
                    sum_ = sum_ + e * signs[d + 3, r] + f * signs[d + 4, r] + g * signs[d + 5, r]
                    total[r] = sum_ + h * signs[d + 6, r] + j * signs[d + 7, r]
        for d in range(whole, x.shape[1]):
            for i in range(start, start + count):
                for r in range(signs.shape[1]):
                    sums[i - start, r] += x[i, d] * signs[d, r]
        for i in range(count):
            for r in range(out.shape[1]):
                out[start + i, r] = sums[i, r] * factor


@compiled
def pack_positive(values: Floats, packed: Bytes, first_byte: int, last_byte: int) -> None:
    """Bits of ¬(value <= 0), lowest first, into bytes `first_byte` … `last_byte - 1`."""
    code = np.empty(PIECE, np.uint8)
    for start in range(first_byte, last_byte, PIECE // 8):
        stop = min(start + PIECE // 8, last_byte)
        here = values[8 * start : 8 * stop]
        for i in range(here.size):
            code[i] = 0 if here[i] <= _ZERO else 1
        code[here.size : 8 * (stop - start)] = 0
        pack(code, 1, packed[start:stop])


@compiled
def pack_mask(mask: Integers | Bytes, packed: Bytes, first_byte: int, last_byte: int) -> None:
    """Bits of mask != 0, as `pack_positive` packs them."""
    code = np.empty(PIECE, np.uint8)
    for start in range(first_byte, last_byte, PIECE // 8):
        stop = min(start + PIECE // 8, last_byte)
        here = mask[8 * start : 8 * stop]
        for i in range(here.size):
            code[i] = 1 if here[i] else 0
        code[here.size : 8 * (stop - start)] = 0
        pack(code, 1, packed[start:stop])


@compiled
def unpack_mask(packed: Bytes, mask: Bytes, first_byte: int, last_byte: int) -> None:
    """Bits of bytes `first_byte` … `last_byte - 1` as a byte each."""
    code = np.empty(PIECE, np.uint8)
    for start in range(first_byte, last_byte, PIECE // 8):
        stop = min(start + PIECE // 8, last_byte)
        unpack(packed[start:stop], 1, code)
        here = mask[8 * start : 8 * stop]
        here[:] = code[: here.size]


@compiled
def keep_where(patterns: Integers, packed: Bytes, out: Integers, first_byte: int, last_byte: int) -> None:
    """Values where their bit is set and 0 elsewhere, for bytes `first_byte` … `last_byte - 1` of the bits."""
    code = np.empty(PIECE, np.uint8)
    for start in range(first_byte, last_byte, PIECE // 8):
        stop = min(start + PIECE // 8, last_byte)
        unpack(packed[start:stop], 1, code)
        here, result = patterns[8 * start : 8 * stop], out[8 * start : 8 * stop]
        for i in range(here.size):
            result[i] = here[i] & -np.int32(code[i])


@compiled
def scale_where(values: Floats, packed: Bytes, factor: Any, out: Floats, first_byte: int, last_byte: int) -> None:
    """Values times `factor` where their bit is set and times 0 elsewhere, as `keep_where`."""
    code = np.empty(PIECE, np.uint8)
    for start in range(first_byte, last_byte, PIECE // 8):
        stop = min(start + PIECE // 8, last_byte)
        unpack(packed[start:stop], 1, code)
        here, result = values[8 * start : 8 * stop], out[8 * start : 8 * stop]
        for i in range(here.size):
            result[i] = here[i] * (factor if code[i] else _ZERO)
