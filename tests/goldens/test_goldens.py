"""Bytes, estimates, codes and reports are those that the last commit which changed them wrote down."""

import json
from pathlib import Path

import pytest

from tests.goldens.facts import TABLES

SLOW = ("pages",)


@pytest.mark.parametrize("name", [pytest.param(each, marks=[pytest.mark.slow] * (each in SLOW)) for each in TABLES])
def test_what_must_not_change_has_not(name: str) -> None:
    golden = json.loads((Path(__file__).parent / f"{name}.json").read_text())
    now = json.loads(json.dumps(TABLES[name]()))
    assert now.keys() == golden.keys()
    changed = {key: (golden[key], now[key]) for key in golden if now[key] != golden[key]}
    assert changed == {}, f"write them anew with `python -m tests.goldens {name}`, and say why in the commit"
