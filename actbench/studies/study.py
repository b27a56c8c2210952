"""A study: a network trained by FP32, then every scheme at its weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch

from actbench.graphs import load
from actbench.meters import describe_environment
from actbench.records import settings
from actbench.records.study import KIND, STUDY_VERSION
from actbench.runs import Job
from actbench.runs.job import description
from actbench.scheme import Scheme
from actbench.studies.distribution import CallFound, study_calls
from actbench.studies.fixed_weights import FixedWeights
from actbench.studies.gradient_noise import GradientNoise, measure_gradient_noise
from actbench.training import recipe_for

ROUNDING_DRAWS: Final = 2
"""How often every stored value is rounded for the measured rounding variance."""


def run_study(
    base: Job, schemes: Sequence[Scheme], draws: int, report: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Train by FP32 as `base` says, then study every scheme at those weights; `report` is told what is done.

    Seconds of `wall_seconds` are those of all of it. Raises `ActbenchError` for a loss, a gradient or a kept tensor
    that is not finite.
    """
    begun = time.monotonic()
    device = torch.device(base.device)
    graph = load(base.dataset, Path(base.data_dir), base.seed)
    document: dict[str, Any] = {
        "kind": KIND,
        "study_version": STUDY_VERSION,
        **{k: v for k, v in description(base, describe_environment(device)).items() if k != "scheme"},
        "graph": graph.as_record(),
        "unusual": _unusual(base),
        "draws": draws,
        "rounding_draws": ROUNDING_DRAWS,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    epochs = base.recipe.epochs
    weights = FixedWeights.trained(
        graph, base.recipe, device, base.seed, lambda epoch: report(f"FP32, epoch {epoch} of {epochs}")
    )
    document["schemes"] = _study_schemes(weights, schemes, draws, report)
    document["wall_seconds"] = time.monotonic() - begun
    return document


def _study_schemes(
    weights: FixedWeights, schemes: Sequence[Scheme], draws: int, report: Callable[[str], None]
) -> list[dict[str, Any]]:
    found = []
    stored: dict[Scheme, list[dict[str, Any]]] = {}
    for scheme in dict.fromkeys(schemes):
        name = str(scheme)

        def tell(what: object, name: str = name) -> None:
            report(f"{name}: {what}")

        noise = measure_gradient_noise(weights, scheme, draws, lambda draw: tell(f"gradient, draw {draw} of {draws}"))
        # Level tables are compared on equal values, so schemes that differ in them alone store alike.
        alike = replace(scheme, name="blockwise", levels="uniform", dropout="bit") if scheme.keeps_inputs else scheme
        if alike not in stored:
            stored[alike] = [_call_record(call) for call in study_calls(weights, scheme, ROUNDING_DRAWS, tell)]
        found.append(
            {
                "scheme": scheme.as_record(),
                "saved_bytes": weights.saved_bytes(scheme),
                "noise": _noise_record(noise),
                "calls": stored[alike],
            }
        )
    return found


def _noise_record(found: GradientNoise) -> dict[str, Any]:
    tensors = [{"parameter": name, **asdict(noise)} for name, noise in found.tensors.items()]
    return {"squared_norm": found.squared_norm, **asdict(found.whole), "tensors": tensors}


def _call_record(call: CallFound) -> dict[str, Any]:
    return asdict(call) | {"normal_over_uniform": call.normal_over_uniform}


def _unusual(base: Job) -> dict[str, Any]:
    """The sampler, and the settings that are not the data set's own, but for those that every heading names."""
    recipe = base.recipe.as_record()
    own = recipe_for(base.dataset, base.recipe.architecture.model, base.recipe.sampler).as_record()
    sampler = {} if base.recipe.sampler == "full" else {"sampler": base.recipe.sampler}
    told = settings(recipe, "layers", "hidden", "epochs")
    return sampler | {key: value for key, value in told.items() if value != own[key]}
