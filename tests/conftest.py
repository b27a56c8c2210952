import os

# Before torch starts its threads. The tensors are small, test workers share the cores, and a child process must sum
# in the same order as its parent to give the same bits.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gc
from pathlib import Path

import pytest
import torch
from hypothesis import settings

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def data_dir() -> Path:
    """Raw files of real graphs, where this machine has them; loading them writes nothing there."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"there are no raw files in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _gpu_memory_is_this_tests_own(request: pytest.FixtureRequest) -> None:
    """On a GPU nothing of a test before, garbage or cached, is in what the next one measures."""
    if request.node.get_closest_marker("gpu") and torch.cuda.is_available():
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
