"""The papers' claims beside what was measured, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from actbench.analysis import Claim, Comparison, compare_claims
from actbench.report.page import about
from actbench.report.phrases import NOTHING, Language, Sentence, percent_text, points_text, say, word


def claims_table(comparison: Comparison, language: Language) -> RenderableType:
    """A row for every claim of the papers' abstracts that the comparison's schemes can be held to; maybe none."""
    claims = compare_claims(comparison)
    if not claims:
        return Text("")
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for key in ("column.paper", "column.claim", "column.claimed", "column.measured"):
        grid.add_column(word(key, language), justify="left" if key in ("column.paper", "column.claim") else "right")
    for claim in claims:
        schemes = {"scheme": claim.scheme, "against": claim.against}
        what = say(Sentence(f"claim.{claim.kind}", schemes), language)
        grid.add_row(*map(Text, (claim.paper, what, claimed_text(claim, language), measured_text(claim))))
    title = say(Sentence("claims", {"subject": about(comparison)}), language)
    return Group(Text(title, style="bold"), grid, Text(word("note.claims", language), style="dim"), Text(""))


def claimed_text(claim: Claim, language: Language) -> str:
    """What the abstract says, with its mark."""
    write = _WRITERS[claim.kind]
    match claim.claimed:
        case None, None:
            sentence = Sentence("claimed.similar")
        case float(low), None:
            sentence = Sentence("claimed.least", {"low": write(low)})
        case None, float(high):
            sentence = Sentence("claimed.most", {"high": write(high)})
        case float(low), float(high) if low == high:
            sentence = Sentence("claimed.about", {"value": write(low)})
        case float(low), float(high):
            sentence = Sentence("claimed.range", {"low": write(low), "high": write(high)})
    return f"{say(sentence, language)} [abs]"


def measured_text(claim: Claim) -> str:
    """The measured figure, a score's with its interval."""
    if claim.interval:
        mean, low, high = (
            points_text(value) for value in (claim.interval.mean, claim.interval.low, claim.interval.high)
        )
        return f"{mean} [{low}, {high}]"
    return NOTHING if claim.measured is None else _WRITERS[claim.kind](claim.measured)


def _change_text(change: float) -> str:
    return f"{100 * change:+.3g}%".replace("-", "−")


_WRITERS: Final[dict[str, Callable[[float], str]]] = {
    "activation": percent_text,
    "score": points_text,
    "time": _change_text,
}
