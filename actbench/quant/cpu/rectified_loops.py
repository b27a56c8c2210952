"""The inner loops of rectified codes, compiled by Numba; reference.py's arithmetic, operation by operation.

Every function works on a part of its arrays and releases the GIL, as those of loops.py do. `table` has the value of
each code in units of the scale: 0 for code 0, then the levels. `mask` are bits of a dropout, none where it is empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from actbench.quant.cpu.loops import (
    Bytes,
    Floats,
    Halves,
    Integers,
    Words,
    as_pattern,
    compiled,
    fill_words,
    pack,
    unpack,
    widen,
)

Sums = npt.NDArray[np.float64]

PIECE = 4000
"""As loops.PIECE, of whole bytes of trits as well."""
_CACHED = 2**16
_TRITS = 5
_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITY = np.int32(0x7F800000)
_NAN = np.uint16(0x7FC0)
_SMALLEST_RANGE = np.float32(2.0**-80)
_UNUSED_BITS = np.uint32(8)
_ULP = np.float32(2.0**-24)
_ZERO = np.float32(0)
_ONE = np.float32(1)


@compiled
def quantize(
    values: Floats,
    patterns: Integers,
    block_length: int,
    table: Floats,
    inverse_widths: Floats,
    is_uniform: bool,
    codes_a_byte: int,
    seed: Any,
    stream: Any,
    codes: Bytes,
    scale: Halves,
    first_block: int,
    last_block: int,
) -> bool:
    """Codes and scales of blocks `first_block` (a multiple of 40) … `last_block - 1`; whether one is broken."""
    found = False
    blocks = max(_CACHED // block_length // 40 * 40, 40)
    for block in range(first_block, last_block, blocks):
        end = min(block + blocks, last_block)
        for each in range(block, end):
            here = patterns[each * block_length : (each + 1) * block_length]
            scale[each] = _find_scale(here, table.size - 2)
            found = found or bool(scale[each] == _NAN)
        _encode(
            values,
            block_length,
            table,
            inverse_widths,
            is_uniform,
            codes_a_byte,
            seed,
            stream,
            codes,
            scale,
            block * block_length,
            min(end * block_length, values.size),
        )
    return found


@compiled
def _find_scale(patterns: Integers, top: int) -> Any:
    """The block's maximum or 0, over `top` and rounded up, as bits of bfloat16; NaN if it is broken."""
    highest, largest = np.int32(0), np.int32(0)
    for i in range(patterns.size):
        magnitude = patterns[i] & _MAGNITUDE
        highest = patterns[i] if patterns[i] > highest else highest
        largest = magnitude if magnitude > largest else largest
    maximum = np.int32(highest).view(np.float32)
    step = np.int32(as_pattern(maximum / np.float32(top)) + 0xFFFF & -0x10000)
    if highest >= _INFINITY or largest > _INFINITY or step >= _INFINITY:
        return _NAN
    if maximum < _SMALLEST_RANGE:
        return np.uint16(0)
    return np.uint16(np.uint32(step) >> 16)


