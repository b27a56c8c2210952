"""The table of the quantizer's speed."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

_NOTHING = "–"
_MILLISECONDS = 1000
_GIGABYTE = 1e9


def kernels_table(record: dict[str, Any]) -> RenderableType:
    """The record of `benchmark_kernels`, an operation a row."""
    environment = record["environment"]
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    grid.add_column("operation")
    for heading in ("shape", "block", "ms", "floor\nms", "GB/s", "of\ncopy", "of\neager", "of com-\npiled"):
        grid.add_column(heading, justify="right", no_wrap=True)
    before = None
    for row in record["rows"]:
        shape = f"{row['rows']:,} x {row['width']}"
        grid.add_row(row["operation"], "" if shape == before else shape, *_cells(row))
        before = shape
    where = f"{environment['device_name']}, torch {environment['versions']['torch']}"
    title = f"The quantizer at INT{record['bits']} on float32 · {where}, {environment['threads']} threads"
    return Group(Text(title, style="bold"), grid, *(Text(note, style="dim") for note in _notes(record)))


def registers_table(resources: list[dict[str, Any]]) -> RenderableType:
    """Registers of every kernel, a column an architecture."""
    architectures = list(dict.fromkeys(each["architecture"] for each in resources))
    cells = {(each["kernel"], each["architecture"]): each for each in resources}
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    grid.add_column("registers of a thread")
    for architecture in architectures:
        grid.add_column(architecture, justify="right")
    grid.add_column("shared\nKiB", justify="right")
    for kernel in dict.fromkeys(each["kernel"] for each in resources):
        row = [cells[kernel, architecture] for architecture in architectures]
        spilled = any(each["spilled_bytes"] for each in row)
        shared = max(each["shared_bytes"] for each in row)
        texts = [f"{each['registers']}{'!' if each['spilled_bytes'] else ''}" for each in row]
        grid.add_row(kernel, *texts, f"{shared / 1024:.1f}", style="yellow" if spilled else None)
    spills = sum(each["spilled_bytes"] > 0 for each in resources)
    note = "No kernel spills registers to memory." if not spills else f"! {spills} kernels spill registers to memory."
    return Group(grid, Text(note, style="dim"))


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = row["seconds"]
    ours = seconds["ours"]["median"]
    cells = [
        _NOTHING if row["block_length"] is None else f"{row['block_length']:,}",
        f"{ours * _MILLISECONDS:.3g}",
        f"{row['floor_seconds'] * _MILLISECONDS:.3g}",
        f"{row['bytes_per_second'] / _GIGABYTE:,.3g}",
        f"{100 * row['bytes_per_second'] / row['copy_bytes_per_second']:.0f}%",
    ]
    others = (seconds.get(name) for name in ("eager", "compiled"))
    return cells + [_NOTHING if other is None else f"{ours / other['median']:.2f}x" for other in others]


def _notes(record: dict[str, Any]) -> list[str]:
    notes = [
        "Each result was the reference's, bit for bit, before anything was timed. Medians of "
        f"{record['repeats']} measurements in turns.",
        "Floor: what must be read and written at least, at the speed of a copy of such a float32 matrix into fresh "
        "memory; an operation that writes less than it reads may be faster.",
        "of eager, of compiled: our time as a multiple of eager torch's and torch.compile's for the same mathematics.",
    ]
    if any(row.get("cached") for row in record["rows"]):
        notes.append("Some shapes are so small that the GPU's cache holds them: their figures are the cache's.")
    reasons = {row["no_compiled_reason"] for row in record["rows"] if "compiled" not in row["seconds"]}
    return notes + [f"No figure of torch.compile: {reason}." for reason in sorted(reasons)]
