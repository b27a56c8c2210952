"""Numbers of a run: those that are none are named, and those that are one come again."""

import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from actbench.analysis import Settings, check_records, summarise
from actbench.cli.main import main
from actbench.errors import UsageError
from actbench.models import Network
from actbench.quant import reference
from actbench.quant.cuda import ordered
from actbench.records import MACHINE_FIELDS, identity, machine
from actbench.report.command import command_for
from actbench.runs import Job
from actbench.runs import execute as execute_module
from actbench.runs.execute import execute
from actbench.runs.job import description
from actbench.runs.measure import _determinism, measure
from actbench.scheme import NAMED
from tests.runs.example import ENVIRONMENT, example_job, example_record
from tests.runs.test_runs import SYSTEMS, ignore, system_job

SCHEMES = [name for name in NAMED if name != "offload"]


def diverging(scheme: str, **recipe: Any) -> Job:
    job = example_job(scheme, epochs=4)
    return replace(job, recipe=job.recipe.overridden(**({"learning_rate": 1e30} | recipe)))


PLACE = r"(?:convs\.\d+[\w.]*|norms\.\d+[\w.]*|the input of \w+ \d+ \((?:b?float\d+) \[\d+, \d+\]\))"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_training_that_diverges_is_an_error_that_names_layer_and_epoch(batch_norm: bool, scheme: str) -> None:
    record = measure(diverging(scheme, batch_norm=batch_norm), ignore)
    assert record["status"] == "error"
    assert record["error"]["type"] in ("FloatingPointError", "NonFiniteError")
    assert re.search(PLACE, record["error"]["message"]), record["error"]["message"]
    # The first step's weights are 1e30 in size, whose products are beyond float32 in the scores that end that epoch or,
    # where batch norm divides them away, in a later one's.
    finished = len(record["curve"]["loss"])
    assert record["error"]["epoch"] == finished + 1 <= 4
    assert all(map(torch.isfinite, map(torch.tensor, record["curve"]["loss"])))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("scheme", ["fp32", "bf16", "checkpoint", "blockwise-vm", "derived"])
