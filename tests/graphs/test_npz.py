import contextlib
import io
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from actbench.errors import DataError
from actbench.graphs import Graph, load, npz, present, sizes_of

NODES = 10


def valid_arrays() -> dict[str, Any]:
    return {
        "x": np.linspace(-1, 1, NODES * 3).reshape(NODES, 3),
        "edge_index": np.array([[0, 1, 1, 9, 4], [1, 0, 0, 2, 4]], dtype=np.int32),
        "y": np.arange(NODES) % 4,
    }


def save(tmp_path: Path, **changes: Any) -> Path:
    """Write the valid arrays with some changed or, where None, left out."""
    arrays = {key: value for key, value in (valid_arrays() | changes).items() if value is not None}
    np.savez(tmp_path / "graph.npz", **arrays)
    return tmp_path / "graph.npz"


def read(path: Path, seed: int = 0) -> Graph:
    return load(str(path), Path("nowhere"), seed)


def refuse(path: Path, *parts: str) -> None:
    """Expect one sentence that names the file and all `parts`."""
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_reads_what_was_written(tmp_path: Path) -> None:
    path = save(tmp_path)
    graph = read(path)
    assert present(str(path), Path("nowhere"))
    assert graph.name == str(path)
    assert torch.allclose(graph.x, torch.from_numpy(valid_arrays()["x"]).float())
    assert graph.edge_index.tolist() == [[0, 1, 4, 9], [1, 0, 4, 2]]
    assert graph.y.tolist() == (np.arange(NODES) % 4).tolist()
    assert (graph.classes, graph.task, graph.metric, graph.synthetic) == (4, "single-label", "accuracy", False)
    assert [len(part) for part in (graph.train, graph.valid, graph.test)] == [6, 2, 2]


def test_seed_draws_the_split(tmp_path: Path) -> None:
    path = save(tmp_path)
    first, again, other = (read(path, seed).train.tolist() for seed in (3, 3, 4))
    assert first == again != other


def test_several_labels_for_a_node(tmp_path: Path) -> None:
    graph = read(save(tmp_path, y=np.eye(NODES, 5, dtype=np.uint8)))
    assert (graph.classes, graph.task, graph.metric) == (5, "multi-label", "micro-F1")
    assert torch.equal(graph.y, torch.eye(NODES, 5))


def test_own_split(tmp_path: Path) -> None:
    parts = [np.array([5, 1]), np.array([2]), np.array([9, 0, 3])]
    by_index = read(save(tmp_path, **dict(zip(("train", "valid", "test"), parts, strict=True))))
    masks = {
        key: np.isin(np.arange(NODES), part)
        for key, part in zip(("train_mask", "val_mask", "test_mask"), parts, strict=True)
    }
    by_mask = read(save(tmp_path, **masks))
    for graph in (by_index, by_mask):
        assert (graph.train.tolist(), graph.valid.tolist(), graph.test.tolist()) == ([1, 5], [2], [0, 3, 9])


def test_graph_without_edges(tmp_path: Path) -> None:
    assert read(save(tmp_path, edge_index=np.empty((2, 0), dtype=np.int64))).edges == 0


