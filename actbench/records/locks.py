"""Locks on single bytes of a file, which need not have them, held by an open file and gone with it.

Linux's open file description locks (https://man7.org/linux/man-pages/man2/fcntl_locking.2.html): a process that is
killed loses them, its children do not inherit them, and opening the file once more in the same process does not drop
them, as it would POSIX's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import BinaryIO, Final

EVERY_BYTE: Final = (0, 0)
"""From the first byte on, to the end of all files."""


def open_locked(path: Path, span: tuple[int, int], wait: bool) -> BinaryIO | None:
    """`path` for reading and writing, made if need be, with `span` (first byte, length) its own until it is closed.

    None if another open file has any byte of the span and `wait` is not set. Raises `OSError`.
    """
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
        try:
            if not lock(file, span, wait):
                file.close()
                return None
            if is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        # Whoever had it has removed it.
        file.close()


def lock(file: BinaryIO, span: tuple[int, int], wait: bool) -> bool:
    """Whether `span` belongs to `file` now."""
    first, length = span
    # struct flock: type, whence, start, length, process (0 for these).
    request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, first, length, 0)
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def is_at(file: BinaryIO, path: Path) -> bool:
    """Whether `path` still leads to the open `file`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
