"""Raw files of a few nodes in the layouts that the published sets have, and the catalogue entries that fit them."""

import gzip
import io
import json
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
