"""The published files of the real data sets: where they lie, how their own libraries read and download them.

PyG's classes do both; only their disk cache is taken out, so that reading writes nothing. OGB's class cannot
do without one and gets a temporary folder.
"""

import contextlib
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch


class Source(Protocol):
    """A data set below a folder `root`, in the layout that its library expects."""

    @property
    def slow(self) -> bool:
        """Whether reading takes so long that the result is worth keeping."""

    def folder(self, root: Path) -> Path:
        """Return the data set's own folder."""

    def files(self, root: Path) -> list[Path]:
        """Return the files that reading needs."""

    def read(self, root: Path) -> Any:
        """Return PyG's `Data`, with `train_mask`, `val_mask` and `test_mask` where a split is published."""

    def download(self, root: Path) -> None:
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
    """A data set that a class of `torch_geometric.datasets` reads."""

    class_name: str
    directory: str
    takes_name: bool = True
    slow: bool = False

    def folder(self, root: Path) -> Path:
        """Return the folder that holds `raw/`."""
        return root / self.directory

    def files(self, root: Path) -> list[Path]:
        """Return the raw files."""
        return [Path(path) for path in self._dataset(root).raw_paths]

    def read(self, root: Path) -> Any:
        """Return the graph as PyG processes it."""
        dataset = self._dataset(root)
        # Pickles of scipy's and numpy's old days warn of names that have moved since.
        with warnings.catch_warnings(action="ignore"):
            dataset.process()
        return dataset.held

    def download(self, root: Path) -> None:
        """Run PyG's download."""
        dataset = self._dataset(root)
        os.makedirs(dataset.raw_dir, exist_ok=True)
        dataset.download()

    def _dataset(self, root: Path) -> Any:
        import torch_geometric.datasets

        published = getattr(torch_geometric.datasets, self.class_name)
        quiet = type(self.class_name, (_WithoutDisk, published), {})
        return quiet(str(root), self.directory) if self.takes_name else quiet(str(root / self.directory))


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

    def read(self, root: Path) -> Any:
        """Return the graph as OGB processes it, with its split as masks."""
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

    def download(self, root: Path) -> None:
        """Fetch and unpack OGB's archive; OGB's own class would ask on the terminal first."""
        from torch_geometric.data import download_url, extract_zip

        archive = Path(download_url(self.url, str(root), log=False))
        extract_zip(str(archive), str(root), log=False)
        archive.unlink()
        (root / self.archive).rename(self.folder(root))


SOURCES: dict[str, Source] = {
    "cora": PygSource("Planetoid", "Cora"),
    "citeseer": PygSource("Planetoid", "CiteSeer"),
    "pubmed": PygSource("Planetoid", "PubMed"),
    "computers": PygSource("Amazon", "Computers"),
    "photo": PygSource("Amazon", "Photo"),
    "physics": PygSource("Coauthor", "Physics"),
    "tolokers": PygSource("HeterophilousGraphDataset", "tolokers"),
    "minesweeper": PygSource("HeterophilousGraphDataset", "minesweeper"),
    "flickr": PygSource("Flickr", "Flickr", takes_name=False, slow=True),
    "reddit": PygSource("Reddit", "Reddit", takes_name=False, slow=True),
    "yelp": PygSource("Yelp", "Yelp", takes_name=False, slow=True),
    "ogbn-arxiv": OgbSource("ogbn-arxiv", "arxiv", "time"),
    "ogbn-products": OgbSource("ogbn-products", "products", "sales_ranking"),
}
"""By the names of the catalogue."""


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
