"""Raw files of a few nodes in the layouts that the published sets have, and the catalogue entries that fit them."""

import gzip
import io
import json
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse

from actbench.graphs import Entry, find, loading

NODES, FEATURES = 12, 3
EDGES = np.array([[0, 1], [1, 0], [2, 3], [2, 3], [4, 4], [11, 5]])
FEATURE_ROWS = np.arange(NODES * FEATURES, dtype=np.float64).reshape(NODES, FEATURES) % 7
PARTS = {"train": np.arange(6), "valid": np.array([8, 6]), "test": np.array([7, 9, 10, 11])}


def publish(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> Entry:
    """Let the catalogue state the sizes of the small files for `name`."""
    entry = replace(find(name), **{"nodes": NODES, "features": FEATURES, "split_sizes": (6, 2, 4), **changes})
    monkeypatch.setattr(loading, "find", lambda _: entry)
    return entry


def write_photo(root: Path) -> Path:
    """Write the only raw file of Amazon Photo, with 12 nodes, and return it."""
    adjacency = scipy.sparse.csr_matrix((np.ones(4), ([0, 1, 2, 4], [1, 2, 3, 4])), (NODES, NODES))
    attributes = scipy.sparse.csr_matrix(np.eye(NODES, FEATURES) + np.eye(NODES, FEATURES, k=1))
    arrays = {
        f"{name}_{part}": getattr(matrix, part)
        for name, matrix in (("adj", adjacency), ("attr", attributes))
        for part in ("data", "indices", "indptr", "shape")
    }
    file = root / "Photo" / "raw" / "amazon_electronics_photo.npz"
    file.parent.mkdir(parents=True)
    np.savez(file, labels=np.arange(NODES) % 8, **arrays)
    return file


def write_graphsaint(root: Path, folder: str, labels: list[Any]) -> None:
    """Write GraphSAINT's four files, as Flickr and Yelp have them."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    pairs = np.unique(EDGES, axis=0)
    adjacency = scipy.sparse.csr_matrix((np.ones(len(pairs)), pairs.T), (NODES, NODES))
    parts = {part: getattr(adjacency, part) for part in ("data", "indices", "indptr", "shape")}
    np.savez(raw / "adj_full.npz", **parts)
    np.save(raw / "feats.npy", FEATURE_ROWS)
    (raw / "class_map.json").write_text(json.dumps({str(node): label for node, label in enumerate(labels)}))
    roles = {"tr": PARTS["train"].tolist(), "va": PARTS["valid"].tolist(), "te": PARTS["test"].tolist()}
    (raw / "role.json").write_text(json.dumps(roles))


def write_reddit(root: Path, labels: npt.NDArray[np.int64]) -> None:
    """Write Reddit's two files."""
    raw = root / "Reddit" / "raw"
    raw.mkdir(parents=True)
    kinds = np.zeros(NODES, dtype=np.int64)
    for kind, part in enumerate(PARTS.values(), start=1):
        kinds[part] = kind
    np.savez(raw / "reddit_data.npz", feature=FEATURE_ROWS, label=labels, node_types=kinds)
    pairs = np.unique(EDGES, axis=0)
    scipy.sparse.save_npz(
        raw / "reddit_graph.npz", scipy.sparse.coo_matrix((np.ones(len(pairs)), pairs.T), (NODES, NODES))
    )


def write_ogb(root: Path, folder: str, scheme: str, labels: npt.NDArray[np.int64]) -> None:
    """Write what OGB's archives hold and its loader reads."""
    tables = {
        "raw/edge": EDGES,
        "raw/node-feat": FEATURE_ROWS + 0.5,
        "raw/node-label": labels[:, None],
        "raw/node_year": np.full((NODES, 1), 2017),
        "raw/num-node-list": np.array([[NODES]]),
        "raw/num-edge-list": np.array([[len(EDGES)]]),
        **{f"split/{scheme}/{part}": nodes[:, None] for part, nodes in PARTS.items()},
    }
    for name, table in tables.items():
        file = root / folder / f"{name}.csv.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        np.savetxt(text, table, fmt="%g", delimiter=",")
        file.write_bytes(gzip.compress(text.getvalue().encode()))
    (root / folder / "RELEASE_v1.txt").write_text("Version 1")


CITATIONS = {"nodes": 540, "features": 6, "classes": 3, "split_sizes": (10, 500, 20)}
"""Sizes that `write_cora` writes: the public split validates on 500 nodes, whatever the graph."""


def write_cora(root: Path) -> Path:
    """Write the eight raw files of Cora, with `CITATIONS`, and return their folder."""
    nodes, features, classes, train, test = 540, 6, 3, 10, 20
    known = nodes - test
    rows = scipy.sparse.csr_matrix(np.eye(nodes, features, k=1) + np.eye(nodes, features), dtype=np.float32)
    scores = np.eye(classes, dtype=np.int32)[np.arange(nodes) % classes]
    order = known + np.random.default_rng(0).permutation(test)
    parts = {
        "x": rows[:train],
        "allx": rows[:known],
        "tx": rows[order],
        "y": scores[:train],
        "ally": scores[:known],
        "ty": scores[order],
        "graph": {node: [(node + 1) % nodes, (node - 1) % nodes] for node in range(nodes)},
    }
    raw = root / "Cora" / "raw"
    raw.mkdir(parents=True)
    for name, value in parts.items():
        (raw / f"ind.cora.{name}").write_bytes(old_pickle(value))
    (raw / "ind.cora.test.index").write_text("".join(f"{node}\n" for node in order))
    return raw


def old_pickle(value: Any) -> bytes:
    """What Python 2 pickled of a matrix, an array or lists by number, as the published files have it."""
    return b"\x80\x02" + _instructions(value) + b"."


def _instructions(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case tuple():
            return b"(" + b"".join(map(_instructions, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_instructions, value)) + b"e"
        case dict():
            items = b"".join(_instructions(each) for item in value.items() for each in item)
            return b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R(" + items + b"u"
        case np.ndarray():
            dtype = b"cnumpy\ndtype\n" + _instructions((value.dtype.str[1:].encode(), 0, 1)) + b"R"
            dtype += _instructions((3, b"<", None, None, None, -1, -1, 0)) + b"b"
            state = b"(K\x01" + _instructions(value.shape) + dtype + b"\x89" + _instructions(value.tobytes()) + b"t"
            return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state + b"b"
    parts = {b"_shape": value.shape, **{key: getattr(value, key.decode()) for key in (b"indptr", b"indices", b"data")}}
    fields = b"".join(_instructions(each) for item in parts.items() for each in item)
    return b"cscipy.sparse.csr\ncsr_matrix\n)\x81}(" + fields + b"ub"


class Bait:
    """Whoever unpickles it makes the folder `trace`."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.trace,)

    def pickled(self) -> bytes:
        """It as a pickle of protocol 2."""
        return pickle.dumps(self, protocol=2)
