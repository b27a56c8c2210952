"""Measure one job in this process: training, with the meters around it, becomes a record."""

from __future__ import annotations

import gc
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from actbench.compress import Compression, Ledger, compress
from actbench.graphs import Graph, load
from actbench.meters import Clock, MemoryMeter, Reading, describe_environment
from actbench.quant import ordered_products
from actbench.records import SCHEMA_VERSION, Record
from actbench.runs.job import Job, description
from actbench.scheme import Scheme
from actbench.trace import Subject, predict_saved_bytes, require_calls
from actbench.training import Recipe, Trainer

WARMUP_EPOCHS = 2
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "std::bad_alloc",
    "Cannot allocate memory",
    "can't start new thread",
    "MemoryError",
    "Thread creation failed",
    "Memory allocation still failed",
    "failed to map segment",
    "CUDA out of memory",
    # Pinned memory, and whatever else the runtime is asked for.
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "cudaErrorMemoryAllocation",
    # A kernel's module, as CuPy loads it.
    "CUDA_ERROR_OUT_OF_MEMORY",
    "NVRTC_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    # cuSPARSE's words for CUSPARSE_STATUS_INSUFFICIENT_RESOURCES and CUSPARSE_STATUS_ALLOC_FAILED.
    "insufficient resources when calling `cusparse",
    "resource allocation failed when calling `cusparse",
    "CUSPARSE_STATUS_INSUFFICIENT_RESOURCES",
    "CUSPARSE_STATUS_ALLOC_FAILED",
)
_OF_A_PROCESS = ("nvml_peak_bytes", "rss_peak_bytes")
_UNKNOWN = (
    "graph",
    "metrics",
    "saved_bytes",
    "predicted_saved_bytes",
    "loss_saved_bytes",
    "peak_allocated_bytes",
    "peak_reserved_bytes",
    "nvml_peak_bytes",
    "rss_peak_bytes",
    "other_gpu_processes",
)


def blank_record(job: Job, environment: dict[str, Any]) -> Record:
    """A record of `job` in which nothing has been measured yet."""
    return {
        "schema_version": SCHEMA_VERSION,
        "status": "error",
        **description(job, environment),
        **dict.fromkeys(_UNKNOWN),
        "reasons": {},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": None,
        "warmup_epochs": min(WARMUP_EPOCHS, job.recipe.epochs - 1),
        "epoch_seconds": [],
        "curve": {"loss": [], "valid": []},
        "ledger": [],
        "error": None,
    }


def measure(job: Job, report: Callable[[dict[str, Any]], None]) -> Record:
    """Train as `job` says and return its record; `report` is called with the state after every epoch.

    Never raises for what goes wrong in training: the record's status is then "oom" or "error", its `error` says
    what happened, and it holds all that was measured until then. Of a job together with others it has no peak of the
    process, and says what torch's allocator held before it began.
    """
    device = torch.device(job.device)
    record = blank_record(job, describe_environment(device))
    begun = time.monotonic()
    try:
        if job.together:
            record["allocated_before_bytes"] = _let_go(device)
        with _determinism(job.deterministic, device):
            _train(job, device, record, report, _load_once if job.together else load)
        record["status"] = "ok"
    except Exception as error:
        record["status"] = "oom" if is_out_of_memory(error) else "error"
        record["error"] = {
            "type": type(error).__name__,
            "message": _message(error),
            # A curve's value is there when the epoch is over, scores included.
            "epoch": len(record["curve"]["loss"]) + 1,
            "traceback": traceback.format_exc(),
        }
    record["wall_seconds"] = time.monotonic() - begun
    return record


@contextmanager
def _determinism(asked: bool, device: torch.device) -> Iterator[None]:
    """While open, if `asked`, torch runs deterministic operations alone, and an error is what has none."""
    if not asked:
        yield
        return
    # `use_deterministic_algorithms` imports the compiler as well, 72 MiB of it in the host's peak.
    torch.set_deterministic_debug_mode("error")
    # Nothing here reads memory that nobody has written, and writing it would take time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with ordered_products() if device.type == "cuda" else nullcontext():
            yield
    finally:
        torch.set_deterministic_debug_mode("default")
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def _let_go(device: torch.device) -> int | None:
    """Free what jobs before this one have left; the bytes that a GPU's tensors take all the same."""
    gc.collect()
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)


_load_once = lru_cache(maxsize=1)(load)


def _message(error: Exception) -> str:
    operation, found, _ = str(error).partition(" does not have a deterministic implementation")
    return f"torch has no deterministic {operation}: run without --deterministic." if found else str(error)


