"""A verb's file is written whole or not at all."""

from pathlib import Path

import pytest

from actbench.cli.output import write_whole
from actbench.errors import OutputError


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    write_whole(path, "old")

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OutputError, match="No space left on device"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_device_is_written_to_and_not_replaced() -> None:
    null = Path("/dev/null")
    write_whole(null, "text")
    assert null.is_char_device()
