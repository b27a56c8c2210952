"""Recipes: the settings that a model is trained with on a data set, each of them overridable."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from actbench.models import Architecture, Model


@dataclass(frozen=True)
class Recipe:
    """Adam, full batch. `clip` bounds the gradient's norm (None: unbounded)."""

    architecture: Architecture
    learning_rate: float
    weight_decay: float
    epochs: int
    clip: float | None
    source: str

    def as_record(self) -> dict[str, Any]:
        """The recipe as flat JSON values."""
        record = asdict(self)
        architecture: dict[str, Any] = record.pop("architecture")
        return architecture | record

    def overridden(self, **values: Any) -> Recipe:
        """This recipe with those of `values` that are not None in place; a `clip` of 0 means none."""
        given = {key: value for key, value in values.items() if value is not None}
        if given.get("clip") == 0:
            given["clip"] = None
        inner = {field.name for field in fields(Architecture)}
        architecture = replace(self.architecture, **{k: v for k, v in given.items() if k in inner})
        rest = {k: v for k, v in given.items() if k not in inner}
        return replace(self, architecture=architecture, **rest)


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
    source: str = "EXACT and i-EXACT, the authors' configuration files"


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
    "ogbn-arxiv": _ARXIV,
    "flickr": _FLICKR,
    "reddit": _REDDIT,
    "yelp": _YELP,
    "products": _PRODUCTS,
    "ogbn-products": _PRODUCTS,
    "cora": _CITATION,
    "citeseer": _CITATION,
    "pubmed": _CITATION,
    "computers": _AMAZON_AND_COAUTHOR,
    "photo": _AMAZON_AND_COAUTHOR,
    "physics": _AMAZON_AND_COAUTHOR,
    "tolokers": _HETEROPHILOUS,
    "minesweeper": _HETEROPHILOUS,
}


def recipe_for(dataset: str, model: Model) -> Recipe:
    """The default recipe: the papers' where they have one, the literature's or ours elsewhere (see `source`).

    A generated graph takes the recipe of the real one that it is shaped after.
    """
    twin = dataset.removeprefix("synthetic:").partition("@")[0]
    s = _SETTINGS.get(twin, _OWN_DATA)
    architecture = Architecture(model, s.layers, s.hidden, s.dropout, s.batch_norm)
    return Recipe(architecture, s.learning_rate, s.weight_decay, s.epochs, s.clip, s.source)
