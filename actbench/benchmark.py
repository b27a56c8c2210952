"""How fast the quantizer is: every operation checked against the oracle, then timed beside a copy and beside torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from actbench.errors import KernelError
from actbench.meters import Clock, describe_environment
from actbench.quant import (
    Packing,
    Projection,
    Rectifier,
    dequantize,
    keep_where,
    pack_mask,
    pack_positive,
    quantize,
    reference,
)
from actbench.quant import scale_where as scale_where_bits
from actbench.quant.layout import mask_bytes, projected_width
from actbench.quant.packed import backend
from actbench.scheme import Scheme

SCHEMA_VERSION: Final = 1
BITS: Final = 2
RATIO: Final = 8
"""Projection ratio D/R of the projected operations."""
_FLOAT_BYTES: Final = 4
_DOUBLE_BYTES: Final = 8
_SUMS: Final = 4
"""Sums of a column, and coefficients of one, in batch norm's backward."""
_SEED, _SIGNS, _ROUNDING = 7, 2, 3
_FACTOR: Final = 2.0
# So many float32 inputs of the default shapes that no cache holds them all; `_rotated` sees to packed ones and masks.
_SETS: Final = {"cpu": 2, "cuda": 4}
_WARMUP_CALLS: Final = 3
_CACHES: Final = 4
"""Bytes that pass between two uses of one buffer on a GPU, in sizes of its L2 cache."""
_MOST_BUFFERS: Final = 64
"""Of a small shape, which then stays in the cache, as its row says."""
_WARM_SECONDS: Final = 0.05
"""How long a GPU works before a case is timed: its clocks fall while the host checks and compiles."""

Inputs = tuple[Tensor, ...]
Operation = Callable[..., Any]


@dataclass(frozen=True)
class Shape:
    """A float32 matrix [rows, width]."""

    rows: int
    width: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.width}"


@dataclass(frozen=True)
class Case:
    """One operation on one shape: ours, the oracle's, and torch's for the same mathematics, on the same inputs.

    `moved_bytes` is what has to be read and written at least, each byte once. `eager` draws its noise from torch.
    """

    operation: str
    block_length: int | None
    moved_bytes: int
    inputs: Sequence[Inputs]
    ours: Operation
    oracle: Operation
    eager: Operation


def benchmark_kernels(
    shapes: list[Shape],
    device: torch.device,
    repeats: int,
    compiled: bool,
    report: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None] = lambda _record: None,
) -> dict[str, Any]:
    """Check and time every operation on `shapes`; JSON values with medians, 10th and 90th percentiles in seconds.

    Ours, eager torch, torch.compile (`compiled`) and a copy take turns, `repeats` times each, after a warm-up. On a
    GPU each turn is the replay of a CUDA graph of calls on different buffers, more than its cache holds, between two
    events. `report` hears what is under way, `keep` is given the record so far after each operation, `complete` being
    false until all are there. Raises `KernelError` if a result is not the oracle's, bit for bit.
    """
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "kernels",
        "bits": BITS,
        "projection": RATIO,
        "repeats": repeats,
        "environment": describe_environment(device),
        "complete": False,
        "rows": [],
    }
    for shape in shapes:
        sources = [(x,) for x in _values(shape, device)]
        copies: list[float] = []
        of_shape: list[dict[str, Any]] = []
        for case in _cases(shape, device):
            report(f"{case.operation} {shape}")
            _check(case, shape)
            samples, reason = _measure(case, sources, device, repeats, compiled)
            copies += samples["copy"]
            of_shape.append(_row(case, shape, samples, reason) | {"cached": _stays_in_cache(case.moved_bytes, device)})
            record["rows"] += of_shape[-1:]
            copy_rate = 2 * _FLOAT_BYTES * shape.rows * shape.width / statistics.median(copies)
            for row in of_shape:
                row |= {"copy_bytes_per_second": copy_rate, "floor_seconds": row["moved_bytes"] / copy_rate}
            keep(record)
    record["complete"] = True
    keep(record)
    return record


