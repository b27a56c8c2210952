"""Random graphs of exactly the shape of a published one, with communities that a graph network can learn.

The model is a degree-corrected stochastic block model (Karrer & Newman, 2011): a node's weight is drawn from
a bounded power law; most edges stay inside a community or reach one of its two neighbours on a ring, the rest
end anywhere, all in proportion to weight. Features are Gaussian around a centroid for each community, too
wide to tell the communities apart on their own. A share of the labels is drawn anew: no model reaches 100 %.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actbench.graphs.catalogue import Entry
from actbench.graphs.graph import Graph, cut

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Recipe:
    """What distinguishes one imitation from another beside its sizes; all shares are between 0 and 1."""

    inside: float
    """Share of the edges that stay in their community."""
    near: float
    """Share of the edges that reach a neighbouring community."""
    signal: float
    """Distance of a centroid from the origin, in standard deviations of the features."""
    relabelled: float
    """Share of the nodes whose label is drawn anew."""


# Chosen so that a two-layer GraphSAGE scores about what it scores on the data set imitated.
_RECIPES = {
    "synthetic:arxiv": Recipe(inside=0.7, near=0.15, signal=3.0, relabelled=0.28),
    "synthetic:flickr": Recipe(inside=0.5, near=0.2, signal=2.5, relabelled=0.5),
    "synthetic:products": Recipe(inside=0.7, near=0.15, signal=3.5, relabelled=0.2),
}


def generate(entry: Entry) -> Graph:
    """Return the graph of a synthetic entry: the same on every call, symmetric, without self-loops.

    Memory at its peak is about 1.6 times that of the graph.
    """
    base = entry.name.partition("@")[0]
    recipe = _RECIPES[base]
    rng = np.random.default_rng(list(base.encode()))
    shares = np.arange(1, entry.classes + 1, dtype=np.float64) ** -0.9
    shares /= shares.sum()
    # Nodes are drawn in the order of their communities and renamed at random at the end.
    names = rng.permutation(entry.nodes)
    sizes = _share_out(entry.nodes, shares)
    pairs = _draw_pairs(rng, entry.edges // 2, sizes, recipe)
    communities = np.empty(entry.nodes, dtype=np.int64)
    communities[names] = np.repeat(np.arange(entry.classes), sizes)
    labels = communities.copy()
    relabelled = rng.random(entry.nodes) < recipe.relabelled
    labels[relabelled] = rng.choice(entry.classes, int(relabelled.sum()), p=shares)
    assert entry.split_sizes is not None
    train, valid, test = cut(rng.permutation(entry.nodes), *entry.split_sizes[:2])
    return Graph(
        name=entry.name,
        x=_draw_features(rng, communities, entry.features, entry.classes, recipe.signal),
        edge_index=_both_directions(pairs, names),
        y=torch.from_numpy(labels),
        train=train,
        valid=valid,
        test=test,
        classes=entry.classes,
        task=entry.task,
        metric=entry.metric,
        synthetic=True,
    )


def _share_out(nodes: int, shares: Floats) -> Integers:
    """Return one node for each community and the others in proportion to `shares`."""
    sizes = 1 + np.floor((nodes - len(shares)) * shares).astype(np.int64)
    sizes[0] += nodes - sizes.sum()
    return sizes


def _draw_pairs(rng: np.random.Generator, pairs: int, sizes: Integers, recipe: Recipe) -> Integers:
    """Return `pairs` different pairs u < v, ascending, each as the one number u * nodes + v."""
    nodes = int(sizes.sum())
    weights = _draw_weights(rng, nodes)
    found = np.empty(0, dtype=np.int64)
    new_share = 1.0
    while (missing := pairs - len(found)) > 0:
        count = int(1.05 * missing / new_share) + 64
        drawn = np.concatenate(list(_draw_candidates(rng, count, sizes, weights, recipe)))
        before = len(found)
        found = _union(found, drawn)
        new_share = (len(found) - before) / count
        if new_share < 0.05 and len(found) < pairs:
            # Nearly every likely pair is linked, which only a tiny graph gets to: any others make up the number.
            u, v = np.triu_indices(nodes, k=1)
            rest = np.setdiff1d(u * nodes + v, found, assume_unique=True)
            found = _union(found, rng.choice(rest, pairs - len(found), replace=False))
    return np.delete(found, rng.choice(len(found), len(found) - pairs, replace=False))


def _union(first: Integers, second: Integers) -> Integers:
    """Return what stands in either, ascending; `np.union1d` hashes and takes ten times as long."""
    both = np.concatenate([first, second])
    both.sort()
    new: npt.NDArray[np.bool_] = np.append(True, both[1:] != both[:-1])
    return both[new]


def _draw_weights(rng: np.random.Generator, nodes: int) -> Floats:
    """Return weights between 1 and 1000 with density proportional to weight ** -2.5."""
    weights: Floats = (1 - rng.random(nodes) * (1 - 1000**-1.5)) ** (-1 / 1.5)
    return weights


def _draw_candidates(
    rng: np.random.Generator, count: int, sizes: Integers, weights: Floats, recipe: Recipe
) -> Iterator[Integers]:
    """Yield the numbers of about `count` pairs, repeats included, in chunks."""
    nodes, communities = len(weights), len(sizes)
    ends = np.concatenate([[0.0], np.cumsum(weights)])
    borders = ends[np.concatenate([[0], np.cumsum(sizes)])]
    for start in range(0, count, _CHUNK):
        chunk = min(_CHUNK, count - start)
        at = rng.random(chunk) * ends[-1]
        source = np.searchsorted(ends[1:-1], at, side="right")
        community = np.searchsorted(borders[1:-1], at, side="right")
        kind = rng.random(chunk)
        step = rng.integers(0, 2, chunk) * 2 - 1
        community += np.where((kind >= recipe.inside) & (kind < recipe.inside + recipe.near), step, 0)
        community %= communities
        anywhere = kind >= recipe.inside + recipe.near
        low = np.where(anywhere, 0.0, borders[community])
        high = np.where(anywhere, ends[-1], borders[community + 1])
        target = np.searchsorted(ends[1:-1], low + rng.random(chunk) * (high - low), side="right")
        apart = source != target
        yield (np.minimum(source, target) * nodes + np.maximum(source, target))[apart]


def _draw_features(
    rng: np.random.Generator, communities: Integers, features: int, classes: int, signal: float
) -> Tensor:
    centroids = rng.standard_normal((classes, features), dtype=np.float32)
    centroids *= signal / np.linalg.norm(centroids, axis=1, keepdims=True)
    x = rng.standard_normal((len(communities), features), dtype=np.float32)
    for start in range(0, len(x), 1 << 16):
        x[start : start + (1 << 16)] += centroids[communities[start : start + (1 << 16)]]
    return torch.from_numpy(x)


def _both_directions(pairs: Integers, names: Integers) -> Tensor:
    """Return int64 [2, 2 * pairs], sorted by source and target, of the pairs between renamed nodes."""
    nodes = len(names)
    directed = np.empty(2 * len(pairs), dtype=np.int64)
    for start in range(0, len(pairs), _CHUNK):
        u, v = (names[end] for end in np.divmod(pairs[start : start + _CHUNK], nodes))
        stop = start + len(u)
        directed[start:stop] = u * nodes + v
        directed[len(pairs) + start : len(pairs) + stop] = v * nodes + u
    directed.sort()
    edge_index = np.empty((2, len(directed)), dtype=np.int64)
    np.divmod(directed, nodes, out=(edge_index[0], edge_index[1]))
    return torch.from_numpy(edge_index)
