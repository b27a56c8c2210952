"""Raw files that were made to do harm: none of them is executed, and none takes more memory than its data set."""

import gzip
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actbench.errors import DataError
from actbench.graphs import find, load
from actbench.graphs.planetoid import read_planetoid, unpack
from tests.conftest import SHARED_DATA
from tests.graphs.small import (
    CITATIONS,
    EDGES,
    NODES,
    Bait,
    old_pickle,
    publish,
    write_cora,
    write_graphsaint,
    write_ogb,
    write_photo,
    write_reddit,
)

MEBIBYTE = 2**20
PICKLES = ("x", "tx", "allx", "y", "ty", "ally", "graph")


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a bait makes; the environment asks torch to unpickle whatever it meets."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "trace"
    pickle.loads(Bait(path).pickled())
    assert path.is_dir(), "the bait works"
    path.rmdir()
    return path


def write_all(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Write valid files for `name`, of which nothing is kept, and let the catalogue state their sizes."""
    match name:
        case "cora":
            write_cora(root)
            publish(monkeypatch, name, **CITATIONS)
        case "photo":
            write_photo(root)
            publish(monkeypatch, name, split_sizes=(7, 2, 3))
        case "tolokers":
            write_tolokers(root)
            publish(monkeypatch, name)
        case "flickr":
            write_graphsaint(root, "Flickr", [0] * NODES)
            publish(monkeypatch, name)
        case "reddit":
            write_reddit(root, np.arange(NODES))
            publish(monkeypatch, name)
        case "ogbn-arxiv":
            write_ogb(root, "ogbn_arxiv", "time", np.arange(NODES))
            publish(monkeypatch, name)
    assert load(name, root).name == name
    for kept in root.rglob("actbench.npz"):
        kept.unlink()


def write_tolokers(root: Path) -> None:
    masks: dict[str, Any] = {f"{part}_masks": np.zeros((10, NODES), dtype=bool) for part in ("train", "val", "test")}
    masks["train_masks"][:, :6] = masks["val_masks"][:, 6:8] = masks["test_masks"][:, 8:] = True
    raw = root / "tolokers" / "raw"
    raw.mkdir(parents=True)
    features = np.ones((NODES, 3), dtype=np.float32)
    np.savez(
        raw / "tolokers.npz",
        node_features=features,
        node_labels=np.arange(NODES) % 2,
        edges=EDGES,
        **masks,
    )


def refuse(name: str, root: Path, *parts: str) -> None:
    """Expect one sentence that holds all `parts`, and no more memory than twice the data set's own bound."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            load(name, root)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert peak_bytes < 128 * MEBIBYTE


FILES = {
    "cora": [f"Cora/raw/ind.cora.{part}" for part in (*PICKLES, "test.index")],
    "photo": ["Photo/raw/amazon_electronics_photo.npz"],
    "tolokers": ["tolokers/raw/tolokers.npz"],
    "flickr": [f"Flickr/raw/{file}" for file in ("adj_full.npz", "feats.npy", "class_map.json", "role.json")],
    "reddit": [f"Reddit/raw/{file}" for file in ("reddit_data.npz", "reddit_graph.npz")],
    "ogbn-arxiv": ["ogbn_arxiv/raw/edge.csv.gz", "ogbn_arxiv/split/time/train.csv.gz"],
}


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in FILES.items() for file in files])
def test_a_pickle_in_place_of_a_file_is_not_executed(
    name: str, file: str, tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path, monkeypatch, name)
    (tmp_path / file).write_bytes(Bait(trace).pickled())
    refuse(name, tmp_path, f"actbench pull {name}")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name, files in FILES.items() for file in files if file.endswith(".npz")]
)
def test_a_pickled_array_is_not_executed(
    name: str, file: str, tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path, monkeypatch, name)
    with np.load(tmp_path / file) as archive:
        arrays: dict[str, Any] = dict(archive)
    for key in arrays:
        bait = np.empty(1, dtype=object)
        bait[0] = Bait(trace)
        np.savez(tmp_path / file, **arrays | {key: bait})
        refuse(name, tmp_path)
        assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("ogbn-arxiv", "ogbn_arxiv/split/time/split_dict.pt"),
        ("ogbn-arxiv", "ogbn_arxiv/processed/geometric_data_processed.pt"),
        ("ogbn-arxiv", "ogbn_arxiv/processed/pre_transform.pt"),
        ("ogbn-arxiv", "ogbn_arxiv/actbench.npz"),
        ("ogbn-arxiv", "ogbn_arxiv/actbench.pt"),
        ("cora", "Cora/processed/data.pt"),
        ("cora", "Cora/processed/pre_filter.pt"),
        ("flickr", "Flickr/processed/data.pt"),
        ("flickr", "Flickr/actbench.npz"),
    ],
)
def test_a_file_beside_the_published_ones_is_not_executed(
    name: str, file: str, tmp_path: Path, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path, monkeypatch, name)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(Bait(trace).pickled())
    if file.endswith("split_dict.pt"):
        refuse(name, tmp_path, "split_dict.pt is none of the published files")
    else:
        load(name, tmp_path)
    assert not trace.exists()


