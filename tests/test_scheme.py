from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actbench.errors import SchemeError
from actbench.scheme import (
    BITS,
    DERIVED,
    DROPOUTS,
    LEVELS,
    NAMED,
    OPERATIONS,
    PROJECTED,
    RECTIFIED_BITS,
    UNQUANTIZED,
    UNTOUCHED,
    Block,
    Override,
    Scheme,
)

blocks = st.builds(Block, st.integers(1, 2**20), st.booleans())
calls: dict[str, Any] = {"operation": st.sampled_from(OPERATIONS), "call": st.integers(1, 2**20)}
given_values: dict[str, Any] = {
    "bits": st.none() | st.sampled_from(BITS),
    "block": st.none() | blocks,
    "levels": st.none() | st.sampled_from(LEVELS),
}
projected: dict[str, Any] = calls | given_values | {"operation": st.sampled_from(PROJECTED)}
overrides = st.one_of(
    st.builds(Override, **calls, **given_values),
    st.builds(Override, **projected, projection=st.none() | st.integers(1, 2**20)),
    st.builds(Override, **calls, bits=st.just(UNTOUCHED)),
)
overridable = st.builds(
    Scheme,
    name=st.sampled_from([name for name in NAMED if name not in (*UNQUANTIZED, *DERIVED)]),
    bits=st.sampled_from(BITS),
    block=blocks,
    projection=st.integers(1, 2**20),
    levels=st.sampled_from(LEVELS),
    overrides=st.lists(overrides, max_size=4, unique_by=lambda each: each.place).map(tuple),
)
derived = st.builds(
    Scheme,
    name=st.sampled_from(DERIVED),
    bits=st.sampled_from(RECTIFIED_BITS),
    block=blocks,
    levels=st.sampled_from(LEVELS),
    dropout=st.sampled_from(DROPOUTS),
)
schemes = st.one_of(overridable, derived)


@given(schemes)
def test_text_form_reads_back(scheme: Scheme) -> None:
    assert Scheme.parse(str(scheme)) == scheme


@given(schemes, st.randoms())
def test_equal_overrides_have_one_text_whatever_their_order(scheme: Scheme, random: Random) -> None:
    whole, *parts = str(scheme).split("/")
    random.shuffle(parts)
    assert str(Scheme.parse("/".join((whole, *parts)))) == str(scheme)


@given(schemes)
def test_a_call_sees_its_override_and_others_the_scheme(scheme: Scheme) -> None:
    given_places = {(each.operation, each.call): each.given() for each in scheme.overrides}
    for place, values in given_places.items():
        at = scheme.for_call(*place)
        if values == {"bits": UNTOUCHED}:
            assert at == Scheme("fp32")
        else:
            expected = {name: getattr(scheme, name) for name in ("bits", "block", "projection", "levels")} | values
            assert {name: getattr(at, name) for name in expected} == expected
            assert at.dropout == scheme.dropout
    assert ("linear", 2**20 + 1) not in given_places
    assert scheme.for_call("linear", 2**20 + 1) == scheme


def test_a_record_holds_the_overrides_and_is_otherwise_what_it_was() -> None:
    assert Scheme.parse("exact").as_record() == {
        "name": "exact", "bits": 2, "block": "1r", "projection": 8, "levels": "uniform", "dropout": "bit",
    }  # fmt: skip
    assert Scheme.parse("fp32").as_record() == {"name": "fp32", "bits": None}
    record = Scheme.parse("int4/linear12:block=64r,projection=2/batch_norm1:bits=32").as_record()
    assert record["name"] == "int4/batch_norm1:bits=32/linear12:block=64r,projection=2"
    assert record["overrides"] == [
        {"operation": "batch_norm", "call": 1, "bits": 32},
        {"operation": "linear", "call": 12, "block": "64r", "projection": 2},
    ]


