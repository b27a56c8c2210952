import json
import os
import subprocess
import sys
import types
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from actbench.errors import DeviceError
from actbench.graphs import load
from actbench.models import Model
from actbench.quant.cuda import sources
from actbench.records import RecordFile, identity, machine
from actbench.runs import Job, device, digest_of, plan, require_device, resolve_device, run_grid
from actbench.runs import execute as execute_module
from actbench.runs.execute import Together, execute
from actbench.runs.job import description
from actbench.runs.measure import measure
from actbench.scheme import Scheme
from actbench.training import Sampler, Trainer, recipe_for
from tests.by_hand.operations import operations, predict_saved_bytes
from tests.runs.example import ENVIRONMENT, example_job, example_record

FIELDS = [
    "schema_version", "status", "dataset", "model", "scheme", "seed", "recipe", "metrics", "saved_bytes",
    "predicted_saved_bytes", "loss_saved_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "nvml_peak_bytes",
    "rss_peak_bytes", "epoch_seconds", "environment",
]  # fmt: skip


def ignore(state: dict[str, Any]) -> None:
    pass


def test_a_job_survives_its_text_form() -> None:
    job = example_job("blockwise:bits=4", seed=3)
    assert Job.from_json(job.to_json()) == job


def test_a_plan_has_every_scheme_once_for_every_seed() -> None:
    schemes = [Scheme.parse(text) for text in ("fp32", "exact", "exact:bits=2")]
    jobs = plan(example_job(), schemes, 2)
    assert [(str(job.scheme), job.seed) for job in jobs] == [("fp32", 0), ("exact", 0), ("fp32", 1), ("exact", 1)]


def test_only_what_changes_the_measurement_changes_its_identity() -> None:
    base = example_job()
    same = identity(description(base, ENVIRONMENT))
    assert same == identity(description(replace(base, data_dir="elsewhere"), ENVIRONMENT))
    assert same == identity(example_record())
    others = [
        replace(base, seed=1),
        replace(base, scheme=Scheme.parse("exact")),
        replace(base, dataset="cora"),
        replace(base, digest="abc"),
        replace(base, recipe=base.recipe.overridden(epochs=4)),
        replace(base, recipe=base.recipe.overridden(dropout=0.1)),
    ]
    assert same not in [identity(description(job, ENVIRONMENT)) for job in others]
    assert same != identity(description(base, ENVIRONMENT | {"device_name": "another"}))


def test_a_record_has_every_field_and_null_has_a_reason() -> None:
    states: list[dict[str, Any]] = []
    record = measure(example_job("blockwise"), states.append)
    assert record["status"] == "ok", record["error"]
    assert all(field in record for field in FIELDS)
    for field in FIELDS:
        assert record[field] is not None or record["reasons"][field]
    assert record["saved_bytes"] == record["predicted_saved_bytes"]
    assert record["loss_saved_bytes"] > 0
    assert len(record["epoch_seconds"]) == len(states) == 3
    assert sum(entry["saved_bytes"] for entry in record["ledger"]) == record["saved_bytes"]
    best = max(record["curve"]["valid"])
    assert record["metrics"]["valid"] == best == states[record["metrics"]["best_epoch"] - 1]["valid"]
    assert record["graph"]["synthetic"]


def test_all_schemes_of_a_seed_start_from_the_same_weights_and_masks() -> None:
    """The first epoch's loss is computed before any estimate of a gradient is used."""
    losses = {text: measure(example_job(text, epochs=1), ignore)["curve"]["loss"] for text in ("fp32", "exact")}
    assert losses["fp32"] == losses["exact"]


def test_checkpoint_trains_and_scores_as_fp32_does_to_the_bit() -> None:
    fp32, checkpoint = (measure(example_job(text), ignore) for text in ("fp32", "checkpoint"))
    assert checkpoint["status"] == "ok", checkpoint["error"]
    for field in ("curve", "metrics", "loss_saved_bytes"):
        assert checkpoint[field] == fp32[field]
    # 339 nodes, two inputs of width 16; a generator's state for each of three layers.
    assert checkpoint["saved_bytes"] == checkpoint["predicted_saved_bytes"] == 2 * 339 * 16 * 4 + 3 * 5056
    assert {entry["operation"] for entry in checkpoint["ledger"]} == {"layer"}


