import errno
import json
import math
import tracemalloc
from pathlib import Path

import pytest

from actbench.records import FIELDS, is_figure, parse_json, printable, read_limited, unusable_field
from tests.runs.example import example_record


@pytest.mark.parametrize("value", [0, 0.0, 1.5, -3, 10**99, -1e-99])
def test_numbers_are_figures(value: float) -> None:
    assert is_figure(value)


@pytest.mark.parametrize(
    "value", [None, True, "1", math.nan, math.inf, -math.inf, 1e308, 10**400, 5e-324, -1e-101, [1]]
)
def test_anything_else_is_none(value: object) -> None:
    assert not is_figure(value)


def test_what_cannot_be_printed_is_replaced_wherever_it_stands() -> None:
    value = {"a\x1b": ["b\n\u202e", {"c": "\ud800"}], "日本": 3}
    assert printable(value) == {"a\ufffd": ["b\ufffd\ufffd", {"c": "\ufffd"}], "日本": 3}
    assert printable("x\ny\t", keep="\n") == "x\ny\ufffd"


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[-Infinity]",
        "[1e999]",
        '{"a": -1e400}',
        "9" * 5000,
        "[" * 100_000,
        '{"a":' * 30 + "1" + "}" * 30,
        "[1,]",
        "{'a': 1}",
        "1 2",
        "",
        b"\xff\xfe\xff",
    ],
)
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_json_is_read() -> None:
    value = {"a": [1, 2.5, None, True, "\u2028"], "b": {"c": [[[[1]]]]}}
    assert parse_json(json.dumps(value)) == value


def test_a_file_of_any_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with path.open("wb") as file:
        file.truncate(2**40)
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            read_limited(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_another_type_is_named(field: str) -> None:
    record = example_record()
    assert unusable_field(record) is None
    assert unusable_field(record | {field: 0.5}) == field