def test_a_derived_scheme_may_have_bits_between() -> None:
    scheme = Scheme.parse("derived:bits=1.6,dropout=bit")
    assert (scheme.bits, scheme.block, scheme.projection, scheme.dropout) == (1.6, Block(128), 1, "bit")
    assert str(scheme) == "derived:bits=1.6,dropout=bit"
    assert scheme.as_record()["bits"] == 1.6
    # What a name says already leaves no trace, and whole bits stay whole.
    assert str(Scheme.parse("derived-lean:bits=1.6")) == "derived-lean"
    assert str(Scheme.parse("derived-lean:bits=2")) == "derived-lean:bits=2"
    assert all(each.derives == (each.name in DERIVED) for each in NAMED.values())


def test_an_override_that_changes_nothing_leaves_no_trace() -> None:
    assert str(Scheme.parse("exact/linear1:bits=2,projection=4/linear2:bits=2")) == "exact/linear1:projection=4"


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
        ("exact:bits=32", "bits is one of 1, 2, 4, 8"),
        ("bf16:bits=8", "write 'bf16'"),
        ("offload/linear1:bits=8", "write 'offload'"),
        ("int16", "did you mean 'int8'"),
        ("exact/", "names no call"),
        ("exact/:bits=2", "names no call"),
        ("exact/linear:bits=2", "'linear:bits=2'"),
        ("exact/linear1", "''"),
        ("exact/linear0:bits=4", "linear0 is no call"),
        ("exact/linear" + "9" * 5000 + ":bits=4", "linear999"),
        ("exact/linaer1:bits=4", "did you mean 'linear'"),
        ("exact/relu1:bits=4", "no call of 'relu'"),
        ("exact/linear1:bits=3", "bits is one of 1, 2, 4, 8"),
        ("exact/linear1:dropout=seed", "'dropout=seed'"),
        ("exact/linear1:bits=32,block=4", "give it nothing else"),
        ("exact/batch_norm2:projection=2", "batch_norm2 is never projected"),
        ("exact/linear1:bits=4/linear1:bits=8", "linear1 is overridden twice"),
        ("exact/linear1:levels=vm", "levels is one of uniform, clipped-normal"),
        ("exact:bits=1.6", "bits is one of 1, 2, 4, 8"),
        ("exact/linear1:bits=1.6", "bits is one of 1, 2, 4, 8"),
        ("derived:bits=1", "bits is one of 1.6, 2, 4, 8"),
        ("derived:bits=1.5", "bits=1.5"),
        ("derived:projection=8", "projection=8 is not possible: derived keeps an activation once"),
        ("derived-lean/linear2:bits=8", "linear2 is not possible: derived-lean keeps an activation once"),
        ("derived-fine/batch_norm1:bits=32", "batch_norm1 is not possible: derived-fine keeps an activation once"),
        ("derved", "did you mean 'derived'"),
    ],
)
def test_wrong_text_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(SchemeError) as caught:
        Scheme.parse(text)
    message = str(caught.value)
    assert says in message
    assert message.endswith(".")
    assert "\n" not in message


fragments = st.sampled_from(
    [
        *NAMED, ":", ",", "=", "/", "/linear1:", "/batch_norm2:", "/mm0:", "/relu1:", "bits", "bits=2", "bits=32",
        "bits=1.6", "block=64r", "block=1048577", "projection=8", "projection=1", "levels=uniform", "levels=",
        "dropout=seed", " ", "\n", "0", "٣", "²", "1_0", "+1", "\0", "\ud800",
    ]
)  # fmt: skip


@given(st.text(max_size=40) | st.lists(fragments, max_size=8).map("".join))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        scheme = Scheme.parse(text)
    except SchemeError as error:
        assert str(error).endswith(".")  # noqa: PT017
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
        {"name": "checkpoint", "bits": 2},
        {"name": "offload", "overrides": (Override("linear", 1, bits=4),)},
        {"name": "exact", "bits": 2, "projection": 0},
        {"name": "exact", "bits": 2, "levels": "vm"},
        {"name": "exact", "bits": 2, "dropout": "none"},
        {"name": "derived", "bits": 1},
        {"name": "derived"},
        {"name": "derived", "bits": 2, "projection": 2},
        {"name": "derived", "bits": 2, "overrides": (Override("linear", 1, bits=4),)},
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
