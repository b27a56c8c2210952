"""The data sets that have a name: their published sizes, splits, metrics, licences and origins."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from actbench.errors import DataError

Task = Literal["single-label", "multi-label"]
Metric = Literal["accuracy", "micro-F1", "ROC-AUC"]


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue."""

    name: str
    nodes: int
    edges: int
    """Directed edges as the loader publishes them; of a synthetic graph, the columns of its `edge_index`."""
    features: int
    classes: int
    task: Task = "single-label"
    metric: Metric = "accuracy"
    split: str = "official"
    split_sizes: tuple[int, int, int] | None = None
    """Nodes to train on, to validate on and to test on; None where no source states them."""
    licence: str = "not stated"
    """Licence of the repository that holds the files, or of the data where their publisher states one."""
    source: str = "not stated"
    download_bytes: int | None = None
    """Bytes of all raw files; None where not verified."""
    synthetic: bool = False


def catalogue() -> tuple[Entry, ...]:
    """Return every named data set, the real ones first."""
    return _ENTRIES


def find(name: str) -> Entry:
    """Return the entry called `name`; `synthetic:arxiv@0.1` has a tenth of the nodes of `synthetic:arxiv`.

    Raises:
        DataError: no such name, or a scale outside (0, 1] or one that leaves fewer nodes than classes.
    """
    base, at, scale = name.partition("@")
    entry = next((entry for entry in _ENTRIES if entry.name == base), None)
    if entry is None or (at and not entry.synthetic):
        close = get_close_matches(name, [entry.name for entry in _ENTRIES], n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise DataError(f"There is no data set {name!r}: {hint}`actbench datasets` lists them all.")
    return _scaled(entry, scale) if at else entry


def as_loaded(entry: Entry) -> Entry:
    """Return `entry` with the edges that a loaded graph has: ogbn-arxiv is made undirected."""
    return replace(entry, edges=_ARXIV_UNDIRECTED_EDGES) if entry.name == _ARXIV.name else entry


def _scaled(entry: Entry, text: str) -> Entry:
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale <= 1:
        raise DataError(f"The scale in {entry.name}@{text} must be above 0 and at most 1, as in {entry.name}@0.1.")
    if scale == 1:
        return entry
    assert entry.split_sizes is not None
    nodes = round(entry.nodes * scale)
    train, valid = (max(1, round(size * scale)) for size in entry.split_sizes[:2])
    if nodes < max(entry.classes, train + valid + 1):
        raise DataError(
            f"{entry.name}@{text} has {nodes} nodes for {entry.classes} classes: "
            f"take a scale of at least {1.5 * entry.classes / entry.nodes:.1g}."
        )
    pairs = min(round(entry.edges // 2 * scale), nodes * (nodes - 1) // 2)
    return replace(
        entry,
        name=f"{entry.name}@{scale:g}",
        nodes=nodes,
        edges=2 * pairs,
        split_sizes=(train, valid, nodes - train - valid),
    )


def seeded_sizes(nodes: int) -> tuple[int, int, int]:
    """Return the part sizes of a 60/20/20 split."""
    train, valid = round(0.6 * nodes), round(0.2 * nodes)
    return train, valid, nodes - train - valid


def _citations(name: str, nodes: int, edges: int, features: int, classes: int, download_bytes: int) -> Entry:
    return Entry(
        *(name, nodes, edges, features, classes),
        split="public",
        split_sizes=(20 * classes, 500, 1000),
        licence="MIT",
        source="github.com/kimiyoung/planetoid",
        download_bytes=download_bytes,
    )


def _purchases_and_coauthors(name: str, nodes: int, edges: int, features: int, classes: int) -> Entry:
    return Entry(
        *(name, nodes, edges, features, classes),
        split="seeded 60/20/20",
        split_sizes=seeded_sizes(nodes),
        licence="MIT",
        source="github.com/shchur/gnn-benchmark",
    )


def _heterophilous(name: str, nodes: int, edges: int, features: int, download_bytes: int) -> Entry:
    return Entry(
        *(name, nodes, edges, features, 2),
        metric="ROC-AUC",
        split="official, 10",
        split_sizes=(nodes // 2, nodes // 4, nodes - nodes // 2 - nodes // 4),
        licence="MIT",
        source="github.com/yandex-research/heterophilous-graphs",
        download_bytes=download_bytes,
    )


def _imitation(real: Entry, name: str, edges: int) -> Entry:
    return replace(
        real,
        name=name,
        edges=edges,
        split="fixed, random",
        licence="none: generated",
        source="actbench.graphs.synthetic",
        download_bytes=0,
        synthetic=True,
    )


_FLICKR = Entry(
    *("flickr", 89_250, 899_756, 500, 7),
    split_sizes=(44_625, 22_312, 22_313),
    source="Google Drive of GraphSAINT",
)
_ARXIV = Entry(
    *("ogbn-arxiv", 169_343, 1_166_243, 128, 40),
    split_sizes=(90_941, 29_799, 48_603),
    licence="ODC-BY",
    source="snap.stanford.edu/ogb",
)
_PRODUCTS = Entry(
    *("ogbn-products", 2_449_029, 123_718_280, 100, 47),
    split_sizes=(196_615, 39_323, 2_213_091),
    licence="Amazon license",
    source="snap.stanford.edu/ogb",
)

_ARXIV_UNDIRECTED_EDGES = 2_315_598
"""1,157,799 pairs, of which 8,444 are published in both directions."""

# Sizes are those in the docstrings of PyG's classes and the documentation of OGB and (Reddit's split) DGL.
_ENTRIES = (
    _citations("cora", 2_708, 10_556, 1_433, 7, 572_444),
    _citations("citeseer", 3_327, 9_104, 3_703, 6, 1_036_188),
    _citations("pubmed", 19_717, 88_648, 500, 3, 8_722_598),
    _purchases_and_coauthors("computers", 13_752, 491_722, 767, 10),
    _purchases_and_coauthors("photo", 7_650, 238_162, 745, 8),
    _purchases_and_coauthors("physics", 34_493, 495_924, 8_415, 5),
    _heterophilous("tolokers", 11_758, 1_038_000, 10, 1_329_769),
    _heterophilous("minesweeper", 10_000, 78_804, 7, 135_045),
    _FLICKR,
    Entry(
        *("reddit", 232_965, 114_615_892, 602, 41),
        split_sizes=(153_431, 23_831, 55_703),
        source="data.dgl.ai",
    ),
    Entry(
        *("yelp", 716_847, 13_954_819, 300, 100),
        task="multi-label",
        metric="micro-F1",
        source="Google Drive of GraphSAINT",
    ),
    _ARXIV,
    _PRODUCTS,
    _imitation(_ARXIV, "synthetic:arxiv", _ARXIV_UNDIRECTED_EDGES),
    _imitation(_FLICKR, "synthetic:flickr", _FLICKR.edges),
    _imitation(_PRODUCTS, "synthetic:products", _PRODUCTS.edges),
)