def replaced(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


GLOBALS = (
    b"cos\nsystem\n",
    b"cnumpy\nload\n",
    b"cbuiltins\neval\n",
    b"c__builtin__\ngetattr\n",
    b"cnumpy\nndarray.dump\n",
)
NUMBERS = old_pickle(np.ones((2, 2), dtype=np.float32))
MATRIX = old_pickle(scipy.sparse.csr_matrix(np.eye(3, dtype=np.float32)))
SET = b"\x80\x02"


@pytest.mark.parametrize(
    "content",
    [
        *(SET + name + b"(tR." for name in GLOBALS),
        # Published names, used otherwise.
        SET + b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.",
        SET + b"cnumpy\nndarray\n)\x81.",
        replaced(NUMBERS, b"K\x00\x85U\x01b", b"J\xff\xff\xff\x7f\x85U\x01b"),
        replaced(NUMBERS, b"f4", b"O8"),
        replaced(NUMBERS, b"f4", b"V9"),
        replaced(NUMBERS, b"J\x02\x00\x00\x00J\x02\x00\x00\x00", b"J\xff\xff\xff\x7fJ\x02\x00\x00\x00"),
        replaced(NUMBERS, b"J\x02\x00\x00\x00J\x02\x00\x00\x00", b"J\xff\xff\xff\xffJ\xfc\xff\xff\xff"),
        SET + b"cscipy.sparse.csr\ncsr_matrix\n(K\x01K\x01\x86tR.",
        SET + b"ccollections\ndefaultdict\ncnumpy\ndtype\n\x85R.",
        # A function's defaults, and a class's fields, could be set by these.
        SET + b"cnumpy.core.multiarray\n_reconstruct\n}(U\x01aK\x01ub.",
        SET + b"cnumpy\ndtype\nN}(U\x0c__defaults__)u\x86b.",
        # A place of this number is a table of 32 GiB to the standard library.
        SET + b"Nr\xff\xff\xff\xff" + b"0.",
        SET + b"h\x05.",
        SET + b"T\xff\xff\xff\x7fab.",
        SET + b"\x8e\xff\xff\xff\xff\xff\xff\xff\x00ab.",
        SET + b"\x82\x01.",
        SET + b"Pid\n.",
        SET + b"ios\nsystem\n(.",
        SET + b"t.",
        SET + b".",
        SET + b"K\x01K\x02.",
        SET + b"](K\x01u.",
        SET + b"}(]K\x01u.",
        b"",
        b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\xff.",
    ],
)
def test_no_pickle_but_the_published_kind_is_read(content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"\w"):
            unpack(content, find("cora"))
        assert tracemalloc.get_traced_memory()[1] < MEBIBYTE
    finally:
        tracemalloc.stop()


def test_what_python_2_pickled_is_read() -> None:
    numbers = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert unpack(old_pickle(numbers), find("cora")).array.tolist() == numbers.tolist()
    assert unpack(old_pickle({3: [1, 2], 0: []}), find("cora")) == {3: [1, 2], 0: []}
    fields = unpack(MATRIX, find("cora")).fields
    assert fields[b"_shape"] == (3, 3)
    assert fields[b"indices"].array.tolist() == [0, 1, 2]


@pytest.mark.parametrize(("name", "folder"), [("cora", "Cora"), ("citeseer", "CiteSeer"), ("pubmed", "PubMed")])
def test_published_files_are_read_as_pyg_reads_them(name: str, folder: str) -> None:
    raw = SHARED_DATA / folder / "raw"
    if not raw.is_dir():
        pytest.skip(f"the raw files of {folder} are not in {SHARED_DATA}")
    import warnings

    from torch_geometric.io import read_planetoid_data
    from torch_geometric.utils import coalesce

    with warnings.catch_warnings(action="ignore"):
        theirs = read_planetoid_data(str(raw), folder)
    ours = read_planetoid(raw.iterdir(), find(name))
    for field in ("x", "y", "train_mask", "val_mask", "test_mask"):
        assert torch.equal(ours[field], theirs[field]), field
    assert torch.equal(coalesce(ours["edge_index"], sort_by_row=False), theirs.edge_index)


def matrix_with(**fields: Any) -> bytes:
    matrix = scipy.sparse.csr_matrix(np.eye(520, 6, dtype=np.float32))
    parts = {key: getattr(matrix, key) for key in ("data", "indices", "indptr", "shape")} | fields

    class Matrix:
        def __getattr__(self, name: str) -> Any:
            return parts[name]

    return old_pickle(Matrix())


INDICES = np.arange(6, dtype=np.int32)
INDPTR = np.minimum(np.arange(521), 6).astype(np.int32)


@pytest.mark.parametrize(
    ("part", "content", "says"),
    [
        ("allx", matrix_with(shape=(520, 2**31 - 1)), "more than the published graph"),
        ("allx", matrix_with(indices=INDICES + 2**20), "column beyond"),
        ("allx", matrix_with(indices=INDICES - 2**20), "column beyond"),
        ("allx", matrix_with(indptr=np.where(INDPTR == 3, 2**30, INDPTR).astype(np.int32)), "ends before it begins"),
        ("allx", matrix_with(indptr=INDPTR + 2**20), "no sparse matrix"),
        ("allx", matrix_with(indptr=INDPTR[:5]), "no sparse matrix"),
        ("allx", matrix_with(indices=INDICES.astype(np.float32)), "no sparse matrix"),
        ("tx", matrix_with(), "do not fit together"),
        ("y", old_pickle({0: [1]}), "neither a matrix nor an array"),
        ("graph", old_pickle({0: [10**6]}), "edge 0 is 1000000"),
        ("graph", old_pickle({0: [b"1"]}), "something else than a number"),
        ("graph", old_pickle((1, 2)), "no list of neighbours"),
        # One list of a thousand neighbours, which a thousand nodes share.
        (
            "graph",
            b"\x80\x02}(K\x00](" + b"K\x01" * 1000 + b"eq\x00"
            + b"".join(b"M" + struct.pack("<H", node) + b"h\x00" for node in range(1000)) + b"u.",
            "more edges than its file has bytes",
        ),
        # A byte each, of which Python makes 56.
        ("graph", b"\x80\x02" + b"]" * 100_000, "more instructions than"),
        ("test.index", b"520\n1000000000000\n", "test nodes are not among the 540"),
        ("test.index", b"520\n99999999999999999999999\n", "test nodes are not among the 540"),
        ("test.index", b"-1\n520\n", "test nodes are not among the 540"),
        ("test.index", b"", "test nodes are not among the 540"),
        ("test.index", b"519\n539\n", "do not fit together"),
        ("test.index", b"9" * 5000, "cannot be read"),
        ("test.index", b"520\n" * 10000, "above the 8640"),
    ],
)  # fmt: skip
def test_planetoid_files_that_fit_no_graph(
    part: str, content: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_cora(tmp_path)
    publish(monkeypatch, "cora", **CITATIONS)
    (raw / f"ind.cora.{part}").write_bytes(content)
    refuse("cora", tmp_path, says)


def test_planetoid_file_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_cora(tmp_path)
    publish(monkeypatch, "cora", **CITATIONS)
    with (raw / "ind.cora.allx").open("r+b") as file:
        file.truncate(2**40)
    refuse("cora", tmp_path, "ind.cora.allx has 1099511627776 bytes")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attr_shape": [NODES, 10**12]}, "attr has another shape"),
        ({"attr_shape": [NODES, 3, 1]}, "attr has another shape"),
        ({"attr_shape": [12.0, 3.0]}, "attr has another shape"),
        ({"adj_shape": [NODES, NODES + 1]}, "adj has another shape"),
        ({"attr_indices": np.array([0, 10**9])}, "attr is no sparse matrix"),
        ({"adj_indices": np.array([1, 2, 3, 10**9])}, "adj has a column beyond"),
        ({"adj_indices": np.array([1, 2, 3, -1])}, "adj has a column beyond"),
        ({"adj_indptr": np.array([0, 10**9, 1, *[4] * 10])}, "a row of adj ends before"),
        ({"adj_data": np.array(["a"] * 4)}, "adj is no sparse matrix"),
        ({"labels": np.zeros(2**27, dtype=np.uint8)}, "arrays claim"),
        ({"labels": np.zeros((NODES, 2), dtype=np.int64)}, "labels"),
    ],
)
def test_matrices_that_scipy_would_follow_out_of_bounds(
    changes: dict[str, Any], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_photo(tmp_path)
    publish(monkeypatch, "photo", split_sizes=(7, 2, 3))
    with np.load(file) as archive:
        arrays: dict[str, Any] = dict(archive)
    np.savez_compressed(file, **arrays | changes)
    if "labels" in changes:
        # The catalogue states so few nodes and edges that a hundred megabytes are too many.
        publish(monkeypatch, "photo", split_sizes=(7, 2, 3), edges=20)
    refuse("photo", tmp_path, says)


def test_features_that_claim_more_than_their_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graphsaint(tmp_path, "Flickr", [0] * NODES)
    publish(monkeypatch, "flickr")
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (12, 1000000)}\n"
    raw = tmp_path / "Flickr" / "raw"
    (raw / "feats.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(96))
    refuse("flickr", tmp_path, "'feats' claims 96000000 bytes but holds 96")


@pytest.mark.parametrize("content", ["[" * 10**5, "[1e999]", '{"0": ' + "9" * 5000 + "}", " " * 2**24])
def test_json_that_is_made_to_exhaust_its_reader(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_graphsaint(tmp_path, "Flickr", [0] * NODES)
    publish(monkeypatch, "flickr")
    for file in ("class_map.json", "role.json"):
        (tmp_path / "Flickr" / "raw" / file).write_text(content)
        refuse("flickr", tmp_path)


@pytest.mark.parametrize(
    ("table", "text", "says"),
    [
        ("raw/edge", b"0,1\n" * 2**23, "edge.csv.gz has more than"),
        ("raw/edge", b"0" * 2**27, "edge.csv.gz begins with 1 columns"),
        ("raw/edge", b"," * 2**20 + b"\n", "edge.csv.gz begins with 66 columns"),
        ("raw/node-feat", b"1,2,3\n" + b"4" * 2**27, "node-feat.csv.gz has more than"),
        ("raw/node-label", b"1\n" * 2**22, "node-label.csv.gz has more than"),
        ("raw/num-node-list", b"1\n1\n", "num-node-list.csv.gz has more than"),
        ("split/time/train", b"1\n" * 2**22, "train.csv.gz has more than"),
        ("raw/edge", b"", "ogbn-arxiv"),
        ("raw/edge", b"0,nan\n", "ogbn-arxiv"),
        ("split/time/test", b"99999999999999999999\n", "ogbn-arxiv"),
    ],
)
def test_tables_that_unpack_to_more_than_was_published(
    table: str, text: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_ogb(tmp_path, "ogbn_arxiv", "time", np.arange(NODES))
    publish(monkeypatch, "ogbn-arxiv", edges=len(EDGES))
    (tmp_path / "ogbn_arxiv" / f"{table}.csv.gz").write_bytes(gzip.compress(text, compresslevel=1))
    refuse("ogbn-arxiv", tmp_path, says)


@given(st.data())
@settings(max_examples=30)
def test_any_change_to_planetoid_files_is_a_graph_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("any")
        raw = write_cora(root)
        publish(patch, "cora", **CITATIONS)
        file = raw / f"ind.cora.{data.draw(st.sampled_from([*PICKLES, 'test.index']))}"
        content = bytearray(file.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            # Most instructions stand at the beginning.
            place = data.draw(st.integers(0, min(len(content) - 1, 300)))
            content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        file.write_bytes(content)
        try:
            graph = load("cora", root)
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            assert graph.nodes == CITATIONS["nodes"]
