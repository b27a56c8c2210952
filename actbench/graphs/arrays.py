"""Arrays in .npy and .npz files that are not trusted: no pickles, nothing allocated that the file does not hold."""

import io
import lzma
import os
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from actbench.graphs.reason import reason, shorten

Array = npt.NDArray[np.generic]

UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zlib.error,
)
"""All that reading a damaged archive raises, `ArrayError` among them."""

_MOST_HEADER_BYTES = 12 + 10_000
"""numpy's own limit of a header's text, behind magic, version and length."""


class ArrayError(ValueError):
    """An array that is not read; `str` says what is wrong, without the file's name, and `remedy` what to do."""

    def __init__(self, what: str, remedy: str = "write the file again") -> None:
        super().__init__(what)
        self.remedy = remedy


@dataclass(frozen=True)
class Announced:
    """What an array's header says, and how many bytes follow it."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    stored_bytes: int

    @property
    def array_bytes(self) -> int:
        """Bytes of the array as announced."""
        return prod(self.shape) * self.dtype.itemsize


def most_bytes() -> int:
    """Bytes of arrays that may be read at once: half of memory, since a reader holds some of them twice."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def keys_of(archive: zipfile.ZipFile) -> list[str]:
    """The names of the arrays in a .npz file, sorted.

    Raises:
        ArrayError: two members have one name, of which readers differ in what they take, or one is packed in a way
            that numpy never packs.
    """
    seen = set()
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in seen:
            raise ArrayError(f"{shorten(name)!r} stands twice in it")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ArrayError(f"{shorten(name)!r} is not packed as numpy packs it")
        seen.add(name)
    return sorted(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))


def announced(archive: zipfile.ZipFile, key: str) -> Announced:
    """What the header of one array says; a few kilobytes are read."""
    with archive.open(f"{key}.npy") as member:
        return _header(key, member, archive.getinfo(f"{key}.npy").file_size)


def announced_npy(path: Path) -> Announced:
    """The same of a .npy file."""
    with path.open("rb") as file:
        return _header(path.stem, file, os.fstat(file.fileno()).st_size)


def check_sizes(
    arrays: Iterable[tuple[str, Announced]],
    limit_bytes: int,
    held_bytes: Callable[[str, Announced], int] = lambda _, array: array.array_bytes,
) -> None:
    """Refuse what headers announce before anything of that size is allocated.

    `held_bytes` is what an array takes once it has been read, where that may be more than the file says.

    Raises:
        ArrayError: an array holds Python objects or not what it announces, or all together are above `limit_bytes`.
    """
    total_bytes = 0
    for key, array in arrays:
        if array.dtype.hasobject:
            raise ArrayError(f"{key!r} holds Python objects, which are not read", "save it as numbers")
        total_bytes += max(array.array_bytes, held_bytes(key, array))
        if total_bytes > limit_bytes:
            raise ArrayError(
                f"with {key!r} of shape {list(array.shape)} the arrays claim {_gibibytes(total_bytes)}, but "
                f"{_gibibytes(limit_bytes)} at most are read here",
                "make the graph smaller",
            )
        if array.array_bytes != array.stored_bytes:
            raise ArrayError(f"{key!r} claims {array.array_bytes} bytes but holds {array.stored_bytes}")


def read_arrays(path: Path, keys: Iterable[str], limit_bytes: int) -> dict[str, Array]:
    """Arrays of a .npz file by their keys, or all of `UNREADABLE` for what is damaged, missing or too large."""
    with zipfile.ZipFile(path) as archive:
        wanted = list(keys)
        missing = set(wanted).difference(keys_of(archive))
        if missing:
            raise ArrayError(f"it has no array {min(missing)!r}")
        check_sizes(((key, announced(archive, key)) for key in wanted), limit_bytes)
        return {key: read_member(archive, key) for key in wanted}


def read_member(archive: zipfile.ZipFile, key: str) -> Array:
    """One array of a .npz file, whose size must have been checked."""
    with archive.open(f"{key}.npy") as member:
        array: Array = npy.read_array(member, allow_pickle=False)
        # A checksum is compared when the end is met, which an array of nothing never asks for.
        member.read(1)
        return array


def check_csr(name: str, data: Array, indices: Array, indptr: Array, shape: tuple[int, ...]) -> None:
    """Refuse a compressed sparse row matrix whose indices would lead scipy outside its arrays; it does not look.

    Raises:
        ArrayError: the three arrays are no matrix of that shape.
    """
    rows, columns = shape
    ends = indptr.ndim == indices.ndim == data.ndim == 1 and len(indptr) == rows + 1 and len(indices) == len(data)
    numbers = indptr.dtype.kind in "iu" and indices.dtype.kind in "iu" and data.dtype.kind in "biuf"
    if not (ends and numbers and indptr[0] == 0 and indptr[-1] == len(indices)):
        raise ArrayError(f"{name} is no sparse matrix of {rows} rows")
    if (np.diff(indptr.astype(np.int64)) < 0).any():
        raise ArrayError(f"a row of {name} ends before it begins")
    if len(indices) and (indices.min() < 0 or indices.max() >= columns):
        raise ArrayError(f"{name} has a column beyond its {columns}")


def _header(key: str, file: IO[bytes], file_bytes: int) -> Announced:
    # No more is read than a header may have: a length of four bytes could ask for 4 GiB.
    beginning = io.BytesIO(file.read(_MOST_HEADER_BYTES))
    try:
        with warnings.catch_warnings(action="ignore"):
            version = npy.read_magic(beginning)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read_header(beginning)
    # The text is parsed as Python's literals, which fail in many ways.
    except Exception as error:
        raise ArrayError(f"{key!r} has no valid header ({reason(error)})") from None
    # Whoever converts the array to eight bytes a number must be able to count its bytes.
    whole = all(type(side) is int and side >= 0 for side in shape)
    if not whole or prod(max(side, 1) for side in shape) * max(dtype.itemsize, 8) >= 2**63:
        raise ArrayError(f"{key!r} announces a shape that no array has")
    if dtype.itemsize == 0:
        raise ArrayError(f"{key!r} announces elements of no size")
    return Announced(shape, dtype, file_bytes - beginning.tell())


def _gibibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:,.3g} GiB"
