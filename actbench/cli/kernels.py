"""`actbench kernels`: how fast the quantizer is on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from actbench.cli.options import Format, Quiet, expand_given
from actbench.cli.output import write_whole
from actbench.completing import COMPLETING
from actbench.errors import OutputError, UsageError

if not COMPLETING:
    import torch

    from actbench.benchmark import Shape, benchmark_kernels
    from actbench.quant.cuda import nvrtc
    from actbench.records import RecordFile
    from actbench.report import kernels_table, open_stderr, open_stdout, registers_table
    from actbench.runs import is_out_of_memory, resolve_device

_LARGEST = 2**33
DEFAULT_SHAPES = ("169343x128", "89250x256")


def kernels(
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="ROWSxWIDTH of a float32 matrix, again for each more.",
            show_default=f"{' and '.join(DEFAULT_SHAPES)}, the hidden layers of arxiv and Flickr",
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="auto takes a CUDA GPU if there is one.")
    ] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of every operation.")] = 20,
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compare with torch.compile too, which takes its time.")
    ] = True,
    registers: Annotated[
        bool,
        typer.Option(
            "--registers", help="Only compile the kernels for all architectures that the compiler knows; needs no GPU."
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(callback=expand_given, help="Write the JSON here too, as it grows.")
    ] = None,
    format: Format = "table",
    quiet: Quiet = False,
) -> None:
    """Check the quantizer's operations against the reference, then time them beside a copy and beside torch.

    Example: actbench kernels --shape 20000x128 --no-compile
    """
    if registers:
        given = {"--shape": shape, "--output": output, "--device": device != "auto", "--no-compile": not compile}
        surplus = [name for name, value in given.items() if value]
        if surplus:
            raise UsageError(
                f"--registers measures nothing and writes to stdout alone: leave out {', '.join(surplus)}."
            )
        _print_registers(format)
        return
    shapes = [_read_shape(text) for text in shape or DEFAULT_SHAPES]
    chosen = torch.device(resolve_device(device))
    if output is not None:
        RecordFile(output).check_writable()
        _check_replaceable(output)

    def keep(record: dict[str, Any]) -> None:
        if output is not None:
            write_whole(output, json.dumps(record) + "\n")

    stderr = open_stderr(quiet)
    with stderr.status("starting") as status:
        try:
            record = benchmark_kernels(shapes, chosen, repeats, compile, status.update, keep)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            raise UsageError(
                f"{', '.join(map(str, shapes))} does not fit into memory: take a smaller --shape."
            ) from error
    if format == "json":
        typer.echo(json.dumps(record))
    else:
        open_stdout().print(kernels_table(record))


def _read_shape(text: str) -> Shape:
    rows, _, width = text.partition("x")
    if not all(part.isascii() and part.isdigit() and len(part) <= 10 and int(part) > 0 for part in (rows, width)):
        raise UsageError(f"--shape {text} is not ROWSxWIDTH in whole numbers from 1 on, such as {DEFAULT_SHAPES[0]}.")
    if int(rows) * int(width) > _LARGEST:
        raise UsageError(f"--shape {text} has more than {_LARGEST} elements: take a smaller one.")
    return Shape(int(rows), int(width))


def _check_replaceable(path: Path) -> None:
    """Raise `OutputError` if `path` holds anything but a record of this verb."""
    try:
        content = path.read_bytes() if path.exists() else b""
        known = not content.strip() or json.loads(content).get("kind") == "kernels"
    except (OSError, ValueError, AttributeError):
        known = False
    if not known:
        raise OutputError(f"--output {path} holds something else than a record of kernels: name another file.")


def _print_registers(format: Format) -> None:
    found = [
        asdict(each) for architecture in nvrtc.known_architectures() for each in nvrtc.find_resources(architecture)
    ]
    if format == "json":
        typer.echo(json.dumps(found))
    else:
        open_stdout().print(registers_table(found))
