"""Jobs: one training run each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from actbench.home import expand_home
from actbench.models import Architecture
from actbench.scheme import Scheme
from actbench.training import Recipe


@dataclass(frozen=True)
class Job:
    """One training run, fully specified; `digest` is the SHA-256 of a data file of the user's own.

    `deterministic` asks for torch's deterministic operations alone, `together` says that its process measures other
    jobs too.
    """

    dataset: str
    data_dir: str
    digest: str | None
    scheme: Scheme
    seed: int
    recipe: Recipe
    device: str
    deterministic: bool = False
    together: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads."""
        return asdict(self) | {"scheme": str(self.scheme)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Job:
        """The job that `to_json` wrote."""
        recipe = dict(values["recipe"])
        architecture = Architecture(**recipe.pop("architecture"))
        rest = values | {"scheme": Scheme.parse(values["scheme"]), "recipe": Recipe(architecture, **recipe)}
        return Job(**rest)


def digest_of(dataset: str) -> str | None:
    """SHA-256 of a data file of the user's own, None for a named data set."""
    if not dataset.endswith(".npz"):
        return None
    with expand_home(dataset).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plan(base: Job, schemes: Iterable[Scheme], seeds: int) -> list[Job]:
    """A job for every seed from 0 and every scheme; all schemes of a seed come before the next seed."""
    values = {field: getattr(base, field) for field in Job.__dataclass_fields__}
    unique = list(dict.fromkeys(schemes))
    return [Job(**values | {"scheme": scheme, "seed": seed}) for seed in range(seeds) for scheme in unique]


def description(job: Job, environment: dict[str, Any]) -> dict[str, Any]:
    """The part of the job's record that is known before it starts; of `environment` as it is, and as the job asks."""
    return {
        "dataset": job.dataset,
        "digest": job.digest,
        "model": job.recipe.architecture.model,
        "scheme": job.scheme.as_record(),
        "seed": job.seed,
        "recipe": job.recipe.as_record(),
        "environment": environment | {name: True for name in ("deterministic", "together") if getattr(job, name)},
    }
