"""The store of records: a file of JSON lines that is only ever appended to, under a lock and flushed to disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from actbench.errors import OutputError
from actbench.records.locks import EVERY_BYTE, is_at, lock, open_locked
from actbench.records.untrusted import parse_json, read_limited

Record = dict[str, Any]
SCHEMA_VERSION: Final = 1
_WRITING: Final = (2**62, 1)
_ROOM_BYTES: Final = 4 * 2**20
"""A record of thousands of epochs has some hundred kilobytes."""
_BEGINNING: Final = b'{"schema_version":%d,' % SCHEMA_VERSION
_MOST_LINE_BYTES: Final = 2**24
"""A thousand times what a record of hundreds of epochs has."""
_REQUIRED: Final = (
    "schema_version",
    "status",
    "dataset",
    "digest",
    "model",
    "scheme",
    "seed",
    "recipe",
    "environment",
)


class RecordFile:
    """Records at `path`, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_writable(self) -> None:
        """Raise `OutputError`, one sentence, if `append` could not write here; writes nothing itself."""
        try:
            if self.path.is_dir():
                raise OutputError(
                    f"--output {self.path} is a folder: name a file in it, such as {self.path}/runs.jsonl."
                )
            folder = self.path.absolute().parent
            if not folder.is_dir():
                raise OutputError(f"--output {self.path} cannot be written: there is no folder {folder}; create it.")
            if self.path.exists() and not self.path.is_file():
                raise OutputError(f"--output {self.path} is no regular file: records need one, such as runs.jsonl.")
            # Opened for real: permissions alone do not tell for root, nor on a read-only file system.
            with self.path.open("ab") if self.path.exists() else tempfile.TemporaryFile(dir=folder):
                pass
            room = shutil.disk_usage(folder)
        except OSError as error:
            raise OutputError(
                f"--output {self.path} cannot be written ({error.strerror}): name another file."
            ) from error
        # Some file systems do not tell their size.
        if room.total and room.free < _ROOM_BYTES:
            raise OutputError(
                f"--output {self.path} has less than {_ROOM_BYTES // 2**20} MiB of room for records: make room or name "
                "a file on another disk."
            )

    def read(self) -> list[Record]:
        """All records in the order they were written; a last line that was cut short is no record.

        Raises `OutputError` if any other line is not a record of this schema version.
        """
        try:
            content = read_limited(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read: {error.strerror}; name another file.") from error
        lines = content.split(b"\n")
        records = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            record = _parse(line)
            if record is not None:
                records.append(record)
            elif number < len(lines) or not _is_cut_short(line):
                raise OutputError(
                    f"line {number} of {self.path} is not a record of schema version {SCHEMA_VERSION}: "
                    "name another file or remove that line."
                )
        return records

    def append(self, record: Record) -> None:
        """Write one record as one line, after dropping a last line that was cut short; returns when it is on disk.

        Raises `OutputError` if it cannot be written; its sentence then names the temporary file that has the record.
        """
        line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            file = open_locked(self.path, _WRITING, wait=True)
            assert file is not None
            with file:
                content = file.read()
                tail = content[content.rfind(b"\n") + 1 :]
                if _is_cut_short(tail):
                    content = content[: len(content) - len(tail)]
                elif tail:
                    line = b"\n" + line
                _write_at(file.fileno(), len(content), line)
                if not content:
                    _flush_folder(self.path)
        except OSError as error:
            raise OutputError(
                f"a record could not be written to {self.path} ({error.strerror}){_rescued(line)}: make room or name "
                "another file."
            ) from error

    @contextmanager
    def claim(self, measurement: str, wait: bool) -> Iterator[bool]:
        """Be the only process to make the record of `measurement` in this file, until the context is left.

        Yields whether this is so; with `wait` it is, once no other process claims it. A process that ends, however it
        ends, claims nothing. Raises `OutputError` if the file cannot be opened or locked.
        """
        place = int.from_bytes(hashlib.sha256(measurement.encode()).digest()[:7]), 1
        try:
            file = open_locked(self.path, place, wait)
        except OSError as error:
            raise OutputError(
                f"--output {self.path} cannot be locked ({error.strerror}): name a file on another file system."
            ) from error
        if file is None:
            yield False
            return
        with file:
            try:
                yield True
            finally:
                # A file that was made for a claim and got no record goes again, unless others have claims in it, or
                # another file, which may hold records, has been put in its place meanwhile.
                unused = os.fstat(file.fileno()).st_size == 0 and lock(file, EVERY_BYTE, wait=False)
                if unused and is_at(file, self.path):
                    # Where `path` is a link, what it leads to.
                    self.path.resolve().unlink(missing_ok=True)


def _rescued(line: bytes) -> str:
    """Put what was measured, maybe for hours, where temporary files go, and say where."""
    try:
        with tempfile.NamedTemporaryFile(prefix="actbench-", suffix=".jsonl", delete=False) as file:
            file.write(line)
    except OSError:
        return ""
    return f" and is in {file.name} instead"


def _write_at(descriptor: int, end: int, line: bytes) -> None:
    """Put `line` in place of all that follows byte `end`, on the disk, or nothing."""
    os.ftruncate(descriptor, end)
    try:
        written = 0
        while written < len(line):
            written += os.pwrite(descriptor, line[written:], end + written)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise


def _flush_folder(path: Path) -> None:
    """A new file's name is on the disk only when its folder is."""
    folder = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_cut_short(line: bytes) -> bool:
    """Whether `line` is the beginning of a record and not all of one: what an interrupted write leaves."""
    if not (line.startswith(_BEGINNING) or (line != b"" and _BEGINNING.startswith(line))):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def _parse(line: bytes) -> Record | None:
    if len(line) > _MOST_LINE_BYTES:
        return None
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        return None
    well_formed = all(key in record for key in _REQUIRED) and all(
        isinstance(record[key], dict) for key in ("scheme", "recipe", "environment")
    )
    return record if well_formed else None
