"""How much worse a figure may be before a check fails, and where a user says so."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from actbench.errors import ActbenchError, UsageError
from actbench.records import read_limited
from actbench.scheme import Scheme


@dataclass(frozen=True)
class Limits:
    """How much worse a figure may be. Relative, except `score`, which is in the metric's own unit, [0, 1].

    `significance` is the chance of a false alarm that time or peak may have over all rows; the intervals of scores and
    losses have the confidence 1 - `significance`. `control`: whether a slowdown counts only if the rest of the same run
    did not slow down as much. `exact_loss`: whether a training curve that merely differs from the baseline's is a
    regression too.
    """

    saved_bytes: float = 0.001
    time: float = 0.10
    score: float = 0.01
    loss: float = 0.005
    peak: float = 0.05
    significance: float = 0.05
    control: bool = True
    exact_loss: bool = False


@dataclass(frozen=True)
class Settings:
    """The limits of a check, and those of single schemes in their place."""

    limits: Limits = Limits()
    schemes: Mapping[str, Limits] = field(default_factory=dict)

    def of(self, scheme: str) -> Limits:
        """The limits that hold for `scheme`."""
        return self.schemes.get(scheme, self.limits)


def read_settings(path: Path) -> Settings:
    """The settings in the table `check` of a TOML file, defaults for what it leaves out.

    Raises `UsageError` if it cannot be read or has a key or a value that is none.
    """
    try:
        content = tomllib.loads(read_limited(path).decode())
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read ({error.strerror}): name a TOML file.") from error
    # A number of thousands of digits is a ValueError, thousands of brackets are a RecursionError.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path} is no TOML ({error}): mend it there.") from error
    _require_known(content, ["check"], path, "the file")
    table = content.get("check", {})
    if not isinstance(table, dict):
        raise UsageError(f"check in {path} is {table!r}, not a table: begin it with [check].")
    known = [each.name for each in fields(Limits)]
    _require_known(table, [*known, "scheme"], path, "[check]")
    limits = replace(Limits(), **{key: _limit(key, table[key], path, "") for key in known if key in table})
    schemes: dict[str, Limits] = {}
    own = table.get("scheme", {})
    if not isinstance(own, dict) or not all(isinstance(values, dict) for values in own.values()):
        raise UsageError(f"scheme in {path} holds no tables: write [check.scheme.exact] and its limits below.")
    for name, values in own.items():
        where = f"[check.scheme.{name}]"
        try:
            scheme = str(Scheme.parse(name))
        except ActbenchError as error:
            raise UsageError(f"{where} in {path} names no scheme: {error}") from error
        _require_known(values, [key for key in known if key not in ("significance", "control")], path, where)
        schemes[scheme] = replace(limits, **{key: _limit(key, value, path, name) for key, value in values.items()})
    return Settings(limits, schemes)


def _require_known(table: dict[str, Any], known: list[str], path: Path, where: str) -> None:
    for key in table:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(known)}."
            raise UsageError(f"{where} in {path} may not hold {key!r}: {hint}")


def _limit(key: str, value: Any, path: Path, scheme: str) -> Any:
    """`value` if the setting `key` may have it, a boolean or a fraction; raises `UsageError` otherwise."""
    name = f"{key} = {json.dumps(value, default=str)} in {path}" + (f" for {scheme}" if scheme else "")
    if key in ("control", "exact_loss"):
        if isinstance(value, bool):
            return value
        raise UsageError(f"{name} is neither true nor false.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} is no number: write a fraction such as {getattr(Limits(), key)}.")
    if key == "significance":
        if 0 < value <= 0.5:
            return float(value)
        raise UsageError(f"{name} is not above 0 and at most 0.5, such as 0.05.")
    if 0 <= value < 1:
        return float(value)
    raise UsageError(f"{name} is not from 0 to below 1: write a fraction, 0.10 for 10 % or 0.01 for a point of score.")
