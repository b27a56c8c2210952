"""`actbench reproduce` as a user meets it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actbench.records import RecordFile
from actbench.runs import Job, grid
from actbench.runs.measure import blank_record
from tests.cli.test_cli import actbench, actbench_here, refused

Run = Callable[..., subprocess.CompletedProcess[str]]
LINES = ["fp32", "exact", *(f"blockwise:block={rows}r" for rows in (2, 4, 8, 16, 32)), "blockwise", "blockwise-vm"]
OURS = ["derived"]
TWIN = ["--dataset", "synthetic:arxiv@0.002", "--device", "cpu"]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were measured, none of which really is: each is ok at once."""
    jobs: list[Job] = []

    def execute(job: Job, environment: dict[str, Any], report: object) -> dict[str, Any]:
        jobs.append(job)
        record = blank_record(job, environment)
        score = 0.7 - 0.01 * LINES.index(str(job.scheme)) - 0.001 * job.seed if str(job.scheme) in LINES else 0.5
        metrics = {"train": 1.0, "valid": score, "test": score, "name": "accuracy", "best_epoch": 1}
        graph = {"nodes": 339, "synthetic": True}
        known = {"epoch_seconds": [1.0] * job.recipe.epochs, "saved_bytes": 1000, "rss_peak_bytes": 2000}
        return record | {"status": "ok", "metrics": metrics, "graph": graph} | known

    monkeypatch.setattr(grid, "execute", execute)
    return jobs


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.setenv("COLUMNS", "400")
    return lambda *arguments: actbench_here(monkeypatch, capfd, tmp_path, "reproduce", *arguments)


def test_table1_is_the_papers_line_by_line_with_ten_seeds(reproduce: Run, measured: list[Job], tmp_path: Path) -> None:
    done = reproduce("table1", *TWIN, "--epochs", "20", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert [str(job.scheme) for job in measured[:10]] == LINES + OURS
    assert [job.seed for job in measured] == [seed for seed in range(10) for _ in LINES + OURS]
    assert {job.recipe.architecture.hidden for job in measured} == {128}
    for text in ("30.47 [raw]", "3.88% [calc]", "71.16 ± 0.21 [recall]", "over 95% [abs]", "(generated graph)"):
        assert text in done.stdout
    assert "has 339 nodes, ogbn-arxiv 169,343:" in done.stdout
    assert len(RecordFile(tmp_path / "table1.jsonl").read()) == 100
    assert "derived: actbench's own, in neither paper" in done.stdout


def test_it_goes_on_where_it_stopped_and_leaves_other_records_out(
    reproduce: Run, measured: list[Job], tmp_path: Path
) -> None:
    few = ["table1", *TWIN, "--epochs", "4", "--output", "out.jsonl", "--quiet", "--format", "json"]
    reproduce(*few, "--seeds", "1")
    assert len(measured) == 10
    content = json.loads(reproduce(*few, "--seeds", "2").stdout)
    assert len(measured) == 20
    (comparison,) = content["comparisons"]
    assert [row["scheme"] for row in comparison["rows"]] == LINES + OURS
    assert [row["paper"] is None for row in comparison["rows"]] == [False] * len(LINES) + [True]
    assert comparison["rows"][1]["difference"]["mean"] == pytest.approx(-0.01)
    assert {claim["against"] for claim in content["claims"][0]["claims"]} == {"fp32", "exact"}
    assert comparison["rows"][0]["paper"]["activation"] == {"value": 786.22, "mark": "calc", "std": None}
    longer = json.loads(reproduce(*few, "--seeds", "1", "--epochs", "5").stdout)
    assert [c["recipe"]["epochs"] for c in longer["comparisons"]] == [5]


def test_exact_is_a_grid_of_systems(reproduce: Run, measured: list[Job]) -> None:
    done = reproduce("exact", *TWIN, "--seeds", "2", "--epochs", "3", "--quiet", "--lang", "ja")
    assert done.returncode == 0, done.stderr
    systems = list(dict.fromkeys((job.recipe.architecture.model, job.recipe.sampler) for job in measured))
    assert systems == [
        *((model, "full") for model in ("sage", "gcn", "gcnii", "gat")),
        ("sage", "saint"),
        ("sage", "cluster"),
    ]
    assert {str(job.scheme) for job in measured} == {"fp32", "exact:projection=1", "exact"}
    assert len(measured) == 6 * 3 * 2
    assert done.stdout.count("論文要旨の主張") == 6
    assert "生成グラフ" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["table2"], "table2"),
        (["table1", "--dataset", "ogbn-axiv"], "did you mean ogbn-arxiv"),
        (["table1", "--dataset", "none.npz"], "none.npz"),
        (["table1", *TWIN, "--seeds", "0"], "--seeds"),
        (["table1", *TWIN, "--output", "."], "is a folder"),
    ],
)
def test_wrong_input_is_one_sentence(reproduce: Run, tmp_path: Path, arguments: list[str], says: str) -> None:
    refused(reproduce(*arguments), says)
    assert not list(tmp_path.iterdir())


def test_a_graph_that_cannot_be_had_offers_its_twin(
    reproduce: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    done = reproduce("table1", "--data-dir", "data")
    refused(done, "ogbn-arxiv could not be downloaded")
    assert "labelled as one in every output: --dataset synthetic:arxiv" in done.stderr
    assert "generated" not in reproduce("table1", "--data-dir", "data", "--dataset", "reddit").stderr


@pytest.mark.slow
def test_a_table_is_really_measured(tmp_path: Path) -> None:
    done = actbench(tmp_path, "reproduce", "table1", *TWIN, "--seeds", "2", "--epochs", "3", "--format", "json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    saved = [row["saved_bytes"] for row in content["comparisons"][0]["rows"]]
    assert saved[:8] == sorted(saved[:8], reverse=True)
    assert len(set(saved[:8])) == 8
    # On so small a graph the states of two generators are a third of what derived keeps.
    assert saved[8] == saved[7] > saved[9]
