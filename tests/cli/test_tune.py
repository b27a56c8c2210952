"""`actbench tune` as a user meets it, and its scheme in `actbench run`."""

import json
from pathlib import Path

import pytest

from tests.cli.test_analyze import Here, here
from tests.cli.test_cli import refused

__all__ = ["here"]

NETWORK = ("--dataset", "synthetic:arxiv@0.002", "--device", "cpu", "--hidden", "16", "--layers", "2")
SMALL = (*NETWORK, "--epochs", "1", "--draws", "3", "--batches", "1")


def test_the_scheme_is_on_stdout_and_runs_with_the_bytes_that_were_said(here: Here, tmp_path: Path) -> None:
    done = here(*SMALL, "--budget", "20KB", verb="tune")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    text = done.stdout.strip()
    assert "Tuned for 20,000 bytes · synthetic:arxiv@0.002 (generated graph) · sage" in done.stderr
    assert "derived: calls share what is kept, so that there is no choice by call." in done.stderr
    for word in ("exact", "blockwise-vm", "chosen", "linear 3", "batch_norm 1"):
        assert word in done.stderr
    ran = here(*NETWORK, "--epochs", "1", "--scheme", text, "--format", "json", "--quiet", verb="run")
    assert ran.returncode == 0, ran.stderr
    (record,) = json.loads(ran.stdout)["records"]
    assert record["scheme"]["name"] == text
    assert f"{record['saved_bytes']:,}" in done.stderr
    assert record["saved_bytes"] == record["predicted_saved_bytes"] <= 20_000


def test_json_holds_all_that_was_tried(here: Here) -> None:
    done = here(*SMALL, "--max-noise", "0.5", "--format", "json", "--quiet", verb="tune")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["synthetic"]
    assert [each["scheme"] for each in found["tried"]][:3] == ["exact", "blockwise-vm", "derived"]
    (chosen,) = (each for each in found["tried"] if each["scheme"] == found["scheme"])
    assert chosen["noise"]["mean"] <= 0.5
    assert len(found["calls"]) == 5
    assert all(call["chosen"] in call["front"] for call in found["calls"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (SMALL, "either --budget, as 800MiB, or --max-noise"),
        ((*SMALL, "--budget", "1MB", "--max-noise", "1"), "either --budget"),
        ((*SMALL, "--budget", "much"), "--budget much is not an amount of memory"),
        ((*SMALL, "--budget", "1B"), "is less than any scheme here keeps: give at least"),
        ((*SMALL, "--max-noise", "0"), "is not above 0"),
        ((*SMALL, "--max-noise", "nan"), "finite"),
        (("--dataset", "cara", "--budget", "1MB"), "cara"),
        ((*SMALL, "--budget", "1MB", "--draws", "1"), "--draws"),
    ],
)
def test_wrong_input_is_one_sentence(here: Here, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    refused(here(*arguments, "--quiet", verb="tune"), says)
    assert list(tmp_path.iterdir()) == []
