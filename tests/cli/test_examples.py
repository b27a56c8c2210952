"""Every example in a help text runs as it stands; what it takes long for is made small by further options."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from actbench.cli.main import app
from actbench.graphs.raw import SOURCES
from actbench.records import RecordFile
from tests.cli.test_cli import actbench_here
from tests.report.records import measured

VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
EXAMPLES = {name: re.findall(r"^Example: (actbench .+)$", verb.help, re.MULTILINE) for name, verb in VERBS.items()}
SMALL = {
    "run": "--epochs 1 --seeds 1 --device cpu",
    "analyze": "--epochs 1 --draws 3 --device cpu --scheme exact",
    "tune": "--epochs 1 --draws 3 --device cpu",
    "reproduce": "--epochs 1 --seeds 1 --device cpu",
    "kernels": "--repeats 1 --device cpu",
    "doctor": "--device cpu",
}
"""Of an option that is given twice the last one counts."""
PROCESSES = ("run", "analyze", "tune", "reproduce")
"""Those that train, or whose example is a line for a shell."""


def test_every_verb_has_an_example() -> None:
    assert set(PROCESSES) <= set(EXAMPLES)
    assert [name for name, examples in EXAMPLES.items() if not examples] == []
    for name, examples in EXAMPLES.items():
        for example in examples:
            assert name in shlex.split(example) or f"actbench {name}" in example


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the examples read."""
    (tmp_path / "results").mkdir()
    for record in measured():
        RecordFile(tmp_path / "actbench.jsonl").append(record)
        RecordFile(tmp_path / "results" / "baseline.jsonl").append(record)
    return tmp_path


@pytest.mark.parametrize(
    ("verb", "example"),
    [
        pytest.param(name, example, marks=[pytest.mark.slow] if name == "kernels" else [])
        for name, examples in EXAMPLES.items()
        if name not in PROCESSES
        for example in examples
    ],
)
def test_an_example_runs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], folder: Path, verb: str, example: str
) -> None:
    words = shlex.split(example) + shlex.split(SMALL.get(verb, ""))
    data_dir = folder / "data"
    if verb == "pull":
        # What is there is not downloaded again.
        for file in SOURCES[words[2]].files(data_dir):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    if verb == "baseline":
        (folder / words[words.index("--output") + 1]).unlink()
    monkeypatch.setenv("ACTBENCH_DATA", str(data_dir))
    done = actbench_here(monkeypatch, capfd, folder, *words[1:])
    assert done.returncode == 0, done.stderr
    outputs = [words[number + 1] for number, word in enumerate(words) if word == "--output"]
    assert done.stdout or done.stderr or outputs
    assert all((folder / output).stat().st_size > 0 for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("example", [example for name in PROCESSES for example in EXAMPLES[name]])
def test_an_example_that_trains_runs_in_a_shell(request: pytest.FixtureRequest, folder: Path, example: str) -> None:
    cases = "\n".join(f'    {verb}) set -- "$@" {options} ;;' for verb, options in SMALL.items())
    command = folder / "bin" / "actbench"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}\nesac\nexec {shlex.quote(sys.executable)} -m actbench "$@"\n')
    command.chmod(0o755)
    (folder / "actbench.jsonl").unlink()
    data_dir = request.getfixturevalue("data_dir") if "cora" in example else folder
    environment = {"ACTBENCH_DATA": str(data_dir), "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", example], cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