def test_bf16_trains_forward_and_loss_under_autocast_and_is_scored_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    loss, evaluate = Trainer.loss, Trainer.evaluate

    def watched_loss(self: Trainer, *arguments: Any) -> torch.Tensor:
        seen.append(("loss", torch.is_autocast_enabled("cpu")))
        return loss(self, *arguments)

    def watched_evaluate(self: Trainer) -> Any:
        seen.append(("evaluate", torch.is_autocast_enabled("cpu")))
        return evaluate(self)

    monkeypatch.setattr(Trainer, "loss", watched_loss)
    monkeypatch.setattr(Trainer, "evaluate", watched_evaluate)
    record = measure(example_job("bf16", epochs=2), ignore)
    assert record["status"] == "ok", record["error"]
    assert seen == [("loss", True), ("evaluate", False)] * 2
    assert record["saved_bytes"] == record["predicted_saved_bytes"]
    assert "bfloat16" in {entry["dtype"] for entry in record["ledger"]}


def test_a_job_that_its_scheme_does_not_fit_is_a_record_of_why() -> None:
    record = measure(example_job("exact/linear7:bits=4"), ignore)
    assert record["error"]["message"].startswith("scheme 'exact/linear7:bits=4' overrides linear7, but the model calls")
    assert record["epoch_seconds"] == []
    record = measure(example_job("offload"), ignore)
    assert record["error"]["type"] == "UsageError"
    assert "in host memory already" in record["error"]["message"]


def test_offload_wants_a_gpu() -> None:
    schemes = [Scheme.parse("fp32"), Scheme.parse("offload")]
    with pytest.raises(DeviceError, match="needs a GPU"):
        require_device(schemes, "cpu")
    require_device(schemes, "cuda")
    require_device(schemes[:1], "cpu")


SYSTEMS: list[tuple[Model, Sampler]] = [
    (model, sampler)
    for model in ("sage", "gcn", "gcnii", "gat")
    for sampler in ("full", "saint", "cluster")
]  # fmt: skip


def system_job(model: Model, sampler: Sampler, scheme: str) -> Job:
    sizes = {"roots": 40} if sampler == "saint" else {"parts": 8, "parts_per_batch": 3} if sampler == "cluster" else {}
    recipe = recipe_for("arxiv", model, sampler).overridden(epochs=2, hidden=16, layers=2, **sizes)
    return replace(example_job(scheme), recipe=recipe)


@pytest.mark.parametrize(("model", "sampler"), SYSTEMS)
def test_every_system_keeps_what_is_predicted_and_starts_alike_under_every_scheme(
    model: Model, sampler: Sampler
) -> None:
    jobs = [system_job(model, sampler, scheme) for scheme in ("fp32", "exact", "blockwise-vm:dropout=seed")]
    assert all(Job.from_json(json.loads(json.dumps(job.to_json()))) == job for job in jobs)
    records = [measure(job, ignore) for job in jobs]
    assert [record["status"] for record in records] == ["ok"] * 3, records[0]["error"]
    assert all(record["saved_bytes"] == record["predicted_saved_bytes"] for record in records)
    assert all(sum(e["saved_bytes"] for e in r["ledger"]) == r["saved_bytes"] for r in records)
    assert records[1]["saved_bytes"] < records[0]["saved_bytes"] / 3
    alternatives = [measure(system_job(model, sampler, scheme), ignore) for scheme in ("bf16", "checkpoint", "int4")]
    for record in alternatives:
        assert record["status"] == "ok", record["error"]
        assert record["saved_bytes"] == record["predicted_saved_bytes"], record["scheme"]
    assert alternatives[1]["curve"] == records[0]["curve"]
    assert alternatives[1]["metrics"] == records[0]["metrics"]
    if sampler == "full":
        assert records[0]["curve"]["loss"][0] == records[1]["curve"]["loss"][0] == records[2]["curve"]["loss"][0]
        assert "largest_step" not in records[0]
    else:
        # Noise comes from a generator of its own, so that all draw the same samples.
        assert records[0]["largest_step"] == records[1]["largest_step"] == records[2]["largest_step"]
        assert records[0]["largest_step"]["nodes"] < 339
        assert records[0]["steps_per_epoch"] == (5 if sampler == "saint" else 3)


