"""Recipes: the settings that a model is trained with on a data set, each of them overridable."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Final, Literal

from actbench.errors import UsageError
from actbench.models import Architecture, Model

Sampler = Literal["full", "saint", "cluster"]
Optimizer = Literal["adam", "rmsprop"]
AUTHORS: Final = "EXACT and i-EXACT, the authors' configuration files"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. `clip` bounds the gradient's norm (None: unbounded).

    With labels as input, a share `mask_rate` of the training labels is hidden and predicted, anew in every step. Full
    batch, one step is an epoch. GraphSAINT takes `steps` of them, each on what random walks of `walk_length` from
    `roots` random nodes reach; Cluster-GCN cuts the graph into `parts` and takes `parts_per_batch` in each step, every
    part once an epoch. What a sampler does not have is None.
    """

    architecture: Architecture
    learning_rate: float
    weight_decay: float
    epochs: int
    clip: float | None
    source: str
    optimizer: Optimizer = "adam"
    mask_rate: float | None = None
    sampler: Sampler = "full"
    roots: int | None = None
    walk_length: int | None = None
    steps: int | None = None
    parts: int | None = None
    parts_per_batch: int | None = None

    def as_record(self) -> dict[str, Any]:
        """The recipe as flat JSON values, without what is at the default that `DEFAULTS` has for it."""
        record = asdict(self)
        architecture: dict[str, Any] = record.pop("architecture")
        flat = architecture | record
        return {key: value for key, value in flat.items() if key not in DEFAULTS or value != DEFAULTS[key]}

    def overridden(self, **values: Any) -> Recipe:
        """This recipe with those of `values` that are not None in place; `clip` and `theta` of 0 mean none.

        Raises `UsageError` for a value that means nothing under this recipe's model or sampler.
        """
        given = {key: value for key, value in values.items() if value is not None}
        self._check(given)
        for key in ("clip", "theta"):
            if given.get(key) == 0:
                given[key] = None
        inner = {field.name for field in fields(Architecture)}
        architecture = replace(self.architecture, **{k: v for k, v in given.items() if k in inner})
        rate = given.get("mask_rate", self.mask_rate or 0.5) if architecture.labels_as_input else None
        rest = {k: v for k, v in given.items() if k not in inner} | {"mask_rate": rate}
        return replace(self, architecture=architecture, **rest)

    def _check(self, given: dict[str, Any]) -> None:
        has = (self.architecture.model, self.sampler)
        for key, (value, option) in _BELONGS.items():
            if key in given and value not in has:
                name = key.replace("_", "-")
                raise UsageError(f"--{name} means nothing without {option} {value}: leave one out or add the other.")
        if "mask_rate" in given and not given.get("labels_as_input", self.architecture.labels_as_input):
            raise UsageError("--mask-rate means nothing without --labels-as-input: leave one out or add the other.")
        parts, at_once = given.get("parts", self.parts), given.get("parts_per_batch")
        if parts is not None and at_once is not None and at_once > parts:
            raise UsageError(
                f"--parts-per-batch {at_once} is more than there are, {parts}: give fewer, or more --parts."
            )


DEFAULTS: Final[dict[str, Any]] = {
    field.name: field.default
    for record in (Architecture, Recipe)
    for field in fields(record)
    if field.default is not MISSING
}
"""What stands for a field that a record's recipe leaves out."""

_BELONGS: Final = {
    **dict.fromkeys(("alpha", "theta", "residual"), ("gcnii", "--model")),
    **dict.fromkeys(("heads", "edge_dropout"), ("gat", "--model")),
    **dict.fromkeys(("roots", "walk_length", "steps"), ("saint", "--sampler")),
    **dict.fromkeys(("parts", "parts_per_batch"), ("cluster", "--sampler")),
}


@dataclass(frozen=True)
class _Setting:
    layers: int
    hidden: int
    dropout: float
    batch_norm: bool
    learning_rate: float
    epochs: int
    weight_decay: float = 0.0
    clip: float | None = 0.5
    source: str = AUTHORS


_ARXIV = _Setting(3, 128, 0.5, True, 0.01, 500)
_FLICKR = _Setting(2, 256, 0.3, True, 0.01, 400)
_REDDIT = _Setting(2, 256, 0.5, True, 0.01, 400)
_YELP = _Setting(2, 512, 0.1, True, 0.01, 500)
_PRODUCTS = _Setting(3, 256, 0.5, False, 0.002, 500)
_CITATION = _Setting(2, 16, 0.5, False, 0.01, 200, 5e-4, None, "Kipf and Welling, ICLR 2017, section 5.2")
_AMAZON_AND_COAUTHOR = _Setting(2, 64, 0.5, True, 0.01, 100, 0.0, None, "actbench")
_HETEROPHILOUS = _Setting(3, 128, 0.2, True, 0.01, 300, 0.0, None, "actbench")
_OWN_DATA = _Setting(2, 128, 0.5, True, 0.01, 200, 0.0, 0.5, "actbench")

