"""The store of records: a file of JSON lines that is only ever appended to, under a lock and flushed to disk."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Final

from actbench.errors import OutputError

Record = dict[str, Any]
SCHEMA_VERSION: Final = 1
_BEGINNING: Final = b'{"schema_version":%d,' % SCHEMA_VERSION
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
        except OSError as error:
            raise OutputError(
                f"--output {self.path} cannot be written ({error.strerror}): name another file."
            ) from error

    def read(self) -> list[Record]:
        """All records in the order they were written; a last line that was cut short is no record.

        Raises `OutputError` if any other line is not a record of this schema version.
        """
        try:
            content = self.path.read_bytes()
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

        Raises `OutputError` if it cannot be written.
        """
        line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                content = file.read()
                tail = content[content.rfind(b"\n") + 1 :]
                if _is_cut_short(tail):
                    file.truncate(len(content) - len(tail))
                elif tail:
                    line = b"\n" + line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"a record could not be written to {self.path} ({error.strerror}): make room or name another file."
            ) from error


def _is_cut_short(line: bytes) -> bool:
    """Whether `line` is the beginning of a record and not all of one: what an interrupted write leaves."""
    begins = line.startswith(_BEGINNING) or (line != b"" and _BEGINNING.startswith(line))
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return begins
    return False


def _refuse(constant: str) -> None:
    """NaN and infinities are no JSON, though Python's parser takes them."""
    raise ValueError(f"{constant} is no JSON")


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        return None
    well_formed = all(key in record for key in _REQUIRED) and all(
        isinstance(record[key], dict) for key in ("scheme", "recipe", "environment")
    )
    return record if well_formed else None
