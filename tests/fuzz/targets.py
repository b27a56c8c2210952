"""What is fuzzed: functions of bytes that raise nothing but an error of the package's own, and the bytes to begin with.

A target must be right about any bytes, quickly and within a bounded memory; the fuzzer watches time and memory.
"""

import io
import json
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from actbench.analysis import Settings, check_records, choose_final, compare, read_located
from actbench.errors import ActbenchError, DataError, SchemeError
from actbench.graphs import find, load, sizes_of
from actbench.graphs.planetoid import read_planetoid, unpack
from actbench.records import RecordFile
from actbench.report import formats, step_summary
from actbench.scheme import NAMED, Scheme
from tests.graphs.small import CITATIONS, write_cora
from tests.runs.example import example_record

_FOLDER: Final = tempfile.TemporaryDirectory(prefix="actbench-fuzz-")
_KEYS: Final = (
    "x", "edge_index", "y", "train", "valid", "test", "train_mask", "val_mask", "test_mask", "other",
)  # fmt: skip
_PARTS: Final = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
_RAW: Final = 255


@dataclass(frozen=True)
class Target:
    """`run` takes any bytes; `seeds` are some that it reads to the end, `words` what they consist of."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    words: tuple[bytes, ...]


def _place(name: str) -> Path:
    return Path(_FOLDER.name) / name


def fuzz_records(data: bytes) -> None:
    """Records as `report`, `check` and `baseline` read them."""
    path = _place("runs.jsonl")
    path.write_bytes(data)
    try:
        comparisons = compare(read_located([path]), across_machines=True)
        json.loads(formats.report_json(comparisons, "en"), parse_constant=_refuse)
        formats.report_markdown(comparisons, "ja")
    except ActbenchError as error:
        _require_sentence(error)
    try:
        records = RecordFile(path).read()
        choose_final(records)
        step_summary(check_records(records, records, Settings(), allow_missing=True))
    except ActbenchError as error:
        _require_sentence(error)


def fuzz_scheme(data: bytes) -> None:
    """The text of a scheme is refused, or is written as a text that is read as the same scheme."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        scheme = Scheme.parse(text)
    except SchemeError as error:
        _require_sentence(error)
        return
    assert Scheme.parse(str(scheme)) == scheme, f"{text!r} is not read as it is written"


def fuzz_npz(data: bytes) -> None:
    """A user's own graph; data are a file, or, since no change would outlive its checksums, members to pack."""
    path = _place("graph.npz")
    path.write_bytes(data[1:] if data[:1] == bytes([_RAW]) else _packed(data))
    try:
        graph = load(str(path), Path("nowhere"))
    except DataError as error:
        _require_sentence(error)
    else:
        assert graph.x.isfinite().all()
        assert sizes_of(str(path)).nodes == graph.nodes
    try:
        sizes_of(str(path))
    except DataError as error:
        _require_sentence(error)


def fuzz_planetoid(data: bytes) -> None:
    """One of Cora's files, named by the first byte, is another one."""
    raw = _place("cora/Cora/raw")
    if not raw.is_dir():
        write_cora(_place("cora"))
    part = _PARTS[(data or bytes(1))[0] % len(_PARTS)]
    if part != "test.index":
        # Most changes end here, a hundred times sooner than if all eight files were read.
        try:
            unpack(data[1:], find("cora"))
        except ValueError:
            return
    file = raw / f"ind.cora.{part}"
    published = file.read_bytes()
    file.write_bytes(data[1:])
    try:
        parts = read_planetoid(raw.iterdir(), replace(find("cora"), **CITATIONS))  # type: ignore[arg-type]
        assert list(parts["x"].shape) == [CITATIONS["nodes"], CITATIONS["features"]]
    except ValueError:
        return
    finally:
        file.write_bytes(published)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def _require_sentence(error: ActbenchError) -> None:
    assert str(error).endswith("."), "a sentence"