def test_the_record_of_samples_is_of_the_largest_step() -> None:
    """Eleven parts by three: the last step of an epoch has two, whichever they are."""
    job = system_job("gat", "cluster", "exact")
    job = replace(job, recipe=job.recipe.overridden(parts=11))
    record = measure(job, ignore)
    torch.manual_seed(job.seed)
    trainer = Trainer(load(job.dataset, Path(job.data_dir)), job.recipe, torch.device("cpu"))
    steps = [(batch.x.shape[0], batch.adjacency.values().numel()) for batch in trainer.batches()]
    sizes = [
        predict_saved_bytes(operations(job.recipe.architecture, nodes, 128, 40, entries), job.scheme, "cpu")
        for nodes, entries in steps
    ]
    assert record["steps_per_epoch"] == len(sizes) == 4
    assert min(sizes) < max(sizes) == record["saved_bytes"]
    nodes, entries = steps[sizes.index(max(sizes))]
    assert record["largest_step"] == {"nodes": nodes, "entries": entries}


def test_records_of_the_first_systems_have_no_new_fields() -> None:
    """Or their recipes would differ from those of older records, and no baseline would match."""
    recipe = example_job().recipe.as_record()
    assert list(recipe) == [
        "model", "layers", "hidden", "dropout", "batch_norm", "learning_rate", "weight_decay", "epochs", "clip",
        "source",
    ]  # fmt: skip


def test_equal_jobs_have_equal_results() -> None:
    first, second = (measure(example_job("exact", seed=4), ignore) for _ in range(2))
    assert first["curve"] == second["curve"]
    assert first["metrics"] == second["metrics"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (MemoryError(), "oom"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "oom",
        ),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), "oom"),
        (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), "oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "oom"),
        (RuntimeError("CUDA error: insufficient resources when calling `cusparseSpMM(handle, opA, opB)`"), "oom"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "oom"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "error"),
        (FloatingPointError("the training loss is nan"), "error"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "error"),
    ],
)
def test_what_goes_wrong_in_training_is_a_record_of_how_far_it_came(
    error: Exception, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def fail_in_the_second_epoch(self: Trainer, *around: Any) -> float:
        if hasattr(self, "stepped"):
            raise error
        self.stepped = True  # type: ignore[attr-defined]
        return step(self, *around)

    monkeypatch.setattr(Trainer, "step", fail_in_the_second_epoch)
    record = measure(example_job(), ignore)
    assert record["status"] == status
    assert record["error"]["epoch"] == 2
    assert record["error"]["type"] == type(error).__name__
    assert record["saved_bytes"] == record["predicted_saved_bytes"]
    assert len(record["epoch_seconds"]) == 1


def test_a_loss_that_is_not_finite_names_the_tensor_that_a_gpu_has_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Trainer, compression: Any, *_: Any) -> float:
        # The first epoch's compression comes wrapped in ledgers, so an epoch without them it is.
        compression.rules.watch.flag("the input of linear 1", torch.device("cpu")).fill_(1)
        raise FloatingPointError("the training loss is nan")

    monkeypatch.setattr("actbench.runs.measure._first_epoch", lambda trainer, compression, record: 0.0)
    monkeypatch.setattr(Trainer, "step", fail)
    record = measure(example_job("exact"), ignore)
    assert record["error"]["type"] == "NonFiniteError"
    assert record["error"]["message"].startswith("the input of linear 1 cannot be kept for backward")


def test_a_job_runs_in_a_process_of_its_own() -> None:
    states: list[dict[str, Any]] = []
    record = execute(example_job("exact", epochs=2), ENVIRONMENT, states.append)
    assert record["status"] == "ok", record["error"]
    assert [state["epoch"] for state in states] == [1, 2]
    assert record["curve"] == measure(example_job("exact", epochs=2), ignore)["curve"]


