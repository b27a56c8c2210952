"""`actbench check` and `actbench baseline` as a CI job meets them."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer

from actbench.analysis.regression import check_records
from actbench.cli.main import app
from actbench.records import RecordFile
from tests.analysis.test_regression import example
from tests.cli.test_cli import ACTBENCH, actbench, actbench_here, refused

DOCS = Path(__file__).resolve().parents[2] / "docs"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command line in this process, in a folder with base.jsonl; on GitHub if a test says so."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    write(tmp_path / "base.jsonl", [example("fp32"), example("exact")])
    return lambda *arguments: actbench_here(monkeypatch, capfd, tmp_path, *arguments)


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    for record in records:
        RecordFile(path).append(record)
    return path


def test_the_exit_code_is_the_verdict(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "worse.jsonl", [example("fp32"), example("exact", saved_bytes=1010)])
    write(tmp_path / "part.jsonl", [example("fp32")])
    write(tmp_path / "better.jsonl", [example("fp32"), example("exact", saved_bytes=500), example("blockwise")])
    before = sorted(tmp_path.iterdir())
    done = run("check", "--baseline", "base.jsonl", "base.jsonl")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("No regression in 16 figures of 2 rows.\n")
    done = run("check", "--baseline", "base.jsonl", "worse.jsonl")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("Regression: 1 of 16 figures of 2 rows got worse.\n")
    assert run("check", "--baseline", "base.jsonl", "part.jsonl").returncode == 1
    assert run("check", "--baseline", "base.jsonl", "part.jsonl", "--allow-missing").returncode == 0
    done = run("check", "--baseline", "base.jsonl", "better.jsonl")
    assert done.returncode == 0
    assert "1 improved, 1 new" in done.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_limits_come_from_a_file(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "worse.jsonl", [example("fp32"), example("exact", saved_bytes=1010)])
    (tmp_path / "check.toml").write_text("[check.scheme.exact]\nsaved_bytes = 0.02\n")
    assert run("check", "--baseline", "base.jsonl", "worse.jsonl", "--config", "check.toml").returncode == 0


def test_documents_on_stdout_or_in_a_file_beside_the_table(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "worse.jsonl", [example("fp32"), example("exact", saved_bytes=1010)])
    check = ("check", "--baseline", "base.jsonl", "worse.jsonl")
    content = json.loads(run(*check, "--format", "json").stdout)
    assert (content["verdict"], content["failures"]) == ("regression", 1)
    assert content["limits"]["time"] == 0.1
    (row,) = [row for row in content["rows"] if row["scheme"] == "exact"]
    (finding,) = [each for each in row["findings"] if each["outcome"] == "regression"]
    assert (finding["figure"], finding["baseline"], finding["new"]) == ("saved_bytes", 1000, 1010)
    assert ElementTree.fromstring(run(*check, "--format", "junit").stdout)[0].get("failures") == "1"

    done = run(*check, "--format", "junit", "--output", "check.xml")
    assert done.returncode == 1
    assert done.stdout.startswith("Regression: 1 of 16")
    assert ElementTree.parse(tmp_path / "check.xml").getroot()[0].get("failures") == "1"
    assert run(*check, "--output", "check.txt").returncode == 1
    assert (tmp_path / "check.txt").read_text().startswith("Regression: 1 of 16")
    assert {path.name for path in tmp_path.iterdir()} == {"base.jsonl", "worse.jsonl", "check.xml", "check.txt"}


@pytest.mark.parametrize("format", ["table", "json"])
@pytest.mark.parametrize("verb", ["check", "report"])
def test_a_stdout_that_is_full_or_closed_is_no_verdict(run: Run, tmp_path: Path, verb: str, format: str) -> None:
    words = ["base.jsonl", "--format", format] + (["--baseline", "base.jsonl"] if verb == "check" else [])
    command = [*ACTBENCH, verb, *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "stdout cannot be written (No space left on device)" in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(command, cwd=tmp_path, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_on_github_it_annotates_and_summarises(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("what an earlier step wrote\n")
    write(tmp_path / "worse.jsonl", [example("fp32", saved_bytes=900), example("exact", saved_bytes=1010)])
    check = ("check", "--baseline", "base.jsonl", "worse.jsonl")
    done = run(*check)
    lines = [line for line in done.stdout.splitlines() if line.startswith("::")]
    assert [line.partition(" ")[0] for line in lines] == ["::error", "::notice"]
    assert lines[0].endswith("keeps 1,010 bytes for backward instead of 1,000 (+1.00 %25, allowed 0.1 %25).")
    assert (tmp_path / "summary.md").read_text().startswith("what an earlier step wrote\n## actbench check")

    done = run(*check, "--format", "json")
    assert json.loads(done.stdout)["failures"] == 1
    assert done.stderr.count("::error ") == 1

    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    done = run(*check)
    assert done.returncode == 1, "a regression stays one where the summary cannot be written"
    assert "GITHUB_STEP_SUMMARY" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["base.jsonl"], "Missing option '--baseline'"),
        (["--baseline", "none.jsonl", "base.jsonl"], "none.jsonl does not exist"),
        (["--baseline", "base.jsonl", "none.jsonl"], "none.jsonl does not exist"),
        (["--baseline", "base.jsonl", "empty.jsonl"], "empty.jsonl holds no records"),
        (["--baseline", "notes.txt", "base.jsonl"], "line 1 of notes.txt is not a record"),
        (["--baseline", ".", "base.jsonl"], "cannot be read"),
        (["--baseline", "base.jsonl", "threads.jsonl"], "threads is 2 in the baseline and 4 now"),
        (["--baseline", "base.jsonl", "epochs.jsonl"], "epochs is 3 in the baseline and 9 now"),
        (["--baseline", "base.jsonl", "base.jsonl", "--config", "none.toml"], "none.toml cannot be read"),
        (["--baseline", "base.jsonl", "base.jsonl", "--config", "wrong.toml"], "did you mean time?"),
        (["--baseline", "base.jsonl", "base.jsonl", "--output", "none/check.xml"], "there is no folder"),
        (["--baseline", "base.jsonl", "base.jsonl", "--output", "."], "is a folder"),
        (["--baseline", "base.jsonl", "base.jsonl", "--output", "./base.jsonl"], "is one of the files to compare"),
        (["--baseline", "base.jsonl", "base.jsonl", "--format", "html"], "--format"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(run: Run, tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.txt").write_text("my notes\n")
    (tmp_path / "wrong.toml").write_text("[check]\ntimes = 0.1\n")
    environment = example()["environment"] | {"threads": 4}
    write(tmp_path / "threads.jsonl", [example(environment=environment)])
    write(tmp_path / "epochs.jsonl", [example(recipe=example()["recipe"] | {"epochs": 9})])
    before = sorted(tmp_path.iterdir())
    refused(run("check", *arguments), says)
    assert sorted(tmp_path.iterdir()) == before


def test_a_baseline_is_readable_whole_and_never_overwritten_unasked(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "runs.jsonl", [example(saved_bytes=1), example("exact", status="killed"), example(saved_bytes=2)])
    done = run("baseline", "runs.jsonl", "base.jsonl", "--output", "new.jsonl")
    assert (done.returncode, done.stdout) == (0, "")
    assert "new.jsonl holds 2 runs of 2 schemes; 3 of 5 records were superseded or did not end" in done.stderr
    written = (tmp_path / "new.jsonl").read_text()
    assert RecordFile(tmp_path / "new.jsonl").read() == RecordFile(tmp_path / "base.jsonl").read()

    refused(run("baseline", "runs.jsonl", "--output", "new.jsonl"), "--force overwrites it")
    assert (tmp_path / "new.jsonl").read_text() == written
    assert run("baseline", "runs.jsonl", "--output", "new.jsonl", "--force").returncode == 0
    assert [record["saved_bytes"] for record in RecordFile(tmp_path / "new.jsonl").read()] == [2]
    assert {path.name for path in tmp_path.iterdir()} == {"base.jsonl", "runs.jsonl", "new.jsonl"}
    assert (tmp_path / "new.jsonl").stat().st_mode == (tmp_path / "runs.jsonl").stat().st_mode


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([example(status="oom")], "no run that is ok"),
        ([example(), example("exact", environment=example()["environment"] | {"threads": 4})], "threads 2 and 4"),
        ([], "does not exist"),
    ],
)
def test_what_is_no_baseline(run: Run, tmp_path: Path, records: list[dict[str, Any]], says: str) -> None:
    write(tmp_path / "runs.jsonl", records)
    before = sorted(tmp_path.iterdir())
    refused(run("baseline", "runs.jsonl", "--output", "new.jsonl"), says)
    refused(run("baseline", "base.jsonl", "--output", "none/new.jsonl"), "there is no folder")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("verb", ["check", "baseline"])
def test_help(run: Run, verb: str) -> None:
    done = run(verb, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Example: actbench {verb}" in done.stdout


def commands(text: str, **variables: str) -> list[list[str]]:
    """The arguments of every line that runs actbench."""
    for name, value in variables.items():
        text = text.replace(f"${name}", value)
    lines = re.findall(r"^(?: *run: | *)(?:\S+/)?(actbench .+)$", text, re.MULTILINE)
    return [shlex.split(line)[1:] for line in lines]


def workflow() -> dict[str, Any]:
    """The steps of docs/actbench.yml by name, as text; YAML of two levels needs no more."""
    text = (DOCS / "actbench.yml").read_text()
    steps = re.split(r"^      - ", text.partition("    steps:\n")[2], flags=re.MULTILINE)[1:]
    return {step.splitlines()[0].removeprefix("name: "): step for step in steps}


def parse(arguments: list[str]) -> str:
    """The verb that the real command line understands `arguments` as; raises for what it does not know."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("actbench", ["--help"], resilient_parsing=True)
    name, command, rest = group.resolve_command(context, arguments)
    command.make_context(name, rest, parent=context)
    return str(name)


