"""Tables for a terminal, drawn with rich."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from actbench.analysis import Row, Table

MEBIBYTE = 2**20
_NOTHING = "–"


def render_tables(tables: list[Table]) -> RenderableType:
    """Every table with its title above and what must be known to read it below."""
    return Group(*(_render(table) for table in tables))


def ledger_table(record: dict[str, Any]) -> RenderableType:
    """What one run kept for backward, storage by storage, in the order of the forward pass."""
    grid = Grid(title=f"Kept for backward: {record['dataset']}, {record['model']}, {record['scheme']['name']}")
    for name, justify in (("operation", "left"), ("call", "right"), ("kept as", "left"), ("shape", "right")):
        grid.add_column(name, justify=justify)  # type: ignore[arg-type]
    grid.add_column("bytes", justify="right")
    for entry in record["ledger"]:
        shape = " x ".join(map(str, entry["shape"]))
        grid.add_row(entry["operation"], str(entry["call"]), entry["dtype"], shape, f"{entry['saved_bytes']:,}")
    grid.add_section()
    saved, predicted = record["saved_bytes"], record["predicted_saved_bytes"]
    if saved is not None:
        grid.add_row("all of forward", "", "", "measured", f"{saved:,}", style="bold")
    if predicted is not None:
        grid.add_row("", "", "", "predicted", f"{predicted:,}")
    if record["loss_saved_bytes"] is not None:
        grid.add_row("the loss, not in the sum", "", "", "measured", f"{record['loss_saved_bytes']:,}")
    return grid


def _render(table: Table) -> RenderableType:
    grid = Grid(title=_title(table), title_justify="left", title_style="bold", caption_justify="left")
    grid.add_column("scheme", no_wrap=True)
    grid.add_column(f"test {table.metric or 'score'} %", justify="right", no_wrap=True)
    grid.add_column("activations MiB", justify="right")
    grid.add_column("of FP32", justify="right")
    grid.add_column(f"whole peak MiB ({table.peak})", justify="right")
    grid.add_column("of FP32", justify="right")
    grid.add_column("epochs/s", justify="right")
    grid.add_column("of FP32", justify="right")
    grid.add_column("runs", no_wrap=True)
    for row in table.rows:
        grid.add_row(*_cells(row), style=None if set(row.statuses) == {"ok"} else "yellow")
    return Group(grid, *(Text(note, style="dim") for note in _notes(table)))


def _title(table: Table) -> str:
    recipe = table.recipe
    generated = " (generated graph)" if table.synthetic else ""
    return (
        f"{table.dataset}{generated} · {table.model} {recipe['layers']} x {recipe['hidden']} · "
        f"{recipe['epochs']} epochs · {table.device_name}"
    )


def _cells(row: Row) -> list[str]:
    return [
        row.scheme,
        _score(row),
        _mebibytes(row.saved_bytes),
        _percent(row.saved_ratio),
        _mebibytes(row.peak_bytes),
        _percent(row.peak_ratio),
        _NOTHING if row.epochs_per_second is None else f"{row.epochs_per_second:.2f}",
        _NOTHING if row.speed_ratio is None else f"{row.speed_ratio:.2f} x",
        ", ".join(f"{count} {status}" for status, count in row.statuses.items()),
    ]


def _score(row: Row) -> str:
    if row.score_mean is None:
        return _NOTHING
    spread = "" if row.score_std is None else f" ± {100 * row.score_std:.2f}"
    return f"{100 * row.score_mean:.2f}{spread}"


def _mebibytes(value_bytes: float | None) -> str:
    return _NOTHING if value_bytes is None else f"{value_bytes / MEBIBYTE:,.2f}"


def _percent(ratio: float | None) -> str:
    return _NOTHING if ratio is None else f"{100 * ratio:.1f} %"


def _notes(table: Table) -> list[str]:
    whole = "host memory of the process, interpreter and libraries included"
    if table.device == "cuda":
        whole = "device memory that tensors took"
    notes = [
        "Activations: bytes kept for backward after the model's forward pass, without parameters and graph data.",
        f"Whole peak: {whole}, after warm-up. Score: at the best validation epoch.",
    ]
    if table.seeds == 1:
        notes.append("One seed is not a result: --seeds 10 gives means with their spread.")
    if table.synthetic:
        notes.append("A generated graph: bytes and speed are those of its shape, scores say nothing of the real data.")
    return notes


def datasets_table(listed: list[dict[str, Any]], data_dir: str) -> RenderableType:
    """The catalogue; `listed` holds its entries as JSON values, each with `present`."""
    grid = Grid(caption=f"present: in {data_dir}", caption_justify="left")
    grid.add_column("name", no_wrap=True)
    for name in ("nodes", "directed edges", "features", "classes"):
        grid.add_column(name, justify="right")
    for name in ("metric", "split", "licence", "download", "present"):
        grid.add_column(name)
    for entry in listed:
        sizes = (f"{entry[key]:,}" for key in ("nodes", "edges", "features", "classes"))
        size = "generated" if entry["synthetic"] else _download(entry["download_bytes"])
        there = "yes" if entry["present"] else "no"
        grid.add_row(entry["name"], *sizes, entry["metric"], entry["split"], entry["licence"], size, there)
    return grid


def _download(size_bytes: int | None) -> str:
    return "size unknown" if size_bytes is None else f"{size_bytes / MEBIBYTE:,.1f} MiB"
