"""What TAB offers, by the protocol of typer's scripts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from actbench.graphs import catalogue
from actbench.models import Model
from actbench.scheme import NAMES
from tests.cli.test_cli import ACTBENCH, actbench_here

REAL = [entry.name for entry in catalogue() if not entry.synthetic]
ALL = [entry.name for entry in catalogue()]
SLOW = ("torch", "torch_geometric", "numba", "numpy", "scipy", "matplotlib")


def offered(*words: str, shell: str = "bash", **environment: str) -> list[str]:
    """What is offered for the last of `words`."""
    if shell == "bash":
        typed = {"COMP_WORDS": "\n".join(["actbench", *words]), "COMP_CWORD": str(len(words))}
    else:
        typed = {"_TYPER_COMPLETE_ARGS": " ".join(["actbench", *words])}
        if shell == "fish":
            typed["_TYPER_COMPLETE_FISH_ACTION"] = "get-args"
    done = subprocess.run(
        [*ACTBENCH], env=os.environ | typed | {"_ACTBENCH_COMPLETE": f"complete_{shell}"} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "--dataset", "p"], ["pubmed", "photo", "physics"]),
        # Bash takes a name with a colon for three words, and puts the answer behind the colon.
        (["run", "--dataset", "synthetic", ":", "ar"], ["arxiv"]),
        (["estimate", "--dataset", "synthetic", ":"], ["arxiv", "flickr", "products"]),
        (["pull", ""], REAL),
        (["analyze", "--scheme", "blockwise"], ["blockwise", "blockwise-vm"]),
        (["run", "--model", ""], list(get_args(Model))),
        (["doc"], ["doctor"]),
        (["tune", "--max"], ["--max-noise"]),
    ],
)
def test_bash(words: list[str], expected: list[str]) -> None:
    assert offered(*words) == expected


def test_zsh_and_fish() -> None:
    assert offered("run", "--scheme", "der", shell="fish") == ["derived", "derived-lean", "derived-fine"]
    (answer,) = ["".join(offered("reproduce", "table1", "--dataset", "ogbn", shell="zsh"))]
    assert re.findall(r'"(ogbn-[a-z]+)"', answer) == ["ogbn-arxiv", "ogbn-products"]


def test_nothing_slow_is_imported() -> None:
    """A shell waits for the answer; torch alone would take longer than a person does."""
    words = {"COMP_WORDS": "actbench\nrun\n--scheme\n", "COMP_CWORD": "3", "_ACTBENCH_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "actbench"],
        env=os.environ | words, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == list(NAMES)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert imported.isdisjoint(SLOW)


def test_the_script_for_a_shell_is_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # Otherwise typer asks which shell it was started from, and a test may be started from none.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    done = actbench_here(monkeypatch, capfd, tmp_path, "--show-completion", "bash")
    assert (done.returncode, done.stderr) == (0, "")
    assert "_ACTBENCH_COMPLETE=complete_bash" in done.stdout
    assert done.stdout.rstrip().endswith("actbench")
