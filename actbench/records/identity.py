"""What makes two records the same measurement, the same series, or of the same machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

MACHINE_FIELDS: Final = ("device", "device name", "CUDA", "threads", "actbench", "torch", "deterministic", "together")
"""What `machine` tells apart, as a user reads it."""
_SOURCE: Final = "source"
"""Who chose a recipe's settings, which changes nothing in them."""


def settings(recipe: Mapping[str, Any], *besides: str) -> dict[str, Any]:
    """What a recipe sets, in its order, but for the names in `besides`."""
    return {name: value for name, value in recipe.items() if name not in (_SOURCE, *besides)}


def series(record: Mapping[str, Any], *besides: str) -> str:
    """Equal for records, or studies, of one data set, model and recipe, whatever scheme, seed and machine.

    Of the recipe `besides` is left out.
    """
    told = sorted(settings(record["recipe"], *besides).items(), key=str)
    return repr((record["dataset"], record["digest"], record["model"], told))


def machine(environment: Mapping[str, Any]) -> tuple[Any, ...]:
    """Equal for environments whose figures belong in one table: `MACHINE_FIELDS`' values.

    Deterministic operations are others, with a speed and a memory of their own; runs together in one process know no
    peak of it.
    """
    versions = environment["versions"]
    fields = (environment[field] for field in ("device", "device_name", "cuda", "threads"))
    ways = (environment.get(way, False) for way in ("deterministic", "together"))
    return (*fields, versions["actbench"], versions["torch"], *ways)


def identity(record: Mapping[str, Any]) -> str:
    """Equal for two records of the same measurement on the same kind of machine and software."""
    return repr((series(record), record["scheme"]["name"], record["seed"], machine(record["environment"])))
