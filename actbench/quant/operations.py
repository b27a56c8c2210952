"""The quantizer's operations, each declared once: what it returns, the kernels behind it, and inputs to try it on.

The loops that are compiled beforehand, the list of kernels, the race check and tests of parity go through this table.
Each operation is torch's as well, `torch.ops.actbench.NAME`, with a `BlockCode` as its three parts, so that a compiled
graph takes it whole: torch then knows the shapes that come out without a run.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from string import Formatter
from typing import Any, Final

import torch
from torch import Tensor

from actbench.quant.backend import Backend
from actbench.quant.content import asymmetry_sums, dense_sum
from actbench.quant.cpu import backend as cpu
from actbench.quant.layout import BlockCode, mask_bytes
from actbench.quant.packed import backend

Shapes = tuple[tuple[tuple[int, ...], torch.dtype], ...]
Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Operation:
    """One function of `Backend`, by its `name`.

    `outputs` gives shapes and dtypes of what it returns for its arguments. `kernels` are sources and kernels on CUDA,
    whose {parameters} stand for all of `_PARAMETERS`. `examples` makes arguments of a float32 matrix x [N, C] and the
    length of a block, on the device of x.
    """

    name: str
    outputs: Callable[..., Shapes]
    kernels: tuple[tuple[str, str], ...]
    examples: Callable[[Tensor, int], list[Inputs]]

    def kernel_names(self) -> Iterator[tuple[str, str]]:
        """Source and name of every kernel that a call may ask for."""
        for source, template in self.kernels:
            fields = [field for _, field, _, _ in Formatter().parse(template) if field]
            for values in product(*(_PARAMETERS[field] for field in fields)):
                yield source, template.format(**dict(zip(fields, values, strict=True)))


_PARAMETERS: Final[dict[str, tuple[object, ...]]] = {
    "dtype": ("float", "Float16", "BFloat16"),
    "bits": (1, 2, 4, 8),
    "held": (1, 2, 4),
    "symbols": (3, 4, 16, 256),
    "entry": ("unsigned", "unsigned short"),
}


def _plain(length: int) -> BlockCode:
    return BlockCode(length, 2, (0.0, 1.0, 2.0, 3.0))


def _of_relu(length: int) -> BlockCode:
    return BlockCode(length, 2, (0.0, 1.0, 2.0))


def _packed(numel: int, code: BlockCode) -> Shapes:
    layout = code.layout(numel)
    ends = (layout.blocks,), torch.bfloat16
    return ((layout.code_bytes,), torch.uint8), ends, ends


def _rectified(numel: int, code: BlockCode) -> Shapes:
    layout = code.rectified_layout(numel)
    return ((layout.code_bytes,), torch.uint8), ((layout.blocks,), torch.bfloat16)


def _like(values: Tensor, *_: object) -> Shapes:
    return ((tuple(values.shape), values.dtype),)


def _bits(x: Tensor) -> Shapes:
    return (((mask_bytes(x.numel()),), torch.uint8),)


_QUANTIZE: Final = (
    ("quantize.cu", "find_ranges<{dtype}>"),
    ("quantize.cu", "quantize_blocks<{dtype}, {bits}, {held}>"),
    ("quantize.cu", "encode<{dtype}, {bits}>"),
)
_NARROW: Final = 4
"""Columns of the examples' projections."""


def _projected(x: Tensor, length: int) -> tuple[Tensor, ...]:
    return backend(x).project_quantize(x, _NARROW, _plain(length), 0, 0, 1)


def _of_norm(x: Tensor, length: int) -> Inputs:
    return (x, *backend(x).quantize_rectified(x, _of_relu(length), 0, 0), _of_relu(length))


def _survived(x: Tensor) -> Tensor:
    return backend(x).pack_positive(x)


