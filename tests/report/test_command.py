"""The command behind a row measures the same again."""

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from actbench.cli.main import main
from actbench.errors import UsageError
from actbench.models import Model
from actbench.report.command import command_for
from actbench.runs import Job
from actbench.training import Recipe, Sampler, recipe_for
from tests.runs.example import example_record


def test_the_command_repeats_the_recipe() -> None:
    record = example_record("blockwise:bits=4", 2)
    record["recipe"] = record["recipe"] | {"clip": None, "batch_norm": False, "learning_rate": 0.003}
    words = shlex.split(command_for([record, example_record("blockwise:bits=4")]))
    options = dict(zip(words[2::2], words[3::2], strict=False))
    assert words[:2] == ["actbench", "run"]
    assert options["--scheme"] == "blockwise:bits=4"
    assert options["--seeds"] == "3"
    repeated = recipe_for(options["--dataset"], "sage").overridden(
        epochs=int(options["--epochs"]),
        hidden=int(options["--hidden"]),
        learning_rate=float(options["--learning-rate"]),
        clip=float(options["--clip"]),
        batch_norm=not words.count("--no-batch-norm"),
    )
    assert repeated.as_record() == record["recipe"]
    together = example_record() | {"environment": example_record()["environment"] | {"together": True}}
    assert "--together" in command_for([together])
    assert "--together" not in command_for([example_record()])
    assert "'my data.npz'" in command_for([example_record(dataset="my data.npz")])


@pytest.mark.parametrize(
    ("dataset", "model", "sampler", "values"),
    [
        ("arxiv", "gat", "full", {"labels_as_input": False, "edge_dropout": 0.0, "optimizer": "adam"}),
        ("arxiv", "gat", "full", {"mask_rate": 0.25, "heads": 2, "input_dropout": 0.0}),
        ("flickr", "gcnii", "full", {"theta": 0.0, "residual": True, "alpha": 0.2}),
        ("arxiv", "gcnii", "saint", {"residual": False, "roots": 7, "walk_length": 1, "steps": 2}),
        ("flickr", "sage", "cluster", {"parts": 9, "parts_per_batch": 2, "input_dropout": 0.5}),
        ("cora", "gcn", "full", {}),
    ],
)
def test_the_command_repeats_the_recipe_of_every_system(
    dataset: str,
    model: Model,
    sampler: Sampler,
    values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Through the command line itself, up to the moment before anything is measured."""
    recipe = recipe_for(dataset, model, sampler).overridden(**values)
    words = shlex.split(command_for([example_record(dataset=dataset, model=model, recipe=recipe.as_record())]))
    found: list[Recipe] = []

    def stop(job: Job, *_: Any) -> list[Job]:
        found.append(job.recipe)
        raise UsageError("far enough")

    monkeypatch.setattr("actbench.cli.run.plan", stop)
    monkeypatch.setattr("actbench.cli.run.make_present", lambda *_: None)
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(tmp_path / "runs.jsonl")])
    with pytest.raises(SystemExit):
        main()
    assert found == [recipe]
