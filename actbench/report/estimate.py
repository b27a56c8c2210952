"""The table of estimated memory."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from actbench.report.phrases import NOTHING, mebibytes_text, percent_text

_FITS = {True: "yes", False: "no", None: "?"}
_KINDS = ("saved", "graph", "parameter", "optimizer", "transient")


def estimate_table(found: dict[str, Any]) -> RenderableType:
    """The estimates of `forecast`, a scheme a row."""
    cuda, budget = found["device"] == "cuda", found["budget_bytes"]
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    grid.add_column("scheme", overflow="fold")
    headings = ["activation\nMiB", "graph\nMiB", "parameters\nMiB", "optimizer\nMiB", "transients\nMiB"]
    headings += ["cuBLAS\nMiB"] * cuda + ["peak\nMiB", "activations\nof peak"]
    headings += ["fits", "largest\nhidden", "largest\nnodes"] * (budget is not None)
    for heading in headings:
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in found["rows"]:
        cells = [mebibytes_text(row[f"{kind}_bytes"]) for kind in (*_KINDS, *["library"] * cuda, "peak")]
        cells.append(percent_text(row["saved_share"]))
        if budget is not None:
            cells += [_FITS[row["fits"]], _bound(row["largest_hidden"]), _bound(row["largest_nodes"])]
        grid.add_row(row["scheme"], *cells)
    notes = (Text(note, style="dim") for note in _notes(found))
    return Group(Text(_title(found), style="bold"), grid, *notes)


def _bound(number: int | None) -> str:
    return NOTHING if number is None else f"{number:,}"


def _title(found: dict[str, Any]) -> str:
    graph, network = found["graph"], found["network"]
    generated = " (generated graph)" if graph["synthetic"] else ""
    sizes = f"{graph['nodes']:,} nodes, {graph['edges']:,} edges, {graph['features']:,} features"
    return (
        f"Estimated, not measured · {graph['name']}{generated}: {sizes}, {graph['classes']:,} classes · "
        f"{network['model']} {network['layers']} x {network['hidden']} · {found['device']}"
    )


def _notes(found: dict[str, Any]) -> list[str]:
    rows = found["rows"]
    notes = [
        "Activations: kept for backward after the forward pass. Peak: most that is held at one moment of an epoch, the "
        "sum of all kinds; transients are gradients, outputs and workspaces then.",
        *found["left_out"],
    ]
    if found["budget_bytes"] is not None:
        notes.append(
            f"The budget of {found['budget_bytes']:,} bytes is for the peak. Largest hidden: on this graph; largest "
            f"nodes: with this network and edges in proportion; {NOTHING}: none is too large."
        )
    notes += dict.fromkeys(row["reason"] for row in rows if row["reason"])
    known = [row for row in rows if row["peak_bytes"] is not None]
    if known:
        smallest = min(known, key=lambda row: row["peak_bytes"])
        notes.append(
            f"No peak is below {mebibytes_text(smallest['peak_bytes'])} MiB, and of {smallest['scheme']}'s "
            f"{percent_text(1 - smallest['saved_share'])} are no activations."
        )
    return notes
