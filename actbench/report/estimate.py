"""The table of estimated memory."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from actbench.report.phrases import NOTHING, mebibytes_text, percent_text

_FITS = {True: "yes", False: "no"}
_LEAST_SCHEME_COLUMNS = 12


def estimate_table(found: dict[str, Any]) -> RenderableType:
    """The estimates of `forecast`, a scheme a row, in two tables below one another; 80 columns are enough."""
    kinds = ["activation", "graph", "parameters", "optimizer", "transients"]
    fields = ["saved", "graph", "parameter", "optimizer", "transient"]
    if found["device"] == "cuda":
        kinds, fields = [*kinds, "cuBLAS"], [*fields, "cublas"]
    parts = _grid([f"{kind}\nMiB" for kind in kinds])
    for row in found["rows"]:
        parts.add_row(row["scheme"], *(mebibytes_text(row[f"{field}_bytes"]) for field in fields))
    bounds = [] if found["budget_bytes"] is None else ["largest_hidden", "largest_nodes"]
    if "module" in found["network"]:
        bounds = bounds[1:]
    headings = [field.replace("_", "\n") for field in bounds]
    whole = _grid(["peak\nMiB", "activations\nof peak", *["fits"] * bool(bounds), *headings])
    for row in found["rows"]:
        cells = [mebibytes_text(row["peak_bytes"]), percent_text(row["saved_share"])]
        if bounds:
            cells += [_FITS[row["fits"]], *(_bound(row[field]) for field in bounds)]
        whole.add_row(row["scheme"], *cells)
    notes = (Text(note, style="dim") for note in _notes(found))
    return Group(Text(_title(found), style="bold"), parts, whole, *notes)


def _grid(headings: list[str]) -> Grid:
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    grid.add_column("scheme", overflow="fold", min_width=_LEAST_SCHEME_COLUMNS)
    for heading in headings:
        grid.add_column(heading, justify="right", no_wrap=True)
    return grid


def _bound(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def _title(found: dict[str, Any]) -> str:
    graph, network = found["graph"], found["network"]
    generated = " (generated graph)" if graph["synthetic"] else ""
    sizes = f"{graph['nodes']:,} nodes, {graph['edges']:,} edges, {graph['features']:,} features"
    name = network.get("module") or f"{network['model']} {network['layers']} x {network['hidden']}"
    return (
        f"Estimated, not measured · {graph['name']}{generated}: {sizes}, {graph['classes']:,} classes · "
        f"{name} · {found['device']}"
    )


def _notes(found: dict[str, Any]) -> list[str]:
    rows = found["rows"]
    notes = [
        "Activations: kept for backward after the forward pass. Peak: most that is held at one moment of an epoch, the "
        "sum of all kinds; transients are gradients, outputs and workspaces then.",
        *found["left_out"],
    ]
    if found["budget_bytes"] is not None:
        hidden = "" if "module" in found["network"] else "largest hidden: on this graph; "
        notes.append(
            f"The budget of {found['budget_bytes']:,} bytes is for the peak; {hidden}largest nodes: with this network "
            f"and edges in proportion; {NOTHING}: none is too large."
        )
    smallest = min(rows, key=lambda row: row["peak_bytes"])
    notes.append(
        f"No peak is below {mebibytes_text(smallest['peak_bytes'])} MiB, and of {smallest['scheme']}'s "
        f"{percent_text(1 - smallest['saved_share'])} are no activations."
    )
    return notes
