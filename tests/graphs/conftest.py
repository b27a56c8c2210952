import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

# On its first import PyG warns of torch.jit.script, which it still uses.
with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
    import torch_geometric.datasets  # noqa: F401

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def raw_copy(tmp_path: Path) -> Callable[[str], Path]:
    """Copy one folder of real raw files and return the data folder that holds the copy."""

    def copy(folder: str) -> Path:
        if not (SHARED / folder / "raw").is_dir():
            pytest.skip(f"the raw files of {folder} are not in {SHARED}")
        shutil.copytree(SHARED / folder / "raw", tmp_path / "data" / folder / "raw")
        return tmp_path / "data"

    return copy
