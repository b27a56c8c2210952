import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SHARED_DATA


@pytest.fixture
def raw_copy(tmp_path: Path) -> Callable[[str], Path]:
    """Copy one folder of real raw files and return the data folder that holds the copy."""

    def copy(folder: str) -> Path:
        if not (SHARED_DATA / folder / "raw").is_dir():
            pytest.skip(f"the raw files of {folder} are not in {SHARED_DATA}")
        shutil.copytree(SHARED_DATA / folder / "raw", tmp_path / "data" / folder / "raw")
        return tmp_path / "data"

    return copy
