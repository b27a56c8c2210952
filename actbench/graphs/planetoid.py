"""The published pickles of Cora, CiteSeer and PubMed, read without unpickling: a pickle is a program.

`pickletools` takes a file apart, and the few instructions that the published files consist of are carried out here, on
values of our own. None of them calls anything that a file names.
"""

import io
import pickletools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from actbench.graphs.arrays import Array, ArrayError, check_csr
from actbench.graphs.catalogue import Entry

_VALID: Final = 500
"""Nodes after the training nodes that the public split validates on (Yang et al., 2016)."""
_NAMES: Final = {
    "scipy.sparse.csr csr_matrix": "matrix",
    "scipy.sparse._csr csr_matrix": "matrix",
    "numpy.core.multiarray _reconstruct": "new array",
    "numpy._core.multiarray _reconstruct": "new array",
    "numpy ndarray": "array",
    "numpy dtype": "dtype",
    "collections defaultdict": "dict",
    "__builtin__ list": "list",
    "builtins list": "list",
}
"""All that the files may name, and what it is to us."""
_DTYPES: Final = ("i4", "i8", "f4", "f8")


@dataclass(frozen=True)
class _Name:
    """Something of a library's that the file names."""

    of: str


@dataclass
class _Dtype:
    code: str
    order: str | None = None


@dataclass
class _Numbers:
    """An array, once its state has been set."""

    array: Array | None = None


@dataclass
class _Matrix:
    """A compressed sparse row matrix, once its fields have been set."""

    fields: dict[Any, Any]


def read_planetoid(files: Iterable[Path], entry: Entry) -> dict[str, Tensor]:
    """Read the files `ind.*`: `x`, `edge_index`, `y`, `train_mask`, `val_mask`, `test_mask`.

    A node that is listed nowhere has no features and class 0, as CiteSeer's 15. Self-loops are left out.

    Raises:
        ArrayError: a file holds something else than the published ones, or other sizes than `entry` states.
        ValueError: it is no pickle, or no list of numbers.
    """
    contents = {file.name.split(".", maxsplit=2)[2]: file.read_bytes() for file in files}
    index = [int(line) for line in contents.pop("test.index").decode("ascii").split()]
    if not index or not 0 <= min(index) <= max(index) < entry.nodes:
        raise ArrayError(f"its test nodes are not among the {entry.nodes} published")
    graph = contents.pop("graph")
    parts: dict[str, Any] = {part: _dense(unpack(content, entry), entry) for part, content in contents.items()}
    parts |= {"graph": _edges(unpack(graph, entry), len(graph)), "test.index": np.array(index, dtype=np.int64)}
    return _assemble(parts, entry)


def _assemble(parts: dict[str, Any], entry: Entry) -> dict[str, Tensor]:
    known, classes, test = len(parts["allx"]), parts["ally"].shape[1], parts["test.index"]
    shapes = [parts[part].shape for part in ("x", "tx", "allx", "y", "ty", "ally")]
    rows = [len(parts["y"]), len(test), known]
    wanted = [(n, entry.features) for n in rows] + [(n, classes) for n in rows]
    if shapes != wanted or test.min() != known:
        raise ArrayError(f"its parts of {shapes} and {len(test)} test nodes do not fit together")
    if classes != entry.classes or not 0 < len(parts["y"]) <= known - _VALID or test.max() + 1 != entry.nodes:
        raise ArrayError(f"nodes {test.max() + 1} and classes {classes} are not the published ones")
    x = np.zeros((entry.nodes, entry.features), dtype=np.float32)
    scores = np.zeros((entry.nodes, classes))
    for values, lower, upper in ((x, "allx", "tx"), (scores, "ally", "ty")):
        values[:known] = parts[lower]
        values[test] = parts[upper]
    edges = parts["graph"]
    return {
        "x": torch.from_numpy(x),
        "edge_index": torch.from_numpy(edges[:, edges[0] != edges[1]]),
        "y": torch.from_numpy(scores.argmax(axis=1)),
        "train_mask": _mask(entry.nodes, np.arange(len(parts["y"]))),
        "val_mask": _mask(entry.nodes, len(parts["y"]) + np.arange(_VALID)),
        "test_mask": _mask(entry.nodes, test),
    }


def _mask(nodes: int, members: Array) -> Tensor:
    mask = torch.zeros(nodes, dtype=torch.bool)
    mask[torch.from_numpy(members)] = True
    return mask


def _dense(value: Any, entry: Entry) -> Array:
    """An array of two dimensions, at most as large as the published graph's features or classes."""
    if isinstance(value, _Numbers) and value.array is not None and value.array.ndim == 2:
        return value.array
    if not isinstance(value, _Matrix):
        raise ArrayError("a file holds neither a matrix nor an array")
    shape = value.fields.get(b"_shape")
    arrays = [value.fields.get(key) for key in (b"data", b"indices", b"indptr")]
    if not (isinstance(shape, tuple) and len(shape) == 2 and all(type(side) is int and side >= 0 for side in shape)):
        raise ArrayError("a matrix has no shape")
    if shape[0] > entry.nodes or shape[1] > entry.features:
        raise ArrayError(f"a matrix has the shape {list(shape)}, more than the published graph")
    data, indices, indptr = (each.array if isinstance(each, _Numbers) else None for each in arrays)
    if data is None or indices is None or indptr is None:
        raise ArrayError("a matrix lacks a part")
    check_csr("a matrix", data, indices, indptr, shape)
    dense: Array = csr_matrix((data, indices, indptr), shape).toarray()
    return dense