OPERATIONS: Final = (
    Operation(
        "quantize",
        lambda x, code, *_: _packed(x.numel(), code),
        _QUANTIZE,
        lambda x, length: [(x, _plain(length), 0, 1)],
    ),
    Operation(
        "dequantize",
        lambda codes, minimum, scale, numel, code, dtype: (((numel,), dtype),),
        (("dequantize.cu", "dequantize<{dtype}, {bits}>"),),
        lambda x, length: [
            (*backend(x).quantize(x, _plain(length), 0, 1), x.numel(), _plain(length), x.dtype),
        ],
    ),
    Operation(
        "project_quantize",
        lambda x, projected, code, *_: _packed(x.shape[0] * projected, code),
        (("project.cu", "project_quantize<{dtype}, {bits}>"), ("project.cu", "project<{dtype}>"), *_QUANTIZE),
        lambda x, length: [(x, _NARROW, _plain(length), 0, 0, 1)],
    ),
    Operation(
        "dequantize_unproject",
        lambda codes, minimum, scale, rows, width, projected, code, dtype, *_: (((rows, width), dtype),),
        (("unproject.cu", "dequantize_unproject<{dtype}, {bits}>"),),
        lambda x, length: [(*_projected(x, length), *x.shape, _NARROW, _plain(length), x.dtype, 0, 0)],
    ),
    Operation(
        "projection",
        lambda width, projected, seed, stream, dtype, device: (((width, projected), dtype),),
        (("projection.cu", "fill_projection<{entry}>"),),
        lambda x, length: [(x.shape[1], _NARROW, 0, 0, x.dtype, x.device)],
    ),
    Operation(
        "quantize_rectified",
        lambda x, code, *_: _rectified(x.numel(), code),
        (("rectify.cu", "find_scales<{dtype}>"), ("rectify.cu", "quantize_rectified<{dtype}, {symbols}>")),
        lambda x, length: [(x, _of_relu(length), 0, 0)],
    ),
    Operation(
        "dequantize_rectified",
        lambda codes, scale, numel, code, dtype, *_: (((numel,), dtype),),
        (("rectified.cu", "dequantize_rectified<{dtype}, {symbols}>"),),
        lambda x, length: [
            (*_of_norm(x, length)[1:3], x.numel(), _of_relu(length), x.dtype, mask, 2.0)
            for mask in (None, _survived(x))
        ],
    ),
    Operation(
        "pass_rectified",
        _like,
        (("rectified.cu", "pass_rectified<{dtype}, {symbols}>"),),
        lambda x, length: [(x, _of_norm(x, length)[1], _of_relu(length), mask, 2.0) for mask in (None, _survived(x))],
    ),
    Operation(
        "norm_sums",
        lambda gradient, *_: (((4, gradient.shape[1]), torch.float64),),
        (("norm.cu", "norm_sums<{dtype}, {symbols}>"),),
        lambda x, length: [(*_of_norm(x.round(), length), mask, 2.0) for mask in (None, _survived(x))],
    ),
    Operation(
        "norm_gradient",
        _like,
        (("norm.cu", "norm_gradient<{dtype}, {symbols}>"),),
        lambda x, length: [
            (*_of_norm(x, length), x.new_ones(4, x.shape[1]), mask, 2.0) for mask in (None, _survived(x))
        ],
    ),
    Operation(
        "pack_positive",
        _bits,
        (("mask.cu", "pack_positive<{dtype}>"),),
        lambda x, length: [(x,)],
    ),
    Operation("pack_mask", _bits, (("mask.cu", "pack_mask"),), lambda x, length: [(x > 0,)]),
    Operation(
        "unpack_mask",
        lambda packed, numel: (((numel,), torch.bool),),
        (("mask.cu", "unpack_mask"),),
        lambda x, length: [(_survived(x), x.numel())],
    ),
    Operation(
        "keep_where",
        _like,
        (("mask.cu", "keep_where<{dtype}>"),),
        lambda x, length: [(x, _survived(x))],
    ),
    Operation(
        "scale_where",
        _like,
        (("mask.cu", "scale_where<{dtype}>"),),
        lambda x, length: [(x, _survived(x), 2.0)],
    ),
)
"""In an order in which none stands before what its examples are made by."""

_LIBRARY: Final = torch.library.Library("actbench", "FRAGMENT")
_TYPES: Final[dict[Any, str]] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "int",
    float: "float",
    torch.dtype: "ScalarType",
    torch.device: "Device",
}


def _register(operation: Operation) -> None:
    """Make `operation` torch's: its schema is that of `Backend`, but for the flag that it may write to."""
    hints = typing.get_type_hints(getattr(Backend, operation.name))
    parameters = [name for name in inspect.signature(getattr(Backend, operation.name)).parameters if name != "self"]
    kept = [name for name in parameters if name != "broken"]

    def declared(name: str) -> str:
        if hints[name] is BlockCode:
            return "int block_length, float bits, float[] levels"
        return f"{_TYPES[hints[name]]} {name}"

    def unflattened(arguments: tuple[Any, ...]) -> list[Any]:
        left, found = list(arguments), []
        for name in kept:
            if hints[name] is BlockCode:
                length, bits, levels = left.pop(0), left.pop(0), left.pop(0)
                found.append(BlockCode(length, int(bits) if bits == int(bits) else bits, tuple(levels)))
            else:
                found.append(left.pop(0))
        return found

    def run(*arguments: Any) -> Any:
        place = next((each for each in arguments if isinstance(each, Tensor)), None)
        where = place if place is not None else torch.empty(0, device=arguments[-1])
        return getattr(backend(where), operation.name)(*unflattened(arguments))

    def fake(*arguments: Any) -> Any:
        device = next((each.device for each in arguments if isinstance(each, Tensor)), arguments[-1])
        shapes = operation.outputs(*unflattened(arguments))
        made = tuple(torch.empty(shape, dtype=dtype, device=device) for shape, dtype in shapes)
        return made if len(made) > 1 else made[0]

    returned = ", ".join(["Tensor"] * len(typing.get_args(hints["return"]) or (Tensor,)))
    _LIBRARY.define(f"{operation.name}({', '.join(map(declared, kept))}) -> ({returned})")
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(operation.name, run, key)
    if hints[kept[0]] is not Tensor:
        _LIBRARY.impl(operation.name, run, "BackendSelect")
    torch.library.register_fake(f"actbench::{operation.name}", fake, lib=_LIBRARY)


for _operation in OPERATIONS:
    _register(_operation)


def kernel_names() -> list[tuple[str, str]]:
    """Source and name of every kernel: those of the operations, and of the sparse product in one order."""
    names = dict.fromkeys(name for operation in OPERATIONS for name in operation.kernel_names())
    return [*names, *(("sparse.cu", f"multiply_rows<{index}>") for index in ("int", "long long"))]


def compile_loops() -> None:
    """Compile every loop of the CPU, or read it from the disk where an earlier call has left it: seconds or less.

    What the compiler takes of memory stays with the process, so a process that measures its own lets another one do it.
    """
    x = torch.ones(8, 8, dtype=torch.float32, device="cpu")
    for operation in OPERATIONS:
        for inputs in operation.examples(x, 8):
            getattr(cpu, operation.name)(*inputs)
    cpu.pack_mask(x.to(torch.int32))
    cpu.draw_mask(64, 0.5, torch.Generator("cpu"))
    dense_sum(x)
    for index in (torch.int32, torch.int64):
        ends = torch.arange(9, dtype=index, device="cpu")
        asymmetry_sums(ends, ends[:8], x[0])
