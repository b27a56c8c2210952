"""Downloads of the raw files, which count as arrived once they have been read without fault."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from actbench.errors import DataError
from actbench.graphs.catalogue import Entry, find
from actbench.graphs.fetching import ArchiveError
from actbench.graphs.loading import load, present
from actbench.graphs.raw import SOURCES
from actbench.graphs.reason import reason

Progress = Callable[[int, int | None], None]
_PREFIX = ".pull-"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES)
"""Errors of the place that is written to, not of the network."""


def pull(name: str, data_dir: Path, progress: Progress) -> None:
    """Download the raw files of `name` into `data_dir`, unless they are there.

    They arrive in a folder beside their place and move there once they have been read without fault, so that
    a download that was cut off leaves nothing behind. `progress` gets the bytes that have arrived and, where
    it is known, their total; it is called from another thread.

    Raises:
        DataError: no such name, nothing to download, no network, or `data_dir` cannot be written to.
    """
    if name.endswith(".npz") or find(name).synthetic:
        raise DataError(f"There is nothing to pull for {name}: use it as it is.")
    if present(name, data_dir):
        return
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _staging(data_dir) as staging:
            _download(find(name), staging, progress)
            _verify(name, staging)
            _move(SOURCES[name].folder(staging), staging, data_dir)
    except OSError as error:
        raise DataError(f"{data_dir} cannot be written to ({reason(error)}): choose another --data-dir.") from None


@contextlib.contextmanager
def _staging(data_dir: Path) -> Iterator[Path]:
    """A folder in `data_dir` that vanishes at the end, or, after a kill, when the next download begins."""
    with _locked(data_dir):
        for left in data_dir.glob(f"{_PREFIX}*"):
            # Whoever still downloads into it holds its lock.
            with contextlib.suppress(OSError), _locked(left, wait=False):
                shutil.rmtree(left)
        folder = Path(tempfile.mkdtemp(dir=data_dir, prefix=_PREFIX))
        holding = contextlib.ExitStack()
        holding.enter_context(_locked(folder))
    with holding:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock of `folder`; raises `OSError` if another process does and `wait` is not set."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _download(entry: Entry, staging: Path, progress: Progress) -> None:
    try:
        with _watching(staging, progress, entry.download_bytes):
            SOURCES[entry.name].download(staging, entry)
    except ArchiveError as error:
        raise _unpublished(entry.name, str(error)) from None
    # urllib, http.client and zipfile each raise errors of their own.
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        raise DataError(
            f"{entry.name} could not be downloaded from {entry.source} ({reason(error)}): "
            f"check the network and run `actbench pull {entry.name}` again."
        ) from None


def _verify(name: str, staging: Path) -> None:
    """Read what arrived: a connection that breaks off, or a page of apology, ends without an error too."""
    if not present(name, staging):
        raise _unpublished(name, "a file is missing")
    try:
        load(name, staging)
    except DataError as error:
        raise _unpublished(name, reason(error.__cause__ or error)) from None


def _unpublished(name: str, why: str) -> DataError:
    return DataError(
        f"What arrived as {name} is not the published data set ({why}): run `actbench pull {name}` again later."
    )


def _move(folder: Path, staging: Path, data_dir: Path) -> None:
    # The data set's own folder alone: what else an archive had in it would take the place of another set's files.
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        place = data_dir / file.relative_to(staging)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)


@contextlib.contextmanager
def _watching(folder: Path, progress: Progress, total_bytes: int | None) -> Iterator[None]:
    """Report the bytes that lie in `folder` five times a second, and once more at the end."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            progress(_bytes_below(folder), total_bytes)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    progress(_bytes_below(folder), total_bytes)


def _bytes_below(folder: Path) -> int:
    total_bytes = 0
    for file in folder.rglob("*"):
        # An unpacked archive may vanish in between.
        with contextlib.suppress(FileNotFoundError):
            total_bytes += file.stat().st_size if file.is_file() else 0
    return total_bytes
