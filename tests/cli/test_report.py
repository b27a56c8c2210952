"""`actbench report` as a user meets it."""

import csv
import json
import subprocess
from io import StringIO
from pathlib import Path

import pytest

from actbench.records import RecordFile
from tests.cli.test_cli import actbench, actbench_here, refused
from tests.report.records import compared, measured
from tests.runs.example import ENVIRONMENT, example_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for record in measured():
        RecordFile(tmp_path / "runs.jsonl").append(record)
    return tmp_path


class Here:
    """The command in this process, in a folder."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path) -> None:
        self._given = monkeypatch, capfd, folder

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return actbench_here(*self._given, "report", *arguments)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path) -> Here:
    return Here(monkeypatch, capfd, folder)


def test_stdout_is_the_report_and_nothing_else_in_a_process_of_its_own(folder: Path) -> None:
    done = actbench(folder, "report", "runs.jsonl", "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads(done.stdout)
    assert content["comparisons"][0]["rows"][1]["records"][0]["file"] == "runs.jsonl"


@pytest.mark.parametrize("format", ["table", "markdown", "html", "latex", "csv", "json", "svg"])
@pytest.mark.parametrize("lang", ["en", "ja"])
def test_every_format_to_stdout_and_to_a_file(
    report: Here, folder: Path, monkeypatch: pytest.MonkeyPatch, format: str, lang: str
) -> None:
    # Test runners set it; a pipe is as wide as a file without it.
    monkeypatch.delenv("COLUMNS", raising=False)
    shown = report("runs.jsonl", "--format", format, "--lang", lang)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "blockwise" in shown.stdout
    written = report("runs.jsonl", "--format", format, "--lang", lang, "--output", "report.out")
    assert (written.returncode, written.stdout, written.stderr) == (0, "", "")
    text = (folder / "report.out").read_text(encoding="utf-8")
    assert text.split() == shown.stdout.split()
    assert "\x1b" not in text


def test_files_are_read_together_and_the_reference_can_be_chosen(report: Here, folder: Path) -> None:
    RecordFile(folder / "more.jsonl").append(example_record("blockwise-vm", dataset="cora"))
    done = report("runs.jsonl", "more.jsonl", "--reference", "exact", "--format", "csv")
    rows = list(csv.DictReader(StringIO(done.stdout)))
    assert [row["dataset"] for row in rows][-1] == "cora"
    assert rows[1]["saved_ratio"] == "1.0"
    assert rows[0]["difference_pairs"] == "3"
    assert rows[-1]["sources"] == "more.jsonl:1"


def test_charts_are_written_as_png_and_svg(report: Here, folder: Path) -> None:
    done = report("runs.jsonl", "--charts", "charts", "--format", "csv")
    assert done.returncode == 0
    names = sorted(path.name for path in (folder / "charts").iterdir())
    assert names == sorted(
        f"1-synthetic-arxiv-0.002-sage-{name}.{suffix}"
        for name in ("pareto", "bytes", "curves", "times")
        for suffix in ("png", "svg")
    )
    assert all(name in done.stderr for name in names)
    assert done.stdout.startswith("dataset,")


def test_machines_are_kept_apart(report: Here, folder: Path) -> None:
    for record in measured(environment=ENVIRONMENT | {"device_name": "another processor"}):
        RecordFile(folder / "runs.jsonl").append(record)
    refused(report("runs.jsonl"), "give --across-machines")
    done = report("runs.jsonl", "--across-machines")
    assert done.returncode == 0
    assert "exact [B]" in done.stdout
    assert "Different machines share this table" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.jsonl"], "There is no file none.jsonl"),
        (["."], "cannot be read"),
        (["empty.jsonl"], "holds no records"),
        (["text.jsonl"], "line 1 of text.jsonl"),
        (["odd.jsonl"], "the record in odd.jsonl:1 has no usable 'epoch_seconds'"),
        (["runs.jsonl", "--reference", "exat"], "did you mean 'exact'"),
        (["runs.jsonl", "--reference", "blockwise-vm"], "they hold fp32, exact, blockwise"),
        (["runs.jsonl", "--format", "pdf"], "--format"),
        (["runs.jsonl", "--lang", "fr"], "--lang"),
        (["runs.jsonl", "--output", "."], "--output . cannot be written"),
        (["runs.jsonl", "--output", "none/report.html"], "cannot be written"),
        (["runs.jsonl", "--output", "runs.jsonl"], "which a report must not replace"),
        (["runs.jsonl", "--output", "other.jsonl"], "which a report must not replace"),
        (["runs.jsonl", "--output", "odd.jsonl"], "which a report must not replace"),
        (["runs.jsonl", "--charts", "runs.jsonl"], "--charts runs.jsonl cannot be written"),
        (["runs.jsonl", "--charts", "none/charts"], "cannot be written"),
    ],
)
def test_wrong_input_is_one_sentence(report: Here, folder: Path, arguments: list[str], says: str) -> None:
    (folder / "empty.jsonl").touch()
    (folder / "text.jsonl").write_text("hello\n")
    RecordFile(folder / "other.jsonl").append(example_record())
    RecordFile(folder / "odd.jsonl").append(example_record(epoch_seconds=None))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    refused(report(*arguments), says)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_no_files_is_an_error_and_help_is_none(report: Here) -> None:
    assert report().returncode == 2
    done = report("--help")
    assert done.returncode == 0
    assert "--across-machines" in done.stdout


def test_the_table_is_not_cut_on_a_pipe(report: Here) -> None:
    done = report("runs.jsonl")
    (comparison,) = compared(measured())
    assert "…" not in done.stdout
    for row in comparison.rows:
        assert row.label in done.stdout
    assert "runs.jsonl:4,5,6" in done.stdout
