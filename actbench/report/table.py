"""Tables for a terminal, drawn with rich."""

from __future__ import annotations

import io
import re
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from actbench.analysis import Row, Table
from actbench.report.phrases import mebibytes_text, model_text, percent_text, rate_text, score_text, times_text, word

_PICTURE_COLUMNS: Final = 84


def render_tables(tables: list[Table]) -> RenderableType:
    """Every table with its title above and what must be known to read it below."""
    return Group(*(_render(table) for table in tables))


def draw_tables(tables: list[Table]) -> str:
    """The same as a picture of a terminal: one SVG with a background of its own, which fetches nothing."""
    console = Console(file=io.StringIO(), width=_PICTURE_COLUMNS, record=True, color_system="truecolor")
    console.print(render_tables(tables))
    picture = console.export_svg(title="actbench", unique_id="actbench")
    # Two fonts that a browser would fetch and can do without: every text is told its length.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, count=2, flags=re.DOTALL)


def ledger_table(record: dict[str, Any]) -> RenderableType:
    """What one run kept for backward, storage by storage, in the order of the forward pass."""
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False)
    grid.add_column("operation")
    grid.add_column("call", justify="right")
    grid.add_column("kept as")
    grid.add_column("shape", justify="right")
    grid.add_column("bytes", justify="right")
    before = None
    for entry in record["ledger"]:
        call = (entry["operation"], str(entry["call"]))
        shape = " x ".join(f"{size:,}" for size in entry["shape"])
        cells = (*(("", "") if call == before else call), entry["dtype"], shape, f"{entry['saved_bytes']:,}")
        grid.add_row(*map(Text, cells))
        before = call
    grid.add_section()
    for name, field in (
        ("all of forward, measured", "saved_bytes"),
        ("all of forward, predicted", "predicted_saved_bytes"),
        ("in host memory", "host_saved_bytes"),
        ("the loss beyond that", "loss_saved_bytes"),
    ):
        if record.get(field) is not None:
            grid.add_row(name, "", "", "", f"{record[field]:,}", style="bold" if field == "saved_bytes" else None)
    model = model_text(record["model"], record["recipe"])
    title = f"Kept for backward · {record['dataset']} · {model} · {record['scheme']['name']} · seed {record['seed']}"
    return Group(Text(title, style="bold"), grid)


def _render(table: Table) -> RenderableType:
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    grid.add_column("scheme", overflow="fold")
    metric = table.metric or "score"
    for heading in (
        f"test\n{metric} %",
        "activation\nMiB",
        "of\nFP32",
        "whole peak\nMiB",
        "of\nFP32",
        "epochs/s",
        "of\nFP32",
    ):
        grid.add_column(Text(heading), justify="right", no_wrap=True)
    grid.add_column("runs")
    for row in table.rows:
        grid.add_row(*map(Text, _cells(row)), style=None if set(row.statuses) == {"ok"} else "yellow")
    return Group(Text(_title(table), style="bold"), grid, *(Text(note, style="dim") for note in _notes(table)))


def _title(table: Table) -> str:
    recipe = table.recipe
    generated = " (generated graph)" if table.synthetic else ""
    return (
        f"{table.dataset}{generated} · {model_text(table.model, recipe)} {recipe['layers']} x {recipe['hidden']} · "
        f"{recipe['epochs']} epoch{'s' if recipe['epochs'] > 1 else ''} · {table.device_name}"
        f"{' · deterministic' if table.deterministic else ''}{' · in one process' if table.together else ''}"
    )


def _cells(row: Row) -> list[str]:
    return [
        row.scheme,
        score_text(row.score_mean, row.score_std),
        mebibytes_text(row.saved_bytes),
        percent_text(row.saved_ratio),
        mebibytes_text(row.peak_bytes),
        percent_text(row.peak_ratio),
        rate_text(row.epochs_per_second),
        times_text(row.speed_ratio),
        ", ".join(f"{count} {status}" for status, count in row.statuses.items()),
    ]


def _notes(table: Table) -> list[str]:
    whole = "host memory of the process, interpreter and libraries included"
    if table.device == "cuda":
        whole = "device memory that tensors took"
    peak = f"Whole peak: {whole}, after warm-up."
    if table.together and table.device == "cpu":
        peak = "Whole peak: not known of runs that share a process."
    notes = [
        "Activations: bytes kept for backward after the model's forward pass, without parameters and graph data.",
        f"{peak} Score: at the best validation epoch.",
    ]
    notes += [
        f"{row.scheme}: {mebibytes_text(row.host_bytes)} MiB of activations lie in host memory beside those above."
        for row in table.rows
        if row.host_bytes
    ]
    if table.recipe.get("sampler", "full") != "full":
        notes.append(word("note.sampled", "en"))
    if table.seeds == 1:
        notes.append("One seed is not a result: --seeds 10 gives means with their spread.")
    if table.synthetic:
        notes.append("A generated graph: bytes and speed are those of its shape, scores say nothing of the real data.")
    return notes


def datasets_table(listed: list[dict[str, Any]], data_dir: str) -> RenderableType:
    """The catalogue; `listed` holds its entries as JSON values, each with `present`."""
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    grid.add_column("name", no_wrap=True)
    for name in ("nodes", "directed\nedges", "features\n/ classes"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("metric", no_wrap=True)
    grid.add_column("licence")
    grid.add_column("there", no_wrap=True)
    for entry in listed:
        widths = f"{entry['features']:,} / {entry['classes']}"
        grid.add_row(
            entry["name"],
            f"{entry['nodes']:,}",
            f"{entry['edges']:,}",
            widths,
            entry["metric"],
            entry["licence"],
            "made" if entry["synthetic"] else "yes" if entry["present"] else "no",
        )
    notes = (
        f"there: in {data_dir}; else `actbench pull NAME` downloads it. A scale as in synthetic:arxiv@0.1 is possible."
    )
    return Group(grid, Text(notes, style="dim"))
