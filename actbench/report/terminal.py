"""The consoles that reports are printed on."""

from __future__ import annotations

import os
import sys

from rich.console import Console

_PIPE_COLUMNS = 160


def open_stdout() -> Console:
    """A console on stdout; where that is no terminal, wide enough that no table is cut."""
    unbounded = (sys.stdout is None or not sys.stdout.isatty()) and "COLUMNS" not in os.environ
    return Console(width=_PIPE_COLUMNS if unbounded else None, soft_wrap=False)


def open_stderr(quiet: bool = False) -> Console:
    """A console on stderr, for progress."""
    return Console(stderr=True, quiet=quiet)
