import builtins
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch

from actbench.errors import DataError
from actbench.graphs import Entry, Graph, find, load, present
from actbench.graphs.raw import PygSource
from tests.conftest import SHARED_DATA
from tests.graphs.small import (
    EDGES,
    FEATURE_ROWS,
    NODES,
    PARTS,
    publish,
    write_graphsaint,
    write_ogb,
    write_photo,
    write_reddit,
)

FOLDERS = {
    "cora": "Cora",
    "citeseer": "CiteSeer",
    "pubmed": "PubMed",
    "computers": "Computers",
    "photo": "Photo",
    "tolokers": "tolokers",
    "minesweeper": "minesweeper",
}
MEMBERS = {tuple(edge) for edge in EDGES.tolist()}


def contents(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def members(graph: Graph) -> set[tuple[int, ...]]:
    edges = [tuple(edge) for edge in graph.edge_index.t().tolist()]
    assert len(set(edges)) == len(edges)
    return set(edges)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def assert_published(graph: Graph) -> None:
    entry = find(graph.name)
    assert (graph.nodes, graph.edges, graph.features) == (entry.nodes, entry.edges, entry.features)
    assert graph.y.unique().tolist() == list(range(entry.classes))
    assert (graph.classes, graph.task, graph.metric) == (entry.classes, entry.task, entry.metric)
    assert (len(graph.train), len(graph.valid), len(graph.test)) == entry.split_sizes
    source, target = graph.edge_index
    assert torch.equal((target * graph.nodes + source).sort().values, source * graph.nodes + target), (
        "published as undirected"
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_real_files_give_the_published_graph(
    name: str, raw_copy: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = raw_copy(FOLDERS[name])
    before = contents(data_dir)
    assert_published(load(name, data_dir))
    assert contents(data_dir) == before
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_physics_gives_the_published_graph() -> None:
    if not present("physics", SHARED_DATA):
        pytest.skip(f"the raw files of Physics are not in {SHARED_DATA}")
    assert_published(load("physics", SHARED_DATA))


@pytest.mark.parametrize(("name", "empty"), [("cora", 0), ("citeseer", 15), ("photo", 0)])
def test_rows_of_words_sum_to_one(name: str, empty: int, raw_copy: Callable[[str], Path]) -> None:
    sums = load(name, raw_copy(FOLDERS[name])).x.sum(1)
    assert int((sums == 0).sum()) == empty
    assert torch.allclose(sums[sums != 0], torch.tensor(1.0), atol=1e-5)


def test_public_split_of_cora_ignores_the_seed(raw_copy: Callable[[str], Path]) -> None:
    data_dir = raw_copy("Cora")
    for seed in (0, 7):
        graph = load("cora", data_dir, seed)
        assert graph.train.tolist() == list(range(140))
        assert graph.valid.tolist() == list(range(140, 640))
        assert graph.test.tolist() == list(range(1708, 2708))


def test_seed_picks_one_of_ten_official_splits(raw_copy: Callable[[str], Path]) -> None:
    data_dir = raw_copy("minesweeper")
    with np.load(data_dir / "minesweeper" / "raw" / "minesweeper.npz") as file:
        for seed in (0, 3, 13):
            graph = load("minesweeper", data_dir, seed)
            for part, masks in (("train", "train_masks"), ("valid", "val_masks"), ("test", "test_masks")):
                assert getattr(graph, part).tolist() == np.flatnonzero(file[masks][seed % 10]).tolist()


def test_seed_draws_a_split_where_none_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photo(tmp_path)
    publish(monkeypatch, "photo", split_sizes=(7, 2, 3))
    first, again, other = (load("photo", tmp_path, seed) for seed in (1, 1, 2))
    assert first.train.tolist() == again.train.tolist() != other.train.tolist()
    assert sorted(torch.cat([first.train, first.valid, first.test]).tolist()) == list(range(NODES))
    with pytest.raises(DataError, match="seed -1"):
        load("photo", tmp_path, -1)


def test_absent_files_name_the_remedy(tmp_path: Path) -> None:
    for name in ("cora", "flickr", "ogbn-arxiv"):
        assert not present(name, tmp_path)
        with pytest.raises(DataError, match=f"actbench pull {name}.*--data-dir"):
            load(name, tmp_path)
    assert not contents(tmp_path)
    assert present("synthetic:arxiv@0.1", tmp_path)


@pytest.mark.parametrize("file", ["x", "tx", "allx", "y", "ty", "ally", "graph", "test.index"])
def test_truncated_file_of_cora(file: str, raw_copy: Callable[[str], Path]) -> None:
    data_dir = raw_copy("Cora")
    path = data_dir / "Cora" / "raw" / f"ind.cora.{file}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    before = contents(data_dir)
    with pytest.raises(DataError, match=f"{data_dir / 'Cora'}.*delete that folder.*actbench pull cora") as caught:
        load("cora", data_dir)
    assert "\n" not in str(caught.value)
    assert contents(data_dir) == before


@pytest.mark.parametrize("content", [b"", b"<html>quota exceeded</html>"])
def test_file_that_is_something_else(content: bytes, tmp_path: Path) -> None:
    write_photo(tmp_path).write_bytes(content)
    with pytest.raises(DataError, match="actbench pull photo"):
        load("photo", tmp_path)


def test_files_of_another_graph_are_refused(tmp_path: Path) -> None:
    write_photo(tmp_path)
    with pytest.raises(DataError, match=r"adj has another shape than the published \[7650, 7650\]"):
        load("photo", tmp_path)
    write_reddit(tmp_path, labels=np.arange(NODES))
    with pytest.raises(DataError, match="nodes 12 where 232965 are published"):
        load("reddit", tmp_path)


@pytest.mark.parametrize(
    ("name", "folder", "scheme"),
    [("ogbn-arxiv", "ogbn_arxiv", "time"), ("ogbn-products", "ogbn_products", "sales_ranking")],
)
def test_ogb_files(
    name: str,
    folder: str,
    scheme: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def ask(_: str = "") -> str:
        raise AssertionError("OGB asked on the terminal")

    monkeypatch.setattr(builtins, "input", ask)
    write_ogb(tmp_path, folder, scheme, labels=np.arange(NODES) * 3)
    publish(monkeypatch, name)
    graph = load(name, tmp_path)
    assert members(graph) == MEMBERS | {(target, source) for source, target in MEMBERS}
    assert graph.x.tolist() == (FEATURE_ROWS + 0.5).tolist()
    assert graph.y.tolist() == (np.arange(NODES) * 3).tolist()
    for part, nodes in PARTS.items():
        assert getattr(graph, part).tolist() == sorted(nodes.tolist())
    assert not (tmp_path / folder / "processed").exists()
    assert "outdated" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_ogb_without_the_mark_of_its_release_counts_as_absent(tmp_path: Path) -> None:
    write_ogb(tmp_path, "ogbn_arxiv", "time", labels=np.zeros(NODES, dtype=np.int64))
    assert present("ogbn-arxiv", tmp_path)
    (tmp_path / "ogbn_arxiv" / "RELEASE_v1.txt").unlink()
    assert not present("ogbn-arxiv", tmp_path)


def test_flickr_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graphsaint(tmp_path, "Flickr", labels=[node % 7 for node in range(NODES)])
    publish(monkeypatch, "flickr")
    graph = load("flickr", tmp_path)
    assert members(graph) == MEMBERS
    assert graph.x.tolist() == FEATURE_ROWS.tolist()
    assert graph.y.tolist() == [node % 7 for node in range(NODES)]
    assert graph.test.tolist() == sorted(PARTS["test"].tolist())


def test_yelp_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [[node % 2, 1, 0] for node in range(NODES)]
    write_graphsaint(tmp_path, "Yelp", labels)
    publish(monkeypatch, "yelp", classes=3)
    graph = load("yelp", tmp_path)
    assert graph.y.tolist() == labels
    assert graph.y.dtype == torch.float32
    training = FEATURE_ROWS[PARTS["train"]]
    expected = (FEATURE_ROWS - training.mean(0)) / training.std(0)
    assert np.allclose(graph.x.numpy(), expected, atol=1e-5)


def test_reddit_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_reddit(tmp_path, labels=np.arange(NODES))
    publish(monkeypatch, "reddit")
    graph = load("reddit", tmp_path)
    assert members(graph) == MEMBERS
    assert graph.valid.tolist() == [6, 8]
    assert graph.y.tolist() == list(range(NODES))


@pytest.fixture
def flickr_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_graphsaint(tmp_path / "data", "Flickr", labels=[0] * NODES)
    publish(monkeypatch, "flickr")
    return tmp_path / "data"


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(source: PygSource, root: Path, entry: Entry) -> None:
        raise AssertionError(f"{source} was read again from {root}")

    monkeypatch.setattr(PygSource, "read", read)


def test_large_files_are_parsed_once(flickr_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load("flickr", flickr_dir)
    forbid_reading(monkeypatch)
    second = load("flickr", flickr_dir)
    for field in ("x", "edge_index", "y", "train", "valid", "test"):
        assert torch.equal(getattr(first, field), getattr(second, field))


def test_changed_file_is_parsed_again(flickr_dir: Path) -> None:
    load("flickr", flickr_dir)
    np.save(flickr_dir / "Flickr" / "raw" / "feats.npy", FEATURE_ROWS + 1)
    assert load("flickr", flickr_dir).x.tolist() == (FEATURE_ROWS + 1).tolist()


@pytest.mark.parametrize("length", [0, 1000, -10])
def test_damaged_cache_is_replaced(flickr_dir: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    load("flickr", flickr_dir)
    kept = flickr_dir / "Flickr" / "actbench.npz"
    kept.write_bytes(kept.read_bytes()[:length])
    assert load("flickr", flickr_dir).x.tolist() == FEATURE_ROWS.tolist()
    forbid_reading(monkeypatch)
    load("flickr", flickr_dir)


@pytest.mark.parametrize(
    "change", [{"edge_index": np.array([[0], [10**9]])}, {"x": np.full((NODES, 3), np.nan)}, {"train": np.arange(2)}]
)
def test_cache_that_holds_no_such_graph_is_replaced(flickr_dir: Path, change: dict[str, Any]) -> None:
    expected = load("flickr", flickr_dir)
    kept = flickr_dir / "Flickr" / "actbench.npz"
    with np.load(kept) as archive:
        arrays: dict[str, Any] = dict(archive)
    np.savez(kept, **arrays | change)
    assert torch.equal(load("flickr", flickr_dir).edge_index, expected.edge_index)


def test_folder_that_cannot_be_written_to(flickr_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    savez = np.savez

    def refuse(file: IO[bytes], **arrays: Any) -> None:
        if flickr_dir in Path(file.name).parents:
            raise PermissionError(f"read-only: {file.name}")
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", refuse)
    before = contents(flickr_dir)
    load("flickr", flickr_dir)
    assert contents(flickr_dir) == before
    forbid_reading(monkeypatch)
    load("flickr", flickr_dir)
    monkeypatch.undo()
    assert len(list((tmp_path / "cache" / "actbench").iterdir())) == 1


def test_nothing_is_kept_of_damaged_files(flickr_dir: Path, tmp_path: Path) -> None:
    (flickr_dir / "Flickr" / "raw" / "role.json").write_text('{"tr": [0')
    before = contents(tmp_path)
    with pytest.raises(DataError, match="actbench pull flickr"):
        load("flickr", flickr_dir)
    assert contents(tmp_path) == before


def test_catalogue_needs_neither_pyg_nor_ogb() -> None:
    program = (
        "import sys, actbench.graphs as graphs; graphs.catalogue(); "
        "assert not {'torch_geometric', 'ogb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
