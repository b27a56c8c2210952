"""What PyG's and OGB's readers take for granted of raw files, made sure of before they read them.

They allocate what a file announces, and scipy follows the indices of a sparse matrix without a look at its bounds.
"""

import gzip
import zipfile
from collections.abc import Sequence
from pathlib import Path

from actbench.graphs.arrays import (
    Array,
    ArrayError,
    announced,
    announced_npy,
    check_csr,
    check_sizes,
    keys_of,
    read_arrays,
)
from actbench.graphs.catalogue import Entry

_CHUNK_BYTES = 2**20
_MOST_PICKLE_BYTES = 64 * 2**20
"""Eight times the largest published one."""
_NUMBER_BYTES = 32
"""Of one number in a table, with its comma; a double in full has 24 characters."""
_MATRIX = ("data", "indices", "indptr", "shape")


def limit_bytes(entry: Entry) -> int:
    """Bytes that no raw file of the data set, packed or unpacked, is above: 16 for every published number and more."""
    return 2**26 + 16 * (entry.nodes * (entry.features + entry.classes + 64) + 4 * entry.edges)


def check_planetoid(files: Sequence[Path], entry: Entry) -> None:
    """Make sure that none of the eight files of Yang et al. (2016) is larger than a published one could be.

    Raises:
        ArrayError: it is another one, as the other checks do.
    """
    for file in files:
        most = 16 * entry.nodes if file.name.endswith(".index") else _MOST_PICKLE_BYTES
        if file.stat().st_size > most:
            raise ArrayError(f"{file.name} has {file.stat().st_size} bytes, above the {most} that it may have")


def check_gnn_benchmark(files: Sequence[Path], entry: Entry) -> None:
    """Make sure of the one file of Shchur et al. (2018): matrices `adj` and `attr` of the published shape.

    Raises:
        ArrayError: it is another one; what is no archive at all, as `read_arrays` does.
    """
    (file,) = files
    keys = [f"{matrix}_{part}" for matrix in ("adj", "attr") for part in _MATRIX]
    arrays = read_arrays(file, [*keys, "labels"], limit_bytes(entry))
    for matrix, columns in (("adj", entry.nodes), ("attr", entry.features)):
        _check_matrix(matrix, {part: arrays[f"{matrix}_{part}"] for part in _MATRIX}, (entry.nodes, columns))


def check_heterophilous(files: Sequence[Path], entry: Entry) -> None:
    """Make sure of the one file of Platonov et al. (2023): arrays of no more than the published size."""
    (file,) = files
    _check_archive(file, ("node_features", "node_labels", "edges", "train_masks", "val_masks", "test_masks"), entry)


def check_graphsaint(files: Sequence[Path], entry: Entry) -> None:
    """Make sure of the four files of Zeng et al. (2020): an adjacency matrix, features, classes and split."""
    by_name = {file.name: file for file in files}
    arrays = read_arrays(by_name["adj_full.npz"], _MATRIX, limit_bytes(entry))
    _check_matrix("adj_full", arrays, (entry.nodes, entry.nodes))
    check_sizes([("feats", announced_npy(by_name["feats.npy"]))], limit_bytes(entry))
    for name in ("class_map.json", "role.json"):
        most = 2**16 + entry.nodes * (24 + 4 * entry.classes)
        if by_name[name].stat().st_size > most:
            raise ArrayError(f"{name} has {by_name[name].stat().st_size} bytes, above the {most} that it may have")


def check_reddit(files: Sequence[Path], entry: Entry) -> None:
    """Make sure of the two files of Hamilton et al. (2017), as DGL packs them."""
    by_name = {file.name: file for file in files}
    _check_archive(by_name["reddit_data.npz"], ("feature", "label", "node_types"), entry)
    # As coordinates, whose bounds scipy does check.
    _check_archive(by_name["reddit_graph.npz"], ("format", "shape", "row", "col", "data"), entry)


def check_ogb(folder: Path, scheme: str, entry: Entry) -> None:
    """Make sure of OGB's tables: as many columns and at most as many lines as published, and no file beside them.

    OGB's loader would take a split from a pickle and features of edges from a table, neither of which is published.
    """
    split = f"split/{scheme}"
    for extra in (f"{split}/split_dict.pt", "raw/edge-feat.csv.gz"):
        if (folder / extra).exists():
            raise ArrayError(f"{extra} is none of the published files")
    sizes = {
        "raw/edge": (entry.edges, 2),
        "raw/node-feat": (entry.nodes, entry.features),
        "raw/node-label": (entry.nodes, 1),
        "raw/node_year": (entry.nodes, 1),
        "raw/num-node-list": (1, 1),
        "raw/num-edge-list": (1, 1),
        **{f"{split}/{part}": (entry.nodes, 1) for part in ("train", "valid", "test")},
    }
    for name, (lines, columns) in sizes.items():
        file = folder / f"{name}.csv.gz"
        if file.exists():
            _check_table(file, lines, columns)


def _check_table(file: Path, lines: int, columns: int) -> None:
    most_line_bytes = columns * _NUMBER_BYTES
    found_lines = found_bytes = 0
    with gzip.open(file, "rb") as table:
        first = table.readline(most_line_bytes + 1)
        found = first.count(b",") + 1
        if len(first) > most_line_bytes or (found != columns and first.strip()):
            raise ArrayError(f"{file.name} begins with {found} columns in {len(first)} bytes, not {columns} numbers")
        chunk = first
        while chunk:
            found_lines += chunk.count(b"\n")
            found_bytes += len(chunk)
            if found_lines > lines or found_bytes > lines * most_line_bytes:
                raise ArrayError(f"{file.name} has more than {lines} lines of {columns} numbers")
            chunk = table.read(_CHUNK_BYTES)


def _check_archive(file: Path, keys: Sequence[str], entry: Entry) -> None:
    with zipfile.ZipFile(file) as archive:
        missing = set(keys).difference(keys_of(archive))
        if missing:
            raise ArrayError(f"{file.name} has no array {min(missing)!r}")
        check_sizes(((key, announced(archive, key)) for key in keys), limit_bytes(entry))


def _check_matrix(name: str, parts: dict[str, Array], wanted: tuple[int, int]) -> None:
    shape = parts["shape"]
    if shape.dtype.kind not in "iu" or shape.tolist() != list(wanted):
        raise ArrayError(f"{name} has another shape than the published {list(wanted)}")
    check_csr(name, parts["data"], parts["indices"], parts["indptr"], wanted)
