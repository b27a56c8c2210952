"""`actbench doctor` as a user meets it."""

import json
from pathlib import Path

import pytest
import torch

from actbench import benchmark
from tests.cli.test_cli import actbench_here


def test_a_sound_machine_gives_0_and_a_table(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    done = actbench_here(monkeypatch, capfd, tmp_path, "doctor", "--device", "cpu", "--data-dir", "absent", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert torch.__version__ in done.stdout
    assert "All that is needed works." in done.stdout
    assert "! absent does not exist yet: `actbench pull NAME` makes it" in " ".join(done.stdout.split())
    assert list(tmp_path.iterdir()) == []


def test_a_fault_gives_2_and_is_in_table_and_json(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "keep_where", lambda values, packed: values + 1)
    done = actbench_here(monkeypatch, capfd, tmp_path, "doctor", "--device", "cpu")
    assert done.returncode == 2
    assert "X ReLU backward of 37x203 does not give the reference's result" in " ".join(done.stdout.split())
    assert "Something that is needed does not work." in done.stdout
    done = actbench_here(monkeypatch, capfd, tmp_path, "doctor", "--device", "cpu", "--format", "json")
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert [each["topic"] for each in document["findings"] if each["state"] == "problem"] == ["kernels"]
