"""A verb's file is written whole or not at all."""

from pathlib import Path

import pytest

from actbench.cli.output import write_whole
from actbench.errors import OutputError
from tests.cli.test_cli import actbench_here


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


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07.jsonl", "a\x9b31mb", "two\nlines", "right\u202eleft", "\udcff"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "NAME"),
        ("check", "NAME", "--baseline", "NAME"),
        ("baseline", "NAME", "--output", "NAME"),
        ("run", "--dataset", "NAME"),
        ("run", "--dataset", "NAME.npz"),
        ("run", "--scheme", "NAME"),
        ("pull", "NAME"),
        ("estimate", "--dataset", "NAME"),
    ],
)
def test_a_name_gives_a_terminal_no_orders(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    arguments: tuple[str, ...],
) -> None:
    given = [argument.replace("NAME", name) for argument in arguments]
    done = actbench_here(monkeypatch, capfd, tmp_path, *given)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("actbench: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr[:-1].isprintable()
