"""`actbench baseline`: the records that later ones are checked against."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from actbench.cli.output import tell, write_whole
from actbench.completing import COMPLETING
from actbench.errors import OutputError, UsageError
from actbench.home import expand_home

if not COMPLETING:
    from actbench.analysis import choose_final
    from actbench.records import Record, RecordFile


def baseline(
    records: Annotated[list[Path], typer.Argument(help="Files of records that `actbench run` wrote.")],
    output: Annotated[Path, typer.Option(callback=expand_home, help="The baseline's file.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite --output if it exists.")] = False,
) -> None:
    """Write a baseline for `actbench check`: of every job the last record that ended, all on one machine.

    Runs that were killed or ended in an error are left out.

    Example: actbench baseline actbench.jsonl --output results/baseline.jsonl
    """
    found = [record for path in records for record in read_existing(expand_home(path))]
    chosen = choose_final(found)
    RecordFile(output).check_writable()
    if output.exists() and not force:
        raise OutputError(f"--output {output} exists already: --force overwrites it.")
    try:
        lines = [json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n" for record in chosen]
    except ValueError as error:
        raise UsageError("A record holds NaN or an infinity, which JSON does not know: measure again.") from error
    write_whole(output, "".join(lines))
    schemes = {record["scheme"]["name"] for record in chosen}
    tell(
        f"actbench: {output} holds {_count(len(chosen), 'run')} of {_count(len(schemes), 'scheme')}; "
        f"{len(found) - len(chosen)} of {_count(len(found), 'record')} were superseded or did not end."
    )


def read_existing(path: Path) -> list[Record]:
    """The records in `path`; raises `UsageError` if there is no such file or none in it."""
    records = RecordFile(path).read()
    if not records:
        what = "holds no records" if path.exists() else "does not exist"
        raise UsageError(f"{path} {what}: `actbench run --output {path}` writes them.")
    return records


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