_SETTINGS: Final = {
    "arxiv": _ARXIV,
    "flickr": _FLICKR,
    "reddit": _REDDIT,
    "yelp": _YELP,
    "products": _PRODUCTS,
    "cora": _CITATION,
    "citeseer": _CITATION,
    "pubmed": _CITATION,
    "computers": _AMAZON_AND_COAUTHOR,
    "photo": _AMAZON_AND_COAUTHOR,
    "physics": _AMAZON_AND_COAUTHOR,
    "tolokers": _HETEROPHILOUS,
    "minesweeper": _HETEROPHILOUS,
}
"""For SAGE and GCN on full batches; other models and samplers change some of each."""

_OURS: Final[dict[str, dict[str, Any]]] = {
    "gcnii": {"layers": 8, "hidden": 64, "alpha": 0.1, "theta": 0.5},
    "gat": {"hidden": 32, "heads": 3, "edge_dropout": 0.3},
    "saint": {"roots": 500, "walk_length": 2, "steps": 5},
    "cluster": {"parts": 50, "parts_per_batch": 5},
}
"""What a model or sampler changes where the data set has no setting of its own."""
_SAMPLING: Final = ("roots", "walk_length", "steps", "parts", "parts_per_batch")

_CHANGES: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("arxiv", "gcnii"): {
        "layers": 16, "hidden": 256, "dropout": 0.1, "input_dropout": 0.1, "alpha": 0.5, "residual": True,
        "learning_rate": 0.001, "epochs": 1000,
    },
    ("flickr", "gcnii"): {"layers": 8, "hidden": 256, "dropout": 0.5, "alpha": 0.1, "theta": 0.5},
    ("reddit", "gcnii"): {
        "layers": 4, "hidden": 256, "alpha": 0.1, "theta": 0.5, "source": f"{AUTHORS}; alpha and theta: actbench",
    },
    ("yelp", "gcnii"): {
        "layers": 4, "hidden": 512, "dropout": 0.0, "alpha": 0.1, "theta": 0.5,
        "source": f"{AUTHORS}; alpha and theta: actbench",
    },
    ("arxiv", "gat"): {
        "hidden": 128, "heads": 3, "dropout": 0.75, "input_dropout": 0.25, "edge_dropout": 0.7,
        "labels_as_input": True, "mask_rate": 0.5, "optimizer": "rmsprop", "learning_rate": 0.002, "epochs": 2000,
    },
    ("arxiv", "saint"): {
        "hidden": 256, "roots": 10_000, "walk_length": 3, "steps": 5, "source": f"{AUTHORS}; steps: actbench",
    },
    ("flickr", "saint"): {
        "dropout": 0.2, "epochs": 15, "roots": 6000, "walk_length": 2, "steps": 5,
        "source": f"{AUTHORS}; steps: actbench",
    },
    ("flickr", "cluster"): {"dropout": 0.2, "epochs": 15, "parts": 1000, "parts_per_batch": 30},
    ("products", "saint"): {
        "learning_rate": 0.01, "epochs": 20, "roots": 20_000, "walk_length": 3, "steps": 30,
        "source": f"{AUTHORS}; roots: actbench",
    },
    ("products", "cluster"): {
        "learning_rate": 0.001, "epochs": 50, "parts": 15_000, "parts_per_batch": 32,
        "source": f"{AUTHORS}; parts a batch: actbench",
    },
    ("reddit", "saint"): {"roots": 6000, "walk_length": 2, "steps": 13, "source": "actbench"},
    ("reddit", "cluster"): {"parts": 1500, "parts_per_batch": 20, "source": "actbench"},
    ("yelp", "saint"): {"roots": 6000, "walk_length": 2, "steps": 40, "source": "actbench"},
}  # fmt: skip
"""What a model, or SAGE with a sampler, changes of the above on a data set: the authors' unless `source` says other."""

_SCALED: Final = ("roots", "parts", "parts_per_batch")


def recipe_for(dataset: str, model: Model, sampler: Sampler = "full") -> Recipe:
    """The default recipe: the papers' where they have one, the literature's or ours elsewhere (see `source`).

    A generated graph takes the recipe of the real one that it is shaped after; of a scaled one, the number of roots or
    parts is scaled too, so that an epoch has about as many steps.
    """
    whole, _, scale = dataset.removeprefix("synthetic:").partition("@")
    twin = whole.removeprefix("ogbn-")
    s = _SETTINGS.get(twin, _OWN_DATA)
    architecture = Architecture(model, s.layers, s.hidden, s.dropout, s.batch_norm)
    recipe = Recipe(architecture, s.learning_rate, s.weight_decay, s.epochs, s.clip, s.source, sampler=sampler)
    if model in _OURS:
        recipe = _changed(recipe, _CHANGES.get((twin, model)) or _OURS[model] | {"source": "actbench"})
    if sampler != "full":
        changes = _CHANGES.get((twin, sampler)) or _OURS[sampler] | {"source": "actbench"}
        if model != "sage":
            changes = {key: changes[key] for key in _SAMPLING if key in changes} | {"source": "actbench"}
        share = float(scale) if scale else 1.0
        scaled = {key: max(1, round(changes[key] * share)) for key in _SCALED if key in changes}
        recipe = _changed(recipe, changes | scaled)
    return recipe


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    inner = {field.name for field in fields(Architecture)}
    architecture = replace(recipe.architecture, **{k: v for k, v in changes.items() if k in inner})
    return replace(recipe, architecture=architecture, **{k: v for k, v in changes.items() if k not in inner})
