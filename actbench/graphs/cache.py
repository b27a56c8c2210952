"""Tensors read from large raw files, kept so that the next run need not parse the files again."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

# Raised whenever what a reader does to the files changes.
_VERSION = 1


def stamp(files: Iterable[Path]) -> str:
    """Return a text that changes when one of `files` does."""
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{_VERSION} {states}"


def restore(folder: Path, current: str) -> dict[str, Tensor] | None:
    """Return the tensors kept for `folder`, or None if there are none, or stale or damaged ones."""
    for place in _places(folder):
        try:
            kept: dict[str, dict[str, Tensor]] = torch.load(place, weights_only=True)
            return kept[current]
        # A damaged archive fails in many ways, and none of them matters.
        except Exception:
            continue
    return None


def keep(folder: Path, current: str, tensors: dict[str, Tensor]) -> None:
    """Keep `tensors` in `folder`, or in the user's cache if that is read-only, or else nowhere."""
    for place in _places(folder):
        partial = place.with_name(f".{place.name}.{os.getpid()}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            torch.save({current: tensors}, partial)
            partial.replace(place)
            return
        except (OSError, RuntimeError):
            continue
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _places(folder: Path) -> Iterator[Path]:
    yield folder / "actbench.pt"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    yield home / "actbench" / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.pt"
