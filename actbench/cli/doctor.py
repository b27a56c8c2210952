"""`actbench doctor`: is this machine ready, and what to do if not."""

from __future__ import annotations

import json

import typer

from actbench.cli.options import DEFAULT_DATA_DIR, DataDir, Device, Format, Quiet
from actbench.completing import COMPLETING
from actbench.errors import DeviceError

if not COMPLETING:
    from actbench.doctor import examine
    from actbench.report import doctor_table, open_stderr, open_stdout
    from actbench.runs import resolve_device


def doctor(
    device: Device = "auto", data_dir: DataDir = DEFAULT_DATA_DIR, format: Format = "table", quiet: Quiet = False
) -> None:
    """Say what this machine has and what is wrong with it, each problem with its remedy.

    The quantizer is compared with the reference on the device at hand. Exit code 0: all that is needed works, with or
    without a GPU; 2: something does not.

    Example: actbench doctor
    """
    chosen = resolve_device(device)
    with open_stderr(quiet).status("starting") as status:
        document = examine(chosen, data_dir, status.update)
    if format == "json":
        typer.echo(json.dumps(document))
    else:
        open_stdout().print(doctor_table(document))
    if not document["healthy"]:
        raise typer.Exit(DeviceError.exit_code)
