"""`actbench analyze` as a user meets it."""

import json
import subprocess
from pathlib import Path

import pytest

from actbench.records import RecordFile
from actbench.report.study import estimate_text
from tests.cli.test_cli import actbench_here, own_data, refused
from tests.runs.example import example_record

SMALL = ("--dataset", "synthetic:arxiv@0.002", "--device", "cpu", "--epochs", "1", "--draws", "3", "--hidden", "16")


class Here:
    """The command in this process, in a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path) -> None:
        self._given = monkeypatch, capfd, folder

    def __call__(self, *arguments: str, verb: str = "analyze") -> subprocess.CompletedProcess[str]:
        return actbench_here(*self._given, verb, *arguments)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Here:
    return Here(monkeypatch, capfd, tmp_path)


def test_stdout_is_one_document_and_progress_is_not_on_it(here: Here, tmp_path: Path) -> None:
    done = here(*SMALL, "--scheme", "exact", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schemes"][0]["scheme"]["name"] == "exact"
    assert list(tmp_path.iterdir()) == []


def test_file_charts_and_a_report_beside_records(here: Here, tmp_path: Path) -> None:
    done = here(*SMALL, "--scheme", "exact", "--scheme", "fp32", "--output", "a.json", "--charts", "charts", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "Gradient noise" in done.stdout
    names = [path.name for path in (tmp_path / "charts").iterdir()]
    assert sorted(names)[0] == "synthetic-arxiv-0.002-sage-study-errors-1.png"
    assert len(names) == 6
    assert all(name in done.stderr for name in names)
    again = here(*SMALL, "--scheme", "exact", "--scheme", "fp32", "--output", "a.json", "--quiet")
    assert (again.returncode, again.stderr) == (0, "")
    for scheme in ("fp32", "exact"):
        RecordFile(tmp_path / "runs.jsonl").append(example_record(scheme))
    report = here("runs.jsonl", "a.json", "--format", "json", verb="report")
    rows = json.loads(report.stdout)["comparisons"][0]["rows"]
    document = json.loads((tmp_path / "a.json").read_text())
    assert [row["gradient_noise"] for row in rows] == [0, document["schemes"][0]["noise"]["total"]["mean"]]
    refused(here("a.json", verb="report"), "a.json is an analysis, which goes beside records")
    refused(here("runs.jsonl", "a.json", "--output", "a.json", verb="report"), "which a report must not replace")


def test_derived_schemes_have_noise_and_bias_but_no_inputs_in_blocks(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So wide that no cell is folded.
    monkeypatch.setenv("COLUMNS", "200")
    schemes = ("derived", "derived-lean", "derived-fine:levels=clipped-normal")
    given = [argument for scheme in schemes for argument in ("--scheme", scheme)]
    done = here(*SMALL, *given, "--output", "a.json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads((tmp_path / "a.json").read_text())
    assert [each["scheme"]["name"] for each in document["schemes"]] == list(schemes)
    assert [each["scheme"]["bits"] for each in document["schemes"]] == [2, 1.6, 4]
    for each in document["schemes"]:
        noise = each["noise"]
        assert (each["calls"], noise["projection"]["mean"], noise["cross"]["mean"]) == ([], 0, 0)
        assert estimate_text(noise["bias"]) in done.stdout
    lean, fine = (document["schemes"][number]["noise"] for number in (1, 2))
    assert lean["total"]["mean"] > fine["total"]["mean"] > 0
    # What is left of fine's noise is mostly the bias of batch norm's backward, far above its standard error.
    assert fine["bias"]["mean"] > 5 * fine["bias"]["standard_error"]
    assert f"{', '.join(schemes)}: batch norm's backward takes its normalised input" in done.stdout
    assert "Values in their blocks" not in done.stdout
    for scheme in ("fp32", "derived-lean"):
        RecordFile(tmp_path / "runs.jsonl").append(example_record(scheme))
    report = here("runs.jsonl", "a.json", "--format", "html", "--lang", "ja", "--output", "r.html", verb="report")
    assert report.returncode == 0, report.stderr
    assert "そのチャネルでの平均で代用する" in (tmp_path / "r.html").read_text()


def test_own_data_in_japanese(here: Here, tmp_path: Path) -> None:
    own_data(tmp_path / "own.npz")
    done = here("--dataset", "own.npz", "--epochs", "0", "--draws", "3", "--scheme", "int8", "--lang", "ja", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "勾配ノイズ" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "call"),
    [(("--model", "gcnii"), "addmm 2"), (("--model", "gat"), "aggregate 2"), (("--sampler", "saint"), "batch_norm 1")],
)
def test_every_model_and_a_sampler(here: Here, arguments: tuple[str, ...], call: str) -> None:
    done = here(*SMALL, "--layers", "2", *arguments, "--scheme", "blockwise-vm", "--format", "json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (found,) = document["schemes"]
    assert call in [each["call"] for each in found["calls"]]
    assert found["noise"]["total"]["mean"] > 0
    assert document["unusual"].get("sampler") == ("saint" if "--sampler" in arguments else None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--dataset", "cara"), "cara"),
        ((*SMALL, "--scheme", "exat"), "did you mean 'exact'"),
        ((*SMALL, "--scheme", "exact/linear9:bits=4"), "overrides linear9"),
        ((*SMALL, "--scheme", "offload"), "needs a GPU"),
        ((*SMALL, "--draws", "2"), "--draws"),
        ((*SMALL, "--epochs", "-1"), "--epochs"),
        ((*SMALL, "--output", "runs.jsonl"), "holds something else than an analysis"),
        ((*SMALL, "--output", "none/a.json"), "cannot be written"),
        ((*SMALL, "--charts", "runs.jsonl"), "--charts runs.jsonl cannot be written"),
        ((*SMALL, "--charts", "none/charts"), "cannot be written"),
        ((*SMALL, "--learning-rate", "inf"), "finite"),
        (("--model", "sage"), "--dataset"),
    ],
)
def test_wrong_input_is_one_sentence(here: Here, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    RecordFile(tmp_path / "runs.jsonl").append(example_record())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    refused(here(*arguments), says)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
