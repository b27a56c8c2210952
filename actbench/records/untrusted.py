"""Records and analyses of unknown origin: what they must be to be read, and what their texts may do: nothing."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

MOST_BYTES: Final = 2**28
"""Of a file; a record of hundreds of epochs has some fifteen thousand."""
LARGEST_FIGURE: Final = 1e100
"""No figure of ours comes near it, nor, but for 0, near its inverse; sums and ratios of some stay finite."""
PEAK_FIELDS: Final = ("peak_allocated_bytes", "peak_reserved_bytes", "nvml_peak_bytes", "rss_peak_bytes")
_DEEPEST: Final = 24
"""Values within values; those of a record lie four deep, of an analysis nine."""


def read_limited(path: Path) -> bytes:
    """All of a file; raises `OSError`, `errno.EFBIG` if there are more than `MOST_BYTES`, which are not read."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size <= MOST_BYTES:
            # A pipe or a device has no size before it is read.
            content = file.read() if stat.S_ISREG(status.st_mode) else file.read(MOST_BYTES + 1)
            if len(content) <= MOST_BYTES:
                return content
    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def parse_json(text: str | bytes) -> Any:
    """The JSON value, as its standard has it: without NaN, infinities or numbers beyond a float.

    Raises `ValueError` for anything else, and for values nested deeper than any of ours.
    """
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("values are nested too deeply") from error
    if not _is_flat(value, _DEEPEST):
        raise ValueError("values are nested too deeply")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no JSON")
    return value


def _is_flat(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_flat(each, levels - 1) for each in inner)


def is_figure(value: Any) -> bool:
    """Whether `value` is a number that can be reckoned with: 0, or neither too large nor too small for it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == 0 or 1 / LARGEST_FIGURE <= abs(value) <= LARGEST_FIGURE


def printable(value: Any, keep: str = "") -> Any:
    """`value` with every character that is not printable replaced in all its strings, but those of `keep`."""
    if isinstance(value, str):
        if value.isprintable():
            return value
        return "".join(c if c.isprintable() or c in keep else "\ufffd" for c in value)
    if isinstance(value, dict):
        return {printable(key): printable(each, keep) for key, each in value.items()}
    return [printable(each, keep) for each in value] if isinstance(value, list) else value


def unusable_field(record: dict[str, Any]) -> str | None:
    """The first field of `record` that is not what every verb may take for granted; None if there is none."""
    return next((field for field, check in FIELDS.items() if not check(record.get(field))), None)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\n" not in value


def _are_metrics(value: Any) -> bool:
    return isinstance(value, dict) and is_figure(value.get("test")) and _is_text(value.get("name"))


def _are_figures(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_figure, value))


def _is_entry(value: Any) -> bool:
    """Whether `value` is a line of a ledger."""
    return (
        isinstance(value, dict)
        and all(_is_text(value.get(field)) for field in ("operation", "dtype"))
        and all(_is_count(value.get(field)) for field in ("call", "saved_bytes"))
        and isinstance(value.get("shape"), list)
        and all(map(_is_count, value["shape"]))
    )


def _is_ledger(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_entry, value))


def _is_environment(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    versions = value.get("versions")
    return (
        all(_is_text(value.get(field)) for field in ("device", "device_name"))
        and {"cuda", "threads"} <= value.keys()
        and isinstance(versions, dict)
        and {"actbench", "torch"} <= versions.keys()
    )


def _is_recipe(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_count(value.get(field)) for field in ("layers", "hidden", "epochs"))


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


FIELDS: Final[dict[str, Callable[[Any], bool]]] = {
    "status": _is_text,
    "dataset": _is_text,
    "digest": _or_none(_is_text),
    "model": _is_text,
    "seed": _is_count,
    "scheme": lambda value: isinstance(value, dict) and _is_text(value.get("name")),
    "recipe": _is_recipe,
    "environment": _is_environment,
    "graph": _or_none(lambda value: isinstance(value, dict) and _is_count(value.get("nodes", 0))),
    "metrics": _or_none(_are_metrics),
    "saved_bytes": _or_none(_is_count),
    "host_saved_bytes": _or_none(_is_count),
    **dict.fromkeys(PEAK_FIELDS, _or_none(_is_count)),
    "reasons": lambda value: isinstance(value, dict),
    "started": _is_text,
    "warmup_epochs": _is_count,
    "epoch_seconds": lambda value: _are_figures(value) and all(seconds > 0 for seconds in value),
    "curve": lambda value: isinstance(value, dict) and _are_figures(value.get("valid")),
    "ledger": _is_ledger,
    "error": _or_none(lambda value: isinstance(value, dict)),
}
"""The fields of a record that reports read, and what each must be."""
