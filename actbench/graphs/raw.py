"""The published files of the real data sets: where they lie, how their own libraries read them.

PyG's classes do so where that is safe once the files have been checked; only their disk cache is taken out, so that
reading writes nothing. OGB's class cannot do without one and gets a temporary folder. Planetoid's files are pickles,
which PyG would execute, and are read here.
"""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from actbench.graphs.catalogue import Entry
from actbench.graphs.checks import (
    check_gnn_benchmark,
    check_graphsaint,
    check_heterophilous,
    check_ogb,
    check_planetoid,
    check_reddit,
    limit_bytes,
)
from actbench.graphs.fetching import fetch, unpack
from actbench.graphs.planetoid import read_planetoid

_GOOGLE_DRIVE = "https://drive.usercontent.google.com/download?id={}&confirm=t"


class Source(Protocol):
    """A data set below a folder `root`, in the layout that its library expects."""

    @property
    def slow(self) -> bool:
        """Whether reading takes so long that the result is worth keeping."""

    def folder(self, root: Path) -> Path:
        """Return the data set's own folder."""

    def files(self, root: Path) -> list[Path]:
        """Return the files that reading needs."""

    def read(self, root: Path, entry: Entry) -> Any:
        """Return PyG's `Data`, with `train_mask`, `val_mask` and `test_mask` where a split is published.

        Nothing above the sizes of `entry` is allocated. Raises anything where a file is damaged.
        """

    def download(self, root: Path, entry: Entry) -> None:
        """Fetch the files."""


class _WithoutDisk:
    """Mixed into a class of PyG's: building it does nothing, and `process()` leaves its result in `held`."""

    has_download = False
    has_process = False
    held: Any = None

    def load(self, path: str) -> None:
        """Load nothing."""

    def save(self, data_list: list[Any], path: str) -> None:
        """Hold what would go to the file."""
        (self.held,) = data_list


@dataclass(frozen=True)
class PygSource:
    """A data set that a class of `torch_geometric.datasets` reads, or at least knows the address of."""

    class_name: str
    directory: str
    check: Callable[[Sequence[Path], Entry], None]
    takes_name: bool = True
    slow: bool = False

    def folder(self, root: Path) -> Path:
        """Return the folder that holds `raw/`."""
        return root / self.directory

    def files(self, root: Path) -> list[Path]:
        """Return the raw files."""
        return [Path(path) for path in self._dataset(root).raw_paths]

    def read(self, root: Path, entry: Entry) -> Any:
        """Return the graph as PyG processes it."""
        self.check(self.files(root), entry)
        dataset = self._dataset(root)
        # Pickles of scipy's and numpy's old days warn of names that have moved since.
        with warnings.catch_warnings(action="ignore"):
            dataset.process()
        return dataset.held

    def download(self, root: Path, entry: Entry) -> None:
        """Fetch the files from where PyG does."""
        dataset = self._dataset(root)
        raw = Path(dataset.raw_dir)
        raw.mkdir(parents=True)
        if not self.takes_name and getattr(dataset, "url", "").endswith(".zip"):
            _fetch_and_unpack(dataset.url, raw, entry)
            return
        for file in self.files(root):
            fetch(_address(dataset, file), file, limit_bytes(entry))

    def _dataset(self, root: Path) -> Any:
        import torch_geometric.datasets

        published = getattr(torch_geometric.datasets, self.class_name)
        quiet = type(self.class_name, (_WithoutDisk, published), {})
        return quiet(str(root), self.directory) if self.takes_name else quiet(str(root / self.directory))


class PlanetoidSource(PygSource):
    """One of the three data sets of Yang et al. (2016)."""

    def read(self, root: Path, entry: Entry) -> Any:
        """Return the graph as PyG would, with nothing unpickled."""
        from torch_geometric.data import Data

        files = self.files(root)
        self.check(files, entry)
        return Data(**read_planetoid(files, entry))


