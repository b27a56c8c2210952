"""Downloads of the raw files, by the code of the library that reads them."""

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from actbench.errors import DataError
from actbench.graphs.catalogue import Entry, find
from actbench.graphs.loading import load, present
from actbench.graphs.raw import SOURCES
from actbench.graphs.reason import reason

Progress = Callable[[int, int | None], None]


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
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".pull-") as staging:
            _download(find(name), Path(staging), progress)
            _verify(name, Path(staging))
            _move(Path(staging), data_dir)
    except OSError as error:
        raise DataError(f"{data_dir} cannot be written to ({reason(error)}): choose another --data-dir.") from None


def _download(entry: Entry, staging: Path, progress: Progress) -> None:
    try:
        with _watching(staging, progress, entry.download_bytes):
            SOURCES[entry.name].download(staging)
    # urllib, fsspec, aiohttp and zipfile each raise errors of their own.
    except Exception as error:
        raise DataError(
            f"{entry.name} could not be downloaded from {entry.source} ({reason(error)}): "
            f"check the network and run `actbench pull {entry.name}` again."
        ) from None


def _verify(name: str, staging: Path) -> None:
    """Read what arrived: a connection that breaks off, or a page of apology, ends without an error too."""
    try:
        load(name, staging)
    except DataError:
        raise DataError(
            f"What arrived as {name} is not the published data set: run `actbench pull {name}` again later."
        ) from None


def _move(staging: Path, data_dir: Path) -> None:
    for file in sorted(path for path in staging.rglob("*") if path.is_file()):
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