def test_the_docs_show_only_what_the_command_line_knows() -> None:
    shown = commands((DOCS / "ci.md").read_text())
    assert {parse(arguments) for arguments in shown} == {"run", "baseline", "check"}
    with pytest.raises(typer.TyperException):
        parse(["check", "--baselines", "base.jsonl", "new.jsonl"])


def test_the_docs_tell_the_defaults(tmp_path: Path) -> None:
    from actbench.analysis.limits import Settings, read_settings

    text = (DOCS / "ci.md").read_text()
    limits = Settings().limits
    for name in ("saved_bytes", "time", "score", "loss", "peak"):
        assert float(re.findall(rf"`{name} = ([\d.]+)`", text)[0]) == getattr(limits, name)
    (shown,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "check.toml").write_text(shown)
    settings = read_settings(tmp_path / "check.toml")
    assert (settings.of("fp32").time, settings.of("blockwise").score) == (0.15, 0.02)
    assert (limits.significance, limits.control, limits.exact_loss) == (0.05, True, False)


def test_the_workflow_is_whole() -> None:
    text = (DOCS / "actbench.yml").read_text()
    assert "\t" not in text
    assert "secrets." not in text
    assert re.search(r"^permissions:\n  contents: read$", text, re.MULTILINE)
    steps = workflow()
    uses = [found[1] for step in steps.values() if (found := re.search(r"uses: (\S+)@v\d+", step))]
    assert uses == ["actions/checkout"] * 2 + ["actions/setup-python", "actions/upload-artifact"]
    assert steps["Install both"].count("pip install") == 2
    found = re.search(r"MEASURE: (.+)", text)
    assert found
    shown = commands(text, MEASURE=found[1])
    assert [parse(arguments) for arguments in shown] == ["run", "run", "baseline", "check"]
    assert shown[0][:-1] == shown[1][:-1]
    assert "if: always()" in steps["Keep the records"]
    # What is kept is what the commands write.
    written = {arguments[arguments.index("--output") + 1] for arguments in shown}
    kept = set(re.findall(r"^            (\S+)$", steps["Keep the records"], re.MULTILINE))
    assert kept == written - {"old.jsonl"}


