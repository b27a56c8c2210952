import csv
import importlib.util
from pathlib import Path

import pytest
import torch_geometric.datasets

from actbench.errors import DataError
from actbench.graphs import Entry, catalogue, find
from actbench.graphs.raw import SOURCES, OgbSource, PygSource

REAL = [entry for entry in catalogue() if not entry.synthetic]


def test_names_are_unique_and_every_real_set_has_files() -> None:
    names = [entry.name for entry in catalogue()]
    assert len(set(names)) == len(names)
    assert {entry.name for entry in REAL} == set(SOURCES)


@pytest.mark.parametrize("entry", REAL, ids=lambda entry: entry.name)
def test_sizes_stand_in_the_docstring_of_pyg(entry: Entry) -> None:
    source = SOURCES[entry.name]
    if not isinstance(source, PygSource):
        pytest.skip("PyG has no class for it")
    stated = getattr(torch_geometric.datasets, source.class_name).__doc__
    # This class states undirected edges.
    edges = entry.edges // 2 if source.class_name == "HeterophilousGraphDataset" else entry.edges
    for number in (entry.nodes, edges, entry.features, entry.classes):
        assert f"- {number:,}\n" in stated


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.name)
def test_split_fits_the_nodes(entry: Entry) -> None:
    if entry.split_sizes is None:
        pytest.skip("no source states the sizes")
    # Planetoid's public split leaves most nodes out.
    assert sum(entry.split_sizes) == entry.nodes or entry.split == "public"
    assert sum(entry.split_sizes) <= entry.nodes


def test_facts_of_ogb_are_those_of_its_master_table() -> None:
    spec = importlib.util.find_spec("ogb")
    assert spec is not None
    assert spec.origin is not None
    with open(Path(spec.origin).parent / "nodeproppred" / "master.csv", newline="") as file:
        rows = {row[""]: row for row in csv.DictReader(file)}
    for name in ("ogbn-arxiv", "ogbn-products"):
        source = SOURCES[name]
        assert isinstance(source, OgbSource)
        assert source.url == rows["url"][name]
        assert source.archive == rows["download_name"][name]
        assert source.scheme == rows["split"][name]
        assert rows["version"][name] == "1"
        assert find(name).classes == int(rows["num classes"][name])


def test_scale_divides_nodes_edges_and_split_only() -> None:
    whole, tenth = find("synthetic:arxiv"), find("synthetic:arxiv@0.1")
    assert (tenth.nodes, tenth.edges) == (16_934, 2 * 115_780)
    assert tenth.split_sizes == (9_094, 2_980, 4_860)
    assert (tenth.features, tenth.classes) == (whole.features, whole.classes)
    assert tenth.name == "synthetic:arxiv@0.1"
    assert find("synthetic:arxiv@1.0") == whole


@pytest.mark.parametrize("scale", ["", "0", "-1", "1.5", "nan", "inf", "tenth", "1e-9"])
def test_scale_that_makes_no_graph(scale: str) -> None:
    with pytest.raises(DataError, match=rf"synthetic:flickr@{scale} ") as caught:
        find(f"synthetic:flickr@{scale}")
    assert "scale" in str(caught.value)


@pytest.mark.parametrize("name", ["synthetic:arxiv", "synthetic:flickr", "synthetic:products"])
def test_scale_that_is_too_small_names_one_that_is_not(name: str) -> None:
    with pytest.raises(DataError, match="at least") as caught:
        find(f"{name}@1e-7")
    scale = str(caught.value).rstrip(".").split()[-1]
    assert find(f"{name}@{scale}").nodes >= find(name).classes


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("arxiv", "ogbn-arxiv"), ("Cora", "cora"), ("syntetic:arxiv@0.1", "synthetic:arxiv"), ("cora@0.5", "cora")],
)
def test_unknown_name_suggests_a_known_one(name: str, suggestion: str) -> None:
    with pytest.raises(DataError, match=rf"{name}.*{suggestion}.*actbench datasets"):
        find(name)
    with pytest.raises(DataError, match=r"'zzz': `actbench datasets`"):
        find("zzz")
