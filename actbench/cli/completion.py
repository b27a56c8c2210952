"""What a shell gets at TAB: names of data sets and schemes, beside the verbs and options that typer knows."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout

import typer

from actbench.graphs.catalogue import catalogue
from actbench.scheme import NAMES


def offer_datasets(incomplete: str) -> list[str]:
    """Data sets that can be trained on."""
    return _beginning(incomplete, (entry.name for entry in catalogue()))


def offer_downloads(incomplete: str) -> list[str]:
    """Data sets that can be pulled."""
    return _beginning(incomplete, (entry.name for entry in catalogue() if not entry.synthetic))


def offer_schemes(incomplete: str) -> list[str]:
    """Named schemes."""
    return _beginning(incomplete, NAMES)


def answer_shell(complete: Callable[[], int]) -> int:
    """The exit code of `complete`, typer's answer to a shell; for bash, which cuts words at colons, cut as it does."""
    before = _join_words() if os.environ["_ACTBENCH_COMPLETE"] == "complete_bash" else ""
    with redirect_stdout(io.StringIO()) as answer:
        code = complete()
    for line in answer.getvalue().splitlines():
        typer.echo(line.removeprefix(before))
    return code


def _join_words() -> str:
    """Put words that bash has cut together again; of the current one what bash takes for other words.

    Bash takes `synthetic:arxiv` for three words, and puts the answer in the place of the third.
    """
    words, current = os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"])
    joined: list[str] = []
    before = ""
    for number, word in enumerate(words):
        cut = bool(joined) and (word.startswith(":") or joined[-1].endswith(":"))
        joined[len(joined) - cut :] = [joined[-1] + word if cut else word]
        if number == current:
            os.environ["COMP_CWORD"] = str(len(joined) - 1)
            before = joined[-1][: joined[-1].rfind(":") + 1] if cut else ""
    os.environ["COMP_WORDS"] = "\n".join(joined)
    return before


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