def test_jobs_together_are_measured_one_after_the_other_in_one_process() -> None:
    jobs = [replace(example_job(scheme, epochs=2), together=True) for scheme in ("exact", "fp32", "derived")]
    with closing(Together()) as company:
        records = [company.execute(job, ENVIRONMENT, ignore) for job in jobs]
        assert company._child is not None
        worker = company._child._process
    assert worker.poll() is not None
    for record, job in zip(records, jobs, strict=True):
        alone = execute(replace(job, together=False), ENVIRONMENT, ignore)
        assert record["status"] == "ok", record["error"]
        assert record["curve"] == alone["curve"]
        assert (record["saved_bytes"], record["ledger"]) == (alone["saved_bytes"], alone["ledger"])
        # What a process has held is of all its jobs.
        assert record["rss_peak_bytes"] is None
        assert "--together" in record["reasons"]["rss_peak_bytes"]
        assert record["allocated_before_bytes"] is None
        assert "allocated_before_bytes" not in alone
        # One does not stand for the other, nor share a row with it.
        assert identity(record) != identity(alone)
        assert machine(record["environment"]) != machine(alone["environment"])
        assert alone["rss_peak_bytes"] > 0


def test_after_a_job_that_did_not_end_well_another_process_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = (
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    seed = json.loads(line)['seed']\n"
        "    if seed == 1:\n"
        "        os.kill(os.getpid(), 9)\n"
        "    status = 'error' if seed == 2 else 'ok'\n"
        "    print(json.dumps({'record': {'status': status, 'process': os.getpid()}}), flush=True)\n"
    )
    stand_in(monkeypatch, worker)
    with closing(Together()) as company:
        jobs = [replace(example_job(seed=seed), together=True) for seed in (0, 3, 1, 4, 2, 5)]
        records = [company.execute(job, ENVIRONMENT, ignore) for job in jobs]
    assert [record["status"] for record in records] == ["ok", "ok", "killed", "ok", "error", "ok"]
    processes = [record.get("process") for record in records]
    assert processes[0] == processes[1]
    assert processes[3] == processes[4]
    assert len({processes[0], processes[3], processes[5]}) == 3


def test_a_job_is_blamed_for_nothing_that_happened_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = (
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    seed = json.loads(line)['seed']\n"
        "    if seed == 2:\n"
        "        os.kill(os.getpid(), 15)\n"
        "    print('CUDA out of memory, tried again with less', file=sys.stderr, flush=True)\n"
        "    print(json.dumps({'record': {'status': 'ok', 'process': os.getpid()}}), flush=True)\n"
    )
    stand_in(monkeypatch, worker)
    jobs = [replace(example_job(seed=seed), together=True) for seed in range(3)]
    with closing(Together()) as company:
        first = company.execute(jobs[0], ENVIRONMENT, ignore)
        os.kill(first["process"], 9)
        assert company._child is not None
        company._child._process.wait()
        assert company.execute(jobs[1], ENVIRONMENT, ignore)["status"] == "ok"
        assert company.execute(jobs[2], ENVIRONMENT, ignore)["status"] == "killed"


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(execute_module, "_WORKER", [sys.executable, "-c", program])


def test_a_killed_child_is_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    state = '{"epoch": {"epoch": 2, "saved_bytes": 77}}'
    stand_in(
        monkeypatch,
        f"import os; print('{state}', flush=True); print('{{\"rec', end='', flush=True); os.kill(os.getpid(), 9)",
    )
    record = execute(example_job(), ENVIRONMENT, ignore)
    assert (record["status"], record["error"]["epoch"], record["saved_bytes"]) == ("killed", 3, 77)
    assert "SIGKILL" in record["error"]["message"]
    assert record["environment"] == ENVIRONMENT


def test_a_child_that_dies_before_it_reads_is_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "import sys; sys.stdin.close(); sys.exit('no such library')")
    record = execute(example_job(), ENVIRONMENT, ignore)
    assert record["status"] == "error"
    assert "exit status 1" in record["error"]["message"]
    assert "no such library" in record["error"]["traceback"]


