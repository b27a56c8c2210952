import io
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest

from actbench.errors import DataError
from actbench.graphs import load, present, pull
from actbench.graphs.raw import SOURCES, PygSource
from tests.graphs.small import NODES, publish, write_photo


def ignore(arrived_bytes: int, total_bytes: int | None) -> None:
    """Show no progress."""


def zipped(folder: Path) -> bytes:
    """The files below `folder` as a zip archive."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, path.relative_to(folder))
    return content.getvalue()


def replace_download(monkeypatch: pytest.MonkeyPatch, download: Any) -> None:
    monkeypatch.setattr(PygSource, "download", lambda _, root, entry: download(root))


@pytest.fixture(autouse=True)
def _small_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, "photo", split_sizes=(7, 2, 3))


def test_pulled_files_can_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_download(monkeypatch, write_photo)
    seen: list[tuple[int, int | None]] = []
    data_dir = tmp_path / "new" / "data"
    pull("photo", data_dir, lambda *progress: seen.append(progress))
    assert [path.name for path in data_dir.iterdir()] == ["Photo"]
    assert load("photo", data_dir).nodes == NODES
    file = data_dir / "Photo" / "raw" / "amazon_electronics_photo.npz"
    assert seen[-1] == (file.stat().st_size, None)
    assert capsys.readouterr().out == ""


def test_present_files_are_not_pulled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photo(tmp_path)
    replace_download(monkeypatch, lambda root: pytest.fail("downloaded again"))
    pull("photo", tmp_path, ignore)


def test_missing_file_is_added_and_the_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "Photo" / "raw" / "note.txt"
    note.parent.mkdir(parents=True)
    note.write_text("mine")
    replace_download(monkeypatch, write_photo)
    pull("photo", tmp_path, ignore)
    assert present("photo", tmp_path)
    assert note.read_text() == "mine"


def test_what_arrives_beside_the_data_sets_own_folder_goes_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OGB's archives come by plain http and are unpacked beside one another."""
    of_cora = Path("Cora", "raw", "ind.cora.graph")

    def download(root: Path) -> None:
        write_photo(root)
        for place in (root / of_cora, root / "note.txt"):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("theirs")

    (tmp_path / of_cora).parent.mkdir(parents=True)
    (tmp_path / of_cora).write_text("mine")
    replace_download(monkeypatch, download)
    pull("photo", tmp_path, ignore)
    assert (tmp_path / of_cora).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Cora", "Photo"]


def fail_half_way(error: BaseException) -> Any:
    def download(root: Path) -> None:
        write_photo(root)
        raise error

    return download


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route"), ConnectionResetError("reset"), RuntimeError("page\nof\napology"), EOFError()],
)
def test_failed_download_is_one_sentence_and_leaves_nothing(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_download(monkeypatch, fail_half_way(error))
    with pytest.raises(DataError, match=r"photo could not be downloaded from github.com/shchur.*again") as caught:
        pull("photo", tmp_path, ignore)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_interrupted_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_download(monkeypatch, fail_half_way(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        pull("photo", tmp_path, ignore)
    assert not list(tmp_path.iterdir())


# numpy leaves an archive open that it cannot read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_cut_off_file_does_not_count_as_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: Path) -> None:
        file = write_photo(root)
        file.write_bytes(file.read_bytes()[:500])

    replace_download(monkeypatch, download)
    with pytest.raises(DataError, match="What arrived as photo is not"):
        pull("photo", tmp_path, ignore)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_every_set_says_in_one_sentence_that_there_is_no_network(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    with pytest.raises(DataError, match=f"^{name} could not be downloaded .*Name or service not known"):
        pull(name, tmp_path, ignore)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_nothing_to_pull(tmp_path: Path) -> None:
    for name in ("synthetic:arxiv@0.5", "mine.npz"):
        with pytest.raises(DataError, match=f"nothing to pull for {name}"):
            pull(name, tmp_path, ignore)
    with pytest.raises(DataError, match="no data set 'coar'"):
        pull("coar", tmp_path, ignore)


def test_data_dir_that_is_a_file(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.touch()
    with pytest.raises(DataError, match=f"{place} cannot be written to.*--data-dir"):
        pull("photo", place, ignore)