def test_what_the_last_step_of_all_spoils_is_no_success(
    scheme: str, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody computes a loss with those weights, and the best class of logits that are none is class 0."""
    step, steps = torch.optim.Adam.step, []

    def spoil(self: Any, *arguments: Any) -> Any:
        out = step(self, *arguments)
        steps.append(1)
        if len(steps) == 3:
            with torch.no_grad():
                self.param_groups[0]["params"][0][2, 1] = value
        return out

    monkeypatch.setattr(torch.optim.Adam, "step", spoil)
    record = measure(example_job(scheme, epochs=3), ignore)
    assert record["status"] == "error"
    assert record["error"]["epoch"] == 3
    assert record["error"]["message"].startswith("not all logits are finite: the last step left convs.0.lin_l.weight ")
    assert len(record["curve"]["loss"]) == len(record["curve"]["valid"]) == 2
    assert record["metrics"]["best_epoch"] <= 2


@pytest.mark.parametrize("scheme", ["fp32", "bf16", "checkpoint"])
def test_an_activation_that_is_no_number_is_named_where_nothing_is_packed(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = Network.forward, []

    def spoil(self: Network, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        if not self.norms[1]._forward_hooks:
            calls.append(1)
            # That of the prediction, and a forward pass and an evaluation in each epoch.
            if len(calls) == 4:
                self.norms[1].register_forward_hook(lambda *called: called[2] / 0)
        return forward(self, x, adjacency)

    monkeypatch.setattr(Network, "forward", spoil)
    record = measure(example_job(scheme), ignore)
    assert record["error"]["epoch"] == 2
    assert re.fullmatch(
        r"the training loss is nan: the first output that is not is that of norms\.1; lower .*",
        record["error"]["message"],
    )


def test_diverging_runs_are_not_exit_code_0(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The good one beside the bad one is there all the same."""
    monkeypatch.setattr("actbench.runs.grid.execute", lambda job, environment, report: measure(job, report))
    command = [
        "actbench",
        "run",
        "--dataset",
        "synthetic:arxiv@0.002",
        "--epochs",
        "3",
        "--hidden",
        "16",
        "--device",
        "cpu",
    ]
    output = ["--output", str(tmp_path / "runs.jsonl")]
    codes = []
    for more in (["--scheme", "fp32", "--scheme", "exact", "--learning-rate", "1e30"], ["--scheme", "fp32"]):
        monkeypatch.setattr(sys, "argv", [*command, *output, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        codes.append(ended.value.code)
    assert codes == [1, 0]
    said = capfd.readouterr().err
    assert len(re.findall(r"error in epoch \d: (?:FloatingPoint|NonFinite)Error .*" + PLACE, said)) == 2


# Determinism.

TIMES = ("started", "wall_seconds", "epoch_seconds")
OF_THE_SYSTEM = ("rss_peak_bytes",)
"""What the operating system says of the process differs by pages."""


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {field: value for field, value in record.items() if field not in (*TIMES, *OF_THE_SYSTEM)}


def deterministic(job: Job) -> Job:
    return replace(job, deterministic=True)


@pytest.mark.parametrize(
    "scheme", [pytest.param(each, marks=[] if each == "derived" else pytest.mark.slow) for each in SCHEMES]
)
@pytest.mark.parametrize(("model", "sampler"), SYSTEMS)
def test_deterministic_records_come_twice(model: Any, sampler: Any, scheme: str) -> None:
    job = deterministic(system_job(model, sampler, scheme))
    first, second = (without_times(measure(job, ignore)) for _ in range(2))
    assert first == second
    assert first["status"] == "ok", first["error"]
    assert first["environment"]["deterministic"] is True
    # On a CPU the deterministic operations are those that run anyway.
    usual = measure(replace(job, deterministic=False), ignore)
    assert "deterministic" not in usual["environment"]
    assert usual["curve"] == first["curve"]
    assert not torch.are_deterministic_algorithms_enabled()


class SparseProducts(TorchDispatchMode):
    """Which operations make a dense tensor of a sparse CSR or CSC one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        layouts = [each.layout for each in args if isinstance(each, torch.Tensor)]
        if any(layout in (torch.sparse_csr, torch.sparse_csc) for layout in layouts) and len(layouts) > 1:
            self.names.add(str(func.overloadpacket.__name__))
        return out


@pytest.mark.parametrize("scheme", ["fp32", "exact", "derived", "checkpoint"])
@pytest.mark.parametrize("model", ["sage", "gcn", "gcnii", "gat"])
def test_every_sparse_product_of_a_network_is_one_that_has_an_order(
    model: Any, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is dispatched on a CPU, with the oracle's product in the place of the kernel's."""
    calls = []

    def product(*parts: torch.Tensor) -> torch.Tensor:
        calls.append(parts)
        return reference.sparse_product(*parts)

    monkeypatch.setattr(ordered, "sparse_product", product)
    job = deterministic(system_job(model, "full", scheme))
    with ordered.ordered_products("SparseCsrCPU"), SparseProducts() as products:
        record = measure(job, ignore)
    assert record["status"] == "ok", record["error"]
    # A sampled product is a sum of its own for every entry, which cuSPARSE promises to give again bit for bit.
    assert products.names <= {"addmm", "mm", "_sparse_addmm", "sparse_sampled_addmm"}
    layers, heads = job.recipe.architecture.layers, job.recipe.architecture.heads or 1
    # Forward and evaluation of every epoch; backward of all layers but the first, whose input may be data.
    assert len(calls) >= job.recipe.epochs * heads * (3 * layers - 1)


def test_on_a_gpu_deterministic_runs_have_products_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    @contextmanager
    def ordered_products() -> Iterator[None]:
        entered.append(torch.are_deterministic_algorithms_enabled())
        yield

    monkeypatch.setattr("actbench.runs.measure.ordered_products", ordered_products)
    for asked, device in ((True, "cpu"), (False, "cuda"), (True, "cuda")):
        with _determinism(asked, torch.device(device)):
            assert torch.are_deterministic_algorithms_enabled() == asked
    assert entered == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_without_a_deterministic_form_is_a_record_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Network.forward

    def resize(self: Network, x: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        torch.empty(2, dtype=torch.float32).put_(torch.tensor([0]), torch.ones(1))
        return forward(self, x, adjacency)

    monkeypatch.setattr(Network, "forward", resize)
    assert measure(example_job(), ignore)["status"] == "ok"
    record = measure(deterministic(example_job()), ignore)
    assert record["status"] == "error"
    assert record["error"]["message"] == "torch has no deterministic put_: run without --deterministic."
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_runs_are_measurements_of_their_own() -> None:
    """Of other operations, with other times and workspaces; records that know nothing of it are of the usual ones."""
    job = example_job()
    assert Job.from_json(deterministic(job).to_json()) == deterministic(job)
    usual, other = (description(each, ENVIRONMENT) for each in (job, deterministic(job)))
    assert usual["environment"] == ENVIRONMENT
    assert identity(usual) != identity(other)
    assert len(machine(ENVIRONMENT)) == len(MACHINE_FIELDS)
    record = example_record() | {"environment": ENVIRONMENT | {"deterministic": True}}
    tables = summarise([example_record(), record])
    assert [table.deterministic for table in tables] == [False, True]
    with pytest.raises(UsageError, match="deterministic is False in the baseline and True now"):
        check_records([example_record()], [record], Settings(), allow_missing=False)
    assert "--deterministic" in command_for([record])
    assert "--deterministic" not in command_for([example_record()])


@pytest.mark.parametrize(("own", "expected"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_a_child_knows_cublas_workspace_before_it_starts(
    own: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    else:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", own)
    program = "import os, sys; sys.exit(str(os.environ.get('CUBLAS_WORKSPACE_CONFIG')))"
    monkeypatch.setattr(execute_module, "_WORKER", [sys.executable, "-c", program])
    told = [
        execute(job, ENVIRONMENT, ignore)["error"]["traceback"] for job in (deterministic(example_job()), example_job())
    ]
    assert [each.strip() for each in told] == [expected, str(own)]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_three_processes_side_by_side_score_as_one(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    for scheme in ("fp32", "blockwise-vm", "derived"):
        job = example_job(scheme, epochs=10, dataset="synthetic:arxiv@0.02")
        alone = execute(job, ENVIRONMENT, ignore)
        with ThreadPoolExecutor(3) as pool:
            together = list(pool.map(execute, [job] * 3, [ENVIRONMENT] * 3, [ignore] * 3))
        for record in together:
            assert record["status"] == "ok", record["error"]
            assert record["environment"]["threads"] == threads
            for field in ("curve", "metrics", "saved_bytes", "ledger"):
                assert record[field] == alone[field]
    assert os.environ["OMP_NUM_THREADS"] == str(threads)
