"""From a data set's name to its graph; nothing is downloaded here."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from actbench.errors import DataError
from actbench.graphs import cache
from actbench.graphs.catalogue import Entry, as_loaded, find
from actbench.graphs.checks import limit_bytes
from actbench.graphs.graph import Graph, check, settle, split_at_random
from actbench.graphs.npz import npz_entry, read_npz
from actbench.graphs.raw import SOURCES
from actbench.graphs.reason import reason
from actbench.graphs.synthetic import generate
from actbench.home import expand_home

_BAGS_OF_WORDS = ("cora", "citeseer", "pubmed", "computers", "photo", "physics")


def load(name: str, data_dir: Path, seed: int = 0) -> Graph:
    """Return the graph called `name`, or the one in the `.npz` file that `name` is the path of.

    `seed` draws the split where none is published and picks number `seed % 10` of ten published ones; a
    synthetic graph does not depend on it. Bags of words are normalised to rows of sum one, Yelp's features
    are standardised, ogbn-arxiv is made undirected; what else is published stays as it is.

    Raises:
        DataError: no such name, the raw files are absent from `data_dir` or damaged, or `seed` is negative.
    """
    if seed < 0:
        raise DataError(f"The seed {seed} is negative: give 0 or more.")
    if name.endswith(".npz"):
        return read_npz(expand_home(name), seed)
    entry = find(name)
    return generate(entry) if entry.synthetic else _load_real(entry, data_dir, seed)


def sizes_of(name: str) -> Entry:
    """The sizes of the graph that `load` returns for `name`, without the graph; of a `.npz` file see `npz_entry`.

    Raises:
        DataError: no such name, or the `.npz` file is absent or damaged.
    """
    return npz_entry(expand_home(name)) if name.endswith(".npz") else as_loaded(find(name))


def present(name: str, data_dir: Path) -> bool:
    """Return whether `load` finds the files that it needs.

    Raises:
        DataError: no such name.
    """
    if name.endswith(".npz"):
        return expand_home(name).is_file()
    entry = find(name)
    return entry.synthetic or all(file.is_file() for file in SOURCES[name].files(data_dir))


def _load_real(entry: Entry, data_dir: Path, seed: int) -> Graph:
    source = SOURCES[entry.name]
    folder = source.folder(data_dir)
    if not present(entry.name, data_dir):
        raise DataError(
            f"{entry.name} is not in {data_dir}: run `actbench pull {entry.name}` first, "
            f"or let --data-dir name the folder that holds {folder.name}."
        )
    try:
        if not source.slow:
            return _read(entry, data_dir, seed)
        current = cache.stamp(source.files(data_dir))
        kept = _restored(entry, folder, current)
        if kept is not None:
            return kept
        graph = _read(entry, data_dir, seed)
    except MemoryError:
        raise
    # On damaged files the libraries raise anything.
    except Exception as error:
        raise DataError(
            f"The files of {entry.name} in {folder} cannot be read ({reason(error)}): "
            f"delete that folder and run `actbench pull {entry.name}`."
        ) from error
    fields = ("x", "edge_index", "y", "train", "valid", "test")
    cache.keep(folder, current, {field: getattr(graph, field) for field in fields})
    return graph


def _restored(entry: Entry, folder: Path, current: str) -> Graph | None:
    """What is kept of an earlier reading, if it still is a graph of the published sizes."""
    kept = cache.restore(folder, current, limit_bytes(entry))
    if kept is None:
        return None
    graph = _graph(entry, kept)
    try:
        check(graph)
        _check_published(graph, entry)
    except DataError:
        return None
    return graph


def _read(entry: Entry, data_dir: Path, seed: int) -> Graph:
    data = SOURCES[entry.name].read(data_dir, entry)
    train, valid, test = _split(data, seed)
    tensors = {
        "x": _treat_features(entry.name, data.x, train),
        "edge_index": data.edge_index,
        "y": data.y.float() if entry.task == "multi-label" else data.y,
        "train": train,
        "valid": valid,
        "test": test,
    }
    graph = _graph(entry, tensors)
    _check_published(graph, entry)
    return settle(graph, undirected=entry.name == "ogbn-arxiv")


def _graph(entry: Entry, tensors: dict[str, Tensor]) -> Graph:
    kind = {"classes": entry.classes, "task": entry.task, "metric": entry.metric, "synthetic": False}
    fields: dict[str, Any] = {"name": entry.name, **kind, **tensors}
    return Graph(**fields)


def _split(data: Any, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    if "train_mask" not in data:
        return split_at_random(data.num_nodes, seed)
    masks = (data.train_mask, data.val_mask, data.test_mask)
    train, valid, test = (
        (mask[:, seed % mask.size(1)] if mask.dim() == 2 else mask).nonzero().view(-1) for mask in masks
    )
    return train, valid, test


def _treat_features(name: str, x: Tensor, train: Tensor) -> Tensor:
    if name in _BAGS_OF_WORDS:
        sums = x.sum(dim=1, keepdim=True)
        return x.div_(sums.masked_fill_(sums == 0, 1))
    if name == "yelp":
        # As GraphSAINT does (Zeng et al., 2020, load_data): the scaler sees training nodes only.
        deviation, mean = torch.std_mean(x[train], dim=0, correction=0)
        return x.sub_(mean).div_(deviation.masked_fill_(deviation == 0, 1))
    return x


def _check_published(graph: Graph, entry: Entry) -> None:
    """Notice what parses although a part is missing, such as a list of test nodes that was cut off."""
    sizes = (len(graph.train), len(graph.valid), len(graph.test))
    found = {"nodes": graph.nodes, "features": graph.features, "split": sizes}
    published = {"nodes": entry.nodes, "features": entry.features, "split": entry.split_sizes or sizes}
    for what, value in found.items():
        if value != published[what]:
            raise DataError(f"{what} {value} where {published[what]} are published")
