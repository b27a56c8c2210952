import math

import pytest

from actbench.analysis.untrusted import is_figure, printable


@pytest.mark.parametrize("value", [0, 1.5, -3, 10**99])
def test_numbers_are_figures(value: float) -> None:
    assert is_figure(value)


@pytest.mark.parametrize("value", [None, True, "1", math.nan, math.inf, -math.inf, 1e308, 10**400, [1]])
def test_anything_else_is_none(value: object) -> None:
    assert not is_figure(value)


def test_what_cannot_be_printed_is_replaced_wherever_it_stands() -> None:
    value = {"a\x1b": ["b\n\u202e", {"c": "\ud800"}], "日本": 3}
    assert printable(value) == {"a\ufffd": ["b\ufffd\ufffd", {"c": "\ufffd"}], "日本": 3}
    assert printable("x\ny\t", keep="\n") == "x\ny\ufffd"
