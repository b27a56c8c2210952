from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actbench.graphs import Graph, find, load, mean_adjacency


def generate(name: str) -> Graph:
    return load(name, Path("nowhere"))


def assert_simple_and_symmetric(graph: Graph) -> None:
    source, target = graph.edge_index
    keys = source * graph.nodes + target
    assert int(graph.edge_index.min()) >= 0
    assert int(graph.edge_index.max()) < graph.nodes
    assert (keys[1:] > keys[:-1]).all()
    assert (source != target).all()
    assert torch.equal((target * graph.nodes + source).sort().values, keys)


@pytest.mark.parametrize(
    "name",
    [
        "synthetic:arxiv@0.001",
        "synthetic:arxiv@0.02",
        "synthetic:flickr@0.0001",
        "synthetic:flickr@0.05",
        "synthetic:products@0.00002",
        "synthetic:products@0.0001",
        "synthetic:products@0.001",
    ],
)
def test_exact_shape(name: str) -> None:
    graph, entry = generate(name), find(name)
    assert graph.x.shape == (entry.nodes, entry.features)
    assert graph.edge_index.shape == (2, entry.edges)
    assert graph.y.shape == (entry.nodes,)
    assert (graph.x.dtype, graph.edge_index.dtype, graph.y.dtype) == (torch.float32, torch.int64, torch.int64)
    assert 0 <= int(graph.y.min()) <= int(graph.y.max()) < entry.classes == graph.classes
    assert entry.split_sizes == tuple(len(part) for part in (graph.train, graph.valid, graph.test))
    assert torch.cat([graph.train, graph.valid, graph.test]).unique().numel() == entry.nodes
    assert graph.synthetic
    assert_simple_and_symmetric(graph)


def test_whole_arxiv_has_the_published_shape() -> None:
    graph = generate("synthetic:arxiv")
    assert (graph.nodes, graph.edges, graph.features, graph.classes) == (169_343, 2_315_598, 128, 40)
    assert [len(part) for part in (graph.train, graph.valid, graph.test)] == [90_941, 29_799, 48_603]
    assert_simple_and_symmetric(graph)
    degrees = graph.edge_index[0].bincount(minlength=graph.nodes)
    assert degrees.max() > 100 * degrees.float().median()
    assert degrees.max() < graph.nodes / 10


def test_neither_seed_nor_torch_changes_it() -> None:
    torch.manual_seed(1)
    first = load("synthetic:flickr@0.01", Path("nowhere"), seed=0)
    second = load("synthetic:flickr@0.01", Path("nowhere"), seed=5)
    for field in ("x", "edge_index", "y", "train", "valid", "test"):
        assert torch.equal(getattr(first, field), getattr(second, field))
    assert torch.initial_seed() == 1


def test_node_order_says_nothing_of_the_class() -> None:
    graph = generate("synthetic:arxiv@0.05")
    shares = [half.bincount(minlength=40) / len(half) for half in graph.y.chunk(2)]
    assert all((one - other).abs().max() < 0.02 for one, other in pairwise(shares))


def accuracy(inputs: Tensor, graph: Graph) -> float:
    """Test accuracy of softmax regression at its best validation epoch."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(inputs.size(1), graph.classes)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.02)
    scores = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(layer(inputs[graph.train]), graph.y[graph.train])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        correct = (layer(inputs).argmax(1) == graph.y).float()
        scores.append((float(correct[graph.valid].mean()), float(correct[graph.test].mean())))
    return max(scores)[1]


@pytest.mark.parametrize(
    ("name", "gain", "ceiling"),
    [
        ("synthetic:arxiv@0.03", 0.12, 0.78),
        ("synthetic:flickr@0.08", 0.03, 0.62),
        ("synthetic:products@0.002", 0.15, 0.87),
    ],
)
def test_neighbours_help_and_labels_stay_noisy(name: str, gain: float, ceiling: float) -> None:
    graph = generate(name)
    adjacency = mean_adjacency(graph.edge_index, graph.nodes)
    with_graph = accuracy(adjacency @ (adjacency @ graph.x), graph)
    assert accuracy(graph.x, graph) + gain < with_graph < ceiling
    assert with_graph > graph.y.bincount().max() / graph.nodes + 0.05


@pytest.mark.slow
def test_whole_products_has_the_published_shape() -> None:
    graph = generate("synthetic:products")
    assert (graph.nodes, graph.edges, graph.features) == (2_449_029, 123_718_280, 100)
    source, target = graph.edge_index
    keys = source * graph.nodes + target
    assert (keys[1:] > keys[:-1]).all()
    assert (source != target).all()
