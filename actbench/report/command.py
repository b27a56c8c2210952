"""The command behind a row of a report."""

from __future__ import annotations

import shlex
from typing import Final

from actbench.records import Record
from actbench.training import DEFAULTS, recipe_for

_OPTIONS: Final = {
    "epochs": "--epochs",
    "layers": "--layers",
    "hidden": "--hidden",
    "dropout": "--dropout",
    "learning_rate": "--learning-rate",
    "weight_decay": "--weight-decay",
    "clip": "--clip",
    "optimizer": "--optimizer",
    "input_dropout": "--input-dropout",
    "alpha": "--alpha",
    "theta": "--theta",
    "heads": "--heads",
    "edge_dropout": "--edge-dropout",
    "mask_rate": "--mask-rate",
    "roots": "--roots",
    "walk_length": "--walk-length",
    "steps": "--steps",
    "parts": "--parts",
    "parts_per_batch": "--parts-per-batch",
}
_NONE_AS_0: Final = ("clip", "theta")
_FLAGS: Final = {"batch_norm": "batch-norm", "residual": "residual", "labels_as_input": "labels-as-input"}


def command_for(records: list[Record]) -> str:
    """The `actbench run` that measures these runs of one scheme again, for a shell."""
    first = records[0]
    recipe = DEFAULTS | first["recipe"]
    usual = DEFAULTS | recipe_for(first["dataset"], first["model"], recipe["sampler"]).as_record()
    words = ["actbench", "run", "--dataset", first["dataset"], "--model", first["model"]]
    if recipe["sampler"] != "full":
        words += ["--sampler", recipe["sampler"]]
    words += ["--scheme", first["scheme"]["name"], "--seeds", str(max(r["seed"] for r in records) + 1)]
    words += ["--device", first["environment"]["device"]]
    words += [f"--{way}" for way in ("deterministic", "together") if first["environment"].get(way)]
    for field, option in _OPTIONS.items():
        absent = recipe.get(field) is None and field not in _NONE_AS_0
        if field in recipe and recipe[field] != usual[field] and not absent:
            words += [option, str(recipe[field] or 0)]
    for field, flag in _FLAGS.items():
        if field in recipe and recipe[field] != usual[field]:
            words.append(f"--{flag}" if recipe[field] else f"--no-{flag}")
    return shlex.join(words)
