"""What tuning tried, for a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from actbench.report.phrases import NOTHING
from actbench.studies.tuning import CallTuned, Tried, Tuning

_NEIGHBOURS = 2


def tuning_table(tuning: Tuning, limit: str) -> RenderableType:
    """The whole schemes that were measured, and of every call the choice with its neighbours on the front."""
    title = f"Tuned for {limit}"
    return Group(
        Text(title, style="bold"),
        _tried(tuning),
        Text("Predicted: the sum of what each call causes alone; else measured, mean ± standard error.", "dim"),
        *_derived(tuning),
        Text("Candidates by call, those near the choice of the ones that no other beats in bytes and noise", "bold"),
        _calls(tuning.calls),
        Text(
            f"{tuning.other_bytes:,} bytes are masks, dropouts and statistics, which no candidate changes. Noise: "
            "E‖ĝ − g‖² / ‖g‖² with all other inputs exact; ~ in closed form from one backward pass, else measured.",
            "dim",
        ),
    )


def _tried(tuning: Tuning) -> Grid:
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    grid.add_column("scheme", overflow="fold")
    for heading in ("saved\nbytes", "predicted\nbytes", "noise", "predicted\nnoise", ""):
        grid.add_column(heading, justify="right", no_wrap=True)
    for each in tuning.tried:
        chosen = each.scheme == tuning.scheme
        grid.add_row(*_cells(each), "chosen" if chosen else "", style="bold" if chosen else None)
    return grid


def _derived(tuning: Tuning) -> list[Text]:
    """That no choice by call gives what a derived scheme gives, if one was measured."""
    names = ", ".join(str(each.scheme) for each in tuning.tried if each.scheme.derives)
    return [Text(f"{names}: calls share what is kept, so that there is no choice by call.", "dim")] if names else []


def _cells(each: Tried) -> list[str]:
    return [
        str(each.scheme),
        f"{each.saved_bytes:,}",
        NOTHING if each.predicted_bytes is None else f"{each.predicted_bytes:,}",
        f"{each.noise.mean:.3g} ± {each.noise.standard_error:.1g}",
        NOTHING if each.predicted_noise is None else f"{each.predicted_noise:.3g}",
    ]


def _calls(calls: list[CallTuned]) -> Grid:
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    grid.add_column("input of", no_wrap=True)
    grid.add_column("kept as", overflow="fold")
    for heading in ("bytes", "noise", ""):
        grid.add_column(heading, justify="right", no_wrap=True)
    for call in calls:
        at = call.front.index(call.chosen)
        near = range(max(at - _NEIGHBOURS, 0), min(at + _NEIGHBOURS + 1, len(call.front)))
        tried = f"{call.call} ({len(call.front)} of {len(call.candidates)})"
        for row, position in enumerate(near):
            candidate = call.candidates[call.front[position]]
            mark = "" if candidate.measured or candidate.noise == 0 else "~"
            grid.add_row(
                tried if row == 0 else "",
                str(candidate.choice),
                f"{candidate.saved_bytes:,}",
                f"{mark}{candidate.noise:.3g}",
                "chosen" if position == at else "",
                style="bold" if position == at else None,
            )
    return grid
