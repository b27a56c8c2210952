"""What tells things apart that have one name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actbench.records import settings


def distinctions(names: Sequence[object], values: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each mapping, those of its entries that are not equal in all mappings of the same name."""
    found = []
    for name, own in zip(names, values, strict=True):
        alike = [other for other_name, other in zip(names, values, strict=True) if other_name == name]
        found.append({key: value for key, value in own.items() if any(other.get(key) != value for other in alike)})
    return found


def settings_of(recipe: Mapping[str, Any], digest: str | None) -> dict[str, Any]:
    """What one measurement may differ in from another of the same data set and model: its recipe and its data."""
    return settings(recipe) | ({} if digest is None else {"data": digest[:8]})
