"""The comparisons of test_kernels.py notice kernels that are wrong."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from actbench.quant.sources import kernel_folder
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


def check_edge(name: str) -> Callable[[parity.Runs], None]:
    case = next(case for case in parity.EDGE_CASES if case.name == name)
    return lambda machine: parity.check_quantize(
        machine, case.x, case.block_length, case.bits, case.levels, parity.EDGE_SEED, case.stream
    )


def check_kind(kind: str, numel: int, block_length: int) -> Callable[[parity.Runs], None]:
    x = parity.make_values(kind, numel, torch.float32, 1)
    return lambda machine: parity.check_quantize(machine, x, block_length, 2, "clipped-normal")


FAULTS = (
    Fault(
        "no clamp at the top",
        "quantize.cu",
        "min(__float_as_int(multiply(subtract(value, grid.minimum), grid.inverse_scale)),\n"
        "                      __float_as_int((float)TOP));",
        "__float_as_int(multiply(subtract(value, grid.minimum), grid.inverse_scale));",
        (SHORT,),
        check_edge("t beyond the top is clamped"),
    ),
    Fault(
        "rounding to nearest",
        "quantize.cu",
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
        "quantize.cu",
        "(low < 0 ? low + 0xFFFF : low)",
        "low",
        (SHORT,),
        check_kind("normal", 300, 64),
    ),
    Fault(
        "scale rounded down",
        "quantize.cu",
        "(__float_as_int(divide(span, top)) + 0xFFFF)",
        "__float_as_int(divide(span, top))",
        (SHORT,),
        check_kind("normal", 300, 64),
    ),
    Fault(
        "subnormals flushed",
        "quantize.cu",
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
        "quantize.cu",
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
        "quantize.cu",
        "place.offset == (unsigned)block_length",
        "false",
        GENERIC,
        check_kind("normal", 301, 63),
    ),
    Fault(
        "the long block's warps not joined",
        "quantize.cu",
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
