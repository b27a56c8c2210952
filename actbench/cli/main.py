"""The command line: parse, call, render, exit."""

from __future__ import annotations

import errno
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from actbench.cli.analyze import analyze
from actbench.cli.baseline import baseline
from actbench.cli.check import check
from actbench.cli.completion import answer_shell
from actbench.cli.datasets import datasets, pull
from actbench.cli.doctor import doctor
from actbench.cli.estimate import estimate
from actbench.cli.kernels import kernels
from actbench.cli.options import INTERRUPTED, PIPE_CLOSED
from actbench.cli.output import tell
from actbench.cli.report import report
from actbench.cli.reproduce import reproduce
from actbench.cli.run import run
from actbench.cli.tune import tune
from actbench.completing import COMPLETING
from actbench.errors import ActbenchError, OutputError
from actbench.records import printable

app = typer.Typer(
    name="actbench",
    help="What it costs to forget part of an activation: memory, time and accuracy of compressed GNN training.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(run)
app.command()(datasets)
app.command()(pull)
app.command()(doctor)
app.command()(kernels)
app.command()(estimate)
app.command()(report)
app.command()(analyze)
app.command()(tune)
app.command()(check)
app.command()(baseline)
app.command()(reproduce)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"actbench {version('actbench')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's mistake is one sentence on stderr and its exit code."""
    try:
        code = answer_shell(_run) if COMPLETING else _run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except (SystemExit, BrokenPipeError):
        # The reader of stdout went away (`actbench … | head`), at which both typer and rich exit with 1, the code of a
        # regression. Nothing more can be said to it.
        _abandon_stdout()
        code = PIPE_CLOSED
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        _abandon_stdout()
        tell(f"actbench: stdout cannot be written ({error.strerror}): make room or send it elsewhere.")
        code = OutputError.exit_code
    sys.exit(code)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def _run() -> int:
    try:
        return app(prog_name="actbench", standalone_mode=False) or 0
    except SystemExit as ended:
        # So typer ends when it has answered a shell; its code is part of the answer.
        if COMPLETING or not ended.code:
            return int(ended.code or 0)
        raise
    except (ActbenchError, typer.TyperException) as error:
        # A name with a line break in it does not make two sentences.
        message = _told(error) if isinstance(error, typer.TyperException) else printable(str(error))
        tell(message if message.startswith("Usage") else f"actbench: {message}")
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED


def _told(error: typer.TyperException) -> str:
    """Typer's sentence; where pydantic speaks of an "input", the value that it means."""
    message = error.format_message()
    errors = getattr(error.__cause__, "errors", None)
    if not isinstance(error, typer.BadParameter) or errors is None:
        return message
    value = repr(printable(str(errors()[0]["input"])))
    sentence = message.replace(": Value error, ", ": ", 1).replace(": Input should", f": {value} should", 1)
    return sentence.removesuffix(".") + "."


def _abandon_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
