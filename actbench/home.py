"""The user's home folder, which some containers' users have not, and `~` for it."""

from __future__ import annotations

import os
from pathlib import Path


def home_folder() -> Path:
    """The home folder, or the current one for a user who has none."""
    try:
        return Path.home()
    except RuntimeError:
        return Path.cwd()


def expand_home(path: Path | str) -> Path:
    """`path` with `~` or `~user` as that home folder, where there is such a user, for shells that leave it alone."""
    # As a method of pathlib's it raises where there is none.
    return Path(os.path.expanduser(path))
