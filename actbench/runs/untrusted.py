"""What a record of unknown origin may do to a report: nothing."""

from __future__ import annotations

from typing import Any

LARGEST_FIGURE = 1e100
"""No figure of ours comes near it, and sums of a few stay finite."""


def is_figure(value: Any) -> bool:
    """Whether `value` is a number that can be reckoned with: finite, and no integer beyond all floats."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FIGURE


def printable(value: Any, keep: str = "") -> Any:
    """`value` with every character that is not printable replaced in all its strings, but those of `keep`."""
    if isinstance(value, str):
        if value.isprintable():
            return value
        return "".join(c if c.isprintable() or c in keep else "\ufffd" for c in value)
    if isinstance(value, dict):
        return {printable(key): printable(each, keep) for key, each in value.items()}
    return [printable(each, keep) for each in value] if isinstance(value, list) else value
