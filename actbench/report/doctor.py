"""The table of what a machine has, and of what is wrong with it."""

from __future__ import annotations

from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

_STYLES: Final = {"ok": None, "warning": "yellow", "problem": "red"}
_MARKS: Final = {"ok": "", "warning": "!", "problem": "X"}


def doctor_table(document: dict[str, Any]) -> RenderableType:
    """The findings of `examine`, and below them every problem and warning with its remedy."""
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("", "what", ""):
        grid.add_column(heading, no_wrap=True)
    grid.add_column("found", overflow="fold")
    before = None
    for finding in document["findings"]:
        topic = "" if finding["topic"] == before else finding["topic"]
        cells = (_MARKS[finding["state"]], topic, finding["name"], finding["value"])
        grid.add_row(*map(Text, cells), style=_STYLES[finding["state"]])
        before = finding["topic"]
    lines = [
        Text(f"{_MARKS[state]} {finding['remedy']}", style=_STYLES[state] or "")
        for state in ("problem", "warning")
        for finding in document["findings"]
        if finding["state"] == state
    ]
    verdict = "All that is needed works." if document["healthy"] else "Something that is needed does not work."
    return Group(grid, *lines, Text(verdict, style="bold"))