def _train(
    job: Job,
    device: torch.device,
    record: Record,
    report: Callable[[dict[str, Any]], None],
    load: Callable[[str, Path, int], Graph],
) -> None:
    graph = load(job.dataset, Path(job.data_dir), job.seed)
    record["graph"] = graph.as_record()
    subject, sizes = Subject(job.recipe, graph.task), _sizes_of(graph, job.recipe)
    require_calls(subject, job.scheme)
    if not subject.samples:
        # Before anything is allocated: a run out of memory has it too.
        loops = int((graph.edge_index[0] == graph.edge_index[1]).sum())
        record["predicted_saved_bytes"] = predict_saved_bytes(subject, job.scheme, device.type, sizes, own_loops=loops)
    torch.manual_seed(job.seed)
    trainer = Trainer(graph, job.recipe, device)
    # The loader's copy is not needed any more, and must not sit in the host's peak.
    metric = graph.metric
    del graph
    clock = Clock(device)
    compression = compress(job.scheme, job.seed, trainer.resident)
    best_valid = -1.0
    with MemoryMeter(device) as memory:
        try:
            for epoch in range(1, job.recipe.epochs + 1):
                if epoch == record["warmup_epochs"] + 1:
                    memory.reset()
                begun = clock.read()
                if epoch == 1:
                    loss = _first_epoch(trainer, compression, record)
                    if subject.samples:
                        record["predicted_saved_bytes"] = _predict_step(subject, job.scheme, device, sizes, record)
                else:
                    loss = trainer.epoch(compression, compression.around_loss)
                record["epoch_seconds"].append(clock.read() - begun)
                scores = trainer.evaluate()
                if not all(map(math.isfinite, (scores.train, scores.valid, scores.test))):
                    raise FloatingPointError(f"a {metric} is not a number: a part of the split has one class only.")
                record["curve"]["loss"].append(loss)
                record["curve"]["valid"].append(scores.valid)
                if scores.valid > best_valid:
                    best_valid = scores.valid
                    record["metrics"] = asdict(scores) | {"name": metric, "best_epoch": epoch}
                report(
                    {
                        "epoch": epoch,
                        "loss": loss,
                        "valid": scores.valid,
                        "occupied_bytes": memory.occupied_bytes(),
                        "saved_bytes": record["saved_bytes"],
                    }
                )
        except FloatingPointError:
            # On a GPU, whose forward nobody waited for, it may be known by now which tensor it began with.
            compression.check()
            raise
        finally:
            _write_peaks(memory, record)


def _first_epoch(trainer: Trainer, compression: Compression, record: Record) -> float:
    """The first epoch, under ledgers: what counting costs is warm-up.

    Full batch, what is kept does not change later. Of an epoch of samples the record is of the step that kept most.
    """
    losses, most, sampled = [], -1, trainer.recipe.sampler != "full"
    for batch in trainer.batches():
        forward = Ledger(exclude=[*trainer.resident, *batch.tensors])
        beyond = Ledger(exclude=[*trainer.resident, *batch.tensors], beyond=forward)
        losses.append(trainer.step(_counted(compression, forward), _counted(compression.around_loss, beyond), batch))
        host_bytes = compression.offload.forward_bytes if compression.offload else 0
        if forward.total_bytes + host_bytes > most:
            most = forward.total_bytes + host_bytes
            record["saved_bytes"] = forward.total_bytes
            if compression.offload:
                record["host_saved_bytes"] = host_bytes
            record["loss_saved_bytes"] = beyond.total_bytes
            record["ledger"] = [asdict(entry) for entry in forward.entries]
            if sampled:
                entries = batch.adjacency.values().numel()
                record["largest_step"] = {"nodes": batch.x.shape[0], "entries": entries}
        del batch
    if sampled:
        record["steps_per_epoch"] = len(losses)
    return sum(losses) / len(losses)


def _sizes_of(graph: Graph, recipe: Recipe) -> dict[str, int]:
    """The quantities that a trace of `recipe` on the whole graph is a function of."""
    parts = {"train": graph.train.numel(), "valid": graph.valid.numel(), "test": graph.test.numel()}
    sizes = {"nodes": graph.nodes, "edges": graph.edges, "features": graph.features, "classes": graph.classes}
    return sizes | parts | {"hidden": recipe.architecture.hidden}


def _predict_step(subject: Subject, scheme: Scheme, device: torch.device, sizes: dict[str, int], record: Record) -> int:
    """Saved bytes of the step that kept most, by the sizes of its batch."""
    nodes, entries = record["largest_step"]["nodes"], record["largest_step"]["entries"]
    batch = {"batch_nodes": nodes, "batch_edges": entries, "batch_train": nodes}
    return predict_saved_bytes(subject, scheme, device.type, sizes | batch, batch_entries=entries)


@contextmanager
def _counted(context: AbstractContextManager[object], ledger: Ledger) -> Iterator[None]:
    with context, ledger:
        yield


def _write_peaks(memory: MemoryMeter, record: Record) -> None:
    record["other_gpu_processes"] = memory.other_gpu_processes()
    for field, reading in (
        ("peak_allocated_bytes", memory.peak_allocated()),
        ("peak_reserved_bytes", memory.peak_reserved()),
        ("nvml_peak_bytes", memory.nvml_peak()),
        ("rss_peak_bytes", memory.rss_peak()),
    ):
        if record["environment"].get("together") and field in _OF_A_PROCESS:
            reading = Reading(None, "the process measured other jobs too (--together)")
        record[field] = reading.value_bytes
        if reading.value_bytes is None:
            record["reasons"][field] = reading.reason


def is_out_of_memory(error: Exception) -> bool:
    """Whether `error` says that device or host memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError | ImportError) and says_out_of_memory(str(error))


def says_out_of_memory(text: str) -> bool:
    """Whether what a library or a dying process has written says that memory ran out, the host's or a GPU's."""
    return any(sign in text for sign in _OUT_OF_MEMORY)
