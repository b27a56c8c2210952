"""The consoles that reports are printed on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from actbench.records import printable

_PIPE_COLUMNS = 160


class _PrintableConsole(Console):
    """A console that no text gives orders to, such as the name of a file: only rich's own styles do."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What `renderable` comes to, characters that are not printable replaced."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep="\n"))


def open_stdout() -> Console:
    """A console on stdout; where that is no terminal, wide enough that no table is cut."""
    unbounded = (sys.stdout is None or not sys.stdout.isatty()) and "COLUMNS" not in os.environ
    return _PrintableConsole(width=_PIPE_COLUMNS if unbounded else None, soft_wrap=False)


def open_stderr(quiet: bool = False) -> Console:
    """A console on stderr, for progress."""
    return _PrintableConsole(stderr=True, quiet=quiet)
