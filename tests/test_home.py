"""Users without a home folder, as some containers have, and names of users that there are not."""

import pwd
from pathlib import Path

import pytest

from actbench.home import expand_home, home_folder


def test_a_user_without_a_home_has_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setenv("HOME", str(tmp_path / "mine"))
    assert home_folder() == tmp_path / "mine"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    assert home_folder() == tmp_path
    assert expand_home(Path("~/x")) == Path("~/x")


def test_a_user_that_there_is_not_stays_as_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("~/x.npz") == tmp_path / "x.npz"
    assert expand_home("~no-such-user/x.npz") == Path("~no-such-user/x.npz")
