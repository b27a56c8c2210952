import fcntl
import io
import os
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch_geometric.datasets

from actbench.errors import DataError
from actbench.graphs import load, present, pull
from actbench.graphs.fetching import ArchiveError, FetchError, _SafeRedirects, fetch, unpack
from actbench.graphs.raw import SOURCES, OgbSource, PygSource
from tests.graphs.server import Manner, Server, serving
from tests.graphs.small import NODES, publish, write_ogb, write_photo, write_reddit
from tests.graphs.test_pulling import ignore, zipped

LIMIT = 2**20


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def photo(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that PyG's class for Photo asks, with that data set's file."""
    publish(monkeypatch, "photo", split_sizes=(7, 2, 3))
    server.content = write_photo(tmp_path / "published").read_bytes()
    monkeypatch.setattr(torch_geometric.datasets.Amazon, "url", f"{server.address}/npz/")
    return server


@pytest.mark.parametrize("manner", ["whole", "unannounced"])
def test_a_whole_file_is_fetched(server: Server, tmp_path: Path, manner: Manner) -> None:
    server.content, server.manner = bytes(range(256)) * 5000, manner
    fetch(f"{server.address}/file", tmp_path / "file", 2 * LIMIT)
    assert (tmp_path / "file").read_bytes() == server.content


@pytest.mark.parametrize(
    ("manner", "says"),
    [
        ("short", "photo could not be downloaded from github.com/shchur.*broke off after 1,311 of 2,622 bytes"),
        ("cut", "photo could not be downloaded"),
        ("chunked cut", "photo could not be downloaded.*IncompleteRead"),
        ("huge", "photo could not be downloaded.*1,000,000,000,000,000 bytes are announced"),
        ("endless", "photo could not be downloaded.*longer than"),
        ("missing", "photo could not be downloaded.*404"),
        ("to a file", "photo could not be downloaded.*file:///etc/hostname"),
    ],
)
def test_a_download_that_is_cut_leaves_nothing_and_the_same_command_works(
    photo: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manner: Manner, says: str
) -> None:
    monkeypatch.setattr("actbench.graphs.raw.limit_bytes", lambda _: LIMIT)
    data_dir = tmp_path / "data"
    photo.manner = manner
    with pytest.raises(DataError, match=f"{says}.*again") as caught:
        pull("photo", data_dir, ignore)
    assert "\n" not in str(caught.value)
    assert not list(data_dir.iterdir())
    photo.manner = "whole"
    pull("photo", data_dir, ignore)
    assert load("photo", data_dir).nodes == NODES


def test_half_a_file_without_a_length_is_noticed_when_it_is_read(photo: Server, tmp_path: Path) -> None:
    photo.content, photo.manner = photo.content[:1000], "unannounced"
    with pytest.raises(DataError, match=r"What arrived as photo is not the published data set.*again later"):
        pull("photo", tmp_path / "data", ignore)
    assert not list((tmp_path / "data").iterdir())


def test_what_a_killed_download_left_is_removed_and_a_running_one_is_not(photo: Server, tmp_path: Path) -> None:
    left, running = tmp_path / ".pull-left", tmp_path / ".pull-running"
    for folder in (left, running):
        folder.mkdir()
        (folder / "half").write_bytes(bytes(10))
    descriptor = os.open(running, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        pull("photo", tmp_path, ignore)
    finally:
        os.close(descriptor)
    assert not left.exists()
    assert (running / "half").is_file()


def test_a_disk_without_room_is_not_called_a_network(
    photo: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(DataError, match=r"cannot be written to.*do not fit into the 5 that are free.*--data-dir"):
        pull("photo", tmp_path / "data", ignore)


def test_every_address_is_that_of_the_library() -> None:
    asked = {name: source._dataset(Path("data")) for name, source in SOURCES.items() if isinstance(source, PygSource)}
    assert asked["cora"].url == "https://github.com/kimiyoung/planetoid/raw/master/data"
    assert all(dataset.url.startswith("https://") for dataset in asked.values() if hasattr(dataset, "url"))


def test_a_server_with_a_certificate_of_its_own_is_not_believed(server: Server, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run([*command, *subject], check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.content = b"poisoned"
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(f"https://localhost:{server.server_port}/file", tmp_path / "file", LIMIT)


@pytest.mark.parametrize("to", ["http://example.org/x", "ftp://example.org/x", "file:///etc/passwd"])
def test_no_redirection_leaves_https(to: str) -> None:
    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(FetchError, match="sends on from https to"):
        _SafeRedirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, to)  # type: ignore[arg-type]


def archive_with(tmp_path: Path, name: str, content: bytes = b"x", mode: int = 0o100644) -> Path:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("harmless", b"1")
        file.writestr(member, content)
    return archive


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("../escaped", 0o100644),
        ("a/../../escaped", 0o100644),
        ("/escaped", 0o100644),
        ("..\\escaped", 0o100644),
        ("a\\..\\..\\escaped", 0o100644),
        ("link", 0o120777),
        ("fifo", 0o010644),
        ("device", 0o060644),
    ],
)
def test_no_member_of_an_archive_lies_outside_of_its_folder(tmp_path: Path, name: str, mode: int) -> None:
    folder = tmp_path / "a" / "folder"
    folder.mkdir(parents=True)
    archive = archive_with(tmp_path, name, b"/etc/passwd", mode)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ArchiveError, match=r"outside of its folder|no regular file"):
        unpack(archive, folder, LIMIT)
    assert set(tmp_path.rglob("*")) == before


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(2**21))
    with pytest.raises(ArchiveError, match="unpacks to 2,097,152 bytes"):
        unpack(archive, tmp_path, LIMIT)
    # One that announces less than it holds is cut, and its checksum is then another.
    content = archive.read_bytes().replace((2**21).to_bytes(4, "little"), (2**10).to_bytes(4, "little"))
    archive.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile):
        unpack(archive, tmp_path, LIMIT)
    assert not (tmp_path / "zeros").exists() or (tmp_path / "zeros").stat().st_size <= 2**10


def test_an_archive_that_would_escape_is_one_sentence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OgbSource, "url", f"{server.address}/arxiv.zip")
    server.content = archive_with(tmp_path, "../../escaped").read_bytes()
    data_dir = tmp_path / "data"
    with pytest.raises(DataError, match=r"ogbn-arxiv is not the published.*'../../escaped' would lie outside.*again"):
        pull("ogbn-arxiv", data_dir, ignore)
    assert not list(data_dir.iterdir())
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("name", ["ogbn-arxiv", "reddit"])
def test_archives_are_unpacked_into_their_layout(
    name: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(monkeypatch, name)
    if name == "reddit":
        write_reddit(tmp_path / "packed", np.arange(NODES))
        server.content = zipped(tmp_path / "packed" / "Reddit" / "raw")
        monkeypatch.setattr(torch_geometric.datasets.Reddit, "url", f"{server.address}/reddit.zip")
    else:
        write_ogb(tmp_path / "packed", "arxiv", "time", labels=np.arange(NODES))
        server.content = zipped(tmp_path / "packed")
        monkeypatch.setattr(OgbSource, "url", f"{server.address}/arxiv.zip")
    pull(name, tmp_path / "data", ignore)
    assert present(name, tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["Reddit" if name == "reddit" else "ogbn_arxiv"]
    assert load(name, tmp_path / "data").nodes == NODES
