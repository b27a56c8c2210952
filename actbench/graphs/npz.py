"""A user's own graph from a `.npz` file, which is not trusted: no pickles, no array of any size it likes."""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from actbench.errors import DataError
from actbench.graphs.arrays import (
    UNREADABLE,
    Announced,
    Array,
    ArrayError,
    announced,
    check_sizes,
    keys_of,
    most_bytes,
    read_member,
)
from actbench.graphs.catalogue import Entry, seeded_sizes
from actbench.graphs.graph import Graph, settle, split_at_random
from actbench.graphs.reason import reason, shorten

_MASKS = ("train_mask", "val_mask", "test_mask")
_INDICES = ("train", "valid", "test")


def read_npz(path: Path, seed: int) -> Graph:
    """Read a graph from `path`.

    Keys: `x`, float [N, F]; `edge_index`, integer [2, E]; `y`, integer [N], or 0 and 1 [N, L] for L labels
    that do not exclude each other; optionally the split, as `train_mask`, `val_mask`, `test_mask`, bool [N],
    or as `train`, `valid`, `test`, integer indices. Without one, `seed` draws a 60/20/20 split. Other keys are
    not read.

    Raises:
        DataError: the file is absent, damaged or too large, or its arrays do not make a graph.
    """
    with _readable(path), zipfile.ZipFile(path) as archive:
        keys = _wanted(path, archive)
        arrays = _read(archive, keys)
    return _assemble(path, arrays, seed)


def npz_entry(path: Path) -> Entry:
    """The sizes of the graph in `path`: of `x` and `edge_index` the headers alone are read, labels and split in full.

    Edges that stand twice are counted twice, although `read_npz` drops them. Raises `DataError` as `read_npz` does.
    """
    with _readable(path), zipfile.ZipFile(path) as archive:
        keys = _wanted(path, archive)
        shapes = {key: announced(archive, key).shape for key in keys[:2]}
        arrays = _read(archive, keys[2:])
    for key, wanted, least in (("x", "[nodes, features], neither of them 0", 1), ("edge_index", "[2, edges]", 0)):
        shape = shapes[key]
        if len(shape) != 2 or min(shape) < least or (key == "edge_index" and shape[0] != 2):
            raise DataError(f"{path}: {key!r} has shape {list(shape)}; give {wanted}.")
    nodes, features = shapes["x"]
    y, classes = _labels(path, arrays["y"])
    if "train_mask" in arrays:
        sizes = [len(_marked(path, key, arrays[key], nodes)) for key in _MASKS]
    elif "train" in arrays:
        sizes = [arrays[key].size for key in _INDICES]
    else:
        sizes = list(seeded_sizes(nodes))
    return Entry(
        *(str(path), nodes, shapes["edge_index"][1], features, classes),
        task="single-label" if y.dim() == 1 else "multi-label",
        split_sizes=(sizes[0], sizes[1], sizes[2]),
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Every way in which reading `path` fails, as a `DataError`."""
    try:
        if not path.is_file():
            raise DataError(f"There is no file {path}: give the path of a .npz file.")
        yield
    except ArrayError as error:
        raise DataError(f"{path}: {error}: {error.remedy}.") from None
    except UNREADABLE as error:
        raise DataError(
            f"{path} cannot be read as a .npz file ({reason(error)}): write it again with numpy.savez."
        ) from None


def _wanted(path: Path, archive: zipfile.ZipFile) -> list[str]:
    found = keys_of(archive)
    split: Sequence[str] = next((names for names in (_MASKS, _INDICES) if set(names).intersection(found)), ())
    wanted = ["x", "edge_index", "y", *split]
    for key in wanted:
        if key not in found:
            raise DataError(f"{path} has no array {key!r}, only {shorten(', '.join(found)) or 'none'}: add it.")
    return wanted


def _read(archive: zipfile.ZipFile, keys: Sequence[str]) -> dict[str, Array]:
    headers = {key: announced(archive, key) for key in keys}
    check_sizes(headers.items(), most_bytes(), _held_bytes)
    return {key: read_member(archive, key) for key in keys}


def _held_bytes(key: str, array: Announced) -> int:
    """Of the array in the graph, where it may be wider than in the file: features are float32, numbers of nodes int64.

    Of labels, float32 if there are many of a node, the wider of the two.
    """
    if array.dtype.kind == "b" and key in _MASKS:
        return array.array_bytes
    return prod(array.shape) * (4 if key == "x" else 8)


def _assemble(path: Path, arrays: dict[str, Array], seed: int) -> Graph:
    x = _real(path, "x", arrays["x"])
    edge_index = _integers(path, "edge_index", arrays["edge_index"])
    y, classes = _labels(path, arrays["y"])
    if "train_mask" in arrays:
        train, valid, test = (_marked(path, key, arrays[key], len(x)) for key in _MASKS)
    elif "train" in arrays:
        train, valid, test = (_integers(path, key, arrays[key]).sort().values for key in _INDICES)
    else:
        train, valid, test = split_at_random(len(x), seed)
    single = y.dim() == 1
    return settle(
        Graph(
            name=str(path),
            x=x,
            edge_index=edge_index,
            y=y,
            train=train,
            valid=valid,
            test=test,
            classes=classes,
            task="single-label" if single else "multi-label",
            metric="accuracy" if single else "micro-F1",
        )
    )


def _real(path: Path, key: str, array: Array) -> Tensor:
    if array.ndim != 2 or array.size == 0 or array.dtype.kind != "f":
        raise _unfit(path, key, array, "floating-point numbers [nodes, features]")
    # A value too large for float32 becomes infinite, which `settle` reports with its place.
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _integers(path: Path, key: str, array: Array) -> Tensor:
    if array.dtype.kind not in "iu":
        raise _unfit(path, key, array, "integers")
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise DataError(f"{path}: {key!r} holds {array.max()}, more than an int64 can: correct that value.")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def _labels(path: Path, array: Array) -> tuple[Tensor, int]:
    """Return the labels and how many classes or, if they do not exclude each other, labels there are."""
    if array.ndim == 2 and array.size and array.dtype.kind in "biuf":
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)), array.shape[1]
    if array.ndim != 1 or not array.size:
        raise _unfit(path, "y", array, "integers [nodes] or 0 and 1 [nodes, labels]")
    y = _integers(path, "y", array)
    classes = int(y.max()) + 1
    if classes > len(y):
        raise DataError(
            f"{path}: label {classes - 1} in 'y' means {classes} classes for {len(y)} nodes: number the classes from 0."
        )
    return y, classes


def _marked(path: Path, key: str, array: Array, nodes: int) -> Tensor:
    if array.dtype.kind != "b" or array.shape != (nodes,):
        raise _unfit(path, key, array, f"bool [{nodes}]")
    return torch.from_numpy(np.flatnonzero(array))


def _unfit(path: Path, key: str, array: Array, wanted: str) -> DataError:
    return DataError(f"{path}: {key!r} has shape {list(array.shape)} and dtype {array.dtype}; give {wanted}.")
