"""The comparisons of test_kernels.py notice kernels that are wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from actbench.quant.cuda.sources import kernel_folder
from tests.quant.cuda import emulate, parity


@dataclass(frozen=True)
class Fault:
    """One piece of the source replaced, and a check that must then fail."""

    name: str
    source: str
    right: str
    wrong: str
    kernels: tuple[tuple[str, str], ...]
    check: Callable[[parity.Runs], None]


SHORT = ("quantize.cu", "quantize_blocks<float, 2, 4>")
GENERIC = (("quantize.cu", "find_ranges<float>"), ("quantize.cu", "encode<float, 2>"))
DEQUANTIZE = ("dequantize.cu", "dequantize<float, 2>")
MASKS = (("mask.cu", "pack_mask"), ("mask.cu", "unpack_mask"))
MASKED = tuple(("mask.cu", f"{kernel}<float>") for kernel in ("pack_positive", "keep_where", "scale_where"))
PROJECT = (("project.cu", "project<float>"), ("project.cu", "project_quantize<float, 2>"))
UNPROJECT = (("unproject.cu", "dequantize_unproject<float, 2>"),)


RECTIFY = tuple(
    ("rectify.cu", name) for name in ("find_scales<float>", *(f"quantize_rectified<float, {n}>" for n in (3, 4, 16)))
)
READ = tuple(("rectified.cu", f"{kernel}_rectified<float, {n}>") for kernel in ("dequantize", "pass") for n in (3, 4))
NORM = tuple(("norm.cu", f"norm_{kernel}<float, {n}>") for kernel in ("sums", "gradient") for n in (3, 4))
SPARSE = (("sparse.cu", "multiply_rows<int>"),)
TRITS, TWO_BITS = parity.RECTIFIED[0], parity.RECTIFIED[2]


def check_sparse(machine: parity.Runs) -> None:
    x = parity.make_values("normal", 40 * 300, torch.float32, 1).view(40, 300)
    parity.check_sparse_product(machine, parity.make_csr(30, 40, 1, torch.int32), x)


def check_edge(name: str) -> Callable[[parity.Runs], None]:
    case = next(case for case in parity.EDGE_CASES if case.name == name)
    return lambda machine: parity.check_quantize(
        machine, case.x, case.block_length, case.bits, case.levels, parity.EDGE_SEED, case.stream
    )


def check_kind(kind: str, numel: int, block_length: int) -> Callable[[parity.Runs], None]:
    x = parity.make_values(kind, numel, torch.float32, 1)
    return lambda machine: parity.check_quantize(machine, x, block_length, 2, "clipped-normal")


def check_masked(kind: str) -> Callable[[parity.Runs], None]:
    x = parity.make_values(kind, 301, torch.float32, 1)
    mask = parity.make_values("normal", 301, torch.float32, 2) > 0
    return lambda machine: parity.check_masked(machine, x, mask, 1.25)


def check_project(
    rows: int, width: int, projected: int, block_length: int, kind: str = "normal"
) -> Callable[[parity.Runs], None]:
    x = parity.make_values(kind, rows * width, torch.float32, 1).view(rows, width)
    return lambda machine: parity.check_project(machine, x, projected, block_length, 2, "clipped-normal")


def check_rectified_edge(name: str) -> Callable[[parity.Runs], None]:
    return lambda machine: parity.check_rectified(machine, parity.RECTIFIED_EDGE_CASES[name])


def check_rectified(
    kind: str, numel: int, block_length: int, how: tuple[float, tuple[float, ...]] = TWO_BITS, threads: int = 256
) -> Callable[[parity.Runs], None]:
    x = parity.make_values(kind, numel, torch.float32, 1)
    case = parity.Rectified(x, block_length, *how, parity.make_mask(numel), 1.25)
    return lambda machine: parity.check_rectified(machine, case, threads)


def check_norm(
    rows: int, width: int, block_length: int, how: tuple[float, tuple[float, ...]] = TWO_BITS, masked: bool = True
) -> Callable[[parity.Runs], None]:
    y = parity.make_values("normal", rows * width, torch.float32, 1)
    gradient = parity.make_values("normal", rows * width, torch.float32, 2).view(rows, width)
    case = parity.Rectified(y, block_length, *how, parity.make_mask(y.numel()) if masked else None, 1.25)
    return lambda machine: parity.check_norm(machine, gradient, case)


def check_norm_of_a_broken_end(machine: parity.Runs) -> None:
    y = parity.make_values("normal", 55, torch.float32, 1)
    y[-1] = torch.nan
    gradient = parity.make_values("normal", 55, torch.float32, 2).view(11, 5)
    parity.check_norm(machine, gradient, parity.Rectified(y, 3, *TWO_BITS))


FAULTS = (
    Fault(
        "no clamp at the top",
        "rounding.cuh",
        "min(__float_as_int(multiply(subtract(value, grid.minimum), grid.inverse_scale)),\n"
        "                      __float_as_int((float)TOP));",
        "__float_as_int(multiply(subtract(value, grid.minimum), grid.inverse_scale));",
        (SHORT,),
        check_edge("t beyond the top is clamped"),
    ),
    Fault(
        "rounding to nearest",
        "rounding.cuh",
        "multiply((float)(noise >> 8), 1.0f / (1 << 24))",
        "0.5f",
        (SHORT,),
        check_kind("normal", 300, 64),
    ),
    Fault(
        "noise in the wrong order",
        "quantize.cu",
        "philox_pair(seed, stream, at / 4, noise);",
        "philox_pair(seed, stream, at / 8, noise);",
        (SHORT,),
        check_kind("normal", 300, 64),
    ),
    Fault(
        "noise that depends on the launch",
        "quantize.cu",
        "philox_pair(seed, stream, at / 4, noise);",
        "philox_pair(seed, stream, at / 4 + blockIdx.x, noise);",
        GENERIC,
        check_kind("normal", 5000, 63),
    ),
    Fault(
        "minimum rounded towards zero",
        "rounding.cuh",
        "(low < 0 ? low + 0xFFFF : low)",
        "low",
        (SHORT,),
        check_kind("normal", 300, 64),
    ),
    Fault(
        "scale rounded down",
        "rounding.cuh",
        "(__float_as_int(divide(span, top)) + 0xFFFF)",
        "__float_as_int(divide(span, top))",
        (SHORT,),
        check_kind("normal", 300, 64),
    ),
    Fault(
        "subnormals flushed",
        "rounding.cuh",
        "multiply(subtract(value, grid.minimum), grid.inverse_scale)",
        "multiply(fabsf(value - grid.minimum) < 1.1754944e-38f ? 0 : value - grid.minimum, grid.inverse_scale)",
        (SHORT,),
        check_edge("a subnormal value is above the minimum"),
    ),
    Fault(
        "a broken block's codes kept",
        "quantize.cu",
        "grid.broken ? 0 : word",
        "word",
        (SHORT,),
        check_kind("broken", 3000, 64),
    ),
    Fault(
        "a NaN overlooked",
        "rounding.cuh",
        "if (!is_finite(low) || !is_finite(__float_as_int(span)) || !is_finite(scale))",
        "if (!is_finite(scale))",
        (SHORT,),
        check_kind("broken", 3000, 64),
    ),
    Fault(
        "the whole last block counted, whatever is left of it",
        "quantize.cu",
        "numel - first < 0 ? 0 : numel - first",
        "numel - first < 0 ? 0 : (long long)block_length",
        (SHORT,),
        check_kind("normal", 300, 64),
    ),
    Fault(
        "rubbish behind the last code",
        "octets.cuh",
        "if (count < OCTET) codes &= ((Codes<BITS>)1 << BITS * count) - 1;",
        "",
        (SHORT,),
        check_kind("normal", 301, 64),
    ),
    Fault(
        "a block's border inside an octet overlooked",
        "rounding.cuh",
        "place.offset == (unsigned)block_length",
        "false",
        GENERIC,
        check_kind("normal", 301, 63),
    ),
    Fault(
        "the long block's warps not joined",
        "rounding.cuh",
        "if (lanes > 32) {",
        "if (false) {",
        GENERIC,
        check_kind("normal", 3000, 1500),
    ),
    Fault(
        "no barrier before the edges are read",
        "dequantize.cu",
        "__syncthreads();",
        "",
        (DEQUANTIZE,),
        check_kind("normal", 300, 64),
    ),
    Fault(
        "whole octets written at the end",
        "octets.cuh",
        "if (i < count) at[i] = packet.values[i];",
        "at[i] = packet.values[i];",
        (DEQUANTIZE,),
        check_kind("normal", 301, 64),
    ),
    Fault(
        "a mask's last bits lost",
        "mask.cu",
        "|| i + 1 == count",
        "",
        MASKS,
        lambda machine: parity.check_mask(machine, parity.make_values("normal", 77, torch.float32, 1) > 0),
    ),
    Fault(
        "a mask's bits reversed",
        "mask.cu",
        "0x10204080u",
        "0x01020408u",
        MASKS,
        lambda machine: parity.check_mask(machine, parity.make_values("normal", 77, torch.float32, 1) > 0),
    ),
    Fault(
        "a projection's signs the other way round",
        "projection.cu",
        "(signs[word] >> lane & 1u)",
        "(~signs[word] >> lane & 1u)",
        (("projection.cu", "fill_projection<unsigned>"),),
        lambda machine: parity.check_projection(machine, 13, 7, torch.float32),
    ),
    Fault(
        "a broken block not told",
        "rounding.cuh",
        "if (metadata.scale == 0x7FC0 && broken) *broken = 1;",
        "",
        (SHORT,),
        check_kind("broken", 3000, 64),
    ),
    Fault(
        "a sound block told to be broken",
        "rounding.cuh",
        "if (metadata.scale == 0x7FC0 && broken)",
        "if (broken)",
        GENERIC,
        check_kind("normal", 301, 63),
    ),
    Fault(
        "a positive subnormal taken for 0",
        "mask.cu",
        "bits > 0 ||",
        "bits >= 0x00800000 ||",
        MASKED,
        check_masked("subnormal"),
    ),
    Fault(
        "0 taken for positive",
        "mask.cu",
        "bits > 0 ||",
        "bits >= 0 ||",
        MASKED,
        check_masked("zeros"),
    ),
    Fault(
        "a NaN with a sign taken for negative",
        "mask.cu",
        "(unsigned)bits > 0xFF800000u;",
        "false;",
        MASKED,
        lambda machine: parity.check_masked(
            machine, torch.tensor([-1] * 9, dtype=torch.int32).view(torch.float32), torch.ones(9, dtype=torch.bool), 1
        ),
    ),
    Fault(
        "rubbish behind the last bit",
        "mask.cu",
        "bits & (1u << count) - 1",
        "bits",
        MASKED,
        lambda machine: parity.check_masked(machine, torch.ones(77), torch.ones(77, dtype=torch.bool), 1.25),
    ),
    Fault(
        "the other values kept",
        "mask.cu",
        "if (!(bits[j] >> i & 1))",
        "if (bits[j] >> i & 1)",
        MASKED,
        check_masked("normal"),
    ),
    Fault(
        "values selected instead of multiplied",
        "mask.cu",
        "multiply(loaded[j][i], bits[j] >> i & 1 ? factors[1] : factors[0])",
        "bits[j] >> i & 1 ? multiply(loaded[j][i], factor) : 0",
        MASKED,
        check_masked("normal"),
    ),
    Fault(
        "a subnormal product flushed",
        "mask.cu",
        "loaded[j][i] = multiply(loaded[j][i], bits",
        "loaded[j][i] = (fabsf(loaded[j][i]) < 1.1754944e-38f ? 0 : 1) * multiply(loaded[j][i], bits",
        MASKED,
        check_masked("subnormal"),
    ),
    Fault(
        "no barrier between a chunk's staging and its sums",
        "project.cu",
        "wait_for_copies();\n        __syncthreads();",
        "wait_for_copies();",
        PROJECT,
        check_project(70, 40, 16, 16),
    ),
    Fault(
        "no barrier between a chunk's sums and the next one's staging",
        "project.cu",
        "add_chunk(stage, tile, seat, sums);\n        __syncthreads();",
        "add_chunk(stage, tile, seat, sums);",
        PROJECT,
        check_project(70, 40, 16, 16),
    ),
    Fault(
        "no barrier between the sums and their ranges",
        "project.cu",
        "    }\n    __syncthreads();\n\n    const int teams",
        "    }\n\n    const int teams",
        PROJECT,
        check_project(70, 40, 16, 64),
    ),
    Fault(
        "no barrier between the ranges and the codes",
        "project.cu",
        "    __syncthreads();\n\n    for (int at = threadIdx.x * OCTET",
        "    for (int at = threadIdx.x * OCTET",
        PROJECT,
        check_project(60, 40, 16, 16),
    ),
    Fault(
        "the next row's signs",
        "project.cu",
        "from - start + k, first",
        "from - start + k + 1, first",
        PROJECT,
        check_project(20, 40, 16, 16),
    ),
    Fault(
        "the first signs over and over",
        "project.cu",
        "start * (unsigned long long)projected + first_column",
        "first_column",
        PROJECT,
        check_project(20, 140, 16, 16),
    ),
    Fault(
        "the signs of the first columns in every tile",
        "project.cu",
        "start * (unsigned long long)projected + first_column",
        "start * (unsigned long long)projected",
        PROJECT,
        check_project(20, 40, 140, 8),
    ),
    Fault(
        "sums in descending order",
        "product.cuh",
        "for (int k = 0; k < 4; ++k) {",
        "for (int k = 3; k >= 0; --k) {",
        PROJECT,
        check_project(20, 40, 16, 16),
    ),
    Fault(
        "sums of four at a time",
        "product.cuh",
        "const int columns = tile.columns();",
        "const int columns = tile.columns(); Sums before = {}; std::swap(before, sums); struct Join { Sums &a, &b; "
        "~Join() { for (int i = 0; i < 32; ++i) a[i / 8][i % 8] += b[i / 8][i % 8]; } } join{sums, before};",
        PROJECT,
        check_project(20, 40, 16, 16),
    ),
    Fault(
        "no factor",
        "product.cuh",
        "multiply(sums[i][j], factor)",
        "sums[i][j]",
        PROJECT,
        check_project(20, 40, 13, 13),
    ),
    Fault(
        "a row behind the last one written",
        "product.cuh",
        "if (row >= rows) return;",
        "if (row > rows) return;",
        PROJECT,
        check_project(21, 40, 13, 13),
    ),
    Fault(
        "columns behind the last one written",
        "product.cuh",
        "if (i < count) at[i] = quad.values[i];",
        "at[i] = quad.values[i];",
        PROJECT,
        check_project(21, 40, 13, 13),
    ),
    Fault(
        "values behind a row's last one added, words",
        "project.cu",
        "const bool inside = column + offset < width;\n        if",
        "const bool inside = true;\n        if",
        PROJECT,
        check_project(21, 20, 16, 16),
    ),
    Fault(
        "values behind a row's last one added, one by one",
        "project.cu",
        "const bool inside = column + offset < width;\n        for",
        "const bool inside = true;\n        for",
        PROJECT,
        check_project(21, 19, 16, 16),
    ),
    Fault(
        "noise of the tile's own elements",
        "project.cu",
        "philox_pair(seed, stream, (first + at) / 4, noise);",
        "philox_pair(seed, stream, at / 4, noise);",
        PROJECT,
        check_project(300, 20, 16, 16),
    ),
    Fault(
        "no barrier between read values and their sums",
        "unproject.cu",
        "            __syncthreads();\n            add_chunk",
        "            add_chunk",
        UNPROJECT,
        check_project(70, 40, 16, 16),
    ),
    Fault(
        "no barrier between sums and the values read next",
        "unproject.cu",
        "add_chunk(stage, tile, seat, sums);\n            __syncthreads();",
        "add_chunk(stage, tile, seat, sums);",
        UNPROJECT,
        check_project(70, 40, 36, 16),
    ),
    Fault(
        "the signs of the first columns in every tile read back",
        "unproject.cu",
        "first_column * (unsigned long long)projected + begin",
        "begin",
        UNPROJECT,
        check_project(20, 140, 16, 16),
    ),
    Fault(
        "signs of a strip's first rows when they are many",
        "unproject.cu",
        "(row == 0 || projected > RUN)",
        "row == 0",
        UNPROJECT,
        check_project(70, 120, 140, 16),
    ),
    Fault(
        "a block's border inside four values overlooked",
        "unproject.cu",
        "place.offset == (unsigned)block_length",
        "false",
        UNPROJECT,
        check_project(20, 20, 16, 13),
    ),
    Fault(
        "codes of the strip's own elements",
        "unproject.cu",
        "const long long at = first + offset + i;",
        "const long long at = offset + i;",
        UNPROJECT,
        check_project(300, 20, 16, 16),
    ),
    Fault(
        "a rectified code without the mask's symbol",
        "rectify.cu",
        "(1 + round_in_bin<BITS>(t, noise[i], bins))",
        "round_in_bin<BITS>(t, noise[i], bins)",
        RECTIFY,
        check_rectified("normal", 300, 64),
    ),
    Fault(
        "0 rectified to a positive code",
        "rectify.cu",
        "__float_as_int(values[i]) > 0 &&",
        "__float_as_int(values[i]) >= 0 &&",
        RECTIFY,
        check_rectified("zeros", 300, 64),
    ),
    Fault(
        "a positive subnormal rectified to 0",
        "rectify.cu",
        "__float_as_int(values[i]) > 0 &&",
        "__float_as_int(values[i]) >= 0x00800000 &&",
        RECTIFY,
        check_rectified_edge("a subnormal value is positive"),
    ),
    Fault(
        "a rectified t not clamped at the top",
        "rectify.cu",
        "min(__float_as_int(multiply(values[i], rectifier.inverse_scale)),\n"
        "                              __float_as_int((float)(SYMBOLS - 2)));",
        "__float_as_int(multiply(values[i], rectifier.inverse_scale));",
        RECTIFY,
        check_rectified_edge("t beyond the top is clamped"),
    ),
    Fault(
        "a rectified block's scale rounded down",
        "rectify.cu",
        "(__float_as_int(divide(__int_as_float(high), top)) + 0xFFFF)",
        "__float_as_int(divide(__int_as_float(high), top))",
        RECTIFY,
        check_rectified("normal", 300, 64),
    ),
    Fault(
        "tiny maxima kept",
        "rectify.cu",
        "if (high < 127 - 80 << 23) return 0; ",
        "",
        RECTIFY,
        check_rectified_edge("the largest maximum that counts as 0"),
    ),
    Fault(
        "a maximum of a sharp 2**-80 taken for tiny",
        "rectify.cu",
        "if (high < 127 - 80 << 23) return 0; ",
        "if (high <= 127 - 80 << 23) return 0; ",
        RECTIFY,
        check_rectified_edge("the smallest maximum that does not"),
    ),
    Fault(
        "a NaN with its sign set overlooked by a scale",
        "rectify.cu",
        "!is_finite(high) || range.most > 0xFF800000u",
        "!is_finite(high)",
        RECTIFY,
        check_rectified_edge("a NaN with its sign set"),
    ),
    Fault(
        "the infinity below taken for a NaN",
        "rectify.cu",
        "range.most > 0xFF800000u",
        "range.most >= 0xFF800000u",
        RECTIFY,
        check_rectified_edge("the infinity below is no maximum"),
    ),
    Fault(
        "a scale beyond bfloat16 kept",
        "rectify.cu",
        "return is_finite(scale) ? (unsigned short)((unsigned)scale >> 16) : 0x7FC0;",
        "return (unsigned short)((unsigned)scale >> 16);",
        RECTIFY,
        check_rectified_edge("a scale beyond bfloat16"),
    ),
    Fault(
        "a broken block's rectified codes kept",
        "rectify.cu",
        "> 0 && !rectifier.broken)",
        "> 0)",
        RECTIFY,
        check_rectified("broken", 3000, 64),
    ),
    Fault(
        "a broken rectified block not told",
        "rectify.cu",
        "if (rounded == 0x7FC0 && broken) *broken = 1;",
        "",
        RECTIFY,
        check_rectified("broken", 3000, 64),
    ),
    Fault(
        "noise of the tile's own values",
        "rectify.cu",
        "philox_pair(seed, stream, (first + at) / 4, noise);",
        "philox_pair(seed, stream, at / 4, noise);",
        RECTIFY,
        check_rectified("normal", 5000, 64),
    ),
    Fault(
        "a block's border inside a rectified octet overlooked",
        "rectify.cu",
        "place.offset == (unsigned)block_length",
        "false",
        RECTIFY,
        check_rectified("normal", 3000, 13),
    ),
    Fault(
        "no barrier between a tile and its scales",
        "rectify.cu",
        "start = locate(first, block_length);\n    __syncthreads();",
        "start = locate(first, block_length);",
        RECTIFY,
        check_rectified("normal", 3000, 1024),
    ),
    Fault(
        "no barrier between scales and codes",
        "rectify.cu",
        "        }\n        __syncthreads();\n    }",
        "        }\n    }",
        RECTIFY,
        check_rectified("normal", 3000, 64),
    ),
    Fault(
        "no barrier between trits and bytes",
        "rectify.cu",
        "] = 0;\n        __syncthreads();",
        "] = 0;",
        RECTIFY,
        check_rectified("normal", 3000, 64, TRITS),
    ),
    Fault(
        "rubbish behind the last trit",
        "rectify.cu",
        "if (threadIdx.x == 0) trits[(count + OCTET - 1) / OCTET] = 0;",
        "if (threadIdx.x == 0) trits[(count + OCTET - 1) / OCTET] = 0x5555;",
        RECTIFY,
        check_rectified("normal", 8, 64, TRITS),
    ),
    Fault(
        "the highest trit first",
        "rectify.cu",
        "for (int i = TRITS - 1; i >= 0; --i) packed",
        "for (int i = 0; i < TRITS; ++i) packed",
        RECTIFY,
        check_rectified("normal", 300, 64, TRITS),
    ),
    Fault(
        "trits read from the first of their byte",
        "rectified.cuh",
        "return trits >> 2 * (int)(at % TRITS);",
        "return trits;",
        READ,
        check_rectified("normal", 300, 64, TRITS),
    ),
    Fault(
        "an octet's last trits lost",
        "rectified.cuh",
        "if (last > 2 * TRITS) word |= codes[byte + 2] << 16;",
        "",
        READ,
        check_rectified("normal", 300, 64, TRITS),
    ),
    Fault(
        "no barrier before trits are read",
        "rectified.cu",
        "digits.share();\n    __syncthreads();",
        "digits.share();",
        READ,
        check_rectified("normal", 300, 64, TRITS),
    ),
    Fault(
        "a dropout's bits in the wrong order where a gradient passes",
        "rectified.cuh",
        "mask >> i & 1 ?",
        "mask >> (7 - i) & 1 ?",
        READ,
        check_rectified("normal", 300, 64),
    ),
    Fault(
        "a dropout's bits in the wrong order where values are read",
        "rectified.cu",
        "bits[j] >> i & 1 ?",
        "bits[j] >> (7 - i) & 1 ?",
        READ,
        check_rectified("normal", 300, 64),
    ),
    Fault(
        "a gradient passed where the value was 0",
        "rectified.cuh",
        "symbol<SYMBOLS>(codes, i) != 0 && mask",
        "mask",
        READ,
        check_rectified("normal", 300, 64),
    ),
    Fault(
        "a dropout's factor forgotten",
        "rectified.cu",
        "multiply(values[i], factor)",
        "values[i]",
        READ,
        check_rectified("normal", 300, 64),
    ),
    Fault(
        "a dropped NaN kept",
        "rectified.cu",
        "bits[j] >> i & 1 ? multiply(values[i], factor) : 0",
        "multiply(values[i], bits[j] >> i & 1 ? factor : 0)",
        READ,
        check_rectified("broken", 3000, 64),
    ),
    Fault(
        "the scale of an octet's first block for all of it",
        "rectified.cuh",
        "place.offset == (unsigned)block_length && i < count",
        "false",
        READ,
        check_rectified("normal", 3000, 13),
    ),
    Fault(
        "no barrier between two sums",
        "norm.cu",
        "quantity < 4; ++quantity) {\n        __syncthreads();",
        "quantity < 4; ++quantity) {",
        NORM,
        check_norm(100, 16, 64),
    ),
    Fault(
        "no barrier between sums of threads and of columns",
        "norm.cu",
        "sums.get(quantity, i);\n        __syncthreads();",
        "sums.get(quantity, i);",
        NORM,
        check_norm(100, 16, 64),
    ),
    Fault(
        "a team's sums lost",
        "norm.cu",
        "team < walk.teams; ++team",
        "team + 1 < walk.teams; ++team",
        NORM,
        check_norm(1000, 128, 64),
    ),
    Fault(
        "the first octets' sums in place of others",
        "norm.cu",
        "walk.first * (long long)OCTET + column] = sum;",
        "column] = sum;",
        NORM,
        check_norm(40, 600, 64),
    ),
    Fault(
        "sums of values behind the last one",
        "norm.cu",
        "if (i >= count) break;\n            sums",
        "sums",
        NORM,
        check_norm_of_a_broken_end,
    ),
    Fault(
        "a value that is dropped counted as 0",
        "norm.cu",
        "if (symbol<SYMBOLS>(word, i) != 0) sums",
        "if (g[i] != 0) sums",
        NORM,
        check_norm(40, 16, 64),
    ),
    Fault(
        "a block's end between two bands overlooked",
        "norm.cu",
        "if (place.offset >= (unsigned)block_length) place",
        "if (false) place",
        NORM,
        check_norm(1000, 128, 100),
    ),
    Fault(
        "the coefficients of the first columns for all",
        "norm.cu",
        "(int)((walk.first + walk.octet) * (long long)OCTET % width)",
        "(int)(walk.octet * (long long)OCTET % width)",
        NORM,
        check_norm(40, 600, 64),
    ),
    Fault(
        "coefficients of columns that are none",
        "norm.cu",
        "column + 1 == width ? 0 : column + 1",
        "column + 1",
        NORM,
        check_norm(40, 13, 64),
    ),
    Fault(
        "products subtracted in another order",
        "norm.cu",
        "subtract(subtract(multiply(of_columns[0][i], g[i]), of_columns[1][i]),\n"
        "                                         multiply(of_columns[2][i], y[i]))",
        "subtract(multiply(of_columns[0][i], g[i]), add(of_columns[1][i], multiply(of_columns[2][i], y[i])))",
        NORM,
        check_norm(40, 16, 64, TRITS, False),
    ),
    Fault(
        "sums in the reverse order of a row's entries",
        "sparse.cu",
        "for (I entry = first; entry < end; ++entry)",
        "for (I entry = end; entry-- > first;)",
        SPARSE,
        check_sparse,
    ),
    Fault(
        "a sum that is rounded once for two operations",
        "sparse.cu",
        "add(sums[i], multiply(values[entry], factors[i]))",
        "__builtin_fmaf(values[entry], factors[i], sums[i])",
        SPARSE,
        check_sparse,
    ),
    Fault(
        "the first columns alone",
        "sparse.cu",
        "column += OCTET << lane_bits",
        "column += width",
        SPARSE,
        check_sparse,
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_wrong_kernel_is_noticed(fault: Fault, tmp_path: Path) -> None:
    emulate.require_compiler()
    fault.check(emulate.emulator())
    for source in kernel_folder().glob("*.cu*"):
        text = source.read_text()
        if source.name == fault.source:
            assert fault.right in text
            text = text.replace(fault.right, fault.wrong)
        (tmp_path / source.name).write_text(text)
    machine = emulate.Emulator(fault.kernels, tmp_path, emulate.emulator())
    with pytest.raises(AssertionError, match=r"differ at|outside of an output"):
        fault.check(machine)