@dataclass(frozen=True)
class OgbSource:
    """A node-property data set that `ogb` reads; the fields repeat its `master.csv`."""

    name: str
    archive: str
    scheme: str
    slow: bool = True

    @property
    def url(self) -> str:
        """Address of the zip archive."""
        return f"http://snap.stanford.edu/ogb/data/nodeproppred/{self.archive}.zip"

    def folder(self, root: Path) -> Path:
        """Return the folder that holds `raw/` and `split/`."""
        folder = root / self.name.replace("-", "_")
        of_old_release = folder.with_name(f"{folder.name}_pyg")
        return of_old_release if of_old_release.exists() else folder

    def files(self, root: Path) -> list[Path]:
        """Return tables, split and the mark of the release, without which OGB asks on the terminal."""
        tables = ["edge", "node-feat", "node-label", "num-node-list", "num-edge-list"]
        parts = [f"split/{self.scheme}/{part}.csv.gz" for part in ("train", "valid", "test")]
        return [
            self.folder(root) / path
            for path in (*(f"raw/{table}.csv.gz" for table in tables), *parts, "RELEASE_v1.txt")
        ]

    def read(self, root: Path, entry: Entry) -> Any:
        """Return the graph as OGB processes it, with its split as masks."""
        check_ogb(self.folder(root), self.scheme, entry)
        from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
        from torch_geometric.data.storage import GlobalStorage
        from torch_geometric.utils import index_to_mask

        with (
            tempfile.TemporaryDirectory(prefix="actbench-") as processed,
            torch.serialization.safe_globals([DataEdgeAttr, DataTensorAttr, GlobalStorage]),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            warnings.catch_warnings(action="ignore"),
        ):
            published = _import_ogb()
            settings = {"has_download": False, "processed_dir": processed}
            dataset = type(published.__name__, (published,), settings)(self.name, root=str(root))
            data, split = dataset[0], dataset.get_idx_split()
        data.y = data.y.squeeze(1)
        for mask, part in (("train_mask", "train"), ("val_mask", "valid"), ("test_mask", "test")):
            data[mask] = index_to_mask(split[part], size=data.num_nodes)
        return data

    def download(self, root: Path, entry: Entry) -> None:
        """Fetch and unpack OGB's archive; OGB's own class would ask on the terminal first."""
        _fetch_and_unpack(self.url, root, entry)
        (root / self.archive).rename(self.folder(root))


SOURCES: dict[str, Source] = {
    "cora": PlanetoidSource("Planetoid", "Cora", check_planetoid),
    "citeseer": PlanetoidSource("Planetoid", "CiteSeer", check_planetoid),
    "pubmed": PlanetoidSource("Planetoid", "PubMed", check_planetoid),
    "computers": PygSource("Amazon", "Computers", check_gnn_benchmark),
    "photo": PygSource("Amazon", "Photo", check_gnn_benchmark),
    "physics": PygSource("Coauthor", "Physics", check_gnn_benchmark),
    "tolokers": PygSource("HeterophilousGraphDataset", "tolokers", check_heterophilous),
    "minesweeper": PygSource("HeterophilousGraphDataset", "minesweeper", check_heterophilous),
    "flickr": PygSource("Flickr", "Flickr", check_graphsaint, takes_name=False, slow=True),
    "reddit": PygSource("Reddit", "Reddit", check_reddit, takes_name=False, slow=True),
    "yelp": PygSource("Yelp", "Yelp", check_graphsaint, takes_name=False, slow=True),
    "ogbn-arxiv": OgbSource("ogbn-arxiv", "arxiv", "time"),
    "ogbn-products": OgbSource("ogbn-products", "products", "sales_ranking"),
}
"""By the names of the catalogue."""


def _address(dataset: Any, file: Path) -> str:
    """Where PyG's class fetches one of its files from: a folder of GitHub's, or Google Drive."""
    identifier = getattr(dataset, f"{file.stem}_id", None)
    return f"{dataset.url.rstrip('/')}/{file.name}" if identifier is None else _GOOGLE_DRIVE.format(identifier)


def _fetch_and_unpack(url: str, folder: Path, entry: Entry) -> None:
    archive = folder / url.rpartition("/")[2]
    fetch(url, archive, limit_bytes(entry))
    unpack(archive, folder, limit_bytes(entry))
    archive.unlink()


def _import_ogb() -> Any:
    """Return OGB's class without the thread that asks PyPI for its newest release on import."""
    if "ogb" not in sys.modules:
        sys.modules["outdated"] = None  # type: ignore[assignment]  # OGB allows for this import to fail.
        try:
            import ogb  # noqa: F401
        finally:
            del sys.modules["outdated"]
    from ogb.nodeproppred import PygNodePropPredDataset

    return PygNodePropPredDataset
