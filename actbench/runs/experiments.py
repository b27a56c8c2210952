"""The papers' experiments: which models and schemes stand in a table, on which data set unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actbench.models import Model
from actbench.training import Sampler


@dataclass(frozen=True)
class Experiment:
    """Every scheme for every system, a model and what it is trained on, `seeds` times.

    `schemes` are the paper's lines, `ours` those that stand beside them.
    """

    dataset: str
    systems: tuple[tuple[Model, Sampler], ...]
    schemes: tuple[str, ...]
    seeds: int
    ours: tuple[str, ...] = ()


TABLE1: Final = Experiment(
    dataset="ogbn-arxiv",
    systems=(("sage", "full"),),
    schemes=(
        "fp32",
        "exact",
        *(f"blockwise:block={rows}r" for rows in (2, 4, 8, 16, 32)),
        "blockwise",
        "blockwise-vm",
    ),
    seeds=10,
    ours=("derived",),
)
"""i-EXACT, Table 1: FP32, a block for every row, G/R = 2 … 64 and variance-minimised levels, at D/R = 8 and INT2."""

EXACT: Final = Experiment(
    dataset="ogbn-arxiv",
    systems=(
        ("sage", "full"),
        ("gcn", "full"),
        ("gcnii", "full"),
        ("gat", "full"),
        ("sage", "saint"),
        ("sage", "cluster"),
    ),
    schemes=("fp32", "exact:projection=1", "exact"),
    seeds=10,
)
"""EXACT's grid: INT2 alone and with a random projection to an eighth, on whole graphs and on samples of them."""

EXPERIMENTS: Final = {"table1": TABLE1, "exact": EXACT}
