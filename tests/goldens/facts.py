"""What must not change unless a commit says so: bytes, estimates, codes and reports, as values to compare.

`python -m tests.goldens` writes them anew; a commit that does so says which changed, and why.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, get_args

import torch
from torch import Tensor

from actbench.analysis import compare, read_located, resolve_reference
from actbench.analysis.estimate import Workload, estimate
from actbench.cli.report import _rendered
from actbench.graphs import Entry
from actbench.models import Model
from actbench.quant import reference
from actbench.quant.cpu import backend as cpu
from actbench.quant.layout import BlockCode
from actbench.quant.levels import level_table
from actbench.scheme import NAMED, Scheme
from actbench.trace import Subject
from actbench.training import recipe_for
from tests.by_hand.operations import operations, predict_saved_bytes
from tests.quant.cuda import parity

RESULTS: Final = Path(__file__).resolve().parents[2] / "results"
MODELS: Final = get_args(Model)
SCHEMES: Final = (
    *NAMED,
    "exact:projection=1",
    "blockwise:block=32r,bits=4",
    "blockwise:dropout=seed",
    "derived:bits=8",
    "int4/linear2:bits=8/batch_norm1:block=64r",
)
NODES, EDGES, FEATURES, CLASSES = 2003, 9001, 61, 7


def predicted_bytes() -> dict[str, int]:
    """What autograd keeps of one forward pass, by model, scheme and device."""
    return {
        f"{model} {scheme} {device}": predict_saved_bytes(trace, Scheme.parse(scheme), device)
        for model in MODELS
        for trace in [operations(recipe_for("arxiv", model).architecture, NODES, FEATURES, CLASSES, EDGES)]
        for scheme in _schemes(model)
        for device in ("cpu", "cuda")
        if (scheme, device) != ("offload", "cpu")
    }


def estimated_bytes() -> dict[str, Any]:
    """The estimate of the whole peak, by model, scheme and device."""
    graph = Entry("a graph", NODES, EDGES, FEATURES, CLASSES, task="single-label")
    found: dict[str, Any] = {}
    for model in MODELS:
        recipe = recipe_for("arxiv", model)
        for scheme in _schemes(model):
            for device in ("cpu", "cuda"):
                if (scheme, device) != ("offload", "cpu"):
                    workload = Workload(graph, Subject(recipe, "single-label"), device, False)
                    found[f"{model} {scheme} {device}"] = repr(estimate(workload, Scheme.parse(scheme)))
    return found


def codes() -> dict[str, str]:
    """Digests of what the oracle, and the CPU's loops, make of fixed inputs."""
    return dict(_codes())


def reports(formats: tuple[str, ...]) -> dict[str, str]:
    """Digests of the reports of every record file in `results`, by format and language, pictures left out."""
    found = {}
    # Reports name their files as they were given.
    with contextlib.chdir(RESULTS):
        for path in sorted(Path().glob("*.jsonl")):
            located = read_located([path])
            comparisons = compare(located, resolve_reference(None, located), True, [])
            for format in formats:
                for language in ("en", "ja"):
                    text = _rendered(comparisons, format, language)  # type: ignore[arg-type]
                    found[f"{path} {format} {language}"] = _digest(_without_pictures(text).encode())
    return found


TABLES: Final[dict[str, Callable[[], dict[str, Any]]]] = {
    "predicted": predicted_bytes,
    "estimated": estimated_bytes,
    "codes": codes,
    "reports": lambda: reports(("table", "markdown", "latex", "csv", "json")),
    "pages": lambda: reports(("html",)),
}


def _schemes(model: str) -> list[str]:
    # GCNII's and GAT's calls have other numbers.
    return [scheme for scheme in SCHEMES if "/" not in scheme or model in ("sage", "gcn")]


def _codes() -> Iterator[tuple[str, str]]:
    for name, backend in (("reference", reference), ("cpu", cpu)):
        for dtype in parity.DTYPES:
            x = parity.make_values("normal", 1003 * 12, dtype, 1).view(1003, 12)
            mask = reference.pack_positive(x - 0.5)
            for bits in parity.BITS:
                for length in (8, 63, 128, 1024, 1500):
                    code = BlockCode(length, bits, level_table("clipped-normal", bits, length))
                    packed = backend.quantize(x, code, 7, 3)
                    values = backend.dequantize(*packed, x.numel(), code, dtype)
                    projected = backend.project_quantize(x, 5, code, 7, 2, 3)
                    back = backend.dequantize_unproject(*projected, 1003, 12, 5, code, dtype, 7, 2)
                    yield f"{name} {dtype} {bits} {length}", _of(*packed, values, *projected, back)
            for number, (rectified, levels) in enumerate(parity.RECTIFIED):
                of_relu = BlockCode(128, rectified, levels)
                packed = backend.quantize_rectified(x, of_relu, 7, 3)
                values = backend.dequantize_rectified(*packed, x.numel(), of_relu, dtype, mask, 1.25)
                gradient = backend.pass_rectified(x, packed[0], of_relu, mask, 1.25)
                coefficients = parity.make_values("normal", 4 * 12, torch.float32, 2).view(4, 12)
                by_x = backend.norm_gradient(x, *packed, of_relu, coefficients, mask, 1.25)
                yield f"{name} {dtype} rectified {number}", _of(*packed, values, gradient, by_x)
            kept = backend.keep_where(x, mask), backend.scale_where(x, mask, 1 / 0.7), backend.pack_mask(x > 0)
            yield f"{name} {dtype} masks", _of(backend.pack_positive(x), *kept)


def _of(*tensors: Tensor) -> str:
    return _digest(b"".join(each.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for each in tensors))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _without_pictures(text: str) -> str:
    # A picture's paths are matplotlib's, of one version and another.
    return re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)