def _edges(value: Any, file_bytes: int) -> Array:
    """Neighbours by node, as int64 [2, edges]."""
    if not isinstance(value, dict) or not all(isinstance(each, list) for each in value.values()):
        raise ArrayError("the graph is no list of neighbours by node")
    # A list may stand for many nodes although the file holds it once.
    if sum(map(len, value.values())) > file_bytes:
        raise ArrayError("the graph has more edges than its file has bytes")
    sources = [node for node, neighbours in value.items() for _ in neighbours]
    targets = [node for neighbours in value.values() for node in neighbours]
    if not all(type(node) is int for node in [*sources, *targets]):
        raise ArrayError("the graph names a node by something else than a number")
    return np.array([sources, targets], dtype=np.int64)


def unpack(content: bytes, entry: Entry) -> Any:
    """The value of a pickle that consists of what the published files do; strings are bytes.

    Raises:
        ArrayError: the pickle asks for anything else, or has more instructions than a list of `entry`'s neighbours.
    """
    machine = _Machine()
    # A byte may make a list of 56. The published graphs have up to 2.0 instructions for every node and edge.
    most = 4 * (entry.nodes + entry.edges)
    with warnings.catch_warnings(action="ignore"):
        for count, (instruction, argument, _) in enumerate(pickletools.genops(io.BytesIO(content))):
            if count == most:
                raise ArrayError(f"a pickle has more instructions than the {most} of twice the published graph")
            machine.step(instruction.name, argument)
    if len(machine.stack) != 1:
        raise ArrayError("a pickle leaves more than one value")
    return machine.stack[0]


class _Machine:
    """A stack, the stacks below its marks, and what was put aside by number."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction of protocol 2."""
        match name:
            case "PROTO" | "STOP":
                return
            case "BININT" | "BININT1" | "BININT2":
                self.stack.append(argument)
            case "SHORT_BINSTRING" | "BINSTRING":
                self.stack.append(argument.encode("latin-1"))
            case "NONE":
                self.stack.append(None)
            case "NEWFALSE" | "NEWTRUE":
                self.stack.append(name == "NEWTRUE")
            case "GLOBAL":
                if argument not in _NAMES:
                    raise ArrayError(f"a pickle asks for {argument!r:.100}, which no data set needs")
                self.stack.append(_Name(_NAMES[argument]))
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "EMPTY_TUPLE":
                self.stack.append(())
            case "EMPTY_LIST":
                self.stack.append([])
            case "EMPTY_DICT":
                self.stack.append({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._pop(int(name[-1]))))
            case "TUPLE":
                # The stack is another one after this call.
                values = tuple(self._to_mark())
                self.stack.append(values)
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._to_mark())
            case "SETITEM":
                self._update(self._pop(2))
            case "SETITEMS":
                self._update(self._to_mark())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self._top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise ArrayError("a pickle fetches what it never stored")
                self.stack.append(self.memo[argument])
            case "NEWOBJ" | "REDUCE":
                self.stack.append(_made(*self._pop(2)))
            case "BUILD":
                (state,) = self._pop(1)
                _set_state(self._top(), state)
            case _:
                raise ArrayError(f"a pickle has the instruction {name}, which no data set needs")

    def _top(self) -> Any:
        if not self.stack:
            raise ArrayError("a pickle takes a value where there is none")
        return self.stack[-1]

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ArrayError("a pickle takes a value where there is none")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def _to_mark(self) -> list[Any]:
        if not self.below:
            raise ArrayError("a pickle ends a part that it never began")
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def _extend(self, values: list[Any]) -> None:
        if type(self._top()) is not list:
            raise ArrayError("a pickle appends to something else than a list")
        self._top().extend(values)

    def _update(self, values: list[Any]) -> None:
        keys = values[::2]
        if type(self._top()) is not dict or len(values) % 2 or not all(type(key) in (int, bytes) for key in keys):
            raise ArrayError("a pickle sets items of something else than a table")
        self._top().update(zip(keys, values[1::2], strict=True))


def _made(what: Any, arguments: Any) -> Any:
    """What a call in a pickle gives: one of ours, still empty."""
    match what, arguments:
        case _Name("matrix"), ():
            return _Matrix({})
        # Published files announce nothing here and the size with the bytes, in the state.
        case _Name("new array"), (_Name("array"), (0,), b"b"):
            return _Numbers()
        case _Name("dtype"), (bytes() as code, 0, 1) if code.decode("latin-1") in _DTYPES:
            return _Dtype(code.decode("latin-1"))
        case _Name("dict"), (_Name("list"),):
            return {}
    raise ArrayError("a pickle makes something that no data set needs")


def _set_state(what: Any, state: Any) -> None:
    match what, state:
        case _Matrix(), dict():
            what.fields.update(state)
            return
        case _Dtype(), (3, b"<", None, None, None, -1, -1, 0):
            what.order = "<"
            return
        case _Numbers(), (1, tuple() as shape, _Dtype(code, "<"), False, bytes() as content):
            if all(type(side) is int and side >= 0 for side in shape):
                dtype = np.dtype(f"<{code}")
                if prod(shape) * dtype.itemsize == len(content):
                    what.array = np.frombuffer(content, dtype).reshape(shape)
                    return
    raise ArrayError("a pickle's array is not what it announces, or something else than an array")
