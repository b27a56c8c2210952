from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actbench.errors import SchemeError
from actbench.scheme import BITS, LEVELS, NAMED, Block, Scheme

blocks = st.builds(Block, st.integers(1, 2**20), st.booleans())
schemes = st.builds(
    Scheme,
    name=st.sampled_from([name for name in NAMED if name != "fp32"]),
    bits=st.sampled_from(BITS),
    block=blocks,
    projection=st.integers(1, 2**20),
    levels=st.sampled_from(LEVELS),
)


@given(schemes)
def test_text_form_reads_back(scheme: Scheme) -> None:
    assert Scheme.parse(str(scheme)) == scheme


@pytest.mark.parametrize("name", NAMED)
def test_named_schemes_are_their_own_text(name: str) -> None:
    assert str(Scheme.parse(name)) == name


def test_options_that_change_nothing_leave_no_trace() -> None:
    assert str(Scheme.parse("blockwise:bits=2,block=64r")) == "blockwise"
    assert str(Scheme.parse(" blockwise : levels=clipped-normal , bits=4".replace(" :", ":"))) == (
        "blockwise:bits=4,levels=clipped-normal"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("exat", "did you mean 'exact'"),
        ("", "the schemes are fp32"),
        ("fp32:bits=2", "write 'fp32'"),
        ("exact:bits=3", "bits is one of 1, 2, 4, 8"),
        ("exact:block=-4", "block=-4"),
        ("exact:block=0", "block=0"),
        ("exact:block=0r", "block=0"),
        ("exact:block=²", "block=²"),
        ("exact:block=1048577", "1048576"),
        ("exact:projection=0.5", "projection=0.5"),
        ("exact:levels=vm", "levels is one of uniform, clipped-normal"),
        ("exact:dropout=seeds", "dropout is one of bit, seed"),
        ("exact:colour=red", "'colour=red'"),
        ("exact:bits", "'bits'"),
        ("exact:", "''"),
        ("exact:bits=2,bits=4", "twice"),
    ],
)
def test_wrong_text_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(SchemeError) as caught:
        Scheme.parse(text)
    message = str(caught.value)
    assert says in message
    assert message.endswith(".")
    assert "\n" not in message


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        scheme = Scheme.parse(text)
    except SchemeError:
        return
    assert Scheme.parse(str(scheme)) == scheme


@pytest.mark.parametrize(
    ("rows", "width", "length"),
    [
        (1, 16, 16),
        (64, 16, 1024),
        (2, 128, 256),
        (8, 128, 1024),
        (64, 128, 1024),
        (1, 602, 602),
        (2, 602, 1204),
        (1, 8415, 8415),
        (64, 8415, 8415),
    ],
)
def test_blocks_of_rows_follow_the_authors_cap(rows: int, width: int, length: int) -> None:
    """clip(G/R · w, w, 1024) rounded to whole rows; 1,024 is nearer to two rows of 602 than to one."""
    assert Block(rows, in_rows=True).length(width) == length


@pytest.mark.parametrize(
    "values",
    [
        {"name": "mine", "bits": 2},
        {"name": "exact", "bits": 3},
        {"name": "exact"},
        {"name": "fp32", "bits": 2},
        {"name": "exact", "bits": 2, "projection": 0},
        {"name": "exact", "bits": 2, "levels": "vm"},
        {"name": "exact", "bits": 2, "dropout": "none"},
    ],
)
def test_values_that_no_text_gives_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(SchemeError):
        Scheme(**values)


def test_a_block_has_a_size() -> None:
    with pytest.raises(SchemeError, match="block=0"):
        Block(0)


def test_thousands_of_digits() -> None:
    with pytest.raises(SchemeError, match="block=111"):
        Scheme.parse("exact:block=" + "1" * 5000)