def _packed(data: bytes) -> bytes:
    """A .npz file of members: a byte for the key, a byte for the way of packing, two for the length, content."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive, warnings.catch_warnings(action="ignore"):
        while len(data) >= 4:
            key, way, length = data[0], data[1], struct.unpack("<H", data[2:4])[0]
            name = f"{_KEYS[key % len(_KEYS)]}{'.npy' if key < 128 else ''}"
            archive.writestr(name, data[4 : 4 + length], zipfile.ZIP_DEFLATED if way % 2 else zipfile.ZIP_STORED)
            data = data[4 + length :]
    return content.getvalue()


def _record_seeds() -> list[bytes]:
    records = [example_record(name, seed) for name in ("fp32", "exact") for seed in (0, 1)]
    entry = {"operation": "linear", "call": 1, "shape": [9], "dtype": "uint8", "saved_bytes": 3}
    records.append(example_record("blockwise", gradient_noise=0.1, ledger=[entry]))
    records.append(example_record("exact", 2, status="oom", metrics=None, error={"message": "no room"}))
    lines = [json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records]
    return [b"".join(lines), *lines, lines[0][:-40]]


def _scheme_seeds() -> list[bytes]:
    texts = [
        *NAMED,
        "blockwise:bits=4,block=256,projection=4,levels=uniform,dropout=seed",
        "int4/linear2:bits=8/batch_norm1:block=64r",
        "exact/linear1:bits=32/matmul3:bits=1,block=7,projection=2,levels=clipped-normal",
        "derived:bits=1.6,block=1048576",
    ]
    return [text.encode() for text in texts]


def _npz_seeds() -> list[bytes]:
    nodes = 10
    arrays: dict[str, Any] = {
        "x": np.linspace(-1, 1, 2 * nodes).reshape(nodes, 2),
        "edge_index": np.array([[0, 1], [1, 9]]),
        "y": np.arange(nodes) % 3,
    }
    indices = {"train": np.arange(4), "valid": np.arange(4, 7), "test": np.arange(7, nodes)}
    masks = {
        f"{name[:3] if name == 'valid' else name}_mask": np.isin(np.arange(nodes), i) for name, i in indices.items()
    }
    seeds = []
    for each in (arrays, arrays | indices, arrays | masks, arrays | {"y": np.eye(nodes, 3, dtype=np.uint8)}):
        parts: list[bytes] = []
        for key, array in each.items():
            member = io.BytesIO()
            np.save(member, array)
            content = member.getvalue()
            parts.append(bytes([_KEYS.index(key), len(parts) % 2]) + struct.pack("<H", len(content)) + content)
        seeds.append(b"".join(parts))
        file = io.BytesIO()
        np.savez_compressed(file, **each)
        seeds.append(bytes([_RAW]) + file.getvalue())
    return seeds


def _planetoid_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        raw = write_cora(Path(folder))
        return [bytes([n]) + (raw / f"ind.cora.{part}").read_bytes() for n, part in enumerate(_PARTS)]


TARGETS: Final = {
    "records": Target(
        fuzz_records,
        _record_seeds,
        (b'"status":', b'"metrics":', b'"ledger":', b'"seed":', b"null", b"1e308", b"-1", b'"oom"', b'"cuda"', b"[]"),
    ),
    "scheme": Target(
        fuzz_scheme,
        _scheme_seeds,
        (b"bits=", b"block=", b"projection=", b"levels=", b"dropout=", b"/linear1:", b"clipped-normal", b"1.6", b"32"),
    ),
    "npz": Target(
        fuzz_npz,
        _npz_seeds,
        (b"'descr': ", b"'shape': (", b"'fortran_order': True", b"'<f8'", b"'|O'", b"'<i8'", b"'<U3'", b"\x93NUMPY"),
    ),
    "planetoid": Target(
        fuzz_planetoid,
        _planetoid_seeds,
        (
            b"cnumpy\ndtype\n",
            b"cnumpy\nndarray\n",
            b"cscipy.sparse.csr\ncsr_matrix\n",
            b"\x85R",
            b"\x87R",
            b"tb",
            b"(t",
        ),
    ),
}
"""By the name that the command line takes."""
