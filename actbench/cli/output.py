"""What verbs write: sentences on stderr, and files, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import typer

from actbench.errors import OutputError
from actbench.records import printable, replace_file


def tell(sentence: str) -> None:
    """Write a sentence to stderr; what a name in it would have a terminal do is replaced."""
    typer.echo(printable(sentence, keep="\n"), err=True)


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text` at once, or not at all; raises `OutputError` if it cannot be written.

    What is no regular file, such as a terminal, is written to as it is.
    """
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise OutputError(f"--output {path} cannot be written ({error.strerror}): name another file.") from error
