import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from actbench.errors import DataError
from actbench.graphs import load, sizes_of


def save(path: Path, **changes: Any) -> Path:
    generator = np.random.default_rng(0)
    edges = np.stack((np.arange(60), (np.arange(60) + 1) % 60))
    arrays: dict[str, Any] = {"x": generator.normal(size=(60, 5)).astype(np.float32), "edge_index": edges}
    arrays |= {"y": np.arange(60) % 3} | changes
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"y": np.eye(4, dtype=np.float32)[np.arange(60) % 4]},
        {"train_mask": np.arange(60) < 20, "val_mask": np.arange(60) == 20, "test_mask": np.arange(60) > 50},
        {"train": np.arange(5), "valid": np.arange(5, 7), "test": np.arange(7, 60)},
    ],
)
def test_sizes_of_a_file_are_those_of_its_graph(tmp_path: Path, changes: dict[str, Any]) -> None:
    name = str(save(tmp_path / "own.npz", **changes))
    graph, sizes = load(name, tmp_path), sizes_of(name)
    parts = graph.train.numel(), graph.valid.numel(), graph.test.numel()
    assert (sizes.nodes, sizes.edges, sizes.features, sizes.classes) == (60, 60, 5, graph.classes)
    assert (sizes.split_sizes, sizes.task) == (parts, graph.task)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": None}, "has no array 'x'"),
        ({"x": np.zeros(5, np.float32)}, r"'x' has shape \[5\]"),
        ({"x": np.zeros((0, 5), np.float32)}, "neither of them 0"),
        ({"edge_index": np.zeros((3, 5), np.int64)}, r"'edge_index' has shape \[3, 5\]"),
        ({"y": np.array([object()] * 60)}, "Python objects"),
    ],
)
def test_files_without_a_graph(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        sizes_of(str(save(tmp_path / "own.npz", **changes)))


def test_large_arrays_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    # A header of 4 TB of features, and none of them.
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"shape": (60, 2**34), "fortran_order": False, "descr": "<f4"})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (parts | {"x.npy": header.getvalue()}).items():
            archive.writestr(name, content)
    assert sizes_of(str(path)).features == 2**34
