"""What verbs write: sentences on stderr, and files, whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import typer

from actbench.errors import OutputError
from actbench.runs.untrusted import printable


def tell(sentence: str) -> None:
    """Write a sentence to stderr; what a name in it would have a terminal do is replaced."""
    typer.echo(printable(sentence, keep="\n"), err=True)


def write_whole(path: Path, text: str) -> None:
    """Replace `path` by `text` at once, or not at all; raises `OutputError` if it cannot be written.

    What is no regular file, such as a terminal, is written to as it is.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.absolute().parent, delete=False) as file:
            try:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                # A temporary file is its owner's alone; this one takes the place of an ordinary one.
                os.chmod(file.name, 0o666 & ~_umask())
                os.replace(file.name, path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OutputError(f"--output {path} cannot be written ({error.strerror}): name another file.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
