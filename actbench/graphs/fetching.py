"""Files from the network and out of archives: whole ones, from who they claim to be, nowhere but in their folder."""

import errno
import shutil
import stat
import urllib.request
import zipfile
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO

_CHUNK_BYTES = 2**20
_PATIENCE_SECONDS = 60.0


class FetchError(Exception):
    """A file that did not arrive whole, or not from where it was asked for."""


class ArchiveError(Exception):
    """An archive that is not unpacked."""


def fetch(url: str, place: Path, limit_bytes: int) -> None:
    """Write the file at `url` to `place`.

    The certificate of an https server is checked, which PyG's own download does not do, and a redirection away from
    https is not followed. What arrives must be as long as the server announced.

    Raises:
        FetchError: it is cut off, above `limit_bytes`, or would come by another way than asked for.
        OSError: the network or the disk fails; `errno.ENOSPC` if what is announced does not fit.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "actbench", "Accept-Encoding": "identity"})
    answer: HTTPResponse
    with urllib.request.build_opener(_SafeRedirects).open(request, timeout=_PATIENCE_SECONDS) as answer:
        announced = answer.length
        if announced is not None:
            _check_room(announced, place.parent, limit_bytes)
        arrived = 0
        with place.open("wb") as file:
            while chunk := answer.read(_CHUNK_BYTES):
                arrived += len(chunk)
                if arrived > limit_bytes:
                    raise FetchError(f"{place.name} is longer than the {limit_bytes:,} bytes that it may have")
                file.write(chunk)
    # The library's own reader takes a connection that ends early for the end of the file.
    if announced is not None and arrived != announced:
        raise FetchError(f"the connection broke off after {arrived:,} of {announced:,} bytes of {place.name}")


def unpack(archive: Path, folder: Path, limit_bytes: int) -> None:
    """Unpack a zip file into `folder`, all of it or nothing.

    Raises:
        ArchiveError: a member would lie elsewhere or is no regular file, or all together are above `limit_bytes`.
        zipfile.BadZipFile: the archive is damaged; each member's checksum is compared.
    """
    with zipfile.ZipFile(archive) as packed:
        total_bytes = 0
        for member in packed.infolist():
            path = PurePosixPath(member.filename)
            if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
                raise ArchiveError(f"its member {member.filename!r:.100} would lie outside of its folder")
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"its member {member.filename!r:.100} is no regular file")
            total_bytes += member.file_size
        if total_bytes > limit_bytes:
            raise ArchiveError(f"it unpacks to {total_bytes:,} bytes, above the {limit_bytes:,} that it may have")
        _check_room(total_bytes, folder, limit_bytes)
        # No more is written of a member than was announced of it.
        packed.extractall(folder)


def _check_room(wanted_bytes: int, folder: Path, limit_bytes: int) -> None:
    if wanted_bytes > limit_bytes:
        raise FetchError(f"{wanted_bytes:,} bytes are announced, above the {limit_bytes:,} that it may have")
    free = shutil.disk_usage(folder).free
    if wanted_bytes > free:
        raise OSError(errno.ENOSPC, f"{wanted_bytes:,} bytes do not fit into the {free:,} that are free")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if not newurl.startswith("https:") and not (newurl.startswith("http:") and req.type == "http"):
            raise FetchError(f"the server sends on from {req.type} to {newurl:.100}, which is not as safe")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