def test_big_endian_numbers(tmp_path: Path) -> None:
    arrays = valid_arrays()
    swapped = {key: array.astype(array.dtype.newbyteorder(">")) for key, array in arrays.items()}
    assert torch.equal(read(save(tmp_path, **swapped)).x, torch.from_numpy(arrays["x"]).float())


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"x": None}, ["no array 'x'", "edge_index"]),
        ({"y": None}, ["no array 'y'"]),
        ({"train": np.array([0])}, ["no array 'valid'"]),
        ({"val_mask": np.ones(NODES, bool)}, ["no array 'train_mask'"]),
        ({"x": np.zeros(NODES)}, ["'x'", "[10]"]),
        ({"x": np.zeros((NODES, 3), dtype=np.int64)}, ["'x'", "int64"]),
        ({"x": np.zeros((NODES, 0))}, ["[10, 0]"]),
        ({"x": np.full((NODES, 3), np.nan)}, ["feature 0 of node 0 is nan"]),
        ({"x": np.full((NODES, 3), 1e300)}, ["inf"]),
        ({"x": np.zeros((NODES + 1, 3))}, ["labels have shape [10]", "[11]"]),
        ({"edge_index": np.array([[0, 3, 0], [1, 2, 10]])}, ["edge 2", "10", "10 nodes"]),
        ({"edge_index": np.array([[0, -1], [1, 2]])}, ["edge 1", "-1"]),
        ({"edge_index": np.array([[0, 2**63], [1, 2]], dtype=np.uint64)}, [str(2**63)]),
        ({"edge_index": np.array([[0.0], [1.0]])}, ["'edge_index'", "float64"]),
        ({"edge_index": np.array([[0, 1], [1, 2], [2, 3]])}, ["[3, 2]"]),
        ({"y": np.arange(NODES) - 1}, ["node 0", "-1"]),
        ({"y": np.full(NODES, 10**12)}, [str(10**12), "classes for 10 nodes"]),
        ({"y": np.zeros(NODES)}, ["'y'", "float64"]),
        ({"y": np.full((NODES, 2), 0.5)}, ["0.5", "0 and 1"]),
        ({"y": np.array(["a"] * NODES)}, ["'y'", "<U1"]),
        ({"y": np.array([None] * NODES)}, ["Python objects"]),
        ({"train": [0, 1], "valid": [1], "test": [2]}, ["node 1", "more than once"]),
        ({"train": [0, 0], "valid": [1], "test": [2]}, ["node 0", "more than once"]),
        ({"train": [0], "valid": [1], "test": [10]}, ["test", "node 10"]),
        ({"train": [0], "valid": [-1], "test": [1]}, ["valid", "node -1"]),
        ({"train": [0], "valid": np.empty(0, dtype=int), "test": [2]}, ["valid", "at least one"]),
        ({"train_mask": np.ones(3, bool), "val_mask": None, "test_mask": None}, ["no array 'val_mask'"]),
        (
            {key: np.ones(3, bool) for key in ("train_mask", "val_mask", "test_mask")},
            ["'train_mask'", "bool [10]"],
        ),
        ({"x": np.zeros((1, 3)), "y": np.zeros(1, int), "edge_index": np.zeros((2, 1), int)}, ["valid", "at least"]),
    ],
)
def test_one_sentence_for_each_mistake(tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    refuse(save(tmp_path, **changes), *parts)


def test_files_that_are_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    refuse(path, "no file")
    path.write_bytes(b"")
    refuse(path, "numpy.savez")
    path.write_bytes(b"x,y\n1,2\n")
    refuse(path, "numpy.savez")
    whole = save(tmp_path).read_bytes()
    for length in (30, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        refuse(path, "numpy.savez")


def test_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(valid_arrays()["x"].tobytes()) + 5] ^= 255
    path.write_bytes(damaged)
    refuse(path, "cannot be read")


def write_header(path: Path, shape: str) -> None:
    """Write an archive whose `x` claims a shape but holds one number."""
    save(path.parent, x=None)
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x.npy", member)


def test_array_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    write_header(path, "(10, 3)")
    refuse(path, "'x' claims 240 bytes but holds 8")
    write_header(path, "(1000000000000, 3)")
    refuse(path, "GiB", "[1000000000000, 3]")
    write_header(path, "(-1, 3)")
    refuse(path, "'x'")
    write_header(path, "__import__('os')")
    refuse(path, "'x' has no valid header")


def test_archive_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "most_bytes", lambda: 2**20)
    with zipfile.ZipFile(tmp_path / "graph.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in (valid_arrays() | {"x": np.zeros((NODES, 2**14))}).items():
            member = io.BytesIO()
            np.save(member, array)
            archive.writestr(f"{key}.npy", member.getvalue())
    refuse(tmp_path / "graph.npz", "GiB")


@pytest.mark.parametrize(
    ("key", "array"),
    [
        ("x", np.zeros((NODES, 3 * 2**17 // NODES), np.float16)),
        ("edge_index", np.zeros((2, 2**17), np.uint8)),
        ("y", np.zeros((NODES, 2**18 // NODES), np.bool_)),
    ],
)
def test_arrays_that_are_too_large_once_they_are_wide_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, array: Any
) -> None:
    """Bytes in a file become float32 and int64, four and eight times as many."""
    monkeypatch.setattr(npz, "most_bytes", lambda: 2**20)
    assert array.nbytes < 2**20
    np.savez_compressed(tmp_path / "graph.npz", **(valid_arrays() | {key: array}))
    refuse(tmp_path / "graph.npz", f"with '{key}'", "GiB at most")


def member(header: bytes, content: bytes = b"", version: int = 1) -> bytes:
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + content


def header(shape: str, descr: str = "'<f8'") -> bytes:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()


@pytest.mark.parametrize(
    ("x", "says"),
    [
        # A length of four bytes in front of a header that unpacks to 64 MiB.
        (member(b" " * 2**26, version=2), "no valid header"),
        (member(b"(" * 9000), "no valid header"),
        (member(b"-" * 9000 + b"1"), "no valid header"),
        (member(header("(" + "9" * 400 + ", 3)")), "a shape that no array has"),
        (member(header("(0, 9223372036854775807)")), "a shape that no array has"),
        (member(header("(1000000000000,)", "'S0'")), "elements of no size"),
        (member(header("(3,)", "()")), "no valid header"),
        (member(header("(1,)", "[('a', '|O')]"), b"1"), "Python objects"),
        (member(header("(1, 1)", "('<f8', (100000000,))")), "claims 800000000 bytes"),
        (member(header("(True, 3)"), bytes(24)), "a shape that no array has"),
        (b"\x93NUMPY\x09\x00", "no valid header"),
        (b"no array", "no valid header"),
        (b"", "no valid header"),
    ],
)
def test_headers_that_are_made_to_exhaust_their_reader(tmp_path: Path, x: bytes, says: str) -> None:
    path = save(tmp_path, x=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("x.npy", x)
    tracemalloc.start()
    try:
        refuse(path, "'x'", says)
        with contextlib.suppress(DataError):
            sizes_of(str(path))
        # Python's own parser takes some, of ten kilobytes at most.
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_members_that_readers_would_disagree_about(tmp_path: Path) -> None:
    path = save(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        # numpy finds this one under the key `x`, and gives it back as bytes of any number.
        archive.writestr("x", b"0" * 100)
    refuse(path, "'x' stands twice")
    path = save(tmp_path, x=None)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", member(header("(10, 1)"), bytes(80)))
    refuse(path, "'x' is not packed as numpy packs it")


@pytest.mark.parametrize("dtype", ["<i1", "<f2", "|b1"])
@pytest.mark.parametrize("key", ["x", "edge_index", "y"])
def test_nothing_of_a_great_width(tmp_path: Path, key: str, dtype: str) -> None:
    path = save(tmp_path, **{key: np.empty((0, 2**59), dtype=dtype)})
    refuse(path, "")


def test_names_of_members_do_not_make_a_sentence_long(tmp_path: Path) -> None:
    path = save(tmp_path, x=None, **{f"\n{number:0500}": np.zeros(1) for number in range(50)})
    with pytest.raises(DataError) as caught:
        read(path)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@given(st.data())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_any_arrays_make_a_graph_or_a_data_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    kinds = st.one_of(
        arrays_of.floating_dtypes(),
        arrays_of.integer_dtypes(),
        arrays_of.boolean_dtypes(),
        arrays_of.unicode_string_dtypes(),
    )
    shapes = arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    arrays = valid_arrays()
    key = data.draw(st.sampled_from(sorted(arrays)))
    arrays[key] = data.draw(arrays_of.arrays(kinds, shapes))
    path = tmp_path_factory.mktemp("any") / "graph.npz"
    np.savez(path, **arrays)
    with contextlib.suppress(DataError):
        graph = read(path)
        assert graph.x.isfinite().all()
        assert graph.nodes == len(graph.y)