def test_an_interrupt_kills_the_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    stand_in(
        monkeypatch,
        f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); "
        'print(\'{"epoch": {"epoch": 1}}\', flush=True); time.sleep(600)',
    )

    def interrupt(state: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(example_job(), ENVIRONMENT, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


class Heard:
    """A listener that writes down what it hears."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def skipped(self, job: Job, record: dict[str, Any]) -> None:
        self.events.append(f"skipped {job.scheme}")

    def waiting(self, job: Job) -> None:
        self.events.append(f"waiting {job.scheme}")

    def started(self, job: Job) -> None:
        self.events.append(f"started {job.scheme}")

    def advanced(self, job: Job, state: dict[str, Any]) -> None:
        self.events.append(f"advanced {job.scheme}")

    def ended(self, job: Job, record: dict[str, Any]) -> None:
        self.events.append(f"ended {job.scheme}")


def run_all(
    monkeypatch: pytest.MonkeyPatch, file: RecordFile, outcomes: dict[str, str], fresh: bool = False
) -> list[str]:
    """Run a grid whose jobs end at once as `outcomes` says; returns what a listener heard."""

    def pretend(job: Job, environment: dict[str, Any], report: Any) -> dict[str, Any]:
        report({"epoch": 1})
        return example_record(str(job.scheme), job.seed, status=outcomes[str(job.scheme)])

    monkeypatch.setattr("actbench.runs.grid.execute", pretend)
    heard = Heard()
    jobs = [example_job(scheme) for scheme in outcomes]
    records = list(run_grid(jobs, file, ENVIRONMENT, fresh, heard))
    assert len(records) == len(jobs)
    return heard.events


def test_a_grid_goes_on_after_failures_and_measures_only_what_is_not_final(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = RecordFile(tmp_path / "runs.jsonl")
    outcomes = {"fp32": "oom", "exact": "killed", "blockwise": "error", "blockwise-vm": "ok"}
    first = run_all(monkeypatch, file, outcomes)
    assert [event for event in first if "ended" in event] == [f"ended {name}" for name in outcomes]
    again = run_all(monkeypatch, file, dict.fromkeys(outcomes, "ok"))
    assert [event for event in again if "skipped" in event or "ended" in event] == [
        "skipped fp32", "ended exact", "ended blockwise", "skipped blockwise-vm",
    ]  # fmt: skip
    assert len(file.read()) == 6
    assert all("ended" not in e for e in run_all(monkeypatch, file, dict.fromkeys(outcomes, "ok")))
    run_all(monkeypatch, file, dict.fromkeys(outcomes, "ok"), fresh=True)
    assert len(file.read()) == 10


@pytest.mark.parametrize(
    "damage",
    [
        {"metrics": None},
        {"metrics": {"test": "1", "name": "accuracy"}},
        {"epoch_seconds": 3},
        {"ledger": [{"operation": "[/x]"}]},
        {"environment": {}},
        {"scheme": {}},
        {"recipe": {"layers": {}}},
    ],
)
def test_a_record_that_no_report_could_read_is_no_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: dict[str, Any]
) -> None:
    file = RecordFile(tmp_path / "runs.jsonl")
    run_all(monkeypatch, file, {"exact": "ok"})
    (record,) = file.read()
    file.path.unlink()
    file.append(record | damage)
    assert run_all(monkeypatch, file, {"exact": "ok"})[-1] == "ended exact"


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"
    with pytest.raises(DeviceError, match="sees no GPU"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for module in (device, sources):
        monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert resolve_device("auto") == "cpu"
    for built, extra in (("12.8", "cuda12"), ("13.0", "cuda13")):
        monkeypatch.setattr(torch.version, "cuda", built)
        with pytest.raises(DeviceError, match=rf"pip install 'actbench\[{extra}\]'"):
            resolve_device("cuda")
    for module in (device, sources):
        monkeypatch.setattr(module, "find_spec", lambda name: types.SimpleNamespace())
    assert resolve_device("auto") == resolve_device("cuda") == "cuda"
    # Nobody who has a GPU and asks for whatever is there is given a CPU in silence.
    monkeypatch.setattr(sources, "version", lambda name: "13.6.0")
    for asked in ("auto", "cuda"):
        with pytest.raises(DeviceError, match=r"not made for CuPy 13\.6\.0: pip install 'cupy-cuda13x<15,>=14\.1'; or"):
            resolve_device(asked)


def test_a_file_of_ones_own_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    path.write_bytes(b"one")
    before = digest_of(str(path))
    path.write_bytes(b"two")
    assert digest_of(str(path)) != before
    assert digest_of("cora") is None


def test_nothing_but_events_reaches_the_parent() -> None:
    program = (
        "import actbench.runs.worker as worker, actbench.runs.measure as m; train = m._train\n"
        "def noisy(*a): print('a library prints', flush=True); return train(*a)\n"
        "m._train = noisy; worker.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(os.getpid())],
        input=json.dumps(example_job(epochs=1).to_json()),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [next(iter(json.loads(line))) for line in done.stdout.splitlines()] == ["epoch", "record"]
    assert "a library prints" in done.stderr
