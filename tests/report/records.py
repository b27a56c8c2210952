"""Records that the tests of reports share: three schemes, some seeds, on a CPU or a GPU."""

from __future__ import annotations

from typing import Any

from actbench.analysis.comparison import Comparison, Located, Source, compare
from tests.runs.example import ENVIRONMENT, example_record

MEBIBYTE = 2**20
CARD = ENVIRONMENT | {"device": "cuda", "device_name": "a card", "cuda": "13.0"}
HOSTILE = '<script>alert("x")</script>&\'|`$x^2$ {0} \\end{table} [a](b) ]]>'


def measured(seeds: int = 3, environment: dict[str, Any] = ENVIRONMENT, **values: Any) -> list[dict[str, Any]]:
    """Records of FP32, EXACT and block-wise for some seeds, with figures as a run gives them."""
    schemes = (
        ("fp32", 0.703, 48.3, 512.6, 0.0941),
        ("exact", 0.684, 1.57, 481.9, 0.2273),
        ("blockwise", 0.702, 1.29, 479.4, 0.2211),
    )
    found = []
    for name, score, saved, peak, seconds in schemes:
        for seed in range(seeds):
            test = score + 0.004 * seed - (0.0031 if name == "blockwise" and seed == 1 else 0)
            whole = int(peak * MEBIBYTE)
            peaks: dict[str, Any] = {"rss_peak_bytes": whole}
            if environment["device"] == "cuda":
                peaks |= {
                    "peak_allocated_bytes": whole,
                    "peak_reserved_bytes": whole + MEBIBYTE,
                    "nvml_peak_bytes": 2 * whole,
                }
            record = example_record(
                name,
                seed,
                environment=environment,
                metrics={"train": 1.0, "valid": test, "test": test, "name": "accuracy", "best_epoch": 3},
                saved_bytes=int(saved * MEBIBYTE),
                epoch_seconds=[9.0, 9.0, *(seconds * (1 + 0.01 * (index % 5)) for index in range(20))],
                curve={"loss": [1.0] * 22, "valid": [test * index / 22 for index in range(1, 23)]},
                ledger=_ledger(name, int(saved * MEBIBYTE)),
                **peaks,
            )
            found.append(record | values)
    return found


def _ledger(scheme: str, saved: int) -> list[dict[str, Any]]:
    packed = scheme != "fp32"
    parts = {"linear": saved // 2, "batch_norm": saved // 4, "relu": saved // 8}
    entries = [
        {"operation": name, "call": 1, "shape": [9], "dtype": "uint8" if packed else "float32", "saved_bytes": part}
        for name, part in parts.items()
    ]
    rest = saved - sum(parts.values())
    dtype = "bfloat16" if packed else "float32"
    return [*entries, {"operation": "linear", "call": 2, "shape": [9], "dtype": dtype, "saved_bytes": rest}]


def alternatives() -> list[dict[str, Any]]:
    """FP32 on a GPU and what a user would pick instead, offload with bytes in host memory; scores as FP32's."""
    records = measured(environment=CARD)[:3]
    for name, ratio, host in (("bf16", 0.5, None), ("checkpoint", 0.2, None), ("offload", 0, 300 * MEBIBYTE)):
        for record in records[:3]:
            scheme = {"name": name, "bits": None}
            saved = int(ratio * record["saved_bytes"])
            extra = {"host_saved_bytes": host} if host else {}
            records.append(record | {"scheme": scheme, "saved_bytes": saved, "ledger": []} | extra)
    return records


def compared(records: list[dict[str, Any]], reference: str = "fp32", across_machines: bool = False) -> list[Comparison]:
    """Their comparisons, each record on a line of its own in runs.jsonl."""
    located = [Located(record, Source("runs.jsonl", line)) for line, record in enumerate(records, start=1)]
    return compare(located, reference, across_machines)