def check_kernels(shape: Shape, device: torch.device) -> int:
    """Compare every operation on `shape` with the oracle, bit for bit; how many there were.

    Raises `KernelError` at the first that differs.
    """
    checked = 0
    for case in _cases(shape, device):
        _check(case, shape)
        checked += 1
    return checked


def _measure(
    case: Case, sources: Sequence[Inputs], device: torch.device, repeats: int, compiled: bool
) -> tuple[dict[str, list[float]], str | None]:
    """Seconds of every turn, and why torch.compile has none."""
    inputs = _rotated(case.inputs, case.moved_bytes, device)
    matrices = _rotated(sources, 2 * _FLOAT_BYTES * sources[0][0].numel(), device)
    turns: dict[str, Callable[[], float]] = {
        # Into fresh memory, as all results go: on a CPU that costs more than the copying.
        "copy": _turn(lambda source: source.clone(), matrices, device),
        "ours": _turn(case.ours, inputs, device),
        "eager": _turn(case.eager, inputs, device),
    }
    reason = None if compiled else "not asked for"
    if compiled:
        torch._dynamo.reset()
        try:
            turns["compiled"] = _turn(torch.compile(case.eager, dynamic=False), inputs, device)
        except Exception as error:
            # Whatever a compiler stumbles over is no reason not to time the rest.
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    samples: dict[str, list[float]] = {name: [] for name in turns}
    if device.type == "cuda":
        begun = time.perf_counter()
        while time.perf_counter() - begun < _WARM_SECONDS:
            turns["copy"]()
    for _ in range(repeats):
        for name, turn in turns.items():
            samples[name].append(turn())
    return samples, reason