@pytest.mark.slow
def test_an_unchanged_run_is_no_alarm_in_56_comparisons(tmp_path: Path) -> None:
    """Eight real measurements, each against each, both ways; on whatever else this machine is doing."""
    arguments = ["--dataset", "synthetic:arxiv@0.01", "--epochs", "20", "--seeds", "3", "--device", "cpu", "--quiet"]
    arguments += ["--scheme", "fp32", "--scheme", "exact"]
    files = [tmp_path / f"{i}.jsonl" for i in range(8)]
    for file in files:
        done = actbench(tmp_path, "run", *arguments, "--output", str(file))
        assert done.returncode == 0, done.stderr
    measured = [RecordFile(file).read() for file in files]
    verdicts = [check_records(old, new) for old, new in itertools.permutations(measured, 2)]
    assert len(verdicts) == 56
    assert [verdict.failures for verdict in verdicts if verdict.failures] == []


SLEEPING = """
import os, sys, time
if "actbench.runs.worker" in sys.orig_argv:
    from actbench.training import Trainer
    step = Trainer.step
    def slow_step(self, *around):
        begun = time.perf_counter()
        loss = step(self, *around)
        more = float(os.environ["MORE"])
        time.sleep(0.05 * (1 + more) + more * (time.perf_counter() - begun))
        return loss
    Trainer.step = slow_step
"""


@pytest.mark.slow
def test_a_sleep_in_the_processes_that_measure_is_caught(tmp_path: Path) -> None:
    """15 % of an epoch, most of which is a sleep in the baseline too: that takes as long on a busy machine."""
    (tmp_path / "sitecustomize.py").write_text(SLEEPING)
    (tmp_path / "check.toml").write_text("[check]\ncontrol = false\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    arguments = ["run", "--dataset", "synthetic:arxiv@0.002", "--epochs", "12", "--seeds", "3", "--device", "cpu"]
    arguments += ["--scheme", "fp32", "--scheme", "exact", "--quiet"]
    for name, more in (("base", "0"), ("same", "0"), ("slow", "0.15")):
        done = actbench(tmp_path, *arguments, "--output", f"{name}.jsonl", PYTHONPATH=path, MORE=more)
        assert done.returncode == 0, done.stderr
    check = ("check", "--config", "check.toml", "--baseline", "base.jsonl")
    done = actbench(tmp_path, *check, "same.jsonl")
    assert done.returncode == 0, done.stdout
    done = actbench(tmp_path, *check, "slow.jsonl", "--format", "json")
    assert done.returncode == 1, done.stdout
    findings = [finding for row in json.loads(done.stdout)["rows"] for finding in row["findings"]]
    assert {finding["figure"] for finding in findings if finding["outcome"] == "regression"} == {"time"}