@compiled
def _encode(
    values: Floats,
    block_length: int,
    table: Floats,
    inverse_widths: Floats,
    is_uniform: bool,
    codes_a_byte: int,
    seed: Any,
    stream: Any,
    codes: Bytes,
    scale: Halves,
    first: int,
    last: int,
) -> None:
    """Packed codes of values `first` (a multiple of 40) … `last - 1`, whose blocks have their scales."""
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
                inverse = _ONE / widen(step) if step else _ZERO
                if is_uniform:
                    _round_block(values[at:end], words[here], inverse, table.size - 2, code[here])
                elif table.size == 4:
                    _round_block_on_three(values[at:end], words[here], inverse, table, inverse_widths, code[here])
                else:
                    _round_block_on_any(values[at:end], words[here], inverse, table, inverse_widths, code[here])
            at = end
            block += 1
        code[stop - start : -(-(stop - start) // codes_a_byte) * codes_a_byte] = 0
        packed = codes[start // codes_a_byte : -(-stop // codes_a_byte)]
        if codes_a_byte == _TRITS:
            for i in range(packed.size):
                at = 5 * i
                low = code[at] + 3 * code[at + 1] + 9 * code[at + 2]
                packed[i] = low + 27 * code[at + 3] + 81 * code[at + 4]
        else:
            pack(code, 8 // codes_a_byte, packed)


@compiled
def _round_block(values: Floats, words: Words, inverse: Any, top: int, codes: Bytes) -> None:
    last, most = np.float32(top - 1), np.float32(top)
    for i in range(values.size):
        t = min(max(values[i] * inverse, _ZERO), most)
        lower = min(np.float32(np.int32(t)), last)
        up = _ONE if np.float32(np.int32(words[i] >> _UNUSED_BITS)) * _ULP < t - lower else _ZERO
        code = np.int32(lower + up) + 1
        codes[i] = np.uint8(code if values[i] > _ZERO else 0)


@compiled
def _round_block_on_three(
    values: Floats, words: Words, inverse: Any, table: Floats, inverse_widths: Floats, codes: Bytes
) -> None:
    """`_round_block` for any three levels."""
    middle, top = table[2], table[3]
    first, second = inverse_widths[0], inverse_widths[1]
    for i in range(values.size):
        t = min(max(values[i] * inverse, _ZERO), top)
        above = t >= middle
        edge = middle if above else _ZERO
        width = second if above else first
        up = 1 if np.float32(np.int32(words[i] >> _UNUSED_BITS)) * _ULP < (t - edge) * width else 0
        code = (2 if above else 1) + up
        codes[i] = np.uint8(code if values[i] > _ZERO else 0)


@compiled
def _round_block_on_any(
    values: Floats, words: Words, inverse: Any, table: Floats, inverse_widths: Floats, codes: Bytes
) -> None:
    """`_round_block` for any levels."""
    top = table[-1]
    for i in range(values.size):
        t = min(max(values[i] * inverse, _ZERO), top)
        lower = 0
        while lower < table.size - 3 and t >= table[lower + 2]:
            lower += 1
        fraction = (t - table[lower + 1]) * inverse_widths[lower]
        up = 1 if np.float32(np.int32(words[i] >> _UNUSED_BITS)) * _ULP < fraction else 0
        codes[i] = np.uint8(lower + up + 1 if values[i] > _ZERO else 0)


@compiled
def _unpack_from(codes: Bytes, codes_a_byte: int, first: int, last: int, code: Bytes) -> int:
    """Codes `first` … `last - 1` into `code`; returns where the first one lies there, less than `codes_a_byte`."""
    packed = codes[first // codes_a_byte : -(-last // codes_a_byte)]
    if codes_a_byte == _TRITS:
        for i in range(packed.size):
            byte, at = np.int32(packed[i]), 5 * i
            code[at], code[at + 1], code[at + 2] = byte % 3, byte // 3 % 3, byte // 9 % 3
            code[at + 3], code[at + 4] = byte // 27 % 3, byte // 81
    else:
        unpack(packed, 8 // codes_a_byte, code)
    return first % codes_a_byte


@compiled
def _read(
    code: Bytes, first: int, scale: Halves, block_length: int, table: Floats, is_uniform: bool, values: Floats
) -> None:
    """The values of `code`, that of elements `first`, … of the whole."""
    block = first // block_length
    at, last = first, first + code.size
    while at < last:
        end = min((block + 1) * block_length, last)
        step = widen(scale[block])
        here, result = code[at - first : end - first], values[at - first : end - first]
        if is_uniform:
            for i in range(here.size):
                level = np.int32(here[i]) - np.int32(here[i] > 0)
                result[i] = np.float32(level) * step
        elif table.size == 4:
            middle, high = table[2] * step, table[3] * step
            for i in range(here.size):
                value = middle if here[i] == 2 else high
                result[i] = value if here[i] > 1 else _ZERO * step
        else:
            for i in range(here.size):
                result[i] = table[here[i]] * step
        at = end
        block += 1


@compiled
def _fill_factors(mask: Bytes, factor: Any, first: int, last: int, bit: Bytes, factors: Floats) -> None:
    """`factor` where the bit of elements `first` … `last - 1` is set and 0 elsewhere; `factor` without a mask."""
    if mask.size == 0:
        factors[: last - first] = factor
        return
    skip = _unpack_from(mask, 8, first, last, bit)
    here = bit[skip : skip + last - first]
    for i in range(here.size):
        factors[i] = factor if here[i] else _ZERO


@compiled
def dequantize(
    codes: Bytes,
    scale: Halves,
    block_length: int,
    table: Floats,
    is_uniform: bool,
    codes_a_byte: int,
    mask: Bytes,
    factor: Any,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """Values `first` … `last - 1`, times `factor` or 0 where there is a mask."""
    code, bit = np.empty(PIECE + 8, np.uint8), np.empty(PIECE + 16, np.uint8)
    factors = np.empty(PIECE, np.float32)
    for start in range(first, last, PIECE):
        stop = min(start + PIECE, last)
        skip = _unpack_from(codes, codes_a_byte, start, stop, code)
        result = out[start:stop]
        _read(code[skip : skip + stop - start], start, scale, block_length, table, is_uniform, result)
        if mask.size:
            _fill_factors(mask, factor, start, stop, bit, factors)
            # A comparison as in `_pass_on`: of a broken block, too, what was dropped is 0.
            for i in range(result.size):
                result[i] = result[i] * factors[i] if factors[i] != _ZERO else _ZERO


@compiled
def pass_where(
    gradient: Floats, codes: Bytes, codes_a_byte: int, mask: Bytes, factor: Any, out: Floats, first: int, last: int
) -> None:
    """The gradient times `factor` where its code, and its bit if there is a mask, is not 0; 0 elsewhere."""
    code, bit = np.empty(PIECE + 8, np.uint8), np.empty(PIECE + 16, np.uint8)
    factors = np.empty(PIECE, np.float32)
    for start in range(first, last, PIECE):
        stop = min(start + PIECE, last)
        skip = _unpack_from(codes, codes_a_byte, start, stop, code)
        _fill_factors(mask, factor, start, stop, bit, factors)
        _pass_on(gradient[start:stop], code[skip : skip + stop - start], factors, out[start:stop])


@compiled
def _pass_on(gradient: Floats, code: Bytes, factors: Floats, out: Floats) -> None:
    # A comparison, not a product with 0: what an infinity or a NaN there would make stays out.
    for i in range(gradient.size):
        passed = gradient[i] * factors[i]
        out[i] = passed if code[i] != 0 and factors[i] != _ZERO else _ZERO


@compiled
def _buffers(values: int) -> tuple[Bytes, Bytes, Floats, Floats, Floats]:
    """Codes and bits of `values` elements, which begin within a byte, their factors, gradients and estimates."""
    code, bit = np.empty(values + 8, np.uint8), np.empty(values + 16, np.uint8)
    factors, g = np.empty(values, np.float32), np.empty(values, np.float32)
    return code, bit, factors, g, np.empty(values, np.float32)


@compiled
def norm_sums(
    gradient: Floats,
    codes: Bytes,
    scale: Halves,
    block_length: int,
    table: Floats,
    is_uniform: bool,
    codes_a_byte: int,
    mask: Bytes,
    factor: Any,
    first_row: int,
    last_row: int,
) -> Sums:
    """Σ g, Σ g ŷ, Σ ŷ and the count of positive ŷ of each column over rows `first_row` … `last_row - 1`."""
    width = gradient.shape[1]
    rows = max(PIECE // width, 1)
    code, bit, factors, g, y = _buffers(rows * width)
    total = np.zeros((4, width), np.float64)
    part = np.zeros((4, width), np.float32)
    flat = gradient.reshape(-1)
    for row in range(first_row, last_row, rows):
        count = min(rows, last_row - row)
        start, stop = row * width, (row + count) * width
        skip = _unpack_from(codes, codes_a_byte, start, stop, code)
        here = code[skip : skip + stop - start]
        _read(here, start, scale, block_length, table, is_uniform, y)
        _fill_factors(mask, factor, start, stop, bit, factors)
        _pass_on(flat[start:stop], here, factors, g)
        # float32 sums of a few rows, added up in float64.
        part[:] = 0
        for i in range(count):
            at = slice(i * width, (i + 1) * width)
            _add_row(g[at], y[at], here[at], part)
        total += part
    return total


@compiled
def _add_row(g: Floats, y: Floats, code: Bytes, part: Floats) -> None:
    sum_g, sum_gy, sum_y, positive = part[0], part[1], part[2], part[3]
    for c in range(g.size):
        sum_g[c] += g[c]
        sum_gy[c] += g[c] * y[c]
        sum_y[c] += y[c]
        positive[c] += _ONE if code[c] != 0 else _ZERO


@compiled
def norm_gradient(
    gradient: Floats,
    codes: Bytes,
    scale: Halves,
    block_length: int,
    table: Floats,
    is_uniform: bool,
    codes_a_byte: int,
    mask: Bytes,
    factor: Any,
    coefficients: Floats,
    out: Floats,
    first_row: int,
    last_row: int,
) -> None:
    """Rows `first_row` … `last_row - 1` of a g - b - c ŷ where ŷ is positive, d elsewhere."""
    width = gradient.shape[1]
    rows = max(PIECE // width, 1)
    code, bit, factors, g, y = _buffers(rows * width)
    flat, results = gradient.reshape(-1), out.reshape(-1)
    for row in range(first_row, last_row, rows):
        count = min(rows, last_row - row)
        start, stop = row * width, (row + count) * width
        skip = _unpack_from(codes, codes_a_byte, start, stop, code)
        here = code[skip : skip + stop - start]
        _read(here, start, scale, block_length, table, is_uniform, y)
        _fill_factors(mask, factor, start, stop, bit, factors)
        _pass_on(flat[start:stop], here, factors, g)
        for i in range(count):
            at = slice(i * width, (i + 1) * width)
            _combine_row(g[at], y[at], here[at], coefficients, results[start + at.start : start + at.stop])


@compiled
def _combine_row(g: Floats, y: Floats, code: Bytes, coefficients: Floats, out: Floats) -> None:
    a, b, c, d = coefficients[0], coefficients[1], coefficients[2], coefficients[3]
    for i in range(g.size):
        alive = a[i] * g[i] - b[i] - c[i] * y[i]
        out[i] = alive if code[i] != 0 else d[i]