def _rotated(inputs: Sequence[Inputs], moved_bytes: int, device: torch.device) -> Sequence[Inputs]:
    """`inputs`, on a GPU copied until a round of calls that move so many bytes each passes its L2 cache by far."""
    if device.type != "cuda":
        return inputs
    rounds = min(max(-(-_bytes_between(device) // moved_bytes), len(inputs)), _MOST_BUFFERS)
    copies = (inputs[i % len(inputs)] for i in range(len(inputs), rounds))
    return [*inputs, *(tuple(part.clone() for part in each) for each in copies)]


def _bytes_between(device: torch.device) -> int:
    return _CACHES * int(torch.cuda.get_device_properties(device).L2_cache_size)


def _stays_in_cache(moved_bytes: int, device: torch.device) -> bool:
    """Whether a GPU's cache may hold all buffers of an operation, so that it is no measure of its memory."""
    return device.type == "cuda" and _MOST_BUFFERS * moved_bytes < _bytes_between(device)


def _row(case: Case, shape: Shape, samples: dict[str, list[float]], reason: str | None) -> dict[str, Any]:
    return {
        "operation": case.operation,
        "rows": shape.rows,
        "width": shape.width,
        "block_length": case.block_length,
        "moved_bytes": case.moved_bytes,
        "bytes_per_second": case.moved_bytes / statistics.median(samples["ours"]),
        "seconds": {name: _quantiles(values) for name, values in samples.items()},
        "no_compiled_reason": reason,
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    if len(values) == 1:
        return dict.fromkeys(("p10", "median", "p90"), values[0])
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"p10": tenths[0], "median": statistics.median(values), "p90": tenths[-1]}


def _turn(operation: Operation, inputs: Sequence[Inputs], device: torch.device) -> Callable[[], float]:
    """A function that measures seconds a call of `operation`, warm already."""
    for number in range(max(_WARMUP_CALLS, len(inputs))):
        operation(*inputs[number % len(inputs)])
    return _graph_turn(operation, inputs) if device.type == "cuda" else _clock_turn(operation, inputs, device)


def _clock_turn(operation: Operation, inputs: Sequence[Inputs], device: torch.device) -> Callable[[], float]:
    clock = Clock(device)

    def turn() -> float:
        begun = clock.read()
        for each in inputs:
            operation(*each)
        return (clock.read() - begun) / len(inputs)

    return turn


def _graph_turn(operation: Operation, inputs: Sequence[Inputs]) -> Callable[[], float]:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Held until the last one, so that each result has memory of its own; the graph's pool keeps it.
        results = [operation(*each) for each in inputs]
        del results
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def turn() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000 / len(inputs)

    turn()
    return turn


def _check(case: Case, shape: Shape) -> None:
    """Raise `KernelError` unless ours is the oracle's on every set of inputs."""
    for inputs in case.inputs:
        ours, expected = _as_tuple(case.ours(*inputs)), _as_tuple(case.oracle(*inputs))
        if not all(map(torch.equal, ours, expected)):
            raise KernelError(
                f"{case.operation} of {shape} does not give the reference's result on this machine: please report it "
                "with the output of 'actbench doctor --format json'."
            )


def _as_tuple(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _values(shape: Shape, device: torch.device) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(_SEED)
    return [torch.randn(shape.rows, shape.width, generator=generator, device=device) for _ in range(_SETS[device.type])]


def _cases(shape: Shape, device: torch.device) -> Iterator[Case]:
    xs = _values(shape, device)
    numel = shape.rows * shape.width
    float_bytes = _FLOAT_BYTES * numel
    for name in ("exact", "blockwise"):
        packing = Packing.of(xs[0].shape, torch.float32, Scheme.parse(name))
        length, code = packing.code.block_length, packing.code
        packed = [quantize(x, packing, _SEED, _ROUNDING) for x in xs]
        moved = float_bytes + packing.layout.total_bytes
        yield Case(
            "quantize",
            length,
            moved,
            [(x,) for x in xs],
            lambda x, packing=packing: quantize(x, packing, _SEED, _ROUNDING),
            lambda x, code=code: reference.quantize(x, code, _SEED, _ROUNDING),
            lambda x, length=length: _quantize(x, length),
        )
        yield Case(
            "dequantize",
            length,
            moved,
            packed,
            lambda codes, minimum, scale, packing=packing: dequantize((codes, minimum, scale), packing),
            lambda codes, minimum, scale, code=code: reference.dequantize(
                codes, minimum, scale, numel, code, torch.float32
            ).view(shape.rows, shape.width),
            lambda codes, minimum, scale, length=length: _dequantize(codes, minimum, scale, numel, length),
        )
        yield from _projected_cases(shape, xs, name)
    bits = [pack_positive(x) for x in xs]
    yield Case(
        "ReLU bits", None, float_bytes + mask_bytes(numel), [(x,) for x in xs], pack_positive, reference.pack_positive,
        lambda x: _pack(x > 0),
    )  # fmt: skip
    yield Case(
        "dropout bits", None, numel + mask_bytes(numel), [(x > 0,) for x in xs], pack_mask, reference.pack_mask, _pack,
    )  # fmt: skip
    both = list(zip(xs, bits, strict=True))
    yield Case(
        "ReLU backward", None, 2 * float_bytes + mask_bytes(numel), both, keep_where, reference.keep_where,
        lambda x, bits: torch.where(_unpack_codes(bits, 1, numel).view(torch.bool).view(x.shape), x, 0.0),
    )  # fmt: skip
    yield Case(
        "dropout backward",
        None,
        2 * float_bytes + mask_bytes(numel),
        both,
        lambda x, bits: scale_where_bits(x, bits, _FACTOR),
        lambda x, bits: reference.scale_where(x, bits, _FACTOR),
        lambda x, bits: x * (_unpack(bits, 1, numel).view(x.shape) * _FACTOR),
    )
    yield from _rectified_cases(shape, xs)


def _projected_cases(shape: Shape, xs: list[Tensor], name: str) -> Iterator[Case]:
    projected = projected_width(shape.width, RATIO)
    projection = Projection(shape.width, projected, _SEED, _SIGNS)
    packing = Packing.of(torch.Size((shape.rows, projected)), torch.float32, Scheme.parse(name))
    length = packing.code.block_length
    packed = [quantize(x, packing, _SEED, _ROUNDING, projection) for x in xs]
    moved = _FLOAT_BYTES * shape.rows * shape.width + packing.layout.total_bytes
    matrix = projection.matrix(xs[0])
    yield Case(
        "project + quantize",
        length,
        moved,
        [(x,) for x in xs],
        lambda x: quantize(x, packing, _SEED, _ROUNDING, projection),
        lambda x: reference.project_quantize(x, projected, packing.code, _SEED, _SIGNS, _ROUNDING),
        lambda x: _quantize(x @ matrix, length),
    )
    yield Case(
        "dequantize + unproject",
        length,
        moved,
        packed,
        lambda codes, minimum, scale: dequantize((codes, minimum, scale), packing, projection),
        lambda codes, minimum, scale: reference.dequantize_unproject(
            codes,
            minimum,
            scale,
            shape.rows,
            shape.width,
            projected,
            packing.code,
            torch.float32,
            _SEED,
            _SIGNS,
        ),
        lambda codes, minimum, scale: (
            _dequantize(codes, minimum, scale, shape.rows * projected, length).view(-1, projected) @ matrix.t()
        ),
    )


def _rectified_cases(shape: Shape, xs: list[Tensor]) -> Iterator[Case]:
    # With uniform levels, as the other operations.
    rectifier = Rectifier.of(xs[0].shape, torch.float32, Scheme.parse("derived:levels=uniform"))
    code, numel = rectifier.code, xs[0].numel()
    length = code.block_length
    float_bytes, code_bytes = _FLOAT_BYTES * numel, rectifier.layout.total_bytes
    packed = [rectifier.quantize(x, _SEED, _ROUNDING) for x in xs]
    yield Case(
        "quantize rectified",
        length,
        float_bytes + code_bytes,
        [(x,) for x in xs],
        lambda x: rectifier.quantize(x, _SEED, _ROUNDING),
        lambda x: reference.quantize_rectified(x, code, _SEED, _ROUNDING),
        lambda x: _quantize_rectified(x, length),
    )
    yield Case(
        "dequantize rectified",
        length,
        float_bytes + code_bytes,
        packed,
        lambda codes, scale: rectifier.dequantize((codes, scale)),
        lambda codes, scale: reference.dequantize_rectified(codes, scale, numel, code, torch.float32).view(
            rectifier.shape
        ),
        lambda codes, scale: _dequantize_rectified(_unpack_codes(codes, BITS, numel), scale, length).view(
            rectifier.shape
        ),
    )
    # Sums of small whole numbers times values of few bits are exact, so that their order, which is free, does not show.
    inputs = [
        ((4 * x).round(), codes, scale, pack_mask(x.abs() < 1)) for x, (codes, scale) in zip(xs, packed, strict=True)
    ]
    read_bytes = float_bytes + code_bytes + mask_bytes(numel)
    yield Case(
        "batch norm sums",
        length,
        read_bytes + _SUMS * _DOUBLE_BYTES * shape.width,
        inputs,
        lambda x, codes, scale, mask: backend(x).norm_sums(x, codes, scale, code, mask, _FACTOR),
        lambda x, codes, scale, mask: reference.norm_sums(x, codes, scale, code, mask, _FACTOR),
        lambda x, codes, scale, mask: _norm_sums(*_pass(x, codes, scale, mask, length)),
    )
    coefficients = torch.randn(
        _SUMS, shape.width, generator=torch.Generator("cpu").manual_seed(_SEED), device="cpu"
    ).to(xs[0].device)
    yield Case(
        "batch norm backward",
        length,
        read_bytes + _SUMS * _FLOAT_BYTES * shape.width + float_bytes,
        inputs,
        lambda x, codes, scale, mask: backend(x).norm_gradient(x, codes, scale, code, coefficients, mask, _FACTOR),
        lambda x, codes, scale, mask: reference.norm_gradient(x, codes, scale, code, coefficients, mask, _FACTOR),
        lambda x, codes, scale, mask: _norm_gradient(*_pass(x, codes, scale, mask, length), coefficients),
    )


def _quantize(x: Tensor, block_length: int) -> Inputs:
    """The mathematics of INT2 with uniform levels in few torch operations.

    It rounds minimum and scale to the nearest bfloat16, which is less work than outwards, and not quite unbiased.
    """
    top = 2**BITS - 1
    values = F.pad(x.reshape(-1), (0, -x.numel() % block_length)).view(-1, block_length)
    low, high = values.amin(1, keepdim=True).to(torch.bfloat16), values.amax(1, keepdim=True)
    scale = ((high - low) / top).to(torch.bfloat16)
    t = ((values - low) / scale).clamp(0, top)
    return _pack_codes((t + torch.rand_like(t)).clamp(max=top).to(torch.uint8)), low, scale


def _quantize_rectified(x: Tensor, block_length: int) -> Inputs:
    """As `_quantize` for a ReLU's output, whose code 0 is the mask."""
    top = 2**BITS - 2
    values = F.pad(x.reshape(-1), (0, -x.numel() % block_length)).view(-1, block_length)
    scale = (values.amax(1, keepdim=True) / top).to(torch.bfloat16)
    t = (values / scale).clamp(0, top)
    codes = (t + torch.rand_like(t)).clamp(max=top).to(torch.uint8) + 1
    return _pack_codes(torch.where(values > 0, codes, 0)), scale


def _dequantize_rectified(codes: Tensor, scale: Tensor, block_length: int) -> Tensor:
    levels = F.pad((codes.to(torch.float32) - 1).clamp(min=0), (0, -codes.numel() % block_length))
    return (levels.view(-1, block_length) * scale.view(-1, 1)).view(-1)[: codes.numel()]


def _pass(x: Tensor, codes: Tensor, scale: Tensor, mask: Tensor, block_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient `x` through dropout and ReLU, the ReLU's output, and where that is positive."""
    unpacked = _unpack_codes(codes, BITS, x.numel())
    positive = unpacked.view(x.shape) != 0
    passed = torch.where(positive & _unpack_codes(mask, 1, x.numel()).view(torch.bool).view(x.shape), x * _FACTOR, 0)
    return passed, _dequantize_rectified(unpacked, scale, block_length).view(x.shape), positive


def _norm_sums(g: Tensor, y: Tensor, positive: Tensor) -> Tensor:
    return torch.stack([part.sum(0, dtype=torch.float64) for part in (g, g * y, y, positive)])


def _norm_gradient(g: Tensor, y: Tensor, positive: Tensor, coefficients: Tensor) -> Tensor:
    a, b, c, d = coefficients
    return torch.where(positive, a * g - b - c * y, d)


def _dequantize(codes: Tensor, minimum: Tensor, scale: Tensor, numel: int, block_length: int) -> Tensor:
    values = F.pad(_unpack(codes, BITS, numel), (0, -numel % block_length)).view(-1, block_length)
    return (values * scale.unsqueeze(1) + minimum.unsqueeze(1)).view(-1)[:numel]


def _pack_codes(codes: Tensor) -> Tensor:
    codes = F.pad(codes.reshape(-1), (0, -codes.numel() % 4)).view(-1, 4)
    return codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6


def _pack(mask: Tensor) -> Tensor:
    bits = F.pad(mask.reshape(-1).view(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    packed = bits[:, 0]
    for i in range(1, 8):
        packed = packed | bits[:, i] << i
    return packed


def _unpack(packed: Tensor, bits: int, numel: int) -> Tensor:
    return _unpack_codes(packed, bits, numel).to(torch.float32)


def _unpack_codes(packed: Tensor, bits: int, numel: int) -> Tensor:
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes: Tensor = packed.unsqueeze(1) >> shifts & 2**bits - 1
    return codes.view(-1)[:numel]
